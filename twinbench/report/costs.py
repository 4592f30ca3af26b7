"""What the training of each row cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twinbench.results import Record

BASE = "flow-matching"  # what the pace of the others is measured by
COSTS = ("steps", "images", "network_passes", "seconds", "cpu_seconds", "peak_bytes")


@dataclass(frozen=True)
class Cost:
    """The training of one row, means over its runs."""

    recipe: str
    row: str
    runs: int
    steps: float
    images: float
    network_passes: float
    seconds: float  # wall clock
    cpu_seconds: float
    peak_bytes: float
    networks: int  # held at once
    parameters: int  # of all of them
    held_bytes: int  # with gradients and moments where trained
    student: int  # parameters of the student alone
    relative: float  # CPU seconds a step, over those of the recipe's flow matching; nan without one
    finished: bool

    @property
    def passes_a_row(self) -> float:
        """Network passes of one row of a step."""
        return self.network_passes / self.images if self.images else float("nan")

    @property
    def bytes_a_parameter(self) -> float:
        return self.held_bytes / self.student if self.student else float("nan")


def is_teacher(run: Mapping[str, Any]) -> bool:
    return run["label"] == "teacher" or run["method"] == "pretrained"


def row_of(record: Record, names: Mapping[tuple[str, str, str], str]) -> str:
    return names[record.run["recipe"], record.run["label"], record.run["group"]]


def costs(found: Sequence[Record], names: Mapping[tuple[str, str, str], str]) -> list[Cost]:
    """One cost a row, the teachers first."""
    runs: dict[tuple[str, bool, str], dict[Path, Mapping[str, Any]]] = {}
    for record in found:
        key = (record.run["recipe"], not is_teacher(record.run), row_of(record, names))
        runs.setdefault(key, {})[record.folder] = record.run
    base = {recipe: _pace(group) for (recipe, _, _), group in runs.items() if _method(group) == BASE}
    out = []
    for (recipe, _, row), by_folder in sorted(runs.items()):
        group = list(by_folder.values())
        means = {name: _mean(name, group) for name in COSTS}
        networks = group[0].get("networks") or []
        held = {"networks": len(networks), "parameters": sum(int(net["parameters"]) for net in networks)}
        held |= {"held_bytes": sum(int(net["bytes"]) for net in networks)}
        held |= {"student": int(networks[0]["parameters"]) if networks else 0}
        relative = _pace(by_folder) / base.get(recipe, float("nan"))
        done = all(run.get("finished", True) for run in group)
        cost = {**held, **means, "relative": relative}
        out.append(Cost(recipe=recipe, row=row, runs=len(group), finished=done, **cost))  # type: ignore[arg-type]
    return out


def _mean(name: str, group: Sequence[Mapping[str, Any]]) -> float:
    """nan where it is not known, as of weights that were trained elsewhere."""
    values = [run.get(name) for run in group]
    return float("nan") if None in values else float(np.mean([float(value) for value in values if value is not None]))


def _method(group: Mapping[Path, Mapping[str, Any]]) -> str:
    return str(next(iter(group.values()))["method"])


def _pace(group: Mapping[Path, Mapping[str, Any]]) -> float:
    """CPU seconds a step."""
    steps = sum(float(run.get("steps") or 0) for run in group.values())
    return sum(float(run.get("cpu_seconds") or 0) for run in group.values()) / steps if steps else float("nan")
