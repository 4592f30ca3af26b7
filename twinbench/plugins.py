"""Methods, backbones, datasets, benchmarks and judges are found by entry point: ours and a third party's alike.

Names are listed without importing anything; the class is imported when it is asked for.
"""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

GROUPS = ("methods", "backbones", "datasets", "benchmarks", "judges")


class UserError(Exception):
    """Bad input: one sentence that names the thing and the mend. The command line prints it and exits with 2."""


def unknown(kind: str, name: str, known: list[str], hint: str) -> UserError:
    """The error for a name that does not exist, with the nearest one that does."""
    close = get_close_matches(name, known, 1, 0.5)
    guess = f"; did you mean {close[0]!r}?" if close else ""
    return UserError(f"{kind} {name!r} not found{guess} ({hint})")


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


def benchmark(name: str) -> Any:
    return _load("benchmarks", name)


def judge(name: str) -> Any:
    return _load("judges", name)
