"""draw -> judge -> summarize, each of which can be stopped, resumed and repeated alone.

Who is evaluated is a `Subject` (`subjects`): a run, a pipeline, a folder of images. All is drawn before a judge is
loaded, so a large model leaves before the judges come; what they need is looked for before anything is drawn.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from twinbench import plugins
from twinbench import run as run_files
from twinbench.benchmarks.base import Benchmark, Evidence
from twinbench.benchmarks.base import Judging as Chosen
from twinbench.data.base import World
from twinbench.errors import UserError, WorkError, unknown
from twinbench.evaluating.jobs import Job
from twinbench.evaluating.judging import Judging
from twinbench.judges.weights import Missing
from twinbench.ranks import ALONE, Ranks
from twinbench.results import SCORE, write_features, write_items, write_json, write_reference
from twinbench.settings import validate
from twinbench.sources.base import Subject
from twinbench.statistics import standard_error

# ---- what is asked ----


def benchmarks(
    known: Mapping[str, Mapping[str, Any]],
    names: Sequence[str] | None = None,
    *,
    data: str | None = None,
    prompts: str = "evaluation",
    where: str = "these settings",
) -> list[Benchmark]:
    """The benchmarks of some settings {name: settings}, or some of them by name. data: a dataset; if it is an embedded
    world, the benchmarks are those of that world. Raises UserError for one that the settings do not have."""
    for name in names or ():
        if name not in known:
            raise unknown("benchmark", name, sorted(known), f"{where} has {', '.join(known)}")
    world = plugins.dataset(data) if data else None
    world = world if isinstance(world, type) and issubclass(world, World) else None
    made = []
    for name in names or known:
        kind = plugins.benchmark(name, data if world else None)
        config = validate(kind.Config, dict(known[name]), f"{where}, benchmark {name!r}")
        made.append(kind(world, config, prompts))
        made[-1].beside(known)
    return made


# ---- the whole ----


def evaluate(
    subject: Subject,
    made: Sequence[Benchmark],
    results: Path,
    *,
    limit: int | None = None,
    again: bool = False,
    keep_going: bool = False,
    untested: bool = False,
    ranks: Ranks = ALONE,
) -> Iterator[tuple[float, str]]:
    """Draw and judge a subject under all of its plans; yields progress, in [0, 1] with a note.

    A score that stands already for the same drawing, prompts and judge is kept (`again` judges anew). Raises WorkError
    for a picture or judge that fails; with `keep_going` it counts as wrong and says so. Judges must first answer what
    is known, unless they are taken `untested`; then the score says so. UserError, before anything is drawn, where what
    a judge needs is not there."""
    target = place(results, subject)
    with ranks.stage():
        asked = {benchmark: benchmark.requests(limit) for benchmark in made}
        jobs = [
            Job(benchmark, subject.source(plan, benchmark.prompt_set, requests), requests, limit)
            for plan in subject.plans
            for benchmark, requests in asked.items()
        ]
        allowed = {name for name, yes in (("errors", keep_going), ("untested", untested)) if yes}
        jobs = [job for job in jobs if again or not job.stands(target, allowed)]
        for job in () if again else jobs:
            job.refuse_other(target)
        waiting = list(dict.fromkeys(job.benchmark for job in jobs))
        for benchmark in waiting:
            find(benchmark)
    work = sum((job.source.plan.nfe + 1) * len(job.requests) for job in jobs)
    done = 0
    with ranks.stage():
        for job in jobs:
            nfe = job.source.plan.nfe
            for count, pace in _drawn(job, ranks):
                yield (done + nfe * count * ranks.size) / work, f"NFE {nfe}  {pace:.2g} images/s"
            done += nfe * len(job.requests)
    with ranks.stage():
        subject.release()
        for benchmark in () if untested else waiting:
            examine(benchmark)
    for job in jobs:
        judging, start = Judging(job.benchmark, job.source, job.requests, keep_going=keep_going), time.perf_counter()
        with ranks.stage():
            if again and ranks.first:
                judging.clear()
        with ranks.stage():
            for count in judging.judge(ranks):
                ranks.look()
                yield min(1.0, (done + count * ranks.size) / work), f"NFE {job.source.plan.nfe}  {job.benchmark.name}"
        with ranks.stage():
            if ranks.first:
                told: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 3)}
                told |= subject.told(job.source, job.requests)
                write(target, subject.record, job, judging.result(), told | ({"untested": True} if untested else {}))
                judging.clear()
        done += len(job.requests)
    yield 1.0, ", ".join(f"NFE {plan.nfe}" for plan in subject.plans)


def _drawn(job: Job, ranks: Ranks) -> Iterator[tuple[int, float]]:
    """Draw this process's share; yields how many are done, and how many a second."""
    start, first = time.perf_counter(), -1
    for count in job.source.draw(ranks.share(job.requests, job.source.block)):
        ranks.look()
        first = count if first < 0 else first
        yield count, (count - first) / max(time.perf_counter() - start, 1e-9)


def place(results: Path, subject: Subject) -> Path:
    """The results folder of a subject."""
    return results / subject.record["recipe"] / run_files.name_of(subject.record)


def find(benchmark: Benchmark) -> None:
    """Find what the judges of a benchmark need; nothing is loaded. Raises UserError for an unknown judge, and where its
    packages or weights lack."""
    try:
        _ = benchmark.judge_name
        for judge in _judges(benchmark):
            _ = judge.version
            if hasattr(judge, "close"):  # a program of its own: it would hold memory while pictures are drawn
                judge.close()
    except Missing as error:
        setting = f"eval.benchmarks.{benchmark.name}.{_role(benchmark, error.judge)}"
        raise UserError(f"{error}; or --set '{setting}={{name: {error.judge}, weights: PATH}}'") from None


def examine(benchmark: Benchmark) -> None:
    """Ask the judges of a benchmark what is known, once a process. Raises WorkError if one fails."""
    for judge in _judges(benchmark):
        _examine(judge)


def _role(benchmark: Benchmark, judge: str) -> str:
    """The setting that names a judge."""
    return next(name for name, given in benchmark.config if isinstance(given, Chosen) and given.name == judge)


def _judges(benchmark: Benchmark) -> list[Any]:
    return [setting.made() for _, setting in benchmark.config if isinstance(setting, Chosen)]


@cache
def _examine(judge: Any) -> None:
    try:
        if hasattr(judge, "selftest"):
            judge.selftest()
    except UserError:
        raise
    except Exception as error:  # damaged weights break a library in any way
        told = str(error) if isinstance(error, WorkError) else f"{type(error).__name__}: {str(error).strip()[:200]}"
        told = told.replace("\n", " ")
        raise WorkError(f"nothing is judged: {judge.name} fails its own test ({told}; twinbench doctor)") from error


# ---- a score ----


def write(target: Path, record: dict[str, Any], job: Job, evidence: Evidence, told: dict[str, Any]) -> None:
    """Summarize; write the evidence, the score and run.json into the results folder of the subject. told: what
    else the score says of itself."""
    b, plan = job.benchmark, job.source.plan
    values = b.summarize(evidence)
    errors = sum("error" in item for item in evidence.items)
    score = {
        "schema": SCORE,
        "benchmark": b.name,
        **job.identity(),
        "judges": b.judges,
        "nfe": plan.nfe,
        "nfe_counted": plan.counted,
        "schedule": plan.as_dict(),
        "n": len(job.requests),
        "copies": 1 + max(r.copy for r in job.requests),
        "metrics": {name: _metric(b, evidence, name, value) for name, value in values.items()},
        **told,
        **({"errors": errors} if errors else {}),
    }
    if evidence.items:
        write_items(target / f"{job.stem}.items.jsonl.gz", evidence.items)
    if evidence.small:
        write_features(target / f"{job.stem}.features.npz", evidence.features, evidence.keys)
    if evidence.reference is not None:
        write_reference(target.parent / f"{b.name}-reference.npz", evidence.reference, b.judge_name)
    write_json(target / "run.json", record)
    write_json(target / f"{job.stem}.json", score)


def _metric(benchmark: Benchmark, evidence: Evidence, name: str, value: float) -> dict[str, Any]:
    metric = benchmark.metrics.get(name)
    if metric is None:
        return {"value": value, "se": None, "n": len(evidence.features) if evidence.features is not None else 0}
    rows = [row for row in evidence.items if all(row[k] == v for k, v in metric.where.items())]
    return {"value": value, "se": standard_error(metric, evidence.items), "n": len(rows)}
