"""When judges are looked for, loaded and asked, seen from the command line."""

from pathlib import Path

import painted
import pytest
from small import sets, twinbench

from twinbench import plugins
from twinbench.backbones.tiny import tiny

EYE = "eval.benchmarks.painted.eye"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return painted.install(tmp_path_factory.mktemp("site"))


@pytest.fixture(autouse=True)
def here(site, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(site)
    monkeypatch.chdir(tmp_path)
    plugins._group.cache_clear()
    yield tmp_path
    plugins._group.cache_clear()


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
