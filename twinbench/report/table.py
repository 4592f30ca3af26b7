"""A table as text cells, and how it is written for a console, in Markdown and in LaTeX."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

NONE = "\u2013"  # an en dash


@dataclass(frozen=True)
class Table:
    name: str
    title: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    bold: frozenset[tuple[int, int]] = frozenset()  # (row, column)

    def marked(self, before: str, after: str) -> list[list[str]]:
        """The rows with the bold cells between two marks."""
        return [
            [before + cell + after if (i, j) in self.bold else cell for j, cell in enumerate(row)]
            for i, row in enumerate(self.rows)
        ]


def count(value: float) -> str:
    return NONE if math.isnan(value) else f"{value:,.0f}"


def number(value: float | None, digits: int) -> str:
    return NONE if value is None or math.isnan(value) else f"{value:.{digits}f}"


# ---- how it is written ----


def console(table: Table) -> str:
    """Plain lines, of the width that the table needs; `*` stands for bold."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Rich

    rich = Rich(title=None, box=box.SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(table.header):
        rich.add_column(name, justify="left" if i == 0 else "right", no_wrap=True)
    for row in table.marked("", " *"):
        rich.add_row(*row)
    out = io.StringIO()
    width = 4 * len(table.header) + sum(
        max(map(len, column)) + 2 for column in zip(table.header, *table.rows, strict=True)
    )
    Console(file=out, width=width, force_terminal=False, markup=False, highlight=False, emoji=False).print(rich)
    lines = "\n".join(line.rstrip() for line in out.getvalue().strip("\n").split("\n"))
    return f"{table.title}\n({table.caption})\n{lines}\n"


def markdown(table: Table) -> str:
    from tabulate import tabulate

    rows = [[cell.replace("|", "\\|") for cell in row] for row in table.marked("**", "**")]
    align = ("left", *("right",) * (len(table.header) - 1))
    text = tabulate(rows, table.header, tablefmt="pipe", disable_numparse=True, colalign=align if rows else None)
    return f"### {table.title}\n\n{text}\n\n{table.caption}\n"


def latex(table: Table) -> str:
    """A booktabs table with a caption and the label tab:<name>."""
    import pandas as pd

    def escape(text: str) -> str:
        special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", NONE: "--"}
        return "".join(special.get(char, "\\" + char if char in "&%$#_{}" else char) for char in text)

    safe = Table(table.name, "", "", table.header, tuple(tuple(map(escape, row)) for row in table.rows), table.bold)
    frame = pd.DataFrame(safe.marked(r"\textbf{", "}"), columns=[escape(name) for name in table.header])
    align = "l" + "r" * (len(table.header) - 1)
    caption = escape(f"{table.title}; {table.caption}")
    return frame.to_latex(index=False, escape=False, column_format=align, caption=caption, label=f"tab:{table.name}")
