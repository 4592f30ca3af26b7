"""From a pipeline to scores with judges of the real classes, tiny and untrained: whole, killed and resumed, shared."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from judges_tiny import blip_folder, clip_file, detector_folder
from processes import together
from small import scores, sets, twinbench
from tiny import load

from twinbench.backbones.tiny import tiny
from twinbench.benchmarks.geneval_pictures import GenEval
from twinbench.results import read_items, read_json

PICTURES = 6 + 2  # one of each of GenEval's tasks, and a prompt of DPG-Bench twice
TABLE = """item_id,text,proposition_id,dependency,tuple,question_natural_language
a,a red circle,1,0,entity - whole (circle),Is there a circle?
a,a red circle,2,1,attribute - color (circle),Is the circle red?
"""


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """eval of a tiny pipeline by GenEval and DPG-Bench."""
    folder = tmp_path_factory.mktemp("tiny")
    for name in ("detector", "clip", "blip"):
        (folder / name).mkdir()
    detector = detector_folder(folder / "detector", load("mask2former_mmdet")["shapes"])
    clip, blip = clip_file(folder / "clip"), blip_folder(folder / "blip")
    (folder / "dpg.csv").write_text(TABLE)
    pipeline = tiny("z-image", folder / "z-image")
    geneval = (
        f"{{copies: 1, threshold: 0.1, counting_threshold: 0.1, detector: {{name: mask2former, weights: {detector}}}"
    )
    colors = f"colors: {{name: clip-colors, model: tiny-clip-quickgelu, weights: {clip}}}}}"
    return (
        *("eval", "--pipeline", pipeline, "--nfe", "1", "--guidance", "1", "--size", "32", "--batch", "2"),
        *("--bench", "dpg,geneval", "--limit", "1", "--dpg-csv", folder / "dpg.csv"),
        *sets(f"eval.benchmarks.geneval={geneval}, {colors}"),
        *sets(f"eval.benchmarks.dpg={{copies: 2, vqa: {{name: blip-vqa, weights: {blip}}}}}"),
    )


def test_a_whole_evaluation_is_the_same_at_once_killed_and_shared(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(GenEval, "part", 2)
    assert twinbench(*words) == 1  # its judges are untrained
    assert "blip-vqa fails its own test" in capsys.readouterr().err
    drawn = [*Path("runs").rglob("*.png")]
    assert len(drawn) == PICTURES and not Path("results").exists()
    words = (*words, "--untested")
    assert twinbench(*words) == 0
    whole = scores("results")
    assert [Path(name).name for name in whole if "items" in name] == [
        "dpg-nfe1-limit1.items.jsonl.gz",
        "geneval-nfe1-limit1.items.jsonl.gz",
    ]
    (path,) = Path("results").rglob("geneval*.json")
    assert read_json(path)["untested"] and any(row["found"] for row in read_items(path.with_suffix(".items.jsonl.gz")))

    often = (*words, "--results", "often", "--runs", "often-runs")
    runs = Path("often-runs")
    killed(often, lambda: len([*runs.rglob("*.png")]) >= 3)
    assert 3 <= len([*runs.rglob("*.png")]) < PICTURES
    killed(often, lambda: [*runs.rglob("judged/*.safetensors")])
    assert len([*runs.rglob("*.png")]) == PICTURES and not [*Path("often").rglob("*.json")]
    assert twinbench(*often) == 0 and scores("often") == whole

    assert together(lambda: twinbench(*words, "--results", "two", "--runs", "two-runs")) == [0, 0]
    assert scores("two") == whole


def killed(words, when):
    """Run the command line in a child process, and kill it when something is there."""
    child = multiprocessing.get_context("fork").Process(target=twinbench, args=words)
    child.start()
    while child.is_alive() and not when():
        time.sleep(0.002)
    assert child.is_alive(), "it ended before it could be killed"
    os.kill(child.pid, signal.SIGKILL)
    child.join()
