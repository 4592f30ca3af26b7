"""The report's figures: score against NFE, and against what the training cost, in network passes and in seconds."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from twinbench.report.comparisons import Place
from twinbench.report.headlines import Headline
from twinbench.report.summary import Board

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933")  # colour-blind safe
MARKERS = "osD^vPX*"

FIGURES: dict[str, Callable[[Sequence[Board]], bytes]] = {}  # by file name, filled below


def score_vs_nfe(boards: Sequence[Board]) -> bytes:
    """PNG: a panel a board; a line a method with its intervals, the teacher's best dashed."""
    styles = _styles(boards)

    def panel(axes: Axes, board: Board, headline: Headline) -> None:
        cells = board.cells[headline.metric]
        for row, style in styles.items():
            points = [(nfe, cells[row, nfe]) for nfe in board.nfes if (row, nfe) in cells]
            if not points:
                continue
            x, y = [nfe for nfe, _ in points], [cell.value for _, cell in points]
            spans = [(cell.value - cell.low, cell.high - cell.value) for _, cell in points]
            error = [[0.0 if math.isnan(span[i]) else max(span[i], 0.0) for span in spans] for i in (0, 1)]
            axes.errorbar(x, y, yerr=error, label=row, capsize=2, linewidth=1.2, markersize=4, **style)
        axes.set_xscale("log", base=2)
        nfes = sorted({nfe for row, nfe in cells if row in styles})
        axes.set_xticks(nfes, [str(nfe) for nfe in nfes])
        axes.minorticks_off()
        axes.set_xlabel("network evaluations")

    return _figure(boards, panel)


def score_vs_passes(boards: Sequence[Board]) -> bytes:
    """PNG: a panel a board, at the smallest NFE of a student; a point a run, a line a method of several budgets; the
    teacher's best dashed."""
    return _score_vs_cost(boards, "network passes of training", lambda board: board.passes)


def score_vs_seconds(boards: Sequence[Board]) -> bytes:
    """PNG: the same over the CPU seconds of training: at equal seconds, who is ahead?"""
    return _score_vs_cost(boards, "CPU seconds of training", lambda board: board.seconds)


def _score_vs_cost(boards: Sequence[Board], name: str, cost: Callable[[Board], Mapping[Place, list[float]]]) -> bytes:
    styles = _styles(boards)

    def panel(axes: Axes, board: Board, headline: Headline) -> None:
        cells, spent = board.cells[headline.metric], cost(board)
        nfe = min((nfe for row, nfe in cells if row not in board.teachers), default=0)
        for title, rows in _curves(board, nfe).items():
            shown = [row for row in rows if (row, nfe) in cells and row in styles]
            for row in shown:
                axes.scatter(
                    spent[row, nfe], cells[row, nfe].values, label=title if row == shown[0] else None, **styles[title]
                )
            means = [(fmean(spent[row, nfe]), cells[row, nfe].value) for row in shown]
            axes.plot(*zip(*sorted(means)), linewidth=1.2, color=styles[title]["color"]) if means else None
        most = max([1.0, *(max(x) for (row, k), x in spent.items() if row in styles and k == nfe)])
        axes.set_xlim(0, 1.15 * most)
        axes.set_xlabel(name)
        axes.set_title(f"{axes.get_title()}, NFE {nfe}", fontsize=9)

    return _figure(boards, panel)


def _curves(board: Board, nfe: int) -> dict[str, list[str]]:
    """The students' rows, those of one method with other budgets together: {a curve's name: its rows}."""
    out: dict[str, list[str]] = {}
    for row in board.rows:
        base = board.likes.get(row, row)
        spent = [fmean(board.passes.get((r, nfe), [0.0])) for r in (row, base)]
        same = max(spent) <= 1.05 * min(spent)
        if row not in board.teachers:
            out.setdefault(row if same else base, []).append(row)
    return out


FIGURES |= {
    "score-vs-nfe.png": score_vs_nfe,
    "score-vs-passes.png": score_vs_passes,
    "score-vs-seconds.png": score_vs_seconds,
}


def _styles(boards: Sequence[Board]) -> dict[str, dict[str, Any]]:
    """A colour and a marker for each student, the same on every panel."""
    rows = sorted({row for board in boards for row in board.rows if row not in board.teachers})
    return {r: {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)]} for i, r in enumerate(rows)}


def _figure(boards: Sequence[Board], panel: Callable[[Axes, Board, Headline], None]) -> bytes:
    """One panel a board with its first headline metric, three in a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [board for board in boards if board.headlines]
    columns = max(1, min(3, len(shown)))
    lines = max(1, math.ceil(len(shown) / columns))
    figure = Figure(figsize=(4.4 * columns, 3.4 * lines), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for i, board in enumerate(shown):
        axes, headline = figure.add_subplot(lines, columns, i + 1), board.headlines[0]
        axes.set_title(f"{board.recipe}: {board.benchmark} ({board.judge})", fontsize=9)
        axes.set_ylabel(headline.metric + ("" if headline.higher else " (lower is better)"))
        panel(axes, board, headline)
        best = board.teacher_best(headline)
        if not math.isnan(best):
            axes.axhline(best, color="0.4", linestyle="--", linewidth=1, label="teacher's best")
        if not headline.higher:
            axes.set_yscale("log")
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
