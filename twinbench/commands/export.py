"""export: a finished run as files of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from twinbench.commands.options import RESULTS, RUNS, Results, Runs, Tiny, titled
from twinbench.errors import UserError
from twinbench.miniature import named


def export(
    run: Annotated[str, typer.Argument(help="A label, the start of a fingerprint, or a run's folder.")],
    folder: Annotated[Path, typer.Argument(help="Where to; it must not be there yet.")],
    merged: Annotated[bool, typer.Option("--merged", help="Of adapters: the whole pipeline with them in it.")] = False,
    recipe: Annotated[str | None, typer.Option("--recipe", "-r", help="Only its runs.")] = None,
    tiny: Tiny = False,
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option(help="Of the stored weights.")] = "float32",
    runs: Runs = RUNS,
    results: Results = RESULTS,
) -> None:
    """Write a finished run as a diffusers folder that an unmodified pipeline loads, or as LoRA weights.

    Example: twinbench export twinflow my-one-step-model
    """
    from twinbench import run as folders
    from twinbench.exporting.export import export_run

    found, *others = folders.find(runs, [run], titled(named(recipe, tiny) if recipe else None))
    if others:
        raise UserError(f"run {run!r} may mean {found.name} or {others[0].name}; give more of its name")
    typer.echo(export_run(found, folder, results, merged=merged, dtype=dtype))
