"""Methods, backbones, datasets, benchmarks and judges are found by entry point: ours and a third party's alike.

Names are listed without importing anything; the class is imported when it is asked for.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from twinbench.errors import unknown

GROUPS = ("methods", "backbones", "datasets", "benchmarks", "judges")


@cache
def _group(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"twinbench.{group}")}


def names(group: str) -> list[str]:
    """The names of one group, sorted; nothing is imported."""
    return sorted(_group(group))


def check(group: str, name: str) -> None:
    """Raise UserError unless the name exists; nothing is imported."""
    if name not in _group(group):
        raise unknown(group.removesuffix("s"), name, names(group), f"twinbench list {group}")


def _load(group: str, name: str) -> Any:
    check(group, name)
    return _group(group)[name].load()


def method(name: str) -> Any:
    """The Method class of this name. Raises UserError if there is none; so do the others."""
    return _load("methods", name)


def backbone(name: str) -> Any:
    return _load("backbones", name)


def dataset(name: str) -> Any:
    return _load("datasets", name)


def benchmark(name: str, world: str | None = None) -> Any:
    """The Benchmark class of this name: that of a world, `<name>-<world>`, or of any embedded world, `<name>-world`,
    where there is one; else the one for pictures of any model."""
    known = _group("benchmarks")
    if world and f"{name}-{world}" in known:
        return _load("benchmarks", f"{name}-{world}")
    if f"{name}-world" in known and world in _group("datasets") and hasattr(dataset(str(world)), "requests"):
        return _load("benchmarks", f"{name}-world")
    return _load("benchmarks", name)


def judge(name: str) -> Any:
    return _load("judges", name)
