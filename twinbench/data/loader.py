"""Which samples a batch holds: epoch by epoch in a fresh order, as a function of the step alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from twinbench.backbones.base import Backbone
from twinbench.data.base import World
from twinbench.data.samples import Samples, WorldSamples
from twinbench.flow import Batch, Cond
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
    """Batches for one backbone: sample i of step k is number k * total + i of a stream without end."""

    def __init__(self, data: World | Samples, backbone: Backbone, seed: int) -> None:
        self.samples = WorldSamples(data, backbone) if isinstance(data, World) else data
        self.stream = Stream(len(self.samples), seed, "epoch")

    def batch(self, step: int, held: Sequence[int], total: int) -> Batch:
        """The samples `held` of a global batch of `total`."""
        rows = self.stream(step * total + i for i in held)
        return Batch(self.samples.latents(rows), *self.prompts(rows))

    def prompts(self, rows: Sequence[int]) -> tuple[Cond, Cond]:
        """The conditions of some samples, and as many empty ones."""
        return self.samples.cond(rows), self.samples.null(len(rows))
