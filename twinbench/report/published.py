"""Published numbers beside ours: their own table, with model, setting, source and kind; never in a row of ours.

results/published.csv, which is installed with the package: model, parameters, nfe (evaluations; guidance counts two),
metric, value, setting, source, kind (own paper, other paper, own repository, second hand), note. A board of an embedded
world has none: nobody published on it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinbench import plugins
from twinbench.data.geneval import TASKS
from twinbench.errors import UserError
from twinbench.report.summary import Board
from twinbench.report.table import Table

COLUMNS = ("model", "parameters", "nfe", "metric", "value", "setting", "source", "kind", "note")
ALONE = ("published_as", "parameters", "setting", "source", "kind", "note")  # what a row of ours has not


@dataclass(frozen=True)
class Ours:
    """What of ours a published metric is beside; `judge`: words that must stand in the judge's name, as of a
    reference."""

    benchmark: str
    metric: str
    judge: str = ""


METRICS = {
    "geneval": Ours("geneval", "overall"),
    **{f"geneval_{task}": Ours("geneval", task) for task in TASKS},
    "geneval_rewritten": Ours("geneval-rewritten", "overall"),
    "dpg": Ours("dpg", "official"),
    **{
        f"dpg_{name}": Ours("dpg", f"official_{name}")
        for name in ("global", "entity", "attribute", "relation", "other")
    },
    "fid_mjhq30k": Ours("fidelity", "fid", "mjhq-30k"),
    "clip_mjhq30k": Ours("fidelity", "clip", "mjhq-30k"),
    "fid_coco30k": Ours("fidelity", "fid", "coco-30k"),
    "fid_imagenet256": Ours("fidelity", "fid", "imagenet-256"),
    "fid_imagenet512": Ours("fidelity", "fid", "imagenet-512"),
    "diversity_lpips": Ours("diversity", "distance", "lpips"),
}


def place(results: Path, against: str) -> Path:
    """Where the numbers are: `published` is published.csv in the results, or else the shipped one; or a file."""
    if against != "published":
        return Path(against)
    package = Path(__file__).parents[1]  # in a checkout the shipped file lies beside it
    known = (results, package / "published", package.parent / "results")
    places = [folder / "published.csv" for folder in known]
    return next((path for path in places if path.is_file()), places[0])


def read(path: Path) -> list[dict[str, str]]:
    """Raises UserError if there is no such file, or another one."""
    if not path.is_file():
        raise UserError(f"no published numbers at {path}; --against takes `published` or a file of that form")
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows, names = list(reader), tuple(reader.fieldnames or ())
    except (csv.Error, ValueError):
        rows, names = [], ()
    if names != COLUMNS:
        raise UserError(f"{path} must have the columns {', '.join(COLUMNS)}")
    return rows


def rows(boards: Iterable[Board], path: Path) -> list[dict[str, Any]]:
    """What was published of the metrics of these boards, at the numbers of evaluations that they have; `metric` and
    `label` as ours are called, `value` as it was printed. Errors as of `read`."""
    known, out = read(path), dict[tuple[Any, ...], dict[str, Any]]()
    for board in boards:
        if board.benchmark not in plugins.names("benchmarks"):
            continue
        if plugins.benchmark(board.benchmark, board.world) is not plugins.benchmark(board.benchmark):
            continue
        for name, ours in METRICS.items():
            beside = ours.benchmark == board.benchmark and ours.metric in board.cells and ours.judge in board.judge
            for row in known if beside else ():
                if row["metric"] == name and row["nfe"] in map(str, board.nfes):
                    told: dict[str, Any] = {"recipe": board.recipe, "benchmark": board.benchmark, "metric": ours.metric}
                    told |= {"label": row["model"], "nfe": int(row["nfe"]), "value": row["value"]}
                    told |= {"published_as": name, **{column: row[column] for column in ALONE[1:]}}
                    out[tuple(told.values())] = told
    return list(out.values())


def tables(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Table]]:
    """{recipe: a table of each published metric}."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["recipe"], row["published_as"]), []).append(row)
    out: dict[str, list[Table]] = {}
    for (recipe, metric), group in groups.items():
        out.setdefault(recipe, []).append(table(recipe, metric, group))
    return out


def table(recipe: str, metric: str, rows: Iterable[Mapping[str, Any]]) -> Table:
    header = ("model", "parameters", "NFE", "value", "kind", "source", "setting", "note")
    names = ["label", *(name.lower() for name in header[1:])]
    ordered = sorted(rows, key=lambda row: (row["nfe"], row["label"], row["source"]))
    caption = (
        f"as printed by others, beside {METRICS[metric].benchmark} {METRICS[metric].metric}; not measured here: their "
        "judge, sampler, resolution and prompts may be others, and values of different sources need not compare"
    )
    cells = tuple(tuple(str(row[name]) for name in names) for row in ordered)
    return Table(f"{recipe}-published-{metric}", f"published: {metric}", caption, header, cells)
