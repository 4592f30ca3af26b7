"""Which samples a batch holds: epoch by epoch in a fresh order, as a function of the step alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache

from twinbench.backbones.base import Backbone
from twinbench.data.base import World
from twinbench.data.buckets import Buckets
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


class Order:
    """The samples of every step, all of one bucket.

    Each bucket is a stream of its own, whose batches follow one another without a gap. Epoch e deals to a bucket of n
    samples its batches from floor(e n / total) to floor((e + 1) n / total): what an epoch leaves over, the next one
    begins with. The batches of an epoch come in a fresh order of buckets."""

    def __init__(self, buckets: Buckets, seed: int) -> None:
        self.members, self.seed = list(buckets.values()), seed
        self.streams = [Stream(len(rows), seed, "epoch", *size) for size, rows in buckets.items()]
        self._dealt = lru_cache(2)(self._deal)

    def __call__(self, step: int, held: Sequence[int], total: int) -> list[int]:
        """The samples `held` of the step's batch of `total`."""
        bucket, batch = self.turn(step, total)
        return [self.members[bucket][row] for row in self.streams[bucket](batch * total + i for i in held)]

    def turn(self, step: int, total: int) -> tuple[int, int]:
        """The bucket of a step, and how many batches it has given before."""
        late = (step + len(self.members) + 1) * total // sum(map(len, self.members)) + 1  # an epoch beyond the step
        epoch = bisect_right(range(late), step, key=lambda e: sum(self._before(e, total))) - 1
        before, dealt = self._before(epoch, total), self._dealt(epoch, total)
        place = step - sum(before)
        return dealt[place], before[dealt[place]] + dealt[:place].count(dealt[place])

    def _before(self, epoch: int, total: int) -> list[int]:
        """The batches that each bucket has given before an epoch."""
        return [epoch * len(rows) // total for rows in self.members]

    def _deal(self, epoch: int, total: int) -> list[int]:
        """The buckets of an epoch's steps."""
        before, after = self._before(epoch, total), self._before(epoch + 1, total)
        counts = [b - a for a, b in zip(before, after, strict=True)]
        once = [bucket for bucket, count in enumerate(counts) for _ in range(count)]
        return [once[i] for i in permutation(len(once), self.seed, "buckets", epoch).tolist()]


class Loader:
    """Batches for one backbone."""

    def __init__(self, data: World | Samples, backbone: Backbone, seed: int) -> None:
        self.samples = WorldSamples(data, backbone) if isinstance(data, World) else data
        self.order = Order(self.samples.buckets(), seed)

    def batch(self, step: int, held: Sequence[int], total: int) -> Batch:
        """The samples `held` of a global batch of `total`, which all have latents of one shape."""
        rows = self.order(step, held, total)
        return Batch(self.samples.latents(rows), *self.prompts(rows))

    def prompts(self, rows: Sequence[int]) -> tuple[Cond, Cond]:
        """The conditions of some samples, and as many empty ones."""
        return self.samples.cond(rows), self.samples.null(len(rows))
