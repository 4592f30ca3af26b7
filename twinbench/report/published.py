"""Published numbers beside ours: their own table, with model, setting, source and kind; never in a row of ours.

results/published.csv: model, parameters, nfe (evaluations; guidance counts two), metric, value, setting, source, kind
(own paper, other paper, own repository, second hand), note. A board of an embedded world has none: nobody published on
it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from twinbench import plugins
from twinbench.data.geneval import TASKS
from twinbench.errors import UserError
from twinbench.report.summary import Board
from twinbench.report.tables import Table

COLUMNS = ("model", "parameters", "nfe", "metric", "value", "setting", "source", "kind", "note")


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


def found(boards: Iterable[Board], path: Path) -> dict[str, list[Table]]:
    """{recipe: the published tables of its boards}, at the numbers of evaluations that a board has."""
    rows, out = read(path), dict[str, list[Table]]()
    for board in boards:
        if board.benchmark not in plugins.names("benchmarks"):
            continue
        if plugins.benchmark(board.benchmark, board.world) is not plugins.benchmark(board.benchmark):
            continue
        for name, ours in METRICS.items():
            if ours.benchmark == board.benchmark and ours.metric in board.cells and ours.judge in board.judge:
                here = [row for row in rows if row["metric"] == name and row["nfe"] in map(str, board.nfes)]
                out.setdefault(board.recipe, []).extend(table(board, name, here) if here else [])
    return {recipe: tables for recipe, tables in out.items() if tables}


def table(board: Board, metric: str, rows: Iterable[dict[str, str]]) -> list[Table]:
    header = ("model", "parameters", "NFE", "value", "kind", "source", "setting", "note")
    names = [name.lower() for name in header]
    ordered = sorted(rows, key=lambda row: (int(row["nfe"]), row["model"], row["source"]))
    caption = (
        f"as printed by others, beside {board.benchmark} {METRICS[metric].metric}; not measured here: their judge, "
        "sampler, resolution and prompts may be others, and values of different sources need not compare"
    )
    cells = tuple(tuple(row[name] for name in names) for row in ordered)
    return [Table(f"{board.recipe}-published-{metric}", f"published: {metric}", caption, header, cells)]
