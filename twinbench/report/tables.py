"""What the report's tables say, as text cells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from twinbench.report.comparisons import Comparison, Place
from twinbench.report.costs import Cost
from twinbench.report.headlines import Headline
from twinbench.report.summary import Board, Cell
from twinbench.report.table import NONE, Table, count, number

MIB = 1 << 20


def tables(boards: Iterable[Board], costs: Iterable[Cost]) -> dict[str, list[Table]]:
    """{recipe: its tables}: of each board the headline metrics, tasks, seeds and comparisons; then the costs."""
    out: dict[str, list[Table]] = {}
    for board in boards:
        found = out.setdefault(board.recipe, [])
        found += [main_table(board, headline) for headline in board.headlines]
        if board.headlines and not math.isnan(board.teacher_best(board.headlines[0])):
            found += relative_table(board)
        found += task_tables(board) + seed_table(board) + comparison_tables(board)
    by_recipe: dict[str, list[Cost]] = {}
    for cost in costs:
        by_recipe.setdefault(cost.recipe, []).append(cost)
    for recipe, group in by_recipe.items():
        out.setdefault(recipe, []).append(cost_table(group))
    return out


def main_table(board: Board, headline: Headline) -> Table:
    """Methods by NFE, "0.72 [0.69, 0.75]"; bold where the best is better than the runner-up."""
    cells = board.cells[headline.metric]
    rows, bold = [], set()
    for i, row in enumerate(board.rows):
        rows.append((row, *(interval_text(cells.get((row, nfe)), headline.digits) for nfe in board.nfes)))
        bold |= {(i, j) for j, nfe in enumerate(board.nfes, 1) if (row, nfe) in cells and cells[row, nfe].best}
    sense = f"{'higher' if headline.higher else 'lower'} is better; " if headline.ranked else ""
    caption = f"{sense}judged by {board.judge}, version {board.version}"
    if not board.even:
        caption += "; budgets of training differ, see the costs: nothing is called best"
    if board.asked:
        caption += f"; images: {board.asked}"
    spans = {place: cell for place, cell in cells.items() if not math.isnan(cell.low)}
    if single := of_one_seed(spans):
        caption += f"; {single}: [95 % interval over prompts alone]"
    if any(len(cell.values) > 1 for cell in spans.values()):
        caption += "; mean over seeds [95 % interval over prompts and seeds]"
    caption = "; ".join((caption, *board.flaws))
    header = ("method", *(f"NFE {nfe}" for nfe in board.nfes))
    return _table(board, headline.metric, headline.metric, caption, header, rows, bold)


def of_one_seed(cells: Mapping[Place, Cell]) -> str:
    """As in "one seed (a, b at NFE 1)", with the NFE where a row has more at others; "" where none has one seed."""
    seeds: dict[str, dict[int, int]] = {}
    for (row, nfe), cell in cells.items():
        seeds.setdefault(row, {})[nfe] = len(cell.values)
    found = []
    for row, counts in sorted(seeds.items()):
        single = [nfe for nfe, n in sorted(counts.items()) if n == 1]
        found += [row] if len(single) == len(counts) else [f"{row} at NFE {nfe}" for nfe in single]
    if found == sorted(seeds):
        return "one seed each" if found else ""
    return f"one seed ({', '.join(found)})" if found else ""


def relative_table(board: Board) -> list[Table]:
    """The first headline metric over the teacher's best value of it."""
    headline = board.headlines[0]
    best, cells = board.teacher_best(headline), board.cells[headline.metric]
    students = [row for row in board.rows if row not in board.teachers]
    if not students or best == 0:
        return []
    values = {place: cell.value / best for place, cell in cells.items()}
    nfes = [nfe for nfe in board.nfes if any((row, nfe) in cells for row in students)]
    rows = [(row, *(number(values.get((row, nfe)), 2) for nfe in nfes)) for row in students]
    caption = f"{headline.metric} over the teacher's best, {number(best, headline.digits)}; judged by {board.judge}"
    header = ("method", *(f"NFE {nfe}" for nfe in nfes))
    return [_table(board, "relative", "relative to the teacher", caption, header, rows)]


def task_tables(board: Board) -> list[Table]:
    out, held = [], [task for task in board.tasks if task.startswith("heldout_")]
    for nfe in board.nfes if board.tasks else ():
        present = [row for row in board.rows if any((row, nfe) in board.cells[task] for task in board.tasks)]
        caption = f"mean over seeds; judged by {board.judge}, version {board.version}"
        for prefix, tasks in (("", [t for t in board.tasks if t not in held]), ("held-out ", held)):
            if tasks:
                rows = [(row, *(_text(board, task, row, nfe) for task in tasks)) for row in present]
                name, title = f"{prefix[:4]}tasks-nfe{nfe}", f"by {prefix}task at NFE {nfe}"
                header = ("method", *(task.removeprefix("heldout_") for task in tasks))
                out.append(_table(board, name, title, caption, header, rows))
    return out


def seed_table(board: Board) -> list[Table]:
    """Each seed's value, where some method has several."""
    rows = []
    for headline in board.headlines:
        for (row, nfe), cell in sorted(
            board.cells[headline.metric].items(), key=lambda c: (board.rows.index(c[0][0]), c[0][1])
        ):
            if len(cell.values) > 1:
                values = ", ".join(number(value, headline.digits + 1) for value in cell.values)
                rows.append((row, headline.metric, str(nfe), ", ".join(map(str, cell.seeds)), values))
    header = ("method", "metric", "NFE", "seeds", "values")
    return [_table(board, "seeds", "by seed", f"judged by {board.judge}", header, rows)] if rows else []


def comparison_tables(board: Board) -> list[Table]:
    """Is each method better than the next in order, and what did each change of one do? The teacher takes no part."""
    caption = (
        "paired over prompts and seeds; real: the interval excludes 0; p corrected over a metric's comparisons; "
        "prompts needed to show a difference of this size 4 times in 5 with these seeds (prompts that there are)"
    )
    kinds = (
        ("comparisons", "better than the next?", "next", board.comparisons),
        ("changes", "what did the change do?", "it is like", board.changes),
    )
    out = []
    for name, title, other, found in kinds:
        pairs = [(h, c) for h in board.headlines for c in found[h.metric]]
        rows = [_comparison(h, c) for h, c in pairs]
        header = ["metric", "NFE", "method", other, "difference", "95 % interval", "p (Holm)", "real", "prompts needed"]
        if board.claim is not None:
            header.append(f"for {board.claim:g}")
            rows = [(*row, needed(c.claimed, c.prompts)) for row, (_, c) in zip(rows, pairs, strict=True)]
        out += [_table(board, name, title, caption + _seeds(board, found), tuple(header), rows)] if rows else []
    return out


def _seeds(board: Board, found: Mapping[str, Sequence[Comparison]]) -> str:
    """The compared rows of one seed, in words."""
    cells: dict[Place, Cell] = {}
    for metric, comparisons in found.items():
        places = [(row, c.nfe) for c in comparisons if c.difference for row in (c.row, c.other)]
        cells |= {place: board.cells[metric][place] for place in places}
    single = of_one_seed(cells)
    return f"; {single}: no interval holds the spread over seeds" if single else ""


def _comparison(headline: Headline, c: Comparison) -> tuple[str, ...]:
    digits = headline.digits + 1
    span = (
        NONE if c.difference is None else f"[{number(c.difference.low, digits)}, {number(c.difference.high, digits)}]"
    )
    verdict = NONE if c.difference is None else "yes" if c.real else "no"
    texts = (f"{c.value:+.{digits}f}", span, number(c.p_holm, 4), verdict, needed(c.needed, c.prompts))
    return (headline.metric, str(c.nfe), c.row, c.other, *texts)


def needed(prompts: float, here: int) -> str:
    """As in "1,200 (600)": the prompts that are needed, and those that there are."""
    if math.isnan(prompts):
        return NONE
    return f"{prompts:,.0f} ({here:,})" if math.isfinite(prompts) else f"never ({here:,})"


def cost_table(costs: Sequence[Cost]) -> Table:
    rows = []
    for c in costs:
        networks = f"{c.networks} ({c.parameters / 1e6:.2f} M)" if c.networks else NONE
        row = c.row if c.finished else f"{c.row} (unfinished)"
        whole = (count(x) for x in (c.steps, c.network_passes, c.cpu_seconds))
        paces = (number(c.passes_a_row, 2), number(c.relative, 2))
        memory = (count(c.peak_bytes / MIB), networks, number(c.bytes_a_parameter, 0))
        rows.append((row, str(c.runs), *whole, *paces, *memory))
    header = (
        *("method", "runs", "steps", "network passes", "CPU s", "passes a row", "step / flow matching"),
        *("peak MiB", "networks (parameters)", "bytes / parameter"),
    )
    caption = (
        "means over runs; a network pass is one forward of the backbone on one row; "
        "step: CPU seconds; bytes held for every parameter of the student"
    )
    return Table(f"{costs[0].recipe}-costs", "cost of training", caption, header, tuple(rows))


def _table(board: Board, name: str, title: str, caption: str, header, rows, bold=frozenset()) -> Table:
    parts = (board.recipe, board.benchmark, name)
    return Table("-".join(parts), f"{board.benchmark}: {title}", caption, header, tuple(rows), frozenset(bold))


def _text(board: Board, metric: str, row: str, nfe: int) -> str:
    cell = board.cells[metric].get((row, nfe))
    return number(cell.value if cell else None, 2)


def interval_text(cell: Cell | None, digits: int) -> str:
    if cell is None or math.isnan(cell.value):
        return NONE
    text = number(cell.value, digits)
    return text if math.isnan(cell.low) else f"{text} [{number(cell.low, digits)}, {number(cell.high, digits)}]"
