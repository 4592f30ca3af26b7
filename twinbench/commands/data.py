"""fetch and reference: public data and weights that are not shipped, and what is made of them once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twinbench.commands.options import Overrides


def fetch(
    name: Annotated[list[str] | None, typer.Argument(help="Assets; without one, lists what there is.")] = None,
    copy: Annotated[
        Path | None,
        typer.Option("--from", help="A local file, or a folder that holds the files: nothing is downloaded."),
    ] = None,
) -> None:
    """Download public data from their official place, or take a local copy, and check them. Goes on where it stopped.

    Example: twinbench fetch dpg geneval-rewritten
    """
    from twinbench import assets
    from twinbench.console import bar

    if not name:
        for each, asset in assets.ASSETS.items():
            typer.echo(f"{each:<18} {'here' if assets.here(each) else '-':<5} {asset.about} ({asset.licence})")
    for each in name or ():
        with bar(f"fetch {each}") as show:
            for part, done, total in assets.fetch(each, copy):
                show(done / total if total else 0.0, f"{part}  {done / 1e6:.1f} MB")
        for file in assets.asset(each).files:
            typer.echo(assets.root() / file.path)


def reference(
    name: Annotated[str, typer.Argument(help="mjhq-30k, coco-30k, or a folder with prompts.jsonl and pictures.")],
    features: Annotated[str, typer.Option(help="The judge that gives the features.")] = "inception",
    sets: Overrides = None,
) -> None:
    """Compute what fidelity compares with: prompts and the statistics of real pictures, in a judge's features.

    Example: twinbench reference mjhq-30k --set mode=clean
    """
    from twinbench import recipe as recipes
    from twinbench.benchmarks import references
    from twinbench.console import bar
    from twinbench.judges.base import Features, asked_as, judge

    made = asked_as(Features, judge(features, recipes.overridden({}, sets or [])))
    with bar(f"reference {name}") as show:
        for share, note in references.make(name, made):
            show(share, note)
    typer.echo(references.folder(name) / f"{made.name}.npz")
