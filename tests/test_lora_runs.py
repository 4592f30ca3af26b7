"""Runs that train adapters: what moves, what is held and saved, that they go on where they stopped and are judged."""

import math

import pytest
import torch
from adapted import LORA, begin, moons, points, teacher_weights
from small import sets, trained, twinbench

from twinbench.flow import Counted
from twinbench.tensors import read_tensors
from twinbench.training import start as starting


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    return teacher_weights(tmp_path_factory.mktemp("teacher"))


def state(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(before, after):
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_only_the_adapters_move_and_the_average_follows(tmp_path, pretrained):
    trainer = begin(tmp_path, LORA, "methods.twinflow={target: average}", weights=pretrained)
    student, average = trainer.owned.trained["student"].network, trainer.owned.average
    base, first = state(trainer.owned.base), state(student)
    assert state(average.network).keys() == first.keys() and not changed(state(average.network), first)
    seen, decays = [], []
    for _ in range(4):
        seen.append(state(student)), decays.append(average.decay)
        trainer.step()
    assert changed(first, state(student)) == first.keys()
    assert not changed(base, state(trainer.owned.base))
    for name, value in average.network.state_dict().items():
        shares = [(1 - decays[k]) * math.prod(decays[k + 1 :]) for k in range(4)]
        want = sum(share * held[name].double() for share, held in zip(shares, seen, strict=True))
        torch.testing.assert_close(value.double(), want, rtol=1e-5, atol=1e-6)
    assert not any(p.requires_grad for p in [*average.network.parameters(), *trainer.owned.base.parameters()])


def test_what_is_held_is_counted_once(tmp_path, pretrained):
    size = sum(value.numel() for value in read_tensors(pretrained)[0].values())
    for items, label, names in [
        ([LORA], "twinflow", ["student (trained)", "average", "base of adapters (frozen)"]),
        (
            [LORA, "methods.twinflow={target: pretrained}"],
            "twinflow",
            ["student (trained)", "average", "teacher (frozen)"],
        ),
    ]:
        trainer = begin(tmp_path, *items, label=label, weights=pretrained)
        student, average, base = trainer.owned.held()
        assert [row["name"] for row in (student, average, base)] == names
        assert (
            student["parameters"]
            == average["parameters"]
            == sum(value.numel() for value in trainer.owned.trained["student"].network.state_dict().values())
        )
        assert (student["bytes"], average["bytes"], base["bytes"]) == (
            16 * student["parameters"],
            4 * average["parameters"],
            4 * base["parameters"],
        )
        assert base["parameters"] == size


@pytest.mark.parametrize(
    ("label", "items"),
    [
        ("twinflow", [LORA, "methods.twinflow={target: average}"]),
        ("twinflow", [LORA, "methods.twinflow={target: pretrained, order: 1}", "backbone.times=half"]),
        ("dmd", ["methods.dmd={fake: lora, lora: {rank: 3}, critic_steps: 2}"]),
        ("dmd", [LORA, "methods.dmd={fake: lora, critic_steps: 2}"]),
        ("sid", [LORA]),
        ("progressive", [LORA, "methods.progressive={steps: 4}"]),
    ],
    ids=["student", "student-half", "critic", "student-and-critic", "student-and-network", "phases"],
)
def test_a_killed_run_with_adapters_ends_where_an_uninterrupted_one_does(tmp_path, pretrained, label, items):
    whole = begin(tmp_path / "whole", *items, label=label, weights=pretrained)
    rows = list(whole)
    assert all(math.isfinite(row["gradient"]) and row["gradient"] > 0 for row in rows[1:])
    killed = iter(begin(tmp_path / "killed", *items, label=label, weights=pretrained))
    for _ in range(5):
        next(killed)
    resumed = begin(tmp_path / "killed", *items, label=label, weights=pretrained)
    assert resumed.state.step == 4
    list(resumed)
    files = ["weights.safetensors", *["adapters.safetensors"] * (LORA in items)]
    for name in files:
        assert not changed(*(read_tensors(trainer.folder / name)[0] for trainer in (whole, resumed)))
    initial, end = read_tensors(pretrained)[0], read_tensors(whole.folder / "weights.safetensors")[0]
    assert changed({k: initial[k] for k in end}, end)
    for turn, item in whole.owned.trained.items():
        assert not changed(state(item.network), state(resumed.owned.trained[turn].network))


def test_checkpoints_hold_the_adapters_alone(tmp_path, pretrained):
    trainer = begin(tmp_path, LORA, label="twinflow", weights=pretrained)
    list(trainer)
    newest = sorted((trainer.folder / "checkpoints").iterdir())[-1]
    held = read_tensors(newest)[0]
    kinds = {name.split(".")[0] for name in held}
    assert kinds == {"student", "average", "optimizer"}
    assert "student.layers.0.lora_A.weight" in held and "student.first.weight" not in held


def test_a_critic_of_low_rank_learns_and_the_teacher_stays(tmp_path, pretrained):
    trainer = begin(tmp_path, "methods.dmd={fake: lora, lora: {rank: 3}}", label="dmd", weights=pretrained)
    critic, teacher, base = trainer.owned.trained["critic"].network, trainer.owned.teacher, trainer.owned.base
    assert teacher is base
    x, t, _, cond = points()
    with torch.no_grad():
        want = teacher(x, t, t, cond)
        assert torch.equal(critic(x, t, t, cond), want)
    list(trainer)
    with torch.no_grad():
        assert torch.equal(teacher(x, t, t, cond), want)
        assert not torch.equal(critic(x, t, t, cond), want)
    names = [row["name"] for row in trainer.owned.held()]
    assert names == ["student (trained)", "critic (trained)", "average", "teacher (frozen)"]
    assert critic.layers.get_submodule("0").lora_A.weight.shape == (3, 16)
    assert not Counted(teacher).trained


def test_a_run_with_adapters_is_judged_as_any_other(tmp_path, pretrained, monkeypatch):
    items = [LORA, "eval.benchmarks={fidelity: {}}", "data.size=256", "train.budget=3", "train.batch=16"]
    items += ["backbone.width=16", "backbone.depth=2", f"backbone.weights={pretrained}"]
    monkeypatch.chdir(tmp_path)
    folder = trained(tmp_path / "runs", "moons", "twinflow", *items)
    words = ("--nfe", "1", "--bench", "fidelity", "--limit", "4", "--runs", "runs", "--results", "results")
    assert twinbench("eval", folder, *words) == 0
    assert len(list(tmp_path.glob("results/moons/*/fidelity-nfe1*.json"))) == 1
    trainer = begin(tmp_path, LORA, weights=pretrained)
    list(trainer)
    drawn = starting.trained(moons(LORA, weights=pretrained), trainer.folder / "weights.safetensors")
    x, t, r, cond = points()
    with torch.no_grad():
        torch.testing.assert_close(drawn(x, t, r, cond), trainer.evaluated(x, t, r, cond), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(drawn(x, t, r, cond), trainer.owned.base(x, t, r, cond), atol=1e-4)


def test_adapters_are_part_of_what_a_run_is_and_their_absence_is_not():
    plain, lora, larger = (moons(*item) for item in ([], [LORA], ["train.lora={rank: 8}"]))
    identities = [item.identity("w", "d") for item in (plain, lora, larger)]
    assert "lora" not in identities[0]["train"]
    assert identities[1]["train"]["lora"] == {"rank": 4} and identities[1] != identities[2]


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([LORA], "set backbone.weights"),
        (["train.lora={rank: 0}"], "rank"),
        (["train.lora={rnak: 4}"], "known: rank, alpha"),
    ],
)
def test_wrong_adapters_are_told_in_one_sentence(tmp_path, capsys, items, words):
    code = twinbench("train", "twinflow", "--recipe", "moons", "--runs", tmp_path, *sets(*items, "train.budget=1"))
    told = " ".join(capsys.readouterr().err.split())
    assert code == 2 and words in told, told
