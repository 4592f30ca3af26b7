"""Means over prompts with their bootstrap intervals, and paired differences between methods.

What is resampled: the keys of the prompts, with replacement, within each stratum (a task), so that every stratum keeps
its number of keys. All rows of a key (its copies) go together. The indices depend on the sorted keys alone: all
methods, NFE budgets and seeds see the same ones, and a difference is therefore paired. Of several training seeds each
draw takes as many with replacement, all under the same prompts; runs in equal number are paired by position (the same
seed in both), in unequal number drawn apart. Intervals are percentile 95 % of 10,000 draws. Three seeds are few: the
interval over them is too narrow, so print each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

DRAWS = 10_000
LEVEL = 0.95
POWER = 0.8
CHUNK = 1 << 20  # resampled indices held at once

Items = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Metric:
    """The plain mean over strata of the mean of `column` over the item rows that match `where`.

    A row is {"key": ..., column: bool or float, stratum: ..., ...}; rows without that field are one stratum. `each` is
    what counts once in the mean: a row, or a key (the mean of its rows)."""

    column: str
    where: Mapping[str, str] = field(default_factory=dict, hash=False)
    stratum: str = "tag"
    each: Literal["row", "key"] = "row"


@dataclass(frozen=True)
class Difference:
    """a - b with its percentile interval and the two-sided bootstrap p of "no difference"."""

    value: float
    low: float
    high: float
    p: float

    @property
    def real(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


# ---- one metric ----


def evaluate(metric: Metric, items: Items) -> float:
    """The metric's value; nan where no row matches or a value is missing."""
    strata = _totals(metric, items).values()
    means = [sum(s for s, _ in table.values()) / sum(n for _, n in table.values()) for table in strata]
    return float(np.mean(means)) if means else float("nan")


def keys(metric: Metric, items: Items) -> frozenset[str]:
    """The keys of the rows that the metric reads; none of rows that an older version wrote, without its column."""
    rows = list(_matching(metric, items))
    return frozenset(row["key"] for row in rows) if all(metric.column in row for row in rows) else frozenset()


def standard_error(metric: Metric, items: Items, draws: int = DRAWS, seed: int = 0) -> float:
    """Bootstrap standard error of the metric over its prompts; nan where no row matches."""
    return float(np.std(bootstrap(metric, [items], draws, seed), ddof=1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the given order; nan stays nan and is not counted."""
    p = np.asarray(p_values, np.float64)
    out, running = np.full(len(p), np.nan), 0.0
    order = [i for i in np.argsort(p, kind="stable") if not np.isnan(p[i])]
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p[i]))
        out[i] = running
    return out.tolist()


# ---- the bootstrap ----


def bootstrap(metric: Metric, runs: Sequence[Items], draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """The metric of every run under the same resampled prompts, float64 [draws, runs]; equal runs get equal columns.

    ValueError if the runs' keys differ."""
    rng, out = np.random.default_rng(seed), np.zeros((draws, len(runs)))
    strata = _strata(metric, runs)
    if not strata:
        return np.full_like(out, np.nan)
    for totals in strata:
        n, step = len(totals), max(1, CHUNK // len(totals))
        columns, where = np.unique(totals, axis=1, return_inverse=True)
        for start in range(0, draws, step):
            stop = min(start + step, draws)
            sums, counts = np.split((resample(rng, n, stop - start) @ columns)[:, where.reshape(-1)], 2, axis=1)
            out[start:stop] += sums / counts
    return out / len(strata)


def resample(rng: np.random.Generator, n: int, draws: int) -> np.ndarray:
    """How often each of n keys is drawn in n draws with replacement, float64 [draws, n]."""
    index = rng.integers(n, size=(draws, n)) + n * np.arange(draws)[:, None]
    return np.bincount(index.reshape(-1), minlength=draws * n).reshape(draws, n).astype(np.float64)


def over_seeds(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """[draws, seeds] -> [draws]: the mean over as many seeds, with replacement; the same ones for equal shapes."""
    draws, seeds = values.shape
    pick = np.random.default_rng((seed, seeds)).integers(seeds, size=(draws, seeds))
    return np.take_along_axis(values, pick, axis=1).mean(1)


def percentiles(values: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def compare(value: float, a: np.ndarray, b: np.ndarray, seed: int = 0) -> Difference:
    """The difference `value` with the interval that draws a [draws, seeds of a] and b [draws, seeds of b] give it."""
    deltas = over_seeds(a, seed) - over_seeds(b, seed)
    if np.isnan(deltas).any():
        return Difference(value, float("nan"), float("nan"), float("nan"))
    tail = min(int((deltas <= 0).sum()), int((deltas >= 0).sum()))
    return Difference(value, *percentiles(deltas), min(1.0, 2 * (tail + 1) / (len(deltas) + 1)))


def keys_needed(value: float, a: np.ndarray, b: np.ndarray, keys: int, power: float = POWER) -> float:
    """How many prompts would show a difference of this size with the given power, at the level of the intervals.

    a, b: paired draws [draws, seeds] over `keys` prompts. With the seeds as they are: the error over the prompts alone
    falls as 1 / sqrt(prompts), by the normal formula n = ((z_level + z_power) sd / value)^2. inf for no difference."""
    error = float(np.std(a.mean(1) - b.mean(1), ddof=1))
    if np.isnan(error) or value == 0:
        return float("nan") if np.isnan(error) else float("inf")
    z = NormalDist().inv_cdf((1 + LEVEL) / 2) + NormalDist().inv_cdf(power)
    return max(2.0, math.ceil(keys * (z * error / value) ** 2 - 1e-9))


# ---- rows to totals ----


def _matching(metric: Metric, items: Items) -> Iterable[Mapping[str, Any]]:
    return (row for row in items if all(row.get(name) == value for name, value in metric.where.items()))


def _totals(metric: Metric, items: Items) -> dict[str, dict[str, tuple[float, int]]]:
    """{stratum: {key: (sum of the column, rows)}}, sorted.

    ValueError on a row without the column or on a key in two strata."""
    out: dict[str, dict[str, tuple[float, int]]] = {}
    home: dict[str, str] = {}
    for row in _matching(metric, items):
        key, stratum = row["key"], str(row.get(metric.stratum, ""))
        if metric.column not in row:
            raise ValueError(f"item {key!r} has no {metric.column!r}")
        if home.setdefault(key, stratum) != stratum:
            raise ValueError(f"item {key!r} stands in two strata: {home[key]!r} and {stratum!r}")
        value = row[metric.column]
        total, count = out.setdefault(stratum, {}).get(key, (0.0, 0))
        out[stratum][key] = (total + (float("nan") if value is None else float(value)), count + 1)
    if metric.each == "key":
        out = {stratum: {k: (total / n, 1) for k, (total, n) in table.items()} for stratum, table in out.items()}
    return {stratum: dict(sorted(out[stratum].items())) for stratum in sorted(out)}


def _strata(metric: Metric, runs: Sequence[Items]) -> list[np.ndarray]:
    """One float64 [keys, 2 x runs] a stratum: the sums of every run, then its numbers of rows."""
    tables = [_totals(metric, items) for items in runs]
    layouts = [{stratum: list(by_key) for stratum, by_key in table.items()} for table in tables]
    for other in layouts[1:]:
        if other != layouts[0]:
            odd = {k for v in layouts[0].values() for k in v} ^ {k for v in other.values() for k in v}
            raise ValueError(
                f"the runs were judged on different prompts; {len(odd)} are not in both: {sorted(odd)[:3]}"
            )
    pairs = [np.array([list(table[s].values()) for table in tables]) for s in layouts[0]]  # [runs, keys, 2]
    return [np.concatenate([pair[..., 0].T, pair[..., 1].T], axis=1) for pair in pairs]
