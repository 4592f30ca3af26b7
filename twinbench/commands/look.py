"""What there is: list and show."""

from __future__ import annotations

from typing import Annotated

import typer

from twinbench.commands.options import RUNS, Overrides, Runs, Tiny
from twinbench.errors import unknown
from twinbench.miniature import named


def list_names(
    what: Annotated[str, typer.Argument(help="methods, recipes, backbones, datasets, benchmarks, judges or runs.")],
    runs: Runs = RUNS,
) -> None:
    """List what there is.

    Example: twinbench list methods
    """
    from twinbench import plugins
    from twinbench import recipe as recipes

    if what == "recipes":
        for name in recipes.shipped():
            typer.echo(f"{name:<16} {recipes.load(name).description}".rstrip())
    elif what == "runs":
        from twinbench import run as folders

        for folder in folders.every(runs):
            record = folders.read(folder)
            state = "finished" if record["finished"] else "unfinished"
            typer.echo(
                f"{folder}  seed {record['seed']}  {record['steps']} steps  {record['network_passes']} passes  {state}"
            )
    elif what in plugins.GROUPS:
        typer.echo("\n".join(plugins.names(what)))
    else:
        raise unknown("list", what, [*plugins.GROUPS, "recipes", "runs"], "twinbench list --help")


def show(
    recipe: Annotated[str, typer.Argument(help="A recipe.")],
    method: Annotated[str | None, typer.Argument(help="One of its methods, resolved.")] = None,
    diff: Annotated[tuple[str, str] | None, typer.Option(help="Only what differs between two methods.")] = None,
    tiny: Tiny = False,
    sets: Overrides = None,
) -> None:
    """Print a recipe, one method of it with every value resolved, or what differs between two.

    Example: twinbench show shapes --diff rcgm twinflow
    """
    import yaml

    from twinbench import recipe as recipes

    loaded = recipes.load(named(recipe, tiny), sets)
    if diff:
        a, b = (
            recipes.resolve(loaded, label).model_dump(
                mode="json", exclude={"recipe", "source", "label", "preset", "like"}
            )
            for label in diff
        )
        if rows := recipes.difference(a, b):
            typer.echo(f"# {diff[0]} | {diff[1]}")
        for key, left, right in rows:
            typer.echo(f"{key}: {left} | {right}")
        return
    tree = recipes.resolve(loaded, method) if method else loaded
    typer.echo(yaml.safe_dump(tree.model_dump(mode="json"), sort_keys=False).rstrip())
