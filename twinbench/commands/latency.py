"""latency: how long the pictures of a run or a pipeline take on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from twinbench.commands.options import RESULTS, RUNS, Results, Runs, Threads, falling, numbers
from twinbench.errors import UserError


def latency(
    run: Annotated[str | None, typer.Argument(help="A label, fingerprint or folder.")] = None,
    nfe: Annotated[str | None, typer.Option(help="Numbers of network evaluations, as in 1,2,4.")] = None,
    pipeline: Annotated[str | None, typer.Option(help="A diffusers pipeline: folder or repository.")] = None,
    label: Annotated[str | None, typer.Option(help="What a pipeline is called.")] = None,
    sigmas: Annotated[list[str] | None, typer.Option(help="A pipeline's, as in 0.999,0.6; may come again.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="A pipeline's; 1 is none.")] = None,
    size: Annotated[int | None, typer.Option(min=8, help="Side of a pipeline's pictures in pixels.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What is drawn.")] = None,
    most: Annotated[int, typer.Option(min=1, help="The largest batch that is tried.")] = 64,
    threads: Threads = 1,
    runs: Runs = RUNS,
    results: Results = RESULTS,
) -> None:
    """Measure latency at batch 1 and throughput at the best batch, of whole drawings and of the network alone.

    Example: twinbench latency twinflow --nfe 1,2,4
    """
    asked, given = numbers(nfe) if nfe else None, [falling(text) for text in sigmas or []]
    if bool(run) == bool(pipeline):
        raise UserError("latency takes a run, or --pipeline")
    import torch

    from twinbench import run as folders
    from twinbench.console import bar
    from twinbench.evaluating import speed
    from twinbench.sources.steps import StepOptions

    torch.set_num_threads(threads)
    if pipeline:
        subject = speed.of_pipeline(pipeline, StepOptions(asked, given, guidance, None), label, size, runs)
    else:
        subject = speed.of_run(folders.find(runs, [str(run)], None)[0], asked)
    with bar(f"latency {run or pipeline}") as show:
        for share, note in speed.time(subject, results, prompt, most):
            show(share, note)
    typer.echo(results / subject.record["recipe"] / folders.name_of(subject.record))
