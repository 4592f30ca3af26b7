"""What the training of each row cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twinbench.results import Record

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
    finished: bool


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
    out = []
    for (recipe, _, row), by_folder in sorted(runs.items()):
        group = list(by_folder.values())
        means = {name: float(np.mean([float(run.get(name) or 0) for run in group])) for name in COSTS}
        networks = group[0].get("networks") or []
        held = {"networks": len(networks), "parameters": sum(int(net["parameters"]) for net in networks)}
        done = all(run.get("finished", True) for run in group)
        out.append(Cost(recipe=recipe, row=row, runs=len(group), finished=done, **held, **means))  # type: ignore[arg-type]
    return out
