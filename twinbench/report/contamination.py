"""The audit of a recipe's training captions as a table, beside its scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from twinbench import files
from twinbench.contamination.audit import KINDS, SCHEMA
from twinbench.errors import UserError
from twinbench.report.tables import Table


def audits(results: Path, recipes: Iterable[str]) -> dict[str, list[Table]]:
    """{recipe: the table of results/<recipe>/audit.json}, of the recipes that have one. Raises UserError for a file
    that no audit wrote."""
    places = {recipe: results / recipe / "audit.json" for recipe in recipes}
    return {recipe: [table(recipe, _read(place))] for recipe, place in places.items() if place.is_file()}


def _read(place: Path) -> Any:
    try:
        told = files.read_json(place)
    except ValueError as error:
        raise UserError(f"{error}; twinbench audit writes it anew") from None
    if not isinstance(told, dict) or told.get("schema") != SCHEMA:
        raise UserError(f"{place} is not of schema {SCHEMA}; twinbench audit writes it anew")
    return told


def table(recipe: str, audit: Mapping[str, Any]) -> Table:
    """One row a task: how many of its prompts some training caption matches, by the strictest kind of match."""
    rows = []
    for bench, tasks in audit["benchmarks"].items():
        for name, task in tasks.items():
            counts = tuple(str(task["matched"][kind]) for kind in KINDS)
            rows.append((f"{bench} {name}", str(task["prompts"]), *counts, str(task["captions"])))
    caption = (
        f"prompts that some of {audit['captions']:,} training captions matches, under the strictest kind; "
        f"{audit['flagged']:,} captions match, {audit['template']:,} begin as GenEval's do"
    )
    header = ("task", "prompts", *KINDS, "captions")
    return Table(f"{recipe}-audit", "contamination of the training captions", caption, header, tuple(rows))
