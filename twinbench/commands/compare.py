"""train, report, and bench, which is train, eval and report for many methods and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twinbench.commands.options import (
    RESULTS,
    RUNS,
    Limit,
    Overrides,
    Preset,
    Prompts,
    RecipeName,
    Results,
    Runs,
    Seed,
    Threads,
    Tiny,
    titled,
    words,
)
from twinbench.errors import UserError
from twinbench.miniature import few, named


def bench(
    recipe: RecipeName = "shapes",
    methods: Annotated[
        str | None, typer.Option(help="Labels, as in teacher,rcgm,twinflow; the recipe's by default.")
    ] = None,
    preset: Preset = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds a method: 0, 1, ...")] = 1,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Runs side by side; the number of cores by default.")
    ] = None,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="Train the teacher first.")] = False,
    limit: Limit = None,
    prompts: Prompts = "evaluation",
    tiny: Tiny = False,
    sets: Overrides = None,
    runs: Runs = RUNS,
    results: Results = RESULTS,
) -> None:
    """Train, eval and report in one go; what is done already is not done again.

    Example: twinbench bench --recipe shapes --methods teacher,rcgm,twinflow --seeds 3
    """
    from twinbench import bench as work

    recipe = named(recipe, tiny)
    limit = few(recipe, limit)
    name = work.bench(
        recipe, words(methods), preset, seeds, workers, from_scratch, limit, sets or [], prompts, runs, results
    )
    report(recipe=name, preset=preset, results=results)


def train(
    method: Annotated[str, typer.Argument(help="A label of the recipe, or any method (twinbench list methods).")],
    recipe: RecipeName = "shapes",
    sets: Overrides = None,
    seed: Seed = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Delete the run and start anew.")] = False,
    tiny: Tiny = False,
    threads: Threads = 1,
    runs: Runs = RUNS,
) -> None:
    """Train one method under a recipe. The same command resumes where it stopped.

    Example: twinbench train twinflow --recipe shapes --set train.lr=1e-4
    """
    from twinbench import recipe as recipes
    from twinbench.console import bar, interrupts

    resolved = recipes.resolve(recipes.load(named(recipe, tiny), sets, runs), method, seed)
    import torch

    from twinbench.training.parallel import joined
    from twinbench.training.start import keep_record, large, start

    torch.set_num_threads(threads)
    with joined(resolved.train, large(resolved)) as group:
        run, trainer = start(resolved, runs, fresh=fresh, group=group)
        with group.holding(run.folder), interrupts() as stop, bar(f"train {method} seed {seed}", group.first) as show:
            keep_record(run, trainer)
            for row in trainer:
                made = f"{row['pairs']} pairs" if "pairs" in row else f"{row['seconds'] / row['step']:.3f} s/step"
                show(row["progress"], f"step {row['step']}  {made}")
                if group.any(bool(stop)):
                    trainer.save()
                    group.settle()
                    keep_record(run, trainer)
                    raise KeyboardInterrupt
            keep_record(run, trainer)
        if group.first:
            typer.echo(run.folder)


def report(
    format: Annotated[str, typer.Option(help="table, md, csv, tex, json or html.")] = "table",
    recipe: Annotated[str | None, typer.Option("--recipe", "-r", help="Only this recipe.")] = None,
    preset: Preset = None,
    against: Annotated[
        str | None, typer.Option(help="Numbers of others beside ours: published (the shipped ones), or a file.")
    ] = None,
    claim: Annotated[
        float | None, typer.Option(help="Tell at how many prompts a difference of this size would be shown.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where the page and figures go; RESULTS/report by default.")] = None,
    results: Results = RESULTS,
) -> None:
    """Compare all results: scores with intervals, costs, figures; a pure function of the results folder.

    Example: twinbench report --format md
    """
    from twinbench.report import page, published
    from twinbench.report.beside import beside
    from twinbench.report.summary import summarize

    if format not in page.FORMATS:
        raise UserError(f"--format {format}: one of {', '.join(page.FORMATS)}")
    if claim is not None and not 0 < claim < float("inf"):
        raise UserError(f"--claim {claim}: a difference is more than 0, as in --claim 0.01")
    try:
        summary = summarize(results, titled(recipe), preset, claim)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error)) from None
    others = published.rows(summary[0], published.place(results, against)) if against else None
    after = beside(results, summary[0], others or ())
    typer.echo(page.text(format, *summary, after, others))
    if format == "table" or out:
        written = page.write_pages(*summary, out or results / "report" / (preset or ""), after)
        typer.echo(f"report: {written}", err=format != "table")
