"""Killed at any moment, gone on with, and the same in the end: training and evaluation."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from small import TINY, files, resolved, trained

from twinbench.evaluating.evaluation import evaluate as judged
from twinbench.evaluating.subjects import of_run
from twinbench.tensors import read_tensors
from twinbench.training.start import measured, start

KILLS = 10
STEPS = ("train.budget=80", "train.unit=steps", "train.batch=8")
TRAINING = {
    "twinflow": ("moons", "train.budget=80", "train.batch=32", "backbone.width=32", "data.size=512"),
    "rcgm": ("digits", *STEPS, "train.optimizer=muon", *TINY),
    "kd": ("digits", *STEPS, "methods.kd.pairs=300", "methods.kd.steps=12"),  # half of the time makes pairs
    "progressive": ("digits", *STEPS, "methods.progressive.steps=8"),
}
EVALUATION = ("eval.nfe=[1,2,4]", "train.budget=3", "train.batch=16", "backbone.width=32", "data.size=512")


def train(runs, recipe, label, settings):
    run, trainer = start(resolved(recipe, label, *settings), runs)
    for _ in trainer:
        pass
    run.write(**measured(trainer))


def evaluate(folder, results):
    for _ in judged(*of_run(folder, None, None, (), "evaluation"), results):
        pass


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory):
    """What is imported at its first use is imported here, so that the times below are those of the work."""
    folder = tmp_path_factory.mktemp("warm")
    run = trained(folder, "moons", "twinflow", *EVALUATION)
    for _ in judged(*of_run(run, [1], None, (), "evaluation"), folder / "results", limit=2):
        pass


def seconds(work):
    before = time.perf_counter()
    work()
    return time.perf_counter() - before


def killed(work, whole, seed=0):
    """Run work in a child process, again after each kill: KILLS times SIGKILL at random moments, which together are
    half of the `whole` of an uninterrupted run; then let it end."""
    fork = multiprocessing.get_context("fork")  # torch is imported already: a child starts at once
    rng = random.Random(seed)
    shares = [0.2 + rng.random() for _ in range(KILLS)]
    for share in shares:
        child = fork.Process(target=work)
        child.start()
        child.join(0.5 * whole * share / sum(shares))
        assert child.is_alive(), "it ended before it could be killed"
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
    child = fork.Process(target=work)
    child.start()
    child.join(300)
    assert child.exitcode == 0


@pytest.mark.parametrize("label", TRAINING)
def test_a_killed_training_ends_where_an_uninterrupted_one_does(tmp_path, label):
    recipe, *settings = TRAINING[label]
    settings += ["train.save_every=3"]
    once, often = tmp_path / "once", tmp_path / "often"
    whole = seconds(partial(train, once, recipe, label, settings))
    killed(partial(train, often, recipe, label, settings), whole)
    (folder,), (again,) = once.glob("*/*"), often.glob("*/*")
    assert again.name == folder.name
    for name in ("weights.safetensors", "recipe.yaml", "samples/step-00000080.png"):
        assert files(again)[name] == files(folder)[name]
    last, state = zip(*(read_tensors(path / "checkpoints" / "step-00000080.safetensors") for path in (folder, again)))
    assert last[0].keys() == last[1].keys() and all(torch.equal(last[0][name], last[1][name]) for name in last[0])
    assert state[0]["decay"] == state[1]["decay"] and state[0]["state"]["passes"] == state[1]["state"]["passes"]
    logs = [[json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()] for path in (folder, again)]
    timed = {"seconds", "peak_bytes"}
    bare = [[{key: row[key] for key in row.keys() - timed} for row in log] for log in logs]
    assert bare[0] == bare[1] and [row["step"] for row in bare[0]] == [*range(1, 81)]
    assert measured_of(folder) == measured_of(again)


def measured_of(folder):
    record = json.loads((folder / "run.json").read_text())
    kept = ("steps", "images", "network_passes", "weights_sha256", "finished", "fingerprint")
    return {key: record[key] for key in kept}


def test_a_killed_evaluation_leaves_the_same_results(tmp_path):
    folder = trained(tmp_path / "runs", "moons", "twinflow", *EVALUATION)
    other = tmp_path / "other" / "moons" / folder.name
    shutil.copytree(folder, other)
    once, often = tmp_path / "once", tmp_path / "often"
    whole = seconds(partial(evaluate, folder, once))
    killed(partial(evaluate, other, often), whole)
    one, two = files(once), files(often)
    two = {name: value for name, value in two.items() if not Path(name).name.startswith(".")}  # a killed write's rest
    assert one.keys() == two.keys() and sum(name.endswith("items.jsonl.gz") for name in one) == 3
    scores = {name for name in one if "-nfe" in name and name.endswith(".json")}
    assert len(scores) == 6
    assert {name: one[name] for name in one.keys() - scores} == {name: two[name] for name in two.keys() - scores}
    for name in scores:
        a, b = (json.loads((root / name).read_text()) for root in (once, often))
        assert a.pop("seconds") >= 0 and b.pop("seconds") >= 0 and a == b
