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
from twinbench.errors import UserError, WorkError, unknown


@dataclass(frozen=True)
class Job:
    """One run to train and judge."""

    recipe: str
    label: str
    seed: int
    sets: tuple[str, ...]
    prompts: str

    @property
    def title(self) -> str:
        return f"{self.label}/{self.seed}"


def bench(
    recipe: str,
    labels: Sequence[str] | None,
    preset: str | None,
    seeds: int,
    workers: int | None,
    from_scratch: bool,
    limit: int | None,
    sets: Sequence[str],
    prompts: str,
    runs: Path,
    results: Path,
) -> str:
    """Train and judge every label and seed; returns the recipe's name. Raises UserError before any work if a label or
    setting is wrong, WorkError if some run failed; the others are finished first."""
    loaded = recipes.load(recipe, list(sets), runs)
    chosen = chosen_labels(loaded, labels, preset)
    trained = {label: recipes.resolve(loaded, label).train.budget > 0 for label in chosen}
    over = list(sets)
    if from_scratch:
        over.append(f"backbone.weights={train_teacher(loaded.name, runs)}")
    # What is not trained is the same for every seed.
    jobs = [
        Job(recipe, label, s, tuple(over), prompts)
        for s in range(seeds)
        for label in chosen
        if s == 0 or trained[label]
    ]
    failed = _side_by_side(jobs, workers or len(os.sched_getaffinity(0)), limit, runs, results)
    if failed:
        raise WorkError(f"{len(failed)} of {len(jobs)} runs failed: " + "; ".join(failed))
    return loaded.name


def chosen_labels(recipe: recipes.Recipe, labels: Sequence[str] | None, preset: str | None) -> list[str]:
    """The labels to train: those named ("all": of the recipe's methods), or those of a preset with what they are
    like."""
    if preset is None:
        return list(recipe.methods) if labels in (None, ["all"]) else list(labels or [])
    if preset not in recipe.presets:
        raise unknown("preset", preset, sorted(recipe.presets), f"twinbench show {recipe.name}")
    blocks = recipe.presets[preset]
    bases = [block["like"] for block in blocks.values() if "like" in block]
    return list(dict.fromkeys([*bases, *blocks, *(labels or [])]))


def _side_by_side(jobs: Sequence[Job], workers: int, limit: int | None, runs: Path, results: Path) -> list[str]:
    """Run all jobs; returns what failed. An interrupt ends the processes that run, and starts no other."""
    failed = []
    live: set[subprocess.Popen[str]] = set()
    pool = ThreadPoolExecutor(workers)
    try:
        futures = {pool.submit(run, job, limit, runs, results, live): job for job in jobs}
        for done, future in enumerate(as_completed(futures), 1):
            job, error = futures[future], future.exception()
            if isinstance(error, UserError):
                raise error
            if error:
                failed.append(f"{job.title}: {error}")
            say(f"[{job.title}] {'failed' if error else 'done'}  ({done} of {len(jobs)})")
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in list(live):
            process.terminate()
        raise
    pool.shutdown()
    return failed


def train_teacher(name: str, runs: Path) -> Path:
    """Train the recipe's teacher from random weights; returns its weights."""
    teacher = f"{name}-teacher"
    if teacher not in recipes.shipped():
        raise UserError(f"recipe {name!r} has no teacher to train (there is no recipe {teacher!r})")
    folder = command("teacher", ["train", "flow-matching", "--recipe", teacher, "--runs", str(runs)], set())
    return Path(folder) / "weights.safetensors"


def run(job: Job, limit: int | None, runs: Path, results: Path, live: set[subprocess.Popen[str]]) -> None:
    """Train one run and judge it; both go on from what is there."""
    sets = [word for item in job.sets for word in ("--set", item)]
    words = ["train", job.label, "--seed", str(job.seed), "--recipe", job.recipe, "--runs", str(runs), *sets]
    folder = command(job.title, words, live)
    limited = ["--prompts", job.prompts, *(["--limit", str(limit)] if limit else [])]
    command(job.title, ["eval", folder, "--runs", str(runs), "--results", str(results), *limited, *sets], live)


def command(title: str, words: Sequence[str], live: set[subprocess.Popen[str]]) -> str:
    """Run twinbench in a process of its own, held in `live` meanwhile; its progress is told under a title. Returns the
    last line that it prints.

    Raises with its error if it fails: UserError for bad input, WorkError for a failure at work."""
    process = subprocess.Popen(
        [sys.executable, "-m", "twinbench", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    live.add(process)
    assert process.stdout and process.stderr
    last = ""
    try:
        for line in process.stderr:
            last = line.rstrip() or last
            say(f"[{title}] {line.rstrip()}")
        printed = process.stdout.read().split("\n")
        code = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
        live.discard(process)
    if code:
        message = last.removeprefix("error: ") or f"{words[0]} ended with code {code}"
        raise UserError(message) if code == 2 else WorkError(message)
    return next(line for line in reversed(printed) if line)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
