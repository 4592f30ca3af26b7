"""Latency and throughput: the sweep's arithmetic against work of known length, and the command from outside."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from test_results import RUN, SCORE

from twinbench import results
from twinbench.backbones.tiny import tiny
from twinbench.benchmarks import latency
from twinbench.benchmarks.latency import Timing, measure, metrics, sweep
from twinbench.errors import UserError
from twinbench.evaluating import speed
from twinbench.report import page
from twinbench.report.summary import summarize
from twinbench.sources.steps import StepOptions


@pytest.fixture
def clock(monkeypatch):
    """A clock that work moves forward by hand."""
    at = [0.0]
    monkeypatch.setattr(latency, "now", lambda: at[0])
    return at


class Net(torch.nn.Module):
    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self, n):
        self.clock[0] += self.seconds(n)


def test_latency_and_throughput_of_known_work(clock):
    net = Net(clock, lambda n: 0.010 + 0.002 * n)  # two calls a drawing, and 5 ms around them

    def work(n):
        def draw():
            net(n)
            net(n)
            clock[0] += 0.005

        return draw

    timings = list(sweep(work, net, most=16))
    assert [t.batch for t in timings] == [1, 2, 4, 8, 16]
    assert timings[0].seconds == pytest.approx(0.029) and timings[0].network == pytest.approx(0.024)
    values = metrics(timings, nfe=2)
    assert values["latency"] == pytest.approx(29) and values["evaluation"] == pytest.approx(12)
    assert values["best_batch"] == 16 and values["throughput"] == pytest.approx(16 / 0.089)
    assert values["throughput_1"] == pytest.approx(1 / 0.029)


def test_the_sweep_ends_where_a_batch_is_slower_or_memory_ends(clock):
    slower = Net(clock, lambda n: 0.01 * n if n < 8 else 0.02 * n)
    assert [t.batch for t in sweep(lambda n: lambda: slower(n), slower)] == [1, 2, 4, 8]

    def full(n):
        if n > 2:
            raise torch.OutOfMemoryError("no memory")
        return 0.01

    small = Net(clock, full)
    assert [t.batch for t in sweep(lambda n: lambda: small(n), small)] == [1, 2]
    small.seconds = lambda n: full(9)
    with pytest.raises(torch.OutOfMemoryError):
        list(sweep(lambda n: lambda: small(n), small))


def test_the_median_forgives_one_slow_drawing(clock):
    lengths = iter([9, 9, 1, 1, 7, 1, 1])  # the first two warm up
    net = Net(clock, lambda n: float(next(lengths)))
    timing = measure(lambda: net(1), net, 1)
    assert timing == Timing(1, 1.0, 1.0, 1.0, 7.0)


def test_a_real_clock_tells_real_time():
    net = torch.nn.Identity()
    timing = measure(lambda: (time.sleep(0.01), net(torch.zeros(1))), net, 1, repeats=3)
    assert 0.01 <= timing.quickest <= timing.seconds < 0.2 and timing.network < 0.01
    assert not net._forward_hooks and not net._forward_pre_hooks


def test_the_command_writes_scores_that_the_report_shows(tmp_path):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}

    def twinbench(*words):
        done = subprocess.run(
            [sys.executable, "-m", "twinbench", *words], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    twinbench("train", "flow-matching", "--recipe", "moons", "--set", "train.budget=0")
    folder = twinbench("latency", "flow-matching", "--nfe", "1,2", "--most", "4").strip()
    score = json.loads((tmp_path / folder / "latency-nfe2.json").read_text())
    assert [t["batch"] for t in score["timings"]][:2] == [1, 2] and score["nfe"] == score["nfe_counted"] == 2
    assert score["metrics"]["latency"]["value"] == pytest.approx(1000 * score["timings"][0]["seconds"])
    assert "float32, torch" in score["judge"]
    boards, costs = summarize(tmp_path / "results")
    shown = page.text("md", boards, costs)
    assert all(f"latency: {name}" in shown for name in ("throughput", "throughput_1", "best_batch"))
    (board,) = boards
    assert board.cells["throughput_1"]["flow-matching", 2].value == pytest.approx(1 / score["timings"][0]["seconds"])
    table = shown.partition("latency: best_batch")[2].partition("###")[0]
    assert f"{score['metrics']['best_batch']['value']:.0f}" in table.split() and "better" not in table


def test_the_best_batch_is_no_contest(tmp_path):
    for label, batch in (("a", 4.0), ("b", 8.0)):
        folder = tmp_path / "tiny" / f"{label}-0"
        values = {"throughput": 9.0 + batch, "throughput_1": 3.0, "best_batch": batch}
        results.write_json(folder / "run.json", {**RUN, "label": label, "fingerprint": label, "group": label})
        told = {name: {"value": value, "se": None, "n": 1} for name, value in values.items()}
        results.write_json(folder / "latency-nfe1.json", {**SCORE, "benchmark": "latency", "metrics": told})
    (board,) = summarize(tmp_path)[0]
    assert board.comparisons["best_batch"] == [] and len(board.comparisons["throughput"]) == 1


def test_a_pipeline_is_timed_whole_and_in_its_network(tmp_path):
    pipeline = tiny("sd3", tmp_path / "sd3")
    subject = speed.of_pipeline(str(pipeline), StepOptions([2], (), 1.0), "small", 32, tmp_path / "runs")
    list(speed.time(subject, tmp_path / "results", most=2))
    (path,) = (tmp_path / "results").rglob("latency-nfe2.json")
    score = json.loads(path.read_text())
    one, two = score["timings"]
    assert (one["batch"], two["batch"]) == (1, 2) and 0 < one["network"] < one["seconds"]
    assert score["metrics"]["evaluation"]["value"] == pytest.approx(1000 * one["network"] / 2)
    assert not (tmp_path / "runs").exists()  # nothing is stored
    assert score["drawn"] == {"height": 32, "width": 32, "dtype": "float32"}
    other = speed.of_pipeline(str(pipeline), StepOptions([2], (), 1.0), "small", 64, tmp_path / "runs")
    with pytest.raises(
        UserError, match=r"latency-nfe2\.json is of other settings \(dtype float32, guidance 1\.0, height 32"
    ):
        list(speed.time(other, tmp_path / "results", most=1))
    assert json.loads(path.read_text()) == score
