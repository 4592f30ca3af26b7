"""Who is better: neighbours in the order of a board, and a changed method against the one that it is like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from twinbench import statistics
from twinbench.statistics import Difference

Place = tuple[str, int]  # (row, nfe)
Drawn = tuple[frozenset[str], np.ndarray]  # (keys, bootstrap draws [draws, seeds]); paired if the keys are equal
UNKNOWN: Drawn = (frozenset(), np.empty(0))


@dataclass(frozen=True)
class Comparison:
    """`row` minus `other` at one NFE; `difference` is None where nothing paired is known."""

    nfe: int
    row: str
    other: str
    value: float
    difference: Difference | None
    p_holm: float
    prompts: int  # that the comparison has
    needed: float  # that would show a difference of this size with power 0.8; nan where nothing paired is known
    claimed: float = float("nan")  # that would show one of the claimed size; nan without a claim

    @property
    def real(self) -> bool:
        return self.difference is not None and self.difference.real


def neighbours(
    values: Mapping[Place, float],
    rows: Sequence[str],
    higher: bool,
    drawn: Mapping[Place, Drawn],
    claim: float | None = None,
) -> list[Comparison]:
    """At every NFE each of the rows against the next one, the best first. claim: the size of a difference that is to
    be shown."""
    found = []
    for nfe in _nfes(values):
        order = [row for row in rows if not np.isnan(values.get((row, nfe), np.nan))]
        order.sort(key=lambda row: -values[row, nfe] if higher else values[row, nfe])
        found += [_compare(values, drawn, nfe, a, b, claim) for a, b in pairwise(order)]
    return _corrected(found)


def changes(
    values: Mapping[Place, float], likes: Mapping[str, str], drawn: Mapping[Place, Drawn], claim: float | None = None
) -> list[Comparison]:
    """At every NFE each row against the one that it is like."""
    both = [(nfe, *pair) for nfe in _nfes(values) for pair in likes.items()]
    return _corrected(
        [_compare(values, drawn, nfe, a, b, claim) for nfe, a, b in both if (a, nfe) in values and (b, nfe) in values]
    )


def _nfes(values: Mapping[Place, float]) -> list[int]:
    return sorted({nfe for _, nfe in values})


def _compare(
    values: Mapping[Place, float], drawn: Mapping[Place, Drawn], nfe: int, a: str, b: str, claim: float | None
) -> Comparison:
    value, result, needed, claimed = values[a, nfe] - values[b, nfe], None, float("nan"), float("nan")
    (keys_a, draws_a), (keys_b, draws_b) = (drawn.get((row, nfe), UNKNOWN) for row in (a, b))
    if keys_a and keys_a == keys_b:
        result = statistics.compare(value, draws_a, draws_b)
        needed, claimed = (
            statistics.keys_needed(size, draws_a, draws_b, len(keys_a)) if size is not None else float("nan")
            for size in (value, claim)
        )
    return Comparison(nfe, a, b, value, result, float("nan"), len(keys_a), needed, claimed)


def _corrected(found: Sequence[Comparison]) -> list[Comparison]:
    """With Holm's correction over all of them."""
    corrected = statistics.holm([c.difference.p if c.difference else float("nan") for c in found])
    return [replace(c, p_holm=p) for c, p in zip(found, corrected, strict=True)]
