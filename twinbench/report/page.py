"""The whole report in one of six formats, or as a folder with a Markdown page, an HTML page and the figures."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from twinbench import results
from twinbench.report import plots, published, tables
from twinbench.report.costs import Cost
from twinbench.report.summary import Board
from twinbench.report.table import Table, console, latex, markdown

Beside = Mapping[str, Sequence[Table]]  # {recipe: tables that stand after its own}
NOTHING: Beside = {}
FORMATS = ("table", "md", "html", "csv", "tex", "json")

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Few-step generators, compared</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b; }
figure { margin: 1.5rem 0; overflow-x: auto; }
figcaption { font-size: .85rem; color: #555; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead { border-bottom: 1px solid #1b1b1b; }
tbody tr:nth-child(even) { background: #f5f5f5; }
img { max-width: 100%; }
</style>
<h1>Few-step generators, compared</h1>
<p>{{ note }}</p>
{% for name, image in figures %}<figure><img alt="{{ name }}" src="data:image/png;base64,{{ image }}"></figure>
{% endfor %}{% for recipe, group in recipes.items() %}
<h2>{{ recipe }}</h2>
{% for table in group %}<h3>{{ table.title }}</h3>
<figure><table id="{{ table.name }}">
<thead><tr>{% for cell in table.header %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in table.rows %}{% set i = loop.index0 %}
<tr>{% for cell in row %}\
<td>{% if (i, loop.index0) in table.bold %}<b>{{ cell }}</b>{% else %}{{ cell }}{% endif %}</td>\
{% endfor %}</tr>{% endfor %}
</tbody></table><figcaption>{{ table.caption }}</figcaption></figure>
{% endfor %}{% endfor %}</html>
"""
NOTE = (
    "Bold: better than the runner-up, by a paired 95 % interval that excludes 0. "
    "The teacher is a reference and does not compete. NFE: network evaluations of one image."
)


def write_pages(boards: Sequence[Board], costs: Sequence[Cost], out: Path, beside: Beside = NOTHING) -> Path:
    """report.md, report.html and the figures of what was summarized; the path of report.html."""
    out.mkdir(parents=True, exist_ok=True)
    figures = {name: draw(boards) for name, draw in plots.FIGURES.items()}
    for name, image in figures.items():
        (out / name).write_bytes(image)
    links = "".join(f"![{name.removesuffix('.png')}]({name})\n" for name in figures)
    (out / "report.md").write_text(text("md", boards, costs, beside) + "\n" + links, encoding="utf-8")
    (out / "report.html").write_text(html(_joined(boards, costs, beside), figures), encoding="utf-8")
    return out / "report.html"


def _joined(boards: Sequence[Board], costs: Sequence[Cost], beside: Beside) -> dict[str, list[Table]]:
    return {recipe: [*group, *beside.get(recipe, ())] for recipe, group in tables.tables(boards, costs).items()}


def text(
    format: str,
    boards: Sequence[Board],
    costs: Sequence[Cost],
    beside: Beside = NOTHING,
    others: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """In one of FORMATS; csv holds the scores alone, json all our numbers. others: published rows, which stand after
    the scores of a csv, marked, and under a key of their own in json."""
    if format == "csv":
        import pandas as pd

        rows, fields = score_rows(boards), SCORE_FIELDS
        if others is not None:
            fields = [*fields, "published", *published.ALONE]
            marked = [{**row, "published": False} for row in rows] + [{**row, "published": True} for row in others]
            rows = [{field: row.get(field, "") for field in fields} for row in marked]  # whole numbers stay whole
        return pd.DataFrame(rows, columns=fields).to_csv(index=False, lineterminator="\n")
    if format == "json":
        told: dict[str, Any] = {"scores": score_rows(boards), "comparisons": comparison_rows(boards)}
        told["costs"] = [vars(cost) for cost in costs]
        if others is not None:
            told["published"] = [{**row, "value": float(row["value"])} for row in others]
        return json.dumps(results.plain(told), indent=1, ensure_ascii=False) + "\n"
    recipes = _joined(boards, costs, beside)
    if format == "html":
        return html(recipes, {name: draw(boards) for name, draw in plots.FIGURES.items()})
    if format == "tex":
        return "\n".join(latex(table) for group in recipes.values() for table in group)
    if format == "md":
        parts = [f"# Few-step generators, compared\n\n{NOTE}\n"]
        for recipe, group in recipes.items():
            parts += [f"## {recipe}\n", *(markdown(table) for table in group)]
        return "\n".join(parts)
    parts = []
    for recipe, group in recipes.items():
        parts += [f"== {recipe} ==\n", *(console(table) for table in group)]
    return "\n".join([*parts, "* better than the runner-up: the paired 95 % interval excludes 0\n"])


def html(recipes: dict[str, list[Table]], figures: dict[str, bytes]) -> str:
    """One page that needs no other file."""
    from jinja2 import Environment

    images = [(name.removesuffix(".png"), base64.b64encode(image).decode()) for name, image in figures.items()]
    return Environment(autoescape=True).from_string(PAGE).render(recipes=recipes, figures=images, note=NOTE)


# ---- the numbers, one row each ----

SCORE_FIELDS = ["recipe", "benchmark", "version", "judge", "asked", "metric", "label", "teacher", "nfe"]
SCORE_FIELDS += ["value", "low", "high", "seeds", "best", "relative_to_teacher"]


def score_rows(boards: Iterable[Board]) -> list[dict[str, Any]]:
    """One row a board, metric, method and NFE."""
    rows = []
    for board in boards:
        shared = {name: getattr(board, name) for name in ("recipe", "benchmark", "version", "judge", "asked")}
        headlines = {h.metric: h for h in board.headlines}
        for metric, cells in board.cells.items():
            ranked = metric in headlines and headlines[metric].ranked
            best = board.teacher_best(headlines[metric]) if ranked else float("nan")
            for label, nfe in sorted(cells, key=lambda place: (board.rows.index(place[0]), place[1])):
                cell = cells[label, nfe]
                row = {**shared, "metric": metric, "label": label, "teacher": label in board.teachers, "nfe": nfe}
                row |= {"value": cell.value, "low": cell.low, "high": cell.high, "seeds": len(cell.values)}
                rows.append(
                    {**row, "best": cell.best, "relative_to_teacher": cell.value / best if best else float("nan")}
                )
    return rows


def comparison_rows(boards: Iterable[Board]) -> list[dict[str, Any]]:
    """One row a comparison: of neighbours, and of a row with the one that it is like."""
    rows = []
    for board in boards:
        shared = {name: getattr(board, name) for name in ("recipe", "benchmark", "version", "judge", "asked")}
        for metric, found in board.comparisons.items():
            for c in (*found, *board.changes[metric]):
                pair = {**shared, "metric": metric, "nfe": c.nfe, "label": c.row, "other": c.other}
                span = {name: getattr(c.difference, name, None) for name in ("low", "high", "p")}
                seeds = [len(board.cells[metric][row, c.nfe].values) for row in (c.row, c.other)]
                pair |= {"value": c.value, **span, "p_holm": c.p_holm, "seeds": seeds}
                claim = {} if board.claim is None else {"claim": board.claim, "needed_for_claim": c.claimed}
                rows.append({**pair, "prompts": c.prompts, "needed": c.needed, **claim})
    return rows
