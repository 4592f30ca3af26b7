"""Latency and throughput of a run or a pipeline, as scores: the machine is the judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from twinbench import plugins
from twinbench import recipe as recipes
from twinbench import run as run_files
from twinbench.benchmarks.latency import Timing, metrics, sweep
from twinbench.data.base import Request
from twinbench.errors import UserError
from twinbench.evaluating.jobs import otherwise, read_score
from twinbench.evaluating.subjects import MODELS, current, titled
from twinbench.files import plain
from twinbench.results import SCORE, write_json
from twinbench.sampler import plan
from twinbench.sources.base import Plan, Source, record
from twinbench.sources.classes import opened
from twinbench.sources.drawing import drawing_of
from twinbench.sources.pipeline import Pipeline, PipelineSource
from twinbench.sources.steps import StepOptions
from twinbench.training.start import placed, trained

NAME, VERSION = "latency", "1"


@dataclass(frozen=True)
class Timed:
    """What is timed: run.json's record, the plans, the network (there once something was drawn), what draws n pictures
    at once under a plan, and what a score says of them beside their schedule, where no recipe says it."""

    record: dict[str, Any]
    plans: Sequence[Plan]
    network: Callable[[], nn.Module]
    source: Callable[[Any, int], Source]
    prompt: str = Pipeline.usual
    told: Callable[[], dict[str, Any]] = dict


def of_run(folder: Path, asked: Sequence[int] | None) -> Timed:
    """Raises UserError if the run is not finished."""
    run = run_files.read(folder)
    if not run["finished"]:
        raise UserError(f"run {folder.name} is not finished; twinbench train {run['label']} goes on with it")
    resolved = current(run, ())
    backbone = placed(resolved, trained(resolved, folder / "weights.safetensors"))
    made = [plan(resolved, nfe) for nfe in asked or recipes.nfe_of(resolved)]
    known = plugins.dataset(resolved.data.kind)
    prompt = known.requests("evaluation")[0].prompt if hasattr(known, "requests") else Timed.prompt

    def source(p: Any, n: int) -> Source:
        return drawing_of(run, backbone, p, NAME, n, folder / "images")

    return Timed(run, made, lambda: backbone, source, prompt)


def of_pipeline(name: str, steps: StepOptions, label: str | None, size: int | None, runs: Path) -> Timed:
    pipeline = opened(name, size, 1)
    made, identity = pipeline.plans(steps), pipeline.identity()

    def source(p: Any, n: int) -> Source:
        pipeline.batch = n
        return PipelineSource(pipeline, identity, p, NAME, runs)

    def network() -> nn.Module:
        pipeline.load()
        return pipeline.network

    def told() -> dict[str, Any]:
        height, width = pipeline.pixels()
        return {"drawn": {"height": height, "width": width, "dtype": pipeline.dtype}}

    about = record(MODELS, label or titled(name), "pipeline", identity, name)
    return Timed(about, made, network, source, pipeline.usual, told)


def time(subject: Timed, results: Path, prompt: str | None = None, most: int = 64) -> Iterator[tuple[float, str]]:
    """Time a subject under all of its plans and write the scores; yields progress."""
    network = subject.network()
    for p in subject.plans:
        _refuse_other(_path(results, subject, p), p, subject.told())
    for done, p in enumerate(subject.plans):
        timings: list[Timing] = []
        for timing in sweep(lambda n, p=p: _work(subject.source(p, n), prompt or subject.prompt, n), network, most):  # type: ignore[misc]
            timings.append(timing)
            yield done / len(subject.plans), f"NFE {p.nfe}, batch {timing.batch}: {timing.throughput:.3g} images/s"
        _write(_path(results, subject, p), subject, p, timings, network)
    yield 1.0, ", ".join(f"NFE {p.nfe}" for p in subject.plans)


def _work(source: Any, prompt: str, n: int) -> Callable[[], Any]:
    requests = [Request(str(i), prompt, 0, "") for i in range(n)]
    return lambda: source.fresh(requests)


def _path(results: Path, subject: Timed, p: Plan) -> Path:
    run = subject.record
    return results / run["recipe"] / run_files.name_of(run) / f"{NAME}-nfe{p.nfe}.json"


def _refuse_other(path: Path, p: Plan, told: dict[str, Any]) -> None:
    """Raises UserError where there is a pipeline's score of this name under other settings."""
    old = read_score(path)
    if "drawn" in old and (old["drawn"], old["schedule"]) != (told.get("drawn"), plain(p.as_dict())):
        raise otherwise(path, old, "delete it")


def _write(path: Path, subject: Timed, p: Plan, timings: Sequence[Timing], network: nn.Module) -> None:
    values = metrics(timings, p.nfe)
    score = {
        "schema": SCORE,
        "benchmark": NAME,
        "version": VERSION,
        "judge": machine(network),
        "nfe": p.nfe,
        "nfe_counted": p.counted,
        "schedule": p.as_dict(),
        "n": sum(timing.batch for timing in timings),
        "copies": 1,
        "metrics": {name: {"value": value, "se": None, "n": 1} for name, value in values.items()},
        "timings": [asdict(timing) for timing in timings],
        **subject.told(),
    }
    write_json(path.parent / "run.json", subject.record)
    write_json(path, score)


def machine(network: nn.Module) -> str:
    """Hardware, precision, threads and torch: times of different machines share no table."""
    here = run_files.environment()
    chip = here["hardware"]["gpu"] or f"{here['hardware']['cpu']}, {torch.get_num_threads()} threads"
    dtype = str(next(network.parameters()).dtype).removeprefix("torch.")
    return f"{chip}, {dtype}, torch {torch.__version__.split('+')[0]}"
