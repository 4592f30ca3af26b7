"""Pairs of a noise and the sample that the frozen teacher carries it to: what some methods train on in place of data.

They are made before the first step, shard by shard in the run's folder, each shard with what it cost, so a kill loses
one shard at most. Pair i is a function of (seed, i): its noise has a key, its prompt a place in a shuffle of the
training prompts.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from twinbench.backbones.base import Backbone
from twinbench.data.base import World
from twinbench.data.loader import Loader, Stream
from twinbench.data.samples import Samples
from twinbench.errors import UserError
from twinbench.flow import Batch, Counted, Velocity, guided
from twinbench.method import Pairs
from twinbench.randomness import normal
from twinbench.sampler import Schedule, sample, schedule_times
from twinbench.sections import Train
from twinbench.tensors import read_tensors, save_tensors
from twinbench.training.lockstep import Lockstep
from twinbench.training.parallel import ALONE, Group, casting


@dataclass(frozen=True)
class Cost:
    """Of making some pairs."""

    passes: float
    seconds: float
    cpu_seconds: float


class PairLoader(Loader):
    """Batches of pairs, in an order of the same kind as that of data. A shard holds one batch of them.

    folder: of the shards; those there are taken up. `made`: what each of them cost."""

    def __init__(
        self,
        data: World | Samples,
        backbone: Backbone,
        seed: int,
        pairs: Pairs,
        train: Train,
        folder: Path,
        group: Group = ALONE,
    ) -> None:
        super().__init__(data, backbone, seed)
        self.pairs, self.seed, self.train, self.folder, self.group = pairs, seed, train, folder, group
        self.stream = Stream(pairs.count, seed, "epoch")
        prompts = Stream(len(self.samples), seed, "pairs")
        self.sample_of = torch.tensor(prompts(range(pairs.count)))  # whose prompt a pair has
        self.x, self.z = torch.empty(2, pairs.count, *backbone.shape)
        self.made: dict[int, Cost] = {}
        if group.first:
            for stale in folder.glob(".pairs-*"):  # left by a kill in the middle of a write
                stale.unlink(missing_ok=True)
        for first in self._firsts():
            if (path := self._path(first)).exists():
                tensors, cost = read_tensors(path)
                self._hold(first, tensors["x"], tensors["z"], Cost(**cost))

    def __len__(self) -> int:
        """Pairs that are made."""
        return sum(len(self._places(first)) for first in self.made)

    def batch(self, step: int, held: Sequence[int], total: int) -> Batch:
        """The pairs `held` of a global batch of `total`."""
        rows = self.stream(step * total + i for i in held)
        return Batch(self.x[rows], *self.prompts(self.sample_of[rows].tolist()), z=self.z[rows])

    def make(self, teacher: Velocity, lockstep: Lockstep) -> Iterator[Cost]:
        """Make the shards that are missing, one at a time; of several processes each makes a part of it."""
        counted = Counted(teacher)
        for first in self._firsts():
            if first in self.made:
                continue
            start, cpu, passes = time.perf_counter(), time.process_time(), counted.passes
            places = self._places(first)
            z = torch.stack([normal(self.x.shape[1:], self.seed, "pairs", i) for i in places])
            at_once = self.train.micro_batch or self.train.batch
            own = slice(self.group.rank, None, self.group.size)
            parts = zip(z[own].split(at_once), self.sample_of[places][own].split(at_once), strict=True)
            with lockstep.together(self.group.moved(self.samples.null(1))):
                made = [self._carried(counted, part, rows) for part, rows in parts if len(rows)]
            x = torch.empty_like(z)
            for rank, part in enumerate(self.group.every(torch.cat(made) if made else None)):
                if part is not None:
                    x[rank :: self.group.size] = part
            spent = self.group.sums({"passes": counted.passes - passes, "cpu": time.process_time() - cpu})
            cost = Cost(spent["passes"], time.perf_counter() - start, spent["cpu"])
            if self.group.first:
                save_tensors(self._path(first), {"x": x, "z": z}, asdict(cost))
            self._hold(first, x, z, cost)
            yield cost

    def _carried(self, teacher: Velocity, z: Tensor, rows: Tensor) -> Tensor:
        """The teacher's samples from noises z, of the prompts of some samples of the world."""
        z, (cond, null) = self.group.moved((z, self.prompts(rows.tolist())))
        schedule = Schedule(tuple(schedule_times(self.pairs.steps).tolist()), hop="same")
        with casting(self.train, self.group.device), self.group.placing():
            return sample(guided(teacher, null, self.pairs.guidance), z, cond, schedule).cpu()

    def _hold(self, first: int, x: Tensor, z: Tensor, cost: Cost) -> None:
        self.x[first : first + len(x)], self.z[first : first + len(z)] = x, z
        self.made[first] = cost

    def _firsts(self) -> range:
        """The first pair of every shard."""
        return range(0, self.pairs.count, self.train.batch)

    def _places(self, first: int) -> range:
        """The pairs of a shard."""
        return range(first, min(first + self.train.batch, self.pairs.count))

    def _path(self, first: int) -> Path:
        return self.folder / f"pairs-{first:08d}.safetensors"


def affordable(pairs: Pairs | None, train: Train, label: str) -> None:
    """Raises UserError if the budget does not reach beyond the making of the pairs."""
    if pairs and train.unit == "passes" and pairs.passes >= train.budget:
        raise UserError(
            f"method {label!r}: its {pairs.count} pairs take {pairs.passes} network passes, and train.budget is "
            f"{train.budget}; ask for fewer pairs or steps (--set methods.{label}.pairs=...), or raise the budget"
        )
