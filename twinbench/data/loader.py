"""Which samples a batch holds: epoch by epoch in a fresh order, as a function of the step alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from twinbench.backbones.base import Backbone
from twinbench.data.base import World
from twinbench.flow import Batch, Cond
from twinbench.randomness import permutation


class Loader:
    """Batches of a world for one backbone: sample i of step k is number k * total + i of a stream without end."""

    def __init__(self, world: World, backbone: Backbone, seed: int) -> None:
        self.world, self.backbone, self.seed = world, backbone, seed
        self._order = lru_cache(2)(lambda epoch: permutation(len(world), seed, "epoch", epoch))

    def batch(self, step: int, held: Sequence[int], total: int) -> Batch:
        """The samples `held` of a global batch of `total`."""
        stream = [step * total + i for i in held]
        rows = [int(self._order(n // len(self.world))[n % len(self.world)]) for n in stream]
        cond: Cond = {"tokens": self.world.tokens_of[rows]}
        return Batch(self.world.x[rows].float(), cond, self.backbone.null(len(rows)))
