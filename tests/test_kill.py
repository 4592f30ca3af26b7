"""Killed at any moment, gone on with, and the same in the end: training and evaluation."""

import multiprocessing
import os
import random
import signal
import time

import pytest
from small import files, resolved, trained

from twinbench.evaluation import evaluate_run
from twinbench.training.start import measured, start

KILLS = 10
TRAINING = {
    "moons": ("twinflow", "train.budget=300", "train.batch=32", "backbone.width=32", "data.size=512"),
    "digits": (
        "rcgm",
        "train.budget=60",
        "train.unit=steps",
        "train.batch=8",
        "train.optimizer=muon",
        "backbone.weights=none",
        "backbone.width=16",
        "backbone.depth=1",
        "backbone.heads=2",
    ),
}
EVALUATION = ("eval.nfe=[1,2,4]", "train.budget=3", "train.batch=16", "backbone.width=32", "data.size=512")


def train(runs, recipe, label, settings):
    run, trainer = start(resolved(recipe, label, *settings), runs)
    for _ in trainer:
        pass
    run.write(**measured(trainer))


def evaluate(folder, results):
    for _ in evaluate_run(folder, None, None, 100, (), results):
        pass


def killed(rng, work, *args):
    """Run work again and again in a child process, killed KILLS times at random moments (later and later, so that it
    comes through at last); returns how many kills hit it alive."""
    fork = multiprocessing.get_context("fork")  # torch is imported already: a child starts in milliseconds
    hits, wait = 0, 0.05
    while True:
        child = fork.Process(target=work, args=args)
        child.start()
        if hits < KILLS:
            child.join(rng.uniform(0.02, wait))
            if child.is_alive():
                os.kill(child.pid, signal.SIGKILL)
                hits += 1
        child.join(60)
        assert child.exitcode in (0, -signal.SIGKILL)
        if child.exitcode == 0:
            return hits
        wait *= 1.3


@pytest.mark.parametrize("recipe", TRAINING)
def test_a_killed_training_ends_where_an_uninterrupted_one_does(tmp_path, recipe):
    label, *settings = TRAINING[recipe]
    settings += ["train.save_every=7"]
    folder = trained(tmp_path / "whole", recipe, label, *settings)
    hits = killed(random.Random(0), train, tmp_path / "killed", recipe, label, settings)
    (again,) = (tmp_path / "killed").glob("*/*")
    whole, pieces = files(folder), files(again)
    assert hits == KILLS and again.name == folder.name
    for name in ("weights.safetensors", "recipe.yaml"):
        assert pieces[name] == whole[name]
    rows = [(path / "log.jsonl").read_text().count("\n") for path in (folder, again)]
    assert rows[0] == rows[1]
