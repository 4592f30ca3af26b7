"""A score says who judged, whole: names, rules, the weights' sha256, and the packages that compute and resize."""

import json
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from small import trained, twinbench

from twinbench import files, plugins, results
from twinbench.benchmarks.base import Benchmark
from twinbench.benchmarks.diversity import Diversity
from twinbench.benchmarks.fidelity import Fidelity
from twinbench.benchmarks.shapes import ShapesGenEval
from twinbench.errors import UserError
from twinbench.judges import base, mmdetection
from twinbench.judges.mmdetection import MMDetection, MMDetectionSettings
from twinbench.weights import FOLDER

RESULTS = Path(__file__).parents[1] / "results"


def test_todays_judges_are_those_of_the_committed_scores():
    """Whatever a score tells beside: its judge and version, which say what it may be compared with."""
    if not (RESULTS / "shapes").is_dir():
        pytest.skip("not a checkout: no results lie beside the tests")
    for world in ("shapes", "digits"):
        for path in sorted((RESULTS / world).glob("teacher-*/*-nfe1.json")):
            score = results.read_json(path)
            made: Benchmark = plugins.benchmark(score["benchmark"], world)(plugins.dataset(world))
            assert (made.judge_name, made.version) == (score["judge"], score["version"])
            assert "judges" not in score or score["judges"] == made.judges


@pytest.mark.parametrize("kind", [Fidelity, Diversity])
@pytest.mark.parametrize("world", ["shapes", "digits"])
def test_an_encoder_is_told_by_its_whole_sum(kind, world):
    made = kind(plugins.dataset(world))
    (told,) = made.judges
    assert told["weights"] == files.sha256(FOLDER / f"{world}-encoder.safetensors") and "torch" in told
    assert made.judge_name == f"{told['judge']}/{told['weights'][:8]}"


def test_the_exact_judge_has_no_weights():
    made = ShapesGenEval(plugins.dataset("shapes"))
    (told,) = made.judges
    assert (told["judge"], told["rules"], told["weights"]) == ("shapes-exact", "1", "none") and "scipy" in told
    assert made.judge_name == "shapes-exact/1"


def test_a_score_tells_its_judges(tmp_path):
    runs = tmp_path / "runs"
    trained(runs, "moons", "flow-matching", "train.budget=0")
    assert twinbench("eval", "--runs", runs, "--results", tmp_path / "results", "--nfe", "1") == 0
    scores = [json.loads(path.read_text()) for path in (tmp_path / "results").rglob("*-nfe1.json")]
    assert scores and all(score["judges"] == [{"judge": "points", "weights": "none"}] for score in scores)


@pytest.mark.parametrize("name", ["clip", "clip-colors", "blip-vqa", "qwen-vl", "inception"])
def test_who_is_shown_resized_pictures_tells_what_resizes(name):
    assert "pillow" in plugins.judge(name).packages


def test_the_reference_detector_tells_mmcv_and_its_config(tmp_path, monkeypatch):
    """Of packages that stand for each other, the one that is here; another config is another judge."""
    here = {"torch": "2.9+cpu", "mmdet": "3.3.0", "mmengine": "0.10.7", "mmcv-lite": "2.1.0"}

    def installed(package):
        if package not in here:
            raise PackageNotFoundError(package)
        return here[package]

    monkeypatch.setattr(base, "installed", installed)
    (tmp_path / "w.pth").write_bytes(b"w")
    (tmp_path / "mine.py").write_text("x = 1\n")

    def judge(**more):
        return MMDetection(MMDetectionSettings(weights=str(tmp_path / "w.pth"), **more))

    told = judge().identity
    assert (told["torch"], told["mmcv-lite"], told["config"]) == ("2.9", "2.1.0", mmdetection.CONFIG)
    assert "mmcv" not in told and "mmcv-lite 2.1.0" in judge().version
    mine, sha = judge(config=str(tmp_path / "mine.py")), files.sha256(tmp_path / "mine.py")
    assert mine.identity["config"].endswith(sha) and mine.version != judge().version and sha[:12] in mine.version
    with pytest.raises(UserError, match=r"its config .*none\.py is no file"):
        _ = judge(config=str(tmp_path / "none.py")).version
    del here["mmengine"]
    with pytest.raises(UserError, match=r"judge mmdet needs mmengine: pip install 'twinbench\[mmdet\]'"):
        _ = judge().version
