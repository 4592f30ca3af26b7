"""plan: does a training fit, and what will it cost."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from twinbench.commands.options import Overrides, RecipeName

Table = tuple[str, list[str], list[list[str]]]  # title, columns, rows


def plan(
    method: Annotated[str, typer.Argument(help="A method of the recipe.")],
    recipe: RecipeName,
    gpus: Annotated[int, typer.Option(min=1, help="How many GPUs.")] = 1,
    gpu_memory: Annotated[float, typer.Option(min=1, help="Of one GPU, in GB (10^9 bytes).")] = 80,
    flops: Annotated[str, typer.Option(help="Of one GPU a second: a100, h100, h200, or a number as 989e12.")] = "h100",
    utilisation: Annotated[float, typer.Option(min=0.01, max=1, help="The share of them that training uses.")] = 0.4,
    samples: Annotated[int, typer.Option(min=1, help="Of the cache.")] = 100_000,
    form: Annotated[Literal["table", "json"], typer.Option("--format", help="table, or json.")] = "table",
    sets: Overrides = None,
) -> None:
    """Tell what a training holds, whether it fits and what it will cost. Nothing is downloaded, no GPU is needed.

    Example: twinbench plan twinflow --recipe qwen-image --gpus 8 --gpu-memory 80
    """
    import json
    import warnings

    import torch

    from twinbench import recipe as recipes
    from twinbench.planning import planner

    torch.set_num_threads(1)
    machine = planner.Machine(gpus, gpu_memory * 1e9, planner.peak(flops), utilisation)
    resolved = recipes.resolve(recipes.load(recipe, sets), method)
    quiet()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of packages about themselves
        record = planner.plan(resolved, machine, samples)
    if form == "json":
        typer.echo(json.dumps(record, indent=1))
        return
    typer.echo(f"{record['method']}, {record['recipe']}: {record['backbone']} on {gpus} x {gpu_memory:g} GB\n")
    for table in (networks(record), memory(record), cost(record)):
        show(table)
    typer.echo(verdict(record))
    typer.echo("\nAssumed:\n" + "\n".join(f"- {line}" for line in record["assumptions"]))


def quiet() -> None:
    """Let diffusers not warn of the casts of weights that are not there."""
    from diffusers.utils import logging

    logging.set_verbosity_error()


def show(table: Table) -> None:
    """A table in colours on a terminal, plain elsewhere."""
    import sys

    title, columns, rows = table
    if not sys.stdout.isatty():
        from tabulate import tabulate

        align = ("left", *["right"] * (len(rows[0]) - 1))
        typer.echo(title)
        columns = columns if any(columns) else []
        typer.echo(tabulate(rows, columns, tablefmt="simple", disable_numparse=True, colalign=align) + "\n")
        return
    from rich.console import Console
    from rich.table import Table as Rich

    shown = Rich(title=title, title_justify="left")
    for i, column in enumerate(columns):
        shown.add_column(column, justify="right" if i else "left")
    for row in rows:
        shown.add_row(*row)
    Console().print(shown)


def networks(record: dict[str, Any]) -> Table:
    kinds = ("weights", "gradients", "optimizer", "total")
    rows = []
    for part in record["networks"]:
        numbers = [number(part["parameters"]), number(part["trained"])]
        where = "" if part["sharded"] or record["gpus"] == 1 else " (whole)"
        rows.append([part["name"] + where, *numbers, *(gb(part[kind]) for kind in kinds), gb(part["per_gpu"])])
    if len(rows) > 1:
        total = [number(sum(p["parameters"] for p in record["networks"])), ""]
        sums = [gb(sum(p[kind] for p in record["networks"])) for kind in (*kinds, "per_gpu")]
        rows.append(["all", *total, *sums])
    return "Networks, GB", ["", "parameters", "trained", *kinds, "per GPU"], rows


def memory(record: dict[str, Any]) -> Table:
    held = record["memory"]
    how = "with recomputation" if held["recompute"] else "without recomputation"
    other = "activations_without_recomputation" if held["recompute"] else "activations_with_recomputation"
    rows = [
        ["networks", gb(held["networks"])],
        ["weights as products want them", gb(held["working"])],
        [f"activations of {held['rows']} rows, {how}", gb(held["activations"])],
        ["reserve", gb(held["reserve"])],
        ["all", gb(held["total"])],
        [f"(activations {other.removeprefix('activations_').replace('_', ' ')})", gb(held[other])],
    ]
    if held["host"]:
        rows.append(["in the host's memory, for each GPU", gb(held["host"])])
    return "One GPU, GB", ["", "GB"], rows


def cost(record: dict[str, Any]) -> Table:
    spent, cache = record["cost"], record["cache"]
    rows = [
        ["network passes a step", f"{spent['passes_per_step']:,.0f}"],
        ["FLOPs a pass", number(spent["flops_per_pass"])],
        ["FLOPs a step", number(spent["flops_per_step"])],
        ["steps", f"{spent['steps']:,.0f}"],
        ["network passes", f"{spent['passes']:,.0f}"],
        ["GPU-hours", f"{spent['gpu_hours']:,.1f}"],
        ["hours", f"{spent['hours']:,.1f}"],
    ]
    if cache:
        rows.append([f"cache of {cache['samples']:,} samples, GB", gb(cache["total"])])
        rows.append(["of one: latents, words, MB", f"{cache['latent'] / 1e6:.2f}, {cache['words'] / 1e6:.2f}"])
    return "Cost", ["", ""], rows


def verdict(record: dict[str, Any]) -> str:
    held, change = record["memory"], record["change"]
    there = f"{gb(held['total'])} of {gb(record['gpu_memory'])} GB"
    if record["fits"]:
        return f"It fits: {there} of each GPU."
    if change is None:
        return f"It does not fit: {there} of each GPU, and none of the changes that are known is enough."
    return f"It does not fit: {there} of each GPU.\nIt fits with {' '.join(change['set'])}: {gb(change['total'])} GB."


def gb(value: float) -> str:
    return f"{value / 1e9:,.1f}"


def number(value: float) -> str:
    """12.3 M, 20.44 B"""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.4g} {unit}"
    return f"{value:.4g}"
