"""The moving average of a network's parameters, with TwinFlow's warm-up of its decay."""

from __future__ import annotations

import copy

import torch
from torch import nn

from twinbench.training.parallel import local


def next_decay(decay: float, limit: float) -> float:
    """decay + (1 - decay)(limit - decay)/2: from 0 about 1 - 2/(k + 2) after k calls, then up to the limit.

    Source: `cmd` in TwinFlow's `src/methodes/twinflow`."""
    return decay + 0.5 * (1 - decay) * (limit - decay)


class Average:
    """A frozen copy of a network that follows it. decay is part of a checkpoint: 0 at first, so the first update
    copies. into: the network that becomes the copy, of the same parameters; by default a new one."""

    def __init__(self, network: nn.Module, limit: float, into: nn.Module | None = None) -> None:
        if into is not None:
            into.load_state_dict(network.state_dict())
        self.network = (into or copy.deepcopy(network)).requires_grad_(False).eval()
        self.limit, self.decay = limit, 0.0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """average <- decay average + (1 - decay) network, then raise the decay. Both sharded alike, or neither."""
        torch._foreach_lerp_(local(self.network.parameters()), local(network.parameters()), 1 - self.decay)
        self.decay = next_decay(self.decay, self.limit)
