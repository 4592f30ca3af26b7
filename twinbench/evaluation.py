"""draw -> judge -> summarize, each of which can be stopped, resumed and repeated alone.

Samples are drawn once for a drawing, which is {weights, schedule, prompts}, and stored as they come; judging again
draws nothing. Noise belongs to the request, so methods, numbers of evaluations and batch sizes all start from the
same one, and the network always sees chunks of one size, since kernels round differently for others.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinbench import plugins
from twinbench import recipe as recipes
from twinbench import run as run_files
from twinbench.backbones.base import Backbone
from twinbench.benchmarks.base import Benchmark, Evidence
from twinbench.benchmarks.fidelity import Fidelity
from twinbench.data.base import Request
from twinbench.errors import UserError, unknown
from twinbench.flow import Counted, guided
from twinbench.randomness import request_noise
from twinbench.recipe import Resolved, digest
from twinbench.results import SCORE, read_json, write_features, write_items, write_json, write_reference
from twinbench.sampler import Plan, plan, sample
from twinbench.statistics import standard_error
from twinbench.tensors import read_tensors, save_tensors
from twinbench.training.start import trained

SHARD = 128  # samples a file


# ---- draw ----


class Drawing:
    """Stored samples of one drawing: files of up to SHARD samples, each with its request keys; drawn ones are kept."""

    def __init__(self, folder: Path, backbone: Backbone, plan: Plan, prompts: str, chunk: int) -> None:
        self.folder, self.backbone, self.plan, self.prompts, self.chunk = folder, backbone, plan, prompts, chunk

    def draw(self, requests: Sequence[Request]) -> Iterator[int]:
        """Draw what is missing, shard by shard; yields how many samples are done."""
        held = self._held()
        todo = [r for r in requests if (r.key, r.copy) not in held]
        done = len(requests) - len(todo)
        yield done
        for start in range(0, len(todo), SHARD):
            shard = todo[start : start + SHARD]
            samples = torch.cat([self._chunk(shard[i : i + self.chunk]) for i in range(0, len(shard), self.chunk)])
            keys = [(r.key, r.copy) for r in shard]
            save_tensors(self.folder / f"{digest(keys)[:16]}.safetensors", {"samples": samples}, {"keys": keys})
            done += len(shard)
            yield done

    def _chunk(self, requests: Sequence[Request]) -> Tensor:
        """Samples of up to `chunk` requests, drawn in a batch of exactly `chunk` rows."""
        padded = [*requests, *[requests[-1]] * (self.chunk - len(requests))]
        cond = self.backbone.encode([r.prompt for r in padded])

        def noise(name: str) -> Tensor:
            return torch.stack([request_noise(self.backbone.shape, self.prompts, r.key, r.copy, name) for r in padded])

        counted = Counted(self.backbone)
        velocity = guided(counted, self.backbone.null(self.chunk), self.plan.guidance)
        x = sample(velocity, noise("init"), cond, self.plan.schedule, lambda i: noise(str(i)))
        if counted.calls != self.plan.nfe:
            raise RuntimeError(f"asked for {self.plan.nfe} evaluations, counted {counted.calls}")
        return self.backbone.pixels(x)[: len(requests)]

    def _held(self) -> set[tuple[str, int]]:
        """The requests whose samples lie in the folder."""
        files = sorted(self.folder.glob("*.safetensors"))
        return {(key, copy) for file in files for key, copy in read_tensors(file)[1]["keys"]}

    def read(self, requests: Sequence[Request]) -> Tensor:
        """The stored samples of the requests, in their order. Raises UserError naming one that is not there."""
        found: dict[tuple[str, int], Tensor] = {}
        for file in sorted(self.folder.glob("*.safetensors")):
            tensors, metadata = read_tensors(file)
            rows = zip(metadata["keys"], tensors["samples"], strict=True)
            found |= {(key, copy): row for (key, copy), row in rows}
        for r in requests:
            if (r.key, r.copy) not in found:
                raise UserError(f"no sample of {r.key!r}, copy {r.copy} in {self.folder}; run twinbench eval again")
        return torch.stack([found[r.key, r.copy] for r in requests])


def drawing_of(run: dict[str, Any], backbone: Backbone, plan: Plan, prompts: str, chunk: int, images: Path) -> Drawing:
    """The drawing of a run under a plan; its folder is named by all that the samples depend on."""
    key = {"weights": run["weights_sha256"], "schedule": plan.as_dict(), "prompts": prompts, "chunk": chunk}
    return Drawing(images / f"nfe{plan.nfe}-{digest(key)[:16]}", backbone, plan, prompts, chunk)


# ---- judge, summarize ----


def benchmarks(resolved: Resolved, names: Sequence[str] | None = None) -> list[Benchmark]:
    """The recipe's benchmarks, or some of them by name. Raises UserError for one that the recipe does not have."""
    known = resolved.eval.benchmarks
    for name in names or ():
        if name not in known:
            raise unknown("benchmark", name, sorted(known), f"recipe {resolved.recipe!r} has {', '.join(known)}")
    made = []
    for name in names or known:
        kind = plugins.benchmark(name)
        made.append(kind(plugins.dataset(resolved.data.kind), kind.Config.model_validate(known[name])))
    return made


def score(
    folder: Path, run: dict[str, Any], benchmark: Benchmark, drawing: Drawing, requests: Sequence[Request]
) -> Path:
    """Judge the stored samples and write the score, its evidence and run.json into the results folder of the run."""
    start = time.perf_counter()
    evidence = benchmark.judge(drawing.read(requests), requests)
    values = benchmark.summarize(evidence)
    stem = f"{benchmark.name}-nfe{drawing.plan.nfe}"
    _write_evidence(folder, stem, benchmark, evidence, requests)
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


def _write_evidence(
    folder: Path, stem: str, benchmark: Benchmark, evidence: Evidence, requests: Sequence[Request]
) -> None:
    if evidence.items:
        write_items(folder / f"{stem}.items.jsonl.gz", evidence.items)
    if evidence.features is not None and isinstance(benchmark, Fidelity):
        keys = [r.key for r in requests if r.split == "evaluation"]
        write_features(folder / f"{stem}.features.npz", evidence.features, keys)
        reference = folder.parent / f"{benchmark.name}-reference.npz"
        write_reference(reference, benchmark.reference(), benchmark.judge_name)


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
    again: bool = False,
) -> Iterator[tuple[float, str]]:
    """Draw and judge one run at every asked number of evaluations, or at the recipe's; yields progress.

    A score that stands already for the same drawing, prompts and judge is kept (`again` judges anew)."""
    record = run_files.read(folder)
    if not record["finished"]:
        raise UserError(f"run {folder.name} is not finished; twinbench train {record['label']} goes on with it")
    resolved = current(record, sets)
    budgets = asked or recipes.nfe_of(resolved)
    made = benchmarks(resolved, names)
    plans = [plan(resolved, nfe) for nfe in budgets]
    backbone = trained(resolved, folder / "weights.safetensors")
    target = results / folder.parent.name / folder.name
    world = resolved.data.kind
    cost = sum(p.nfe for p in plans)
    done = 0
    for p in plans:
        drawing = drawing_of(record, backbone, p, world, resolved.eval.chunk, folder / "images")
        for benchmark in made:
            requests = benchmark.requests(limit)
            if not again and stands(target, benchmark, drawing, requests):
                continue
            for count in drawing.draw(requests):
                yield (done + p.nfe * count / len(requests)) / cost, f"NFE {p.nfe}"
            score(target, record, benchmark, drawing, requests)
        done += p.nfe
        yield done / cost, f"NFE {p.nfe}"


def current(record: dict[str, Any], sets: Sequence[str]) -> Resolved:
    """A run's settings, with `sample` and `eval` as its recipe says them today: neither retrains anything."""
    stored = Resolved.model_validate(record["resolved"])
    try:
        today = recipes.resolve(recipes.load(stored.source or stored.recipe, list(sets)), stored.label, stored.seed)
    except UserError:
        if sets:
            raise
        return stored
    return stored.model_copy(update={"sample": today.sample, "eval": today.eval})


def stands(target: Path, benchmark: Benchmark, drawing: Drawing, requests: Sequence[Request]) -> bool:
    """Whether this very score is in the results already."""
    path = target / f"{benchmark.name}-nfe{drawing.plan.nfe}.json"
    if not path.exists():
        return False
    old = read_json(path)
    new = {
        "drawing": drawing.folder.name,
        "judge": benchmark.judge_name,
        "version": benchmark.version,
        "prompts": prompts_of(drawing.prompts, requests),
    }
    return all(old.get(key) == value for key, value in new.items())
