"""train and eval for many methods and seeds, side by side: one process a run, one thread each.

Two busy processes of two threads on two cores are four times slower than of one, so the number of workers follows
the cores and every run has one thread; no result depends on how many run at once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from twinbench import recipe as recipes
from twinbench.errors import UserError, WorkError


@dataclass(frozen=True)
class Job:
    """One run to train and judge."""

    recipe: str
    label: str
    seed: int
    sets: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"{self.label}/{self.seed}"


def bench(
    recipe: str,
    labels: Sequence[str] | None,
    seeds: int,
    workers: int | None,
    from_scratch: bool,
    limit: int | None,
    sets: Sequence[str],
    runs: Path,
    results: Path,
) -> None:
    """Train and judge every label and seed. Raises UserError before any work if a label or setting is wrong, WorkError
    if some run failed; the others are finished first."""
    loaded = recipes.load(recipe, list(sets))
    chosen = list(loaded.methods) if labels in (None, ["all"]) else list(labels or [])
    for label in chosen:
        recipes.resolve(loaded, label)
    over = list(sets)
    if from_scratch:
        over.append(f"backbone.weights={train_teacher(recipe, runs)}")
    # The teacher is not trained: another seed of it would be the same run.
    jobs = [Job(recipe, c, s, tuple(over)) for s in range(seeds) for c in chosen if s == 0 or trains(loaded, c)]
    failed = []
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        futures = {pool.submit(run, job, limit, runs, results): job for job in jobs}
        for done, future in enumerate(as_completed(futures), 1):
            job, error = futures[future], future.exception()
            if error:
                failed.append(f"{job.title}: {error}")
            say(f"[{job.title}] {'failed' if error else 'done'}  ({done} of {len(jobs)})")
    if failed:
        raise WorkError(f"{len(failed)} of {len(jobs)} runs failed: " + "; ".join(failed))


def trains(recipe: recipes.Recipe, label: str) -> bool:
    return recipes.resolve(recipe, label).train.budget > 0


def train_teacher(recipe: str, runs: Path) -> Path:
    """Train the recipe's teacher from random weights; returns its weights."""
    name = f"{recipe}-teacher"
    if name not in recipes.shipped():
        raise UserError(f"recipe {recipe!r} has no teacher to train (there is no recipe {name!r})")
    folder = command("teacher", ["train", "flow-matching", "--recipe", name, "--runs", str(runs)])
    return Path(folder) / "weights.safetensors"


def run(job: Job, limit: int | None, runs: Path, results: Path) -> None:
    """Train one run and judge it; both go on from what is there."""
    sets = [word for item in job.sets for word in ("--set", item)]
    shared = ["--recipe", job.recipe, "--runs", str(runs), *sets]
    folder = command(job.title, ["train", job.label, "--seed", str(job.seed), *shared])
    limited = ["--limit", str(limit)] if limit else []
    command(job.title, ["eval", folder, "--results", str(results), *limited, *shared])


def command(title: str, words: Sequence[str]) -> str:
    """Run twinbench in a process of its own; its progress is told under a title. Returns the last line that it prints.

    Raises WorkError with its error if it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "twinbench", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout and process.stderr
    last = ""
    try:
        for line in process.stderr:
            last = line.rstrip() or last
            say(f"[{title}] {line.rstrip()}")
        printed = process.stdout.read().split("\n")
        code = process.wait()
    except BaseException:
        process.terminate()
        raise
    if code:
        raise WorkError(last.removeprefix("error: ") or f"{words[0]} ended with code {code}")
    return next(line for line in reversed(printed) if line)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
