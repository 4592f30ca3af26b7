"""draw -> judge -> summarize, each of which can be stopped, resumed and repeated alone.

`drawing` draws and stores; judging again draws nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from twinbench import plugins
from twinbench import recipe as recipes
from twinbench import run as run_files
from twinbench.benchmarks.base import Benchmark, Evidence
from twinbench.data.base import Request
from twinbench.drawing import Drawing, drawing_of
from twinbench.errors import UserError, unknown
from twinbench.recipe import Resolved, digest
from twinbench.results import SCORE, read_json, write_features, write_items, write_json, write_reference
from twinbench.sampler import plan
from twinbench.statistics import standard_error
from twinbench.training.start import trained

# ---- judge, summarize ----


def benchmarks(resolved: Resolved, names: Sequence[str] | None = None, prompts: str = "evaluation") -> list[Benchmark]:
    """The recipe's benchmarks, or some of them by name. Raises UserError for one that the recipe does not have."""
    known = resolved.eval.benchmarks
    for name in names or ():
        if name not in known:
            raise unknown("benchmark", name, sorted(known), f"recipe {resolved.recipe!r} has {', '.join(known)}")
    made = []
    for name in names or known:
        kind = plugins.benchmark(name, resolved.data.kind)
        made.append(kind(plugins.dataset(resolved.data.kind), kind.Config.model_validate(known[name]), prompts))
    return made


def stem_of(benchmark: Benchmark, drawing: Drawing, limit: int | None) -> str:
    """The name of a score's files; neither a quick look with a limit nor one at validation prompts takes the place of
    the whole."""
    prompts = "" if benchmark.prompts == "evaluation" else f"-{benchmark.prompts}"
    return f"{benchmark.name}-nfe{drawing.plan.nfe}{prompts}" + (f"-limit{limit}" if limit else "")


def score(folder: Path, run: dict[str, Any], benchmark: Benchmark, drawing: Drawing, limit: int | None) -> Path:
    """Judge the stored samples and write the score, its evidence and run.json into the results folder of the run."""
    start, requests = time.perf_counter(), benchmark.requests(limit)
    evidence = benchmark.judge(drawing.read(requests), requests)
    values = benchmark.summarize(evidence)
    stem = stem_of(benchmark, drawing, limit)
    _write_evidence(folder, stem, benchmark, evidence)
    path = folder / f"{stem}.json"
    write_json(folder / "run.json", run)
    write_json(
        path,
        {
            "schema": SCORE,
            "benchmark": benchmark.name,
            "version": benchmark.version,
            "judge": benchmark.judge_name,
            "prompts": prompts_of(drawing.prompts, requests),
            "nfe": drawing.plan.nfe,
            "nfe_counted": drawing.plan.counted,
            "schedule": drawing.plan.as_dict(),
            "drawing": drawing.folder.name,
            "n": len(requests),
            "copies": 1 + max(r.copy for r in requests),
            "metrics": {name: _metric(benchmark, evidence, name, value) for name, value in values.items()},
            "seconds": round(time.perf_counter() - start, 3),
        },
    )
    return path


def _metric(benchmark: Benchmark, evidence: Evidence, name: str, value: float) -> dict[str, Any]:
    metric = benchmark.metrics.get(name)
    if metric is None:
        return {"value": value, "se": None, "n": len(evidence.features) if evidence.features is not None else 0}
    rows = [row for row in evidence.items if all(row[k] == v for k, v in metric.where.items())]
    return {"value": value, "se": standard_error(metric, evidence.items), "n": len(rows)}


def _write_evidence(folder: Path, stem: str, benchmark: Benchmark, evidence: Evidence) -> None:
    if evidence.items:
        write_items(folder / f"{stem}.items.jsonl.gz", evidence.items)
    if evidence.features is not None:
        write_features(folder / f"{stem}.features.npz", evidence.features, evidence.keys)
    if evidence.reference is not None:
        write_reference(folder.parent / f"{benchmark.name}-reference.npz", evidence.reference, benchmark.judge_name)


def prompts_of(name: str, requests: Sequence[Request]) -> str:
    """What was asked, as a name and a hash that changes with --limit."""
    return f"{name}#{digest([(r.key, r.copy, r.prompt) for r in requests])[:8]}"


# ---- a run, whole ----


def evaluate_run(
    folder: Path,
    asked: Sequence[int] | None,
    names: Sequence[str] | None,
    limit: int | None,
    sets: Sequence[str],
    results: Path,
    *,
    prompts: str = "evaluation",
    again: bool = False,
) -> Iterator[tuple[float, str]]:
    """Draw and judge one run at every asked number of evaluations, or at the recipe's; yields progress.

    A score that stands already for the same drawing, prompts and judge is kept (`again` judges anew)."""
    record = run_files.read(folder)
    if not record["finished"]:
        raise UserError(f"run {folder.name} is not finished; twinbench train {record['label']} goes on with it")
    resolved = current(record, sets)
    budgets = asked or recipes.nfe_of(resolved)
    made = benchmarks(resolved, names, prompts)
    plans = [plan(resolved, nfe) for nfe in budgets]
    backbone = trained(resolved, folder / "weights.safetensors")
    target = results / record["recipe"] / run_files.name_of(record)
    world = resolved.data.kind
    cost = sum(p.nfe for p in plans)
    done = 0
    for p in plans:
        drawing = drawing_of(record, backbone, p, world, resolved.eval.chunk, folder / "images")
        for benchmark in made:
            requests = benchmark.requests(limit)
            if not again and stands(target, benchmark, drawing, limit):
                continue
            start, first = time.perf_counter(), -1
            for count in drawing.draw(requests):
                first = count if first < 0 else first
                pace = (count - first) / max(time.perf_counter() - start, 1e-9)
                yield (done + p.nfe * count / len(requests)) / cost, f"NFE {p.nfe}  {pace:.0f} images/s"
            score(target, record, benchmark, drawing, limit)
        done += p.nfe
        yield done / cost, f"NFE {p.nfe}"


def current(record: dict[str, Any], sets: Sequence[str]) -> Resolved:
    """A run's settings, with `sample` and `eval` as its recipe says them today: neither retrains anything."""
    try:
        stored = Resolved.model_validate(record["resolved"])
    except ValueError:
        raise UserError(f"run.json of {record['label']!r} was written by another version; train it again") from None
    try:
        today = recipes.resolve(recipes.load(stored.source or stored.recipe, list(sets)), stored.label, stored.seed)
    except UserError:
        if sets:
            raise
        return stored
    return stored.model_copy(update={"sample": today.sample, "eval": today.eval})


def stands(target: Path, benchmark: Benchmark, drawing: Drawing, limit: int | None) -> bool:
    """Whether this very score is in the results already; one that cannot be read is made anew."""
    try:
        old = read_json(target / f"{stem_of(benchmark, drawing, limit)}.json")
    except (FileNotFoundError, ValueError):
        return False
    new = {
        "drawing": drawing.folder.name,
        "judge": benchmark.judge_name,
        "version": benchmark.version,
        "prompts": prompts_of(drawing.prompts, benchmark.requests(limit)),
    }
    return all(old.get(key) == value for key, value in new.items())
