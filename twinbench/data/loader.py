"""Which samples a batch holds: epoch by epoch in a fresh order, as a function of the step alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import torch

from twinbench.backbones.base import Backbone
from twinbench.data.base import World
from twinbench.flow import Batch, Cond, take
from twinbench.randomness import permutation


class Stream:
    """The numbers below n without end, in every epoch all of them in a fresh order; parts: whose order it is."""

    def __init__(self, n: int, *parts: object) -> None:
        self.n = n
        self._order = lru_cache(2)(lambda epoch: permutation(n, *parts, epoch))

    def __call__(self, places: Iterable[int]) -> list[int]:
        """The numbers at some places of the stream."""
        return [int(self._order(place // self.n)[place % self.n]) for place in places]


class Loader:
    """Batches of a world for one backbone: sample i of step k is number k * total + i of a stream without end."""

    def __init__(self, world: World, backbone: Backbone, seed: int) -> None:
        self.world, self.backbone = world, backbone
        prompts, rows = np.unique(np.array(world.prompts), return_inverse=True)
        self.conditions, self.prompt_of = backbone.encode(prompts.tolist()), torch.from_numpy(rows)
        self.stream = Stream(len(world), seed, "epoch")

    def batch(self, step: int, held: Sequence[int], total: int) -> Batch:
        """The samples `held` of a global batch of `total`."""
        rows = self.stream(step * total + i for i in held)
        return Batch(self.world.x[rows].float(), *self.prompts(rows))

    def prompts(self, rows: Sequence[int]) -> tuple[Cond, Cond]:
        """The conditions of some samples of the world, and as many empty ones."""
        return take(self.conditions, self.prompt_of[list(rows)]), self.backbone.null(len(rows))
