"""The audit of a recipe's training captions as tables, beside its scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from twinbench import files
from twinbench.contamination.audit import KINDS, SCHEMA
from twinbench.errors import UserError
from twinbench.report.table import NONE, Table

EXAMPLES, WIDTH = 2, 60  # shown of each kind, and letters of a text


def audits(results: Path, recipes: Iterable[str]) -> dict[str, list[Table]]:
    """{recipe: the tables of results/<recipe>/audit.json}, of the recipes that have one. Raises UserError for a file
    that no audit wrote."""
    places = {recipe: results / recipe / "audit.json" for recipe in recipes}
    return {recipe: tables(recipe, _read(place)) for recipe, place in places.items() if place.is_file()}


def _read(place: Path) -> Any:
    try:
        told = files.read_json(place)
    except ValueError as error:
        raise UserError(f"{error}; twinbench audit writes it anew") from None
    if not isinstance(told, dict) or told.get("schema") != SCHEMA:
        raise UserError(f"{place} is not of schema {SCHEMA}; twinbench audit writes it anew")
    return told


def tables(recipe: str, audit: Mapping[str, Any]) -> list[Table]:
    """One row a task: how many of its prompts some training caption matches; and what matches look like."""
    rows, asked = [], audit.get("embedding")
    for bench, tasks in audit["benchmarks"].items():
        for name, task in tasks.items():
            counts = (str(task["matched"][kind]) if kind != "embedding" or asked else NONE for kind in KINDS)
            rows.append((f"{bench} {name}", str(task["prompts"]), *counts, str(task["captions"])))
    caption = (
        f"prompts that some of {audit['captions']:,} training captions matches; a prompt counts once, under the "
        f"strictest kind of its matches alone; {audit['flagged']:,} captions match, "
        f"{audit['template']:,} begin as GenEval's do; meanings compared by {asked or 'nobody'}"
    )
    header = ("task", "prompts", *KINDS, "captions")
    name, title = f"{recipe}-audit", "contamination of the training captions"
    return [Table(name, title, caption, header, tuple(rows)), *_examples(name, title, audit)]


def _examples(name: str, title: str, audit: Mapping[str, Any]) -> list[Table]:
    """The first matches of each benchmark and kind."""
    rows = []
    for bench, tasks in audit["benchmarks"].items():
        for kind in KINDS:
            shown = [row for task in tasks.values() for row in task["examples"].get(kind, ())][:EXAMPLES]
            rows += [(kind, _short(row["caption"]), f"{bench} {row['key']}", _short(row["prompt"])) for row in shown]
    caption = f"at most {EXAMPLES} of each benchmark and kind, cut to {WIDTH} letters; audit.json has more"
    header = ("kind", "training caption", "prompt", "its text")
    return [Table(f"{name}-examples", f"{title}: examples", caption, header, tuple(rows))] if rows else []


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."
