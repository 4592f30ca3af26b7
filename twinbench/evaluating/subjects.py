"""Who can be evaluated: a run of ours, any diffusers pipeline, a folder of images; each with its benchmarks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from twinbench import plugins
from twinbench import recipe as recipes
from twinbench import run as run_files
from twinbench.benchmarks.base import Benchmark
from twinbench.data.base import Request
from twinbench.errors import UserError
from twinbench.evaluating.evaluation import benchmarks
from twinbench.miniature import RUNS
from twinbench.recipe import Resolved
from twinbench.sampler import plan
from twinbench.sections import Evaluation
from twinbench.settings import validate
from twinbench.sources.base import Subject, record
from twinbench.sources.classes import opened
from twinbench.sources.drawing import drawing_of
from twinbench.sources.folder import Folder, Given, fingerprint
from twinbench.sources.pipeline import PipelineSource
from twinbench.sources.steps import StepOptions
from twinbench.training.start import placed, release, trained

MODELS = "models"  # the recipe of what no recipe was named for
Asked = tuple[Subject, list[Benchmark]]

# ---- a run ----


def of_run(
    folder: Path,
    asked: Sequence[int] | None,
    names: Sequence[str] | None,
    sets: Sequence[str],
    prompts: str,
    csv: Path | None = None,
) -> Asked:
    """A finished run at the asked numbers of evaluations, or at its recipe's, under the named benchmarks, or its
    recipe's. Raises UserError if it is not finished."""
    run = run_files.read(folder)
    if not run["finished"]:
        raise UserError(f"run {folder.name} is not finished; twinbench train {run['label']} goes on with it")
    resolved = current(run, sets, folder.parents[1])
    known, names = questioned(resolved.eval.benchmarks, names, csv)
    made = benchmarks(known, names, data=resolved.data.kind, prompts=prompts, where=f"recipe {resolved.recipe!r}")
    steps = [plan(resolved, nfe) for nfe in asked or recipes.nfe_of(resolved)]
    backbone = placed(resolved, trained(resolved, folder / "weights.safetensors"))

    def source(plan: Any, prompts: str, requests: Sequence[Request]) -> Any:
        return drawing_of(run, backbone, plan, prompts, resolved.eval.chunk, folder / "images")

    return Subject(run, steps, source, partial(release, backbone)), made


def current(run: dict[str, Any], sets: Sequence[str], runs: Path = RUNS) -> Resolved:
    """A run's settings, with `sample` and `eval` as its recipe says them today: neither retrains anything."""
    try:
        stored = Resolved.model_validate(run["resolved"])
    except ValueError:
        raise UserError(f"run.json of {run['label']!r} was written by another version; train it again") from None
    try:
        today = recipes.resolve(
            recipes.load(stored.source or stored.recipe, list(sets), runs), stored.label, stored.seed
        )
    except UserError:
        if sets:
            raise
        return stored
    return stored.model_copy(update={"sample": today.sample, "eval": today.eval})


# ---- what was not trained here ----


@dataclass(frozen=True)
class Terms:
    """Under which settings something foreign is judged: those of a recipe, so that it stands beside its runs, or the
    benchmarks' defaults."""

    recipe: str
    nfe: tuple[int, ...] | None
    benchmarks: list[Benchmark]


def terms(
    recipe: str | None,
    names: Sequence[str] | None,
    sets: Sequence[str],
    prompts: str,
    runs: Path = RUNS,
    csv: Path | None = None,
) -> Terms:
    """The settings of a recipe, or the defaults of the named benchmarks. Raises UserError for neither."""
    if recipe:
        r = recipes.load(recipe, list(sets), runs)
        known, names = questioned(r.eval.benchmarks, names, csv)
        made = benchmarks(known, names, data=r.data.kind, prompts=prompts, where=f"recipe {r.name!r}")
        return Terms(r.name, r.eval.nfe, made)
    if not names:
        raise UserError("name the benchmarks, as in --bench geneval,dpg, or a --recipe that has some")
    for name in names:
        plugins.check("benchmarks", name)
    tree = recipes.overridden({"eval": {"benchmarks": {name: {} for name in names}}}, sets)
    if odd := [key for key in tree if key != "eval"]:
        raise UserError(f"--set {odd[0]}: without a recipe there is only eval, as in eval.benchmarks.geneval.copies=1")
    known, names = questioned(validate(Evaluation, tree["eval"], "eval").benchmarks, names, csv)
    return Terms(MODELS, None, benchmarks(known, names, prompts=prompts, where="eval"))


def questioned(
    known: Mapping[str, Mapping[str, Any]], names: Sequence[str] | None, csv: Path | None
) -> tuple[Mapping[str, Mapping[str, Any]], Sequence[str] | None]:
    """The settings of benchmarks, and which of them are asked, with DPG-Bench's questions from a file, if one is given.
    Raises UserError for a file that none of them reads."""
    if csv is None:
        return known, names
    asked = list(names or known)
    if "dpg" not in asked and ("diversity" not in asked or known.get("diversity", {}).get("asks") != "dpg"):
        raise UserError(f"--dpg-csv {csv}: none of {', '.join(asked)} asks DPG-Bench's questions; --bench dpg does")
    return {**known, "dpg": {**known.get("dpg", {}), "csv": str(csv)}}, asked


def of_pipeline(
    name: str,
    steps: StepOptions,
    recipe: str | None,
    names: Sequence[str] | None,
    sets: Sequence[str],
    prompts: str,
    runs: Path,
    label: str | None = None,
    *,
    size: int | None = None,
    batch: int = 4,
    csv: Path | None = None,
) -> Asked:
    """A pipeline by folder or repository; its pictures are kept under `runs` as a run's are."""
    given = terms(recipe, names, sets, prompts, runs, csv)
    pipeline = opened(name, size, batch)
    made = pipeline.plans(steps, given.nfe)
    identity = pipeline.identity()
    about = record(given.recipe, label or titled(name), "pipeline", identity, name)
    images = runs / given.recipe / run_files.name_of(about) / "images"

    def source(plan: Any, prompts: str, requests: Sequence[Request]) -> Any:
        pipeline.asked(requests)
        return PipelineSource(pipeline, identity, plan, prompts, images)

    def told(source: Any, requests: Sequence[Request]) -> dict[str, Any]:
        return {"drawn": source.told(requests)}

    return Subject(about, made, source, pipeline.release, told), given.benchmarks


def of_images(
    images: Path,
    asked: Sequence[int] | None,
    recipe: str | None,
    names: Sequence[str] | None,
    sets: Sequence[str],
    prompts: str,
    runs: Path,
    label: str | None = None,
    csv: Path | None = None,
) -> Asked:
    """A folder of images, drawn at one number of evaluations, if that is known."""
    if asked and len(asked) > 1:
        raise UserError(f"--nfe {','.join(map(str, asked))}: a folder was drawn at one number of evaluations")
    given = terms(recipe, names, sets, prompts, runs, csv)
    identity = fingerprint(images)
    about = record(given.recipe, label or titled(str(images)), "images", identity, str(images))
    place = runs / given.recipe / run_files.name_of(about) / "images" / f"given-{identity[:16]}"
    world = given.benchmarks[0].world

    def source(plan: Any, prompts: str, requests: Sequence[Request]) -> Any:
        return Folder(images, plan, prompts, requests, place, world)

    return Subject(about, [Given(asked[0] if asked else 0)], source), given.benchmarks


def titled(name: str) -> str:
    """A label from the name of a folder or repository."""
    last = Path(name).resolve().name if Path(name).exists() else name.rsplit("/", 1)[-1]
    return re.sub(r"[^\w.-]+", "-", last).strip("-.") or "images"
