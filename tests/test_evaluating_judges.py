"""When judges are looked for, loaded and asked, seen from the command line."""

import re
from pathlib import Path

import painted
import pytest
from PIL import Image
from small import sets, twinbench

from twinbench.backbones.tiny import tiny
from twinbench.benchmarks.diversity_pictures import PictureDiversity
from twinbench.benchmarks.dpg_pictures import DPG
from twinbench.benchmarks.fidelity_pictures import PictureFidelity
from twinbench.benchmarks.geneval_pictures import GenEval
from twinbench.errors import UserError
from twinbench.settings import validate

EYE = "eval.benchmarks.painted.eye"


pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """eval of a tiny pipeline by the painted benchmark."""
    pipeline = tiny("z-image", tmp_path_factory.mktemp("pipeline") / "z-image")
    return ("eval", "--pipeline", pipeline, "--bench", "painted", "--nfe", "1", "--size", "32", "--guidance", "1")


def drawn():
    return [*Path("runs").rglob("*.png")]


def test_judges_are_loaded_when_all_is_drawn_and_the_model_has_left(words, capsys, monkeypatch):
    from twinbench.sources.pipeline import Pipeline

    left, release = [], Pipeline.release
    monkeypatch.setattr(Pipeline, "release", lambda self: left.append(len(drawn())) or release(self))
    assert twinbench(*words, *sets(f"{EYE}={{name: eye, damaged: true}}")) == 1
    assert "eye fails its own test" in capsys.readouterr().err
    assert left == [len(painted.Painted().requests())] == [len(drawn())]


@pytest.mark.parametrize(
    "eye, told", [("{name: eye, lost: true}", "twinbench fetch eye"), ("eyes", "did you mean 'eye'")]
)
def test_what_a_judge_needs_is_looked_for_before_anything_is_drawn(words, capsys, eye, told):
    assert twinbench(*words, *sets(f"{EYE}={eye}")) == 2
    assert told in capsys.readouterr().err and drawn() == []


@pytest.mark.parametrize(
    "kind, role, given, told",
    [
        (GenEval, "detector", "blip-vqa", "blip-vqa is no Detector; these are: mask2former, mmdet"),
        (GenEval, "detector", "shapes-exact", "shapes-exact is no Detector"),
        (GenEval, "colors", "clip", "clip is no Colors; these are: clip-colors"),
        (DPG, "vqa", "clip", "clip is no VQA; these are: blip-vqa, external-vqa, qwen-vl"),
        (PictureFidelity, "features", "lpips", "lpips is no Features; these are: inception, pixels, torch-fidelity"),
        (PictureFidelity, "clip", "inception", "inception is no Similarity; these are: clip, clip-colors"),
        (PictureDiversity, "distance", "mask2former", "mask2former is no Distance; these are: lpips"),
    ],
)
def test_a_judge_of_another_kind_than_is_asked_for_is_refused(kind, role, given, told):
    config = validate(kind.Config, {role: given, **({"reference": "x"} if kind is PictureFidelity else {})}, "eval")
    with pytest.raises(UserError, match=told):
        getattr(kind(None, config), {"features": "encoder"}.get(role, role))


def test_missing_weights_are_told_with_the_command_and_the_setting_that_mend_it(capsys, monkeypatch, tmp_path):
    """And the setting does."""
    monkeypatch.setenv("TWINBENCH_ASSETS", str(tmp_path / "assets"))
    Path("given").mkdir()
    Image.new("RGB", (8, 8)).save("given/00000.png")
    words = ("eval", "--images", "given", "--bench", "diversity")
    assert twinbench(*words) == 2
    said = capsys.readouterr().err
    assert "twinbench fetch alexnet" in said
    (setting,) = re.findall("or --set '(.*)'", said)
    Path("weights.pth").write_bytes(b"none")
    assert twinbench(*words, *sets(setting.replace("PATH", "weights.pth"))) == 1
    assert "weights.pth has sha256" in capsys.readouterr().err


def test_a_judge_of_another_kind_is_bad_input(capsys):
    Path("given").mkdir()
    Image.new("RGB", (8, 8)).save("given/00000.png")
    words = ("eval", "--images", "given", "--bench", "geneval", *sets("eval.benchmarks.geneval.detector=lpips"))
    assert twinbench(*words) == 2
    assert capsys.readouterr().err == "error: judge lpips is no Detector; these are: mask2former, mmdet\n"
