"""twinbench doctor, from outside; judges by name and setting."""

import os
import pickle
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
import torchvision
from small import twinbench

from twinbench import plugins
from twinbench.errors import UserError, WorkError
from twinbench.judges.base import judge


def doctor(*arguments, assets):
    environment = {**os.environ, "TWINBENCH_ASSETS": str(assets), "HF_HOME": str(assets), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "twinbench", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def test_every_judge_is_told_of_and_what_is_missing_is_no_failure(tmp_path):
    done = doctor(assets=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert set(rows) >= set(plugins.names("judges"))
    assert rows["shapes-exact"].split()[1] == "ok"
    assert "twinbench fetch geneval-detector" in rows["mask2former"]
    assert "hf download Salesforce/blip-vqa-base" in rows["blip-vqa"]
    for name, package in (("mask2former", "transformers"), ("clip", "pillow"), ("inception", "clean-fid")):
        assert f"{package} {version(package)}" in rows[name].partition("(here: ")[2]
    assert "twinbench doctor external-vqa --set 'external-vqa.command=VALUE'" in rows["external-vqa"]
    assert "as in [/envs/mplug/bin/python, serve.py]" in rows["external-vqa"]


@pytest.mark.parametrize("content", [b"junk", b"", b"\x80\x02.", pickle.dumps({"a": print}, 2)])
@pytest.mark.parametrize("name", ["inception", "mask2former", "torch-fidelity"])
def test_weights_that_are_there_and_are_none_fail_in_one_plain_line(name, content, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # doctor sets it
    place = tmp_path / "none.pth"
    place.write_bytes(content)
    assert twinbench("doctor", name, "--set", f"{name}.weights={place}") == 1
    said = capsys.readouterr()
    assert said.out.split()[:2] == [name, "fails"] and str(place) in said.out
    assert said.out.count("\n") == 1 and "[" not in said.out.replace("['state_dict']", "") and name in said.err


def test_a_judge_that_is_asked_for_must_be_there_and_be_right(tmp_path):
    torch.manual_seed(0)
    features = torchvision.models.alexnet(weights=None).features.state_dict()
    torch.save({f"features.{name}": value for name, value in features.items()}, tmp_path / "random.pth")
    missing = doctor("lpips", assets=tmp_path)
    assert missing.returncode == 1 and "twinbench fetch alexnet" in missing.stdout
    assert "or --set lpips.weights=PATH" in missing.stdout
    fails = doctor("lpips", "--set", f"lpips.weights={tmp_path / 'random.pth'}", assets=tmp_path)
    assert fails.returncode == 1 and fails.stdout.split()[:2] == ["lpips", "fails"]
    assert fails.stderr.startswith("error: lpips: see above")
    nobody = doctor("lpipz", assets=tmp_path)
    assert nobody.returncode == 2 and nobody.stderr.startswith("error: judge 'lpipz' not found; did you mean 'lpips'?")
    assert all(name in nobody.stderr for name in plugins.names("judges")) and not nobody.stdout
    misspelt = doctor("--set", "lpips.wieghts=x", assets=tmp_path)
    assert misspelt.returncode == 2 and "did you mean 'weights'" in misspelt.stderr
    unknown = doctor("shapes-exact", "--set", "lpipz.weights=x", assets=tmp_path)
    assert unknown.returncode == 2 and "twinbench list judges" in unknown.stderr


def test_a_judge_is_made_once_for_its_settings(tmp_path):
    a = judge("lpips", {"weights": "x", "batch": 2})
    assert a is judge("lpips", {"batch": 2, "weights": "x"}) and a is not judge("lpips", {"weights": "x"})
    with pytest.raises(UserError, match="did you mean 'lpips'"):
        judge("lpip")
    with pytest.raises(UserError, match=r"judge lpips: .*wieghts"):
        judge("lpips", {"wieghts": "x"})


def test_the_exact_judge_notices_a_broken_reader(monkeypatch):
    from twinbench.judges import shapes

    exact = shapes.ShapesDetector()
    exact.selftest()
    monkeypatch.setattr(shapes, "PALETTE", shapes.PALETTE[::-1])
    with pytest.raises(WorkError, match="shapes-exact fails its self-test"):
        exact.selftest()


@pytest.mark.parametrize("name", plugins.names("judges"))
def test_every_judge_says_how_it_is_set_and_has_a_selftest(name):
    kind = plugins.judge(name)
    assert kind.name == name and callable(kind.selftest)
    assert all(field.description for field in kind.Config.model_fields.values())
