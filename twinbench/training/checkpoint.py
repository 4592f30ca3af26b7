"""Checkpoints, complete and atomic; the newest is found by itself. One process writes a safetensors file, several a
folder of them (`shards`); any number of processes goes on from either.

Tensors are named student.*, average.* (where it is held), optimizer.<turn>.<which>.<parameter>.<slot>, and teacher.*
once it is no more the one that the run began with; the numbers that are no tensors (step, costs, the average's decay)
stand in the file's metadata. No generator state: randomness is keyed (`randomness`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from twinbench.errors import UserError
from twinbench.tensors import read_tensors, save_tensors
from twinbench.training.networks import Owned
from twinbench.training.parallel import ALONE, Group
from twinbench.training.shards import Shards, dealt, save_shards


@dataclass
class State:
    """How far a run is, and what it has cost so far. seconds: wall clock of training; cpu_seconds: of its process."""

    step: int = 0
    images: int = 0
    passes: float = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    phase: int = 0  # from 1 on the teacher is an average of the student, and part of the checkpoint

    def used(self, unit: str) -> float:
        return {"steps": self.step, "images": self.images, "passes": self.passes}[unit]


def save_checkpoint(folder: Path, owned: Owned, state: State, keep: int, group: Group = ALONE) -> Path:
    """Write step-<n>.safetensors, or step-<n>/ of several processes, then delete all but the newest `keep`. What is
    still written aside is waited for first."""
    group.settle()
    tensors = {f"{name}.{k}": v for name, network in owned.networks.items() for k, v in network.state_dict().items()}
    for turn, trained in owned.trained.items():
        for which, optimizer in enumerate(trained.optimizers):
            for parameter, slots in optimizer.state_dict()["state"].items():
                prefix = f"optimizer.{turn}.{which}.{parameter}"
                tensors |= {f"{prefix}.{slot}": torch.as_tensor(value) for slot, value in slots.items()}
    if state.phase and owned.teacher is not None:
        tensors |= {f"teacher.{k}": v for k, v in owned.teacher.state_dict().items()}
    metadata = {"state": asdict(state), "decay": owned.average.decay if owned.average else 0.0}
    if group.first:
        delete(folder.glob(".step-*"))  # left by a kill in the middle of a save
    if group.mesh is None:
        path = folder / f"step-{state.step:08d}.safetensors"
        save_tensors(path, tensors, metadata)
        delete(checkpoints(folder)[:-keep])
    else:
        path = folder / f"step-{state.step:08d}"
        save_shards(path, tensors, metadata, group, lambda: delete(checkpoints(folder)[:-keep]))
    return path


def delete(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(folder.glob("step-*"))


def load_checkpoint(path: Path, owned: Owned, group: Group = ALONE) -> State:
    """Put a checkpoint into the networks, their optimizers and the average; bit for bit what was saved."""
    own = holdings(owned) if path.is_dir() or group.mesh is not None else {}
    if path.is_dir():
        shards = Shards(path)
        metadata = shards.metadata
        tensors = shards.read({name: place(name, own, shards.empty(name)) for name in shards.stored})
    else:
        tensors, metadata = read_tensors(path)
        if group.mesh is not None:
            tensors = {name: dealt(value, place(name, own, value)) for name, value in tensors.items()}
    for name, network in owned.networks.items():
        fill(network, part(tensors, f"{name}."), path)
    if owned.average:
        owned.average.decay = metadata["decay"]
    for turn, trained in owned.trained.items():
        for which, optimizer in enumerate(trained.optimizers):
            kept: dict[int, dict[str, Tensor]] = {}
            for name, value in part(tensors, f"optimizer.{turn}.{which}.").items():
                parameter, slot = name.split(".", 1)
                kept.setdefault(int(parameter), {})[slot] = value
            optimizer.load_state_dict({"state": kept, "param_groups": optimizer.state_dict()["param_groups"]})
    state = State(**metadata["state"])
    if state.phase and owned.teacher is not None:
        fill(owned.teacher, part(tensors, "teacher."), path)
    return state


def holdings(owned: Owned) -> dict[str, Tensor]:
    """A run's own tensors by their names in a checkpoint; for all slots of an optimizer, the parameter they are of."""
    networks = owned.networks | ({"teacher": owned.teacher} if owned.teacher is not None else {})
    tensors = {f"{name}.{k}": v for name, network in networks.items() for k, v in network.state_dict().items()}
    for turn, trained in owned.trained.items():
        for which, optimizer in enumerate(trained.optimizers):
            parameters = (p for group in optimizer.param_groups for p in group["params"])
            tensors |= {f"optimizer.{turn}.{which}.{i}": p for i, p in enumerate(parameters)}
    return tensors


def place(name: str, own: dict[str, Tensor], stored: Tensor) -> Tensor:
    """Where a stored tensor goes: an empty one, dealt to the processes as the run's own is, if it has one of this
    shape."""
    like = own.get(name.rpartition(".")[0] if name.startswith("optimizer.") else name)
    if like is None or not like.ndim or like.shape != stored.shape:
        return stored
    return torch.empty_like(like, dtype=stored.dtype, requires_grad=False)


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def fill(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load weights that must fit exactly, but for parameters that the network names in `additions`: where the file has
    none, they keep what they hold. A network without content (meta) takes the tensors themselves. Raises UserError
    naming the first key that does not fit."""
    own = network.state_dict()
    tensors = {**{name: own[name] for name in getattr(network, "additions", ())}, **tensors}
    wrong = sorted({*own} ^ {*tensors}) or [k for k in own if own[k].shape != tensors[k].shape]
    if wrong:
        raise UserError(f"{path} does not fit this backbone: {wrong[0]!r} is missing, unexpected or of another shape")
    if any(value.is_meta for value in own.values()):
        network.load_state_dict({k: v.to(own[k].dtype) for k, v in tensors.items()}, assign=True)
    else:
        network.load_state_dict(tensors)
