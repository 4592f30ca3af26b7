"""What a training step of every method costs: network passes, seconds relative to flow matching, networks held, bytes a
parameter, peak memory, and the share of the step that is spent outside the network.

python benchmarks/step.py [--recipe shapes] [--steps 10]

Steps of all methods take turns in one process, so a busy machine slows all of them alike; each one's peak memory is
that of a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from tabulate import tabulate

from twinbench import recipe
from twinbench.method import Turn
from twinbench.randomness import Rng
from twinbench.recipe import Recipe
from twinbench.training.loop import Trainer, peak_bytes
from twinbench.training.start import start

BASE = "flow-matching"
HEADER = ("method", "network passes a row", "seconds / flow matching", "networks", "bytes / parameter", "peak MiB")
CAPTION = "peak: of the process, above that of the program with its data and one network"


def trainer_of(loaded: Recipe, label: str, folder: str) -> Trainer:
    """A trainer whose first step, which makes what is made once, is behind it."""
    _, trainer = start(recipe.resolve(loaded, label), Path(folder))
    trainer.step()
    return trainer


def seconds(work) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def outside(trainer: Trainer) -> None:
    """What a step does beside the network: the batch and its random numbers."""
    total, turn = trainer.train.batch, Turn()
    batch = trainer.loader.batch(0, range(total), total)
    rng = Rng(0, 0, "student", range(total), total, trainer.backbone.shape)
    trainer.method.draw(batch, rng, turn)


def peak(name: str, label: str) -> float:
    """MiB that training adds to a process that has loaded everything."""
    call = [sys.executable, __file__, "--recipe", name, "--peak", label]
    return float(subprocess.run(call, capture_output=True, text=True, check=True).stdout)


def print_peak(loaded: Recipe, label: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _, trainer = start(recipe.resolve(loaded, label), Path(folder))
        before = peak_bytes(torch.device("cpu"))
        for _ in range(2):
            trainer.step()
        print((peak_bytes(torch.device("cpu")) - before) / 2**20)


def table(name: str, steps: int) -> list[list[str]]:
    loaded = recipe.load(name)
    labels = [label for label in loaded.methods if recipe.resolve(loaded, label).train.budget]
    labels.sort(key=lambda label: label != BASE)
    with tempfile.TemporaryDirectory() as folder:
        trainers = {label: trainer_of(loaded, label, folder) for label in labels}
        before = {label: trainer.state.passes for label, trainer in trainers.items()}
        times: dict[str, list[float]] = {label: [] for label in labels}
        for _ in range(steps):
            for label, trainer in trainers.items():
                times[label].append(seconds(trainer.step))
        rows, base = [], median(times[BASE])
        for label, trainer in trainers.items():
            passes = (trainer.state.passes - before[label]) / steps / trainer.train.batch
            share = seconds(lambda t=trainer: outside(t)) / median(times[label])
            held = trainer.owned.held()
            size = sum(row["bytes"] for row in held) / held[0]["parameters"]
            row = [label, f"{passes:.2f}", f"{median(times[label]) / base:.2f}", str(len(held)), f"{size:.0f}"]
            rows.append([*row, f"{peak(name, label):.0f}", f"{share:.0%}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="shapes")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--peak", metavar="METHOD", help="only the peak memory of one method, in MiB")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        return print_peak(recipe.load(arguments.recipe), arguments.peak)
    print(tabulate(table(arguments.recipe, arguments.steps), [*HEADER, "outside the network"], tablefmt="github"))
    print(f"\n{CAPTION}")


if __name__ == "__main__":
    main()
