"""What stands after a recipe's own tables: the audit of its training captions, and the numbers of others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from twinbench.report import contamination, published
from twinbench.report.summary import Board
from twinbench.report.table import Table


def beside(results: Path, boards: Sequence[Board], others: Iterable[Mapping[str, Any]] = ()) -> dict[str, list[Table]]:
    """{recipe: tables}. others: published rows (`published.rows`)."""
    recipes = {board.recipe for board in boards}
    parts = [contamination.audits(results, recipes), published.tables(others)]
    return {recipe: [table for part in parts for table in part.get(recipe, ())] for recipe in recipes}
