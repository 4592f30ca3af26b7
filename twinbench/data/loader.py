"""Which samples a batch holds: epoch by epoch in a fresh order, as a function of the step alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from twinbench.backbones.base import Backbone
from twinbench.data.base import World
from twinbench.flow import Batch, take
from twinbench.randomness import permutation


class Loader:
    """Batches of a world for one backbone: sample i of step k is number k * total + i of a stream without end."""

    def __init__(self, world: World, backbone: Backbone, seed: int) -> None:
        self.world, self.backbone = world, backbone
        prompts, rows = np.unique(np.array(world.prompts), return_inverse=True)
        self.conditions, self.prompt_of = backbone.encode(prompts.tolist()), torch.from_numpy(rows)
        self._order = lru_cache(2)(lambda epoch: permutation(len(world), seed, "epoch", epoch))

    def batch(self, step: int, held: Sequence[int], total: int) -> Batch:
        """The samples `held` of a global batch of `total`."""
        stream = [step * total + i for i in held]
        rows = [int(self._order(n // len(self.world))[n % len(self.world)]) for n in stream]
        return Batch(
            self.world.x[rows].float(), take(self.conditions, self.prompt_of[rows]), self.backbone.null(len(rows))
        )
