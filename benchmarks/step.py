"""What a training step costs: network passes and seconds relative to flow matching, and the share outside the network.

python benchmarks/step.py [--recipe shapes] [--steps 20]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from tabulate import tabulate

from twinbench import recipe
from twinbench.method import Turn
from twinbench.randomness import Rng
from twinbench.training.loop import Trainer
from twinbench.training.start import start


def seconds(work, repeat: int) -> float:
    """The median of a few repetitions."""
    times = []
    for _ in range(repeat):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return sorted(times)[repeat // 2]


def outside(trainer: Trainer) -> None:
    """What a step does beside the network: the batch and its random numbers."""
    total, turn = trainer.train.batch, Turn()
    batch = trainer.loader.batch(0, range(total), total)
    rng = Rng(0, 0, "student", range(total), total, trainer.backbone.shape)
    trainer.method.draw(batch, rng, turn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="shapes")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    loaded = recipe.load(arguments.recipe)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for label in ("flow-matching", "rcgm", "twinflow"):
            _, trainer = start(recipe.resolve(loaded, label), Path(folder))
            trainer.step()
            before = trainer.state.passes
            step = seconds(trainer.step, arguments.steps)
            passes = (trainer.state.passes - before) / arguments.steps / trainer.train.batch
            rows.append([label, passes, step, seconds(lambda t=trainer: outside(t), arguments.steps) / step])
    base = rows[0][2]
    table = [[label, f"{passes:.2f}", f"{step / base:.2f}", f"{share:.0%}"] for label, passes, step, share in rows]
    print(tabulate(table, ["method", "network passes a row", "seconds / flow matching", "outside the network"]))


if __name__ == "__main__":
    main()
