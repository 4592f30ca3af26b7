"""What stands after a recipe's own tables: the audit of its training captions, and the numbers of others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from twinbench.report import contamination, published
from twinbench.report.summary import Board
from twinbench.report.tables import Table


def beside(results: Path, boards: Sequence[Board], against: str | None) -> dict[str, list[Table]]:
    """{recipe: tables}. against: None, `published` (results/published.csv) or a file of that form; errors as of
    `published.read`."""
    recipes = {board.recipe for board in boards}
    parts = [contamination.audits(results, recipes)]
    if against:
        parts.append(published.found(boards, results / "published.csv" if against == "published" else Path(against)))
    return {recipe: [table for part in parts for table in part.get(recipe, ())] for recipe in recipes}
