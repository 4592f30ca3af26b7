"""Every method: a run that stops two steps after its last checkpoint ends with the bytes of one that did not."""

import json

import pytest
import torch
from small import files, resolved, trained

from twinbench import plugins
from twinbench.tensors import read_tensors
from twinbench.training.start import start

TINY = ("backbone.width=16", "backbone.depth=1", "data.size=256", "train.batch=16", "train.decay=0.5")
STEPS = ("train.budget=7", "train.save_every=3")
TIMED = {"seconds", "peak_bytes"}
CASES = {name: () for name in plugins.names("methods") if name != "pretrained"}  # a label and its settings
CASES |= {
    "kd": ("pairs=40", "steps=2"),
    "progressive": ("steps=2", "anneal=phase"),
    "dmd": ("critic_steps=2",),
    "dmd2": ("critic_steps=2", "r1=0.1"),
    "sid": ("critic_steps=2",),
    "dmd shared": ("fake=shared", "real=average"),
    "dmd lora": ("fake=lora",),
    "twinflow paper": ("form=paper",),
    "twinflow fake": ("fake_steps=2", "generate=average"),
    "twinflow image-free": ("image_free=true", "target=pretrained"),
    "consistency distillation": ("form=distillation", "target=average"),
}


def last_of(folder):
    tensors, data = read_tensors(folder / "checkpoints" / "step-00000007.safetensors")
    return tensors, {key: value for key, value in data["state"].items() if "seconds" not in key and key != "peak_bytes"}


def log_of(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row.keys() - TIMED} for row in rows]


@pytest.mark.parametrize("case", CASES)
def test_a_run_goes_on_where_it_stopped(tmp_path, case):
    label = case.split()[0]
    settings = (*TINY, *STEPS, *(f"methods.{label}.{item}" for item in CASES[case]))
    whole = trained(tmp_path / "once", "moons", label, *settings)
    _, trainer = start(resolved("moons", label, *settings), tmp_path / "twice")
    for row in trainer:
        if row["step"] == 5:  # two steps after its last checkpoint
            break
    again = trained(tmp_path / "twice", "moons", label, *settings)
    assert files(again)["weights.safetensors"] == files(whole)["weights.safetensors"]
    (one, state), (other, other_state) = last_of(whole), last_of(again)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert state == other_state and len(log_of(whole)) == 7 and log_of(whole) == log_of(again)
    for turn in {*trainer.method.turns(0)}:
        assert any(name.startswith(f"optimizer.{turn}.") for name in one), turn
