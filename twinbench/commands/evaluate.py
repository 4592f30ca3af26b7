"""eval: draw and judge what can be evaluated: runs, a pipeline, a folder of images."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from twinbench.commands.options import (
    RESULTS,
    RUNS,
    Limit,
    Overrides,
    Prompts,
    Results,
    Runs,
    Threads,
    Tiny,
    descending,
    falling,
    numbers,
    titled,
    words,
)
from twinbench.errors import UserError
from twinbench.miniature import few, named


def evaluate(
    run: Annotated[
        list[str] | None, typer.Argument(help="Labels, fingerprints or folders; all runs by default.")
    ] = None,
    nfe: Annotated[str | None, typer.Option(help="Numbers of network evaluations, as in 1,2,4.")] = None,
    bench: Annotated[
        str | None, typer.Option(help="Benchmarks, as in geneval,fidelity; the recipe's by default.")
    ] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", "-r", help="Only its runs; or whose settings hold.")] = None,
    pipeline: Annotated[str | None, typer.Option(help="A diffusers pipeline: folder or repository.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="A folder in GenEval's layout, of DPG's grids, or with manifest.jsonl.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="What a pipeline or folder is called.")] = None,
    sigmas: Annotated[
        list[str] | None, typer.Option(help="A pipeline's, as its network sees them: 0.999,0.6; may come again.")
    ] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="A pipeline's; 1 is none.")] = None,
    timesteps: Annotated[
        list[str] | None, typer.Option(help="A pipeline's without a flow: 999,749,499,249; may come again.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="A pipeline's: LCMScheduler, EulerDiscreteScheduler:timestep_spacing=trailing.")
    ] = None,
    scheduler_shift: Annotated[float | None, typer.Option(min=0, help="Of a pipeline's scheduler.")] = None,
    size: Annotated[int | None, typer.Option(min=8, help="Side of a pipeline's pictures in pixels.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Pictures that a pipeline draws at once; 4.")] = None,
    dpg_csv: Annotated[
        Path | None, typer.Option("--dpg-csv", help="DPG-Bench's table of questions, if not fetched.")
    ] = None,
    limit: Limit = None,
    prompts: Prompts = "evaluation",
    again: Annotated[
        bool, typer.Option("--again", help="Judge again what is judged already, and replace its score.")
    ] = False,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="A picture that cannot be judged counts as wrong, and is told.")
    ] = False,
    tiny: Tiny = False,
    untested: Annotated[bool, typer.Option("--untested", help="Take judges that fail their own test.")] = False,
    sets: Overrides = None,
    threads: Threads = 1,
    runs: Runs = RUNS,
    results: Results = RESULTS,
) -> None:
    """Draw and judge: every finished run that lacks the asked scores, the runs that are named, or what is not ours.

    Example: twinbench eval twinflow --nfe 1,2,4 --bench geneval
    """
    if tiny and not recipe:
        raise UserError("--tiny is the twin of a recipe: name it, as in --recipe qwen-image --tiny")
    recipe = named(recipe, tiny) if recipe else None
    limit = few(recipe, limit)
    asked, given = numbers(nfe) if nfe else None, [falling(text) for text in sigmas or []]
    steps = [descending(text) for text in timesteps or []]
    if prompts not in ("evaluation", "validation"):
        raise UserError(f"--prompts {prompts}: evaluation or validation")
    if sum(map(bool, (run, pipeline, images))) > 1:
        raise UserError("eval takes runs, or --pipeline, or --images")
    idle = {
        "--sigmas": given,
        "--timesteps": steps,
        "--scheduler": scheduler,
        "--scheduler-shift": scheduler_shift is not None,
        "--guidance": guidance is not None,
        "--size": size,
        "--batch": batch,
    }
    if odd := [name for name, told in idle.items() if told and not pipeline]:
        whose = "a folder of images is drawn already" if images else "a run has its recipe's"
        raise UserError(f"{odd[0]} needs --pipeline; {whose}")
    if scheduler_shift == 0:
        raise UserError("--scheduler-shift 0: a shift is above 0, as in 3.0, and 1 is none")
    names, overrides = words(bench), sets or []
    if "latency" in (names or ()):
        raise UserError("--bench latency: time is not judged but measured, by twinbench latency RUN, or --pipeline")
    options = (recipe, names, overrides, prompts, runs, label)
    import torch

    from twinbench import run as folders
    from twinbench.console import bar
    from twinbench.evaluating import subjects
    from twinbench.evaluating.evaluation import evaluate, place
    from twinbench.ranks import together

    torch.set_num_threads(threads)
    work: dict[str, partial[subjects.Asked]] = {}
    if pipeline:
        how = subjects.StepOptions(asked, given, guidance, scheduler_shift, steps, scheduler)
        drawn = partial(subjects.of_pipeline, pipeline, how, *options)
        work[pipeline] = partial(drawn, size=size, batch=batch or 4, csv=dpg_csv)
    elif images:
        work[str(images)] = partial(subjects.of_images, images, asked, *options, dpg_csv)
    else:
        chosen = folders.find(runs, run, titled(recipe)) if run else folders.finished(runs, titled(recipe))
        work = {f.name: partial(subjects.of_run, f, asked, names, overrides, prompts, dpg_csv) for f in chosen}
        if not work:
            raise UserError(
                f"no finished runs under {runs}; train one first (twinbench train twinflow --recipe shapes)"
            )
    refused = []
    with together() as ranks:
        for name, make in work.items():
            try:
                with bar(f"eval {name}") if ranks.first else nullcontext(lambda *_: None) as show:
                    with ranks.stage():
                        subject, made = make()
                    told = {"again": again, "keep_going": keep_going, "untested": untested}
                    for share, note in evaluate(subject, made, results, limit=limit, ranks=ranks, **told):
                        show(share, note)
                if ranks.first:
                    typer.echo(place(results, subject))
            except UserError as error:  # the other runs are judged all the same
                refused.append(f"{name}: {error}" if len(work) > 1 or run else str(error))
    if refused:
        raise UserError("; ".join(refused))
