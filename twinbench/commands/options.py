"""The options that several commands share, and how their words are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from twinbench.errors import UserError
from twinbench.miniature import RUNS as RUNS
from twinbench.miniature import SUFFIX

RecipeName = Annotated[str, typer.Option("--recipe", "-r", help="A shipped recipe's name, or a YAML file.")]
Preset = Annotated[str | None, typer.Option("--preset", help="The methods of one of the recipe's presets.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override a value: --set train.lr=1e-4, --set methods.rcgm.order=1.")
]
Runs = Annotated[Path, typer.Option("--runs", help="Where runs live (weights, logs, images).")]
Results = Annotated[Path, typer.Option("--results", help="Where the small results live.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of training.")]
Threads = Annotated[int, typer.Option("--threads", min=1, help="Threads of this process.")]
Prompts = Annotated[str, typer.Option("--prompts", help="evaluation, or validation: for the choice of settings.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Prompts a task, for a quick look.")]
Tiny = Annotated[bool, typer.Option("--tiny", help="The recipe's tiny twin, to try the path on a CPU.")]
RESULTS = Path("results")


def numbers(text: str) -> list[int]:
    """A list such as 1,2,4. Raises UserError."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < 1:
        raise UserError(f"--nfe {text}: numbers of evaluations are whole and at least 1, as in --nfe 1,2,4")
    return sorted(set(values))


def falling(text: str) -> list[float]:
    """Sigmas such as 0.999,0.6. Raises UserError."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not values[0] <= 1 or not values[-1] > 0 or values != sorted(set(values), reverse=True):
        raise UserError(f"--sigmas {text}: sigmas fall within (0, 1], as in --sigmas 0.999,0.6")
    return values


def descending(text: str) -> list[int]:
    """Timesteps such as 999,749,499,249. Raises UserError."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or values[-1] < 0 or values != sorted(set(values), reverse=True):
        raise UserError(f"--timesteps {text}: timesteps are whole and fall, as in --timesteps 999,749,499,249")
    return values


def titled(recipe: str | None) -> str | None:
    """The name under which runs of a recipe are kept: of a file, its stem."""
    if recipe and recipe.endswith((".yaml", ".yml")):
        return Path(recipe).stem
    if recipe and recipe.endswith((f".yaml{SUFFIX}", f".yml{SUFFIX}")):
        return Path(recipe).stem + SUFFIX
    return recipe


def words(text: str | None) -> list[str] | None:
    return [part for part in text.split(",") if part] if text else None
