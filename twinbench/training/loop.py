"""The training loop. A step is a pure function of (seed, step, the samples it holds): nothing else is kept but the
networks, their optimizers and the average, so a resumed run ends, bit for bit, where an uninterrupted one does.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from twinbench.backbones.base import Backbone
from twinbench.data.base import World
from twinbench.data.loader import Loader
from twinbench.data.samples import Samples
from twinbench.errors import WorkError
from twinbench.files import write_bytes
from twinbench.method import Method, Turn
from twinbench.randomness import Rng
from twinbench.sampler import Plan, Schedule
from twinbench.sections import Train
from twinbench.training import checkpoint, log
from twinbench.training.adapters import save_weights
from twinbench.training.checkpoint import State
from twinbench.training.lockstep import Lockstep
from twinbench.training.networks import assemble
from twinbench.training.pairs import Cost, PairLoader
from twinbench.training.parallel import ALONE, Group, casting, whole
from twinbench.training.preview import preview


class Trainer:
    """Trains one method; iterate over it to make steps, each of which gives its log row.

    folder: where checkpoints/, log.jsonl and weights.safetensors go. The newest checkpoint there is taken up.
    plans: the rows of the sample pictures. group: the processes that train together, each with a Trainer of its own;
    the first of them writes."""

    def __init__(
        self,
        folder: Path,
        method: Method,
        backbone: Backbone,
        data: World | Samples,
        train: Train,
        seed: int,
        plans: Sequence[Plan] = (Plan(1, Schedule((1.0,))),),
        group: Group = ALONE,
    ) -> None:
        self.folder, self.method, self.train, self.seed, self.plans = folder, method, train, seed, plans
        self.group = group
        self.backbone, self.data, self.loader = backbone, data, Loader(data, backbone, seed)
        if method.pairs:
            self.loader = PairLoader(data, backbone, seed, method.pairs, train, folder / "pairs", group)
        if train.recompute:
            backbone.recompute()
        if group.size == 1:
            backbone.to(group.device)
        self.owned = assemble(backbone, method, train, seed, group)
        self.networks, self.counters = self.owned.velocities(method.needs)
        self.lockstep = Lockstep(group, self.owned.sharded, backbone.shape)
        self.state = State()
        if saved := group.every(checkpoint.checkpoints(folder / "checkpoints"))[0]:
            self.state = checkpoint.load_checkpoint(saved[-1], self.owned, group)
        elif isinstance(self.loader, PairLoader):
            for cost in self.loader.made.values():
                self._spend(cost)
        if group.first:
            log.trim(folder / "log.jsonl", self.state.step)

    # ---- progress ----

    @property
    def progress(self) -> float:
        """The share of the budget that is used, in [0, 1]."""
        if not self.train.budget or not self.method.turns(self.state.step):
            return 1.0
        return min(self.state.used(self.train.unit) / self.train.budget, 1.0)

    @property
    def finished(self) -> bool:
        """Whether the budget is used and the weights that are judged are written."""
        return self.progress >= 1 and (self.folder / "weights.safetensors").exists()

    @property
    def evaluated(self) -> torch.nn.Module:
        """The network that is judged."""
        average = self.train.evaluate == "average" and self.state.step > 0
        return self.owned.networks["average" if average else "student"]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if self.group.every(self.finished)[0]:
            return
        yield from self.prepare()
        while self.progress < 1:
            row = self.step()
            if self.state.step % self.train.save_every == 0 and self.progress < 1:
                self.save()
            yield row
        self.save()

    # ---- before the first step ----

    def prepare(self) -> Iterator[dict[str, Any]]:
        """Make the teacher's pairs that are missing, if the method trains on them; a row a shard."""
        if not isinstance(self.loader, PairLoader):
            return
        assert self.networks.teacher is not None, "pairs are made by the teacher: needs must name it"
        for cost in self.loader.make(self.networks.teacher, self.lockstep):
            if not self.state.step:  # a shard that was lost later is made again at no charge, as a lost step is
                self._spend(cost)
            yield {"step": self.state.step, "pairs": len(self.loader), **self._spent()}

    def _spend(self, cost: Cost) -> None:
        state = self.state
        state.passes += cost.passes
        state.seconds += cost.seconds
        state.cpu_seconds += cost.cpu_seconds
        state.peak_bytes = max(state.peak_bytes, peak_bytes(self.group.device))

    def _spent(self) -> dict[str, Any]:
        state = self.state
        row = {"images": state.images, "passes": state.passes, "seconds": round(state.seconds, 3)}
        return row | {"peak_bytes": state.peak_bytes, "progress": self.progress}

    def _enter_phase(self) -> None:
        """Where a new phase of the method begins, the student's average becomes the teacher."""
        if (phase := self.method.phase(self.progress)) > self.state.phase:
            assert self.owned.teacher is not None, "a method with phases needs a teacher"
            self.owned.teacher.load_state_dict(self.owned.networks["average"].state_dict())
            self.state.phase = phase

    # ---- one step ----

    def step(self) -> dict[str, Any]:
        """One student update with its cycle of turns; returns and writes the log row."""
        for _ in self.prepare():
            pass
        self._enter_phase()
        start, cpu = time.perf_counter(), time.process_time()
        before = sum(counter.passes for counter in self.counters)
        row: dict[str, Any] = {"step": self.state.step + 1}
        turns = self.method.turns(self.state.step)
        for i, name in enumerate(turns):
            row |= self._turn(Turn(name, self.state.step, self.progress, turns[:i].count(name)))
        self.state.step += 1
        self.state.images += self.train.batch
        passes = sum(counter.passes for counter in self.counters) - before
        spent = self.group.sums({"passes": passes, "cpu": time.process_time() - cpu})
        self._spend(Cost(spent["passes"], time.perf_counter() - start, spent["cpu"]))
        row |= self._spent()
        if self.group.first:
            log.add(self.folder / "log.jsonl", row)
        return row

    def _turn(self, turn: Turn) -> dict[str, float]:
        trained = self.owned.trained[turn.name]
        self.owned.train_only(turn.name)
        if self.owned.average and turn.name == "student" and not turn.repeat:
            self.owned.average.update(trained.network)
        terms = self._gradients(turn)
        self.group.add_gradients(trained.network)
        norm = whole(torch.nn.utils.clip_grad_norm_(trained.network.parameters(), self.train.clip))
        if not torch.isfinite(norm):
            raise self._stopped(turn, "the gradient norm")
        rate = self._rate(turn)
        for optimizer in trained.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        prefix = "" if turn.name == "student" else f"{turn.name}."
        logged = {**terms, "gradient": norm.item(), "rate": rate}
        return {f"{prefix}{name}": value for name, value in logged.items()}

    def _gradients(self, turn: Turn) -> dict[str, float]:
        """Accumulate the gradients of the turn's terms, one micro-batch after the other; returns the terms' values."""
        total, own = self.train.batch, self.group.rows(self.train.batch)
        size = self.train.micro_batch or len(own)
        sums: dict[str, float] = {}
        logged: dict[str, float] = {}  # rows of the micro-batches that gave a log: not all hold every role
        for start in own[::size]:
            held = range(start, min(start + size, own.stop))
            batch = self.loader.batch(turn.step, held, total)
            shape = self.backbone.shape if batch.x is None else batch.x.shape[1:]
            rng = Rng(self.seed, turn.step, turn.key, held, total, shape)
            batch, draws = self.group.moved((batch, self.method.draw(batch, rng, turn)))
            with casting(self.train, self.group.device), self.group.placing(), self.lockstep.together(batch.null):
                terms = self.method.loss(self.networks, batch, draws, turn)
                loss = terms.total()
            for name, term in terms.losses.items():
                sums[name] = sums.get(name, 0.0) + term.value().item()
            for name, mean in terms.logs.items():
                sums[f"log.{name}"] = sums.get(f"log.{name}", 0.0) + mean.item() * len(held)
                logged[f"log.{name}"] = logged.get(f"log.{name}", 0) + len(held)
            loss = self.lockstep.owed(loss)
            if loss.requires_grad:
                loss.backward()
        sums, rows = self.group.sums(sums), self.group.sums(logged)
        for name, value in sums.items():
            if not name.startswith("log.") and not math.isfinite(value):
                raise self._stopped(turn, f"term {name!r}")
        return {name: value / rows.get(name, 1) for name, value in sums.items()}

    def _rate(self, turn: Turn) -> float:
        rise = min(1.0, (turn.step + 1) / self.train.warmup) if self.train.warmup else 1.0
        left = 1 - self.method.course(turn.progress)
        fall = min(1.0, left / self.train.decay) if self.train.decay else 1.0
        return self.train.lr * self.method.rate(turn.name) * rise * fall

    def _stopped(self, turn: Turn, what: str) -> WorkError:
        folder = self.folder / "failed"
        path = checkpoint.save_checkpoint(folder, self.owned, self.state, 1, self.group)
        self.group.settle()
        return WorkError(
            f"step {turn.step + 1}, turn {turn.name!r}: {what} is not finite; lower train.lr (--set train.lr=...); "
            f"the networks at this moment: {path}"
        )

    # ---- saving ----

    def save(self) -> None:
        """A checkpoint, and at the end of the budget the weights that are judged."""
        if self.progress < 1 and not self.state.step:
            return  # the pairs keep themselves
        checkpoint.save_checkpoint(self.folder / "checkpoints", self.owned, self.state, self.train.keep, self.group)
        if isinstance(self.data, World):  # of a large model neither VAE nor text encoder is here: eval draws
            with casting(self.train, self.group.device):
                picture = preview(self.evaluated, self.backbone, self.data, self.plans)
            if self.group.first:
                write_bytes(self.folder / "samples" / f"step-{self.state.step:08d}.png", picture)
        if self.progress >= 1:
            self.group.settle()
            save_weights(self.folder, self.evaluated, {"step": self.state.step}, self.group)
        self.group.wait()


def peak_bytes(device: torch.device) -> int:
    """The largest memory that this process has held: on its accelerator, or else of the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
