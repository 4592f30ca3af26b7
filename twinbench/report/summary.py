"""From score files to numbers: means over seeds with intervals, who is better, at what cost. No text is made here.

A board holds what may be compared: one recipe, benchmark, version, judge and set of prompts. The teacher is a reference
on every board: it never competes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from twinbench import results, statistics
from twinbench.report.comparisons import Comparison, Drawn, Place, changes, neighbours
from twinbench.report.costs import Cost, costs, is_teacher, row_of
from twinbench.report.draws import feature_draws, item_draws
from twinbench.report.headlines import HEADLINES, Headline
from twinbench.results import Record
from twinbench.statistics import Metric

MetricsOf = Callable[[str, str | None], Mapping[str, Metric]]  # (benchmark, world)


@dataclass(frozen=True)
class Cell:
    """One method at one NFE: `value` is the mean of `values`, one a seed; low and high are nan without item rows."""

    value: float
    low: float
    high: float
    values: tuple[float, ...]
    seeds: tuple[int, ...]
    best: bool = False  # better than the runner-up, by an interval that excludes 0


@dataclass
class Board:
    recipe: str
    benchmark: str
    version: str
    judge: str
    asked: str  # how many images of which prompts
    headlines: tuple[Headline, ...]
    tasks: tuple[str, ...]  # the metrics of one task each, in the benchmark's order
    rows: list[str]  # the teacher's first
    teachers: frozenset[str]
    nfes: list[int]
    cells: dict[str, dict[Place, Cell]] = field(default_factory=dict)  # by metric
    comparisons: dict[str, list[Comparison]] = field(default_factory=dict)  # by headline metric: of neighbours
    changes: dict[str, list[Comparison]] = field(default_factory=dict)  # by headline metric: with what a row is like
    likes: dict[str, str] = field(default_factory=dict)  # {a row of a preset: the row that it changes}
    passes: dict[Place, list[float]] = field(default_factory=dict)  # training network passes, one a seed
    seconds: dict[Place, list[float]] = field(default_factory=dict)  # CPU seconds of training
    world: str | None = None  # the embedded world, or the kind of data
    flaws: tuple[str, ...] = ()  # scores with rows that could not be judged, or by judges that failed their own test
    claim: float | None = None  # the size of a difference that is to be shown

    @property
    def even(self) -> bool:
        """Whether the students had budgets of training within 5 % of each other: else nothing is called best."""
        spent = [p for (row, _), passes in self.passes.items() if row not in self.teachers for p in passes]
        return not spent or max(spent) <= 1.05 * min(spent)

    def teacher_best(self, headline: Headline) -> float:
        """The teacher's best value at any NFE; nan without a teacher."""
        values = [c.value for (row, _), c in self.cells[headline.metric].items() if row in self.teachers]
        values = [value for value in values if not np.isnan(value)]
        return (max if headline.higher else min)(values) if values else float("nan")


def declared(benchmark: str, world: str | None = None) -> Mapping[str, Metric]:
    """The item metrics that the installed benchmark of this name declares, in the world's own reading if it has one.

    None of what is not installed here, or was measured by a command of its own."""
    from twinbench import plugins

    known = benchmark in plugins.names("benchmarks") or f"{benchmark}-{world}" in plugins.names("benchmarks")
    return plugins.benchmark(benchmark, world).metrics if known else {}


def summarize(
    path: str | Path,
    recipe: str | None = None,
    preset: str | None = None,
    claim: float | None = None,
    metrics_of: MetricsOf = declared,
) -> tuple[list[Board], list[Cost]]:
    """Boards and costs of the results under `path`, in order of recipe and benchmark; errors as of `results.load`.

    preset: only its runs, with those of the methods that they are like; by default only what is in no preset. claim:
    comparisons also tell at how many prompts a difference of this size would be shown."""
    found = _of_preset([r for r in results.records(path) if recipe in (None, r.run["recipe"])], preset or "")
    if not found:
        what = f"recipe {recipe!r}" + (f", preset {preset!r}" if preset else "")
        raise FileNotFoundError(f"no results of {what} under {path}; twinbench eval writes them")
    names = row_names(found)
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in found:
        parts = (record.run["recipe"], *(record.score[k] for k in ("benchmark", "version", "judge")))
        groups.setdefault((*map(str, parts), str(record.score.get("prompts", ""))), []).append(record)
    ordered = sorted(groups.items(), key=_board_order)
    boards = [board(group, names, metrics_of(key[1], _world(group)), claim) for key, group in ordered]
    return boards, costs(found, names)


def _of_preset(found: Sequence[Record], preset: str) -> list[Record]:
    """The records of a preset and of what its runs are like; of no preset, those of the methods."""

    def part(record: Record, name: str) -> str:
        return str(record.run.get("resolved", {}).get(name, ""))

    if not preset:  # the choice of settings is shown with the candidates
        found = [r for r in found if not r.stem.endswith("-validation")]
    chosen = [r for r in found if part(r, "preset") == preset]
    bases = {(r.run["recipe"], part(r, "like"), r.score.get("prompts")) for r in chosen if preset}
    return chosen + [
        r for r in found if not part(r, "preset") and (r.run["recipe"], r.run["label"], r.score.get("prompts")) in bases
    ]


def _world(group: Sequence[Record]) -> str | None:
    return group[0].run.get("resolved", {}).get("data", {}).get("kind")


def _board_order(group: tuple[tuple[str, ...], Any]) -> tuple[Any, ...]:
    recipe, benchmark, *rest = group[0]
    known = list(HEADLINES)
    return recipe, known.index(benchmark) if benchmark in known else len(known), benchmark, rest


def row_names(found: Sequence[Record]) -> dict[tuple[str, str, str], str]:
    """{(recipe, label, group): row}: the label, with the group's first letters where one label has several groups."""
    seen = sorted({(r.run["recipe"], r.run["label"], r.run["group"]) for r in found})
    labels = [key[:2] for key in seen]
    return {key: key[1] if labels.count(key[:2]) == 1 else f"{key[1]} ({key[2][:6]})" for key in seen}


# ---- a board ----


def board(
    group: Sequence[Record],
    names: Mapping[tuple[str, str, str], str],
    metrics: Mapping[str, Metric],
    claim: float | None = None,
) -> Board:
    """The numbers of records that share recipe, benchmark, version, judge and prompts."""
    places: dict[Place, list[Record]] = {}
    for record in sorted(group, key=lambda r: (r.run["seed"], r.run["fingerprint"])):
        places.setdefault((row_of(record, names), int(record.score["nfe"])), []).append(record)
    first = group[0]
    teachers = frozenset(row_of(r, names) for r in group if is_teacher(r.run))
    stored = {name for r in group for name in r.score["metrics"]}
    order = [name for name in metrics if name in stored] + sorted(stored - set(metrics))
    wanted = HEADLINES.get(first.score["benchmark"], tuple(Headline(name) for name in order[:1]))
    headlines = tuple(h for h in wanted if h.metric in stored)
    tasks = tuple(name for name in order if name in metrics and "tag" in metrics[name].where)
    out = Board(
        recipe=first.run["recipe"],
        **{name: str(first.score[name]) for name in ("benchmark", "version", "judge")},  # type: ignore[arg-type]
        asked=" ".join(str(first.score[key]) for key in ("n", "prompts") if key in first.score),
        headlines=headlines,
        tasks=tasks,
        rows=sorted({row for row, _ in places}, key=lambda row: (row not in teachers, row)),
        teachers=teachers,
        nfes=sorted({nfe for _, nfe in places}),
        world=_world(group),
        flaws=tuple(told for place, rs in sorted(places.items()) for r in rs for told in _flaws(place, r.score)),
        claim=claim,
    )
    out.passes = {place: [float(r.run["network_passes"] or 0) for r in rs] for place, rs in places.items()}
    out.seconds = {place: [float(r.run.get("cpu_seconds") or 0) for r in rs] for place, rs in places.items()}
    out.likes = _likes(group, names)
    items = {place: [r.items() for r in rs] for place, rs in places.items()} if metrics else {}
    all_drawn: dict[str, dict[Place, Drawn]] = {}
    for name in dict.fromkeys([*(h.metric for h in headlines), *tasks]):
        all_drawn[name] = item_draws(metrics[name], items) if name in metrics else {}
        out.cells[name] = {p: _cell(name, rs, all_drawn[name].get(p)) for p, rs in places.items() if _has(name, rs)}
    competing = {place: rs for place, rs in places.items() if place[0] not in teachers}
    for headline in headlines:
        name = headline.metric
        drawn = all_drawn[name] if name in metrics else feature_draws(competing) if name == "fd" else {}
        _rank(out, headline, drawn)
    return out


def _flaws(place: Place, score: Mapping[str, Any]) -> list[str]:
    row, nfe = place
    counted = [f"{score['errors']} rows count as wrong that could not be judged"] if score.get("errors") else []
    untested = ["its judge failed its own test or was not asked"] if score.get("untested") else []
    return [f"{row} at NFE {nfe}: {told}" for told in counted + untested]


def _value(name: str, record: Record) -> float:
    value = record.score["metrics"].get(name, {}).get("value")
    return float("nan") if value is None else float(value)


def _has(name: str, runs: Sequence[Record]) -> bool:
    return any(name in r.score["metrics"] for r in runs)


def _cell(name: str, runs: Sequence[Record], drawn: Drawn | None) -> Cell:
    values = tuple(_value(name, r) for r in runs)
    low, high = (float("nan"),) * 2 if drawn is None else statistics.percentiles(statistics.over_seeds(drawn[1]))
    return Cell(float(np.mean(values)), low, high, values, tuple(int(r.run["seed"]) for r in runs))


def _likes(group: Sequence[Record], names: Mapping[tuple[str, str, str], str]) -> dict[str, str]:
    """What each row of a preset is like, where one row of the board has that label."""
    rows: dict[str, set[str]] = {}
    for record in group:
        rows.setdefault(record.run["label"], set()).add(row_of(record, names))
    like = {row_of(r, names): rows.get(r.run.get("resolved", {}).get("like", ""), set()) for r in group}
    return {row: min(found) for row, found in like.items() if len(found) == 1 and row not in found}


def _rank(out: Board, headline: Headline, drawn: Mapping[Place, Drawn]) -> None:
    """Compares the competing rows, and marks the best of each NFE where the interval proves it."""
    cells = out.cells[headline.metric]
    competing = {place: cell.value for place, cell in cells.items() if place[0] not in out.teachers}
    values = competing if headline.ranked else {}
    found = neighbours(values, out.rows, headline.higher, drawn, out.claim)
    for nfe in out.nfes:
        first = next((c for c in found if c.nfe == nfe), None)
        if first and first.real and out.even:
            cells[first.row, nfe] = replace(cells[first.row, nfe], best=True)
    out.comparisons[headline.metric] = found
    out.changes[headline.metric] = changes(values, out.likes, drawn, out.claim)
