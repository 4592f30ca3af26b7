"""What a plan says of the large models, counted on the meta device, and what it proposes where one does not fit."""

import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from functools import cache

import families  # noqa: F401  (the hub is not asked)
import pytest
import torch
from small import resolved, twinbench

from twinbench import recipe
from twinbench.backbones import sizes
from twinbench.errors import UserError
from twinbench.planning import meta, planner
from twinbench.planning.plan import RESERVE, Model, Needs, Plan, Setup, changes, cheapest
from twinbench.planning.planner import Machine
from twinbench.sections import BackboneSection

GB = 1e9
ON_EIGHT = Setup(8, 80 * GB, 32, 4)


@cache
def network(name, model, **options):
    return meta.empty(BackboneSection(name=name, model=model, text_dtype="bfloat16", **options))


@cache
def qwen_image():
    return meta.counted(network("qwen-image", "Qwen/Qwen-Image", resolution=512), torch.bfloat16)


def states(needs=None, model=None, **options):
    """GB of a GPU."""
    return Plan(model or qwen_image(), needs or Needs(), replace(ON_EIGHT, **options), 1).states / GB


# ---- the large models ----


@pytest.mark.parametrize(
    ("name", "model", "billions"),
    [
        ("qwen-image", "Qwen/Qwen-Image", 20.430),
        ("flux", "black-forest-labs/FLUX.1-dev", 11.901),
        ("z-image", "Tongyi-MAI/Z-Image", 6.155),
        ("sd3", "stabilityai/stable-diffusion-3.5-medium", 2.243),
        ("sana", "Efficient-Large-Model/Sana_1600M_512px_diffusers", 1.604),
        ("sana", "Efficient-Large-Model/Sana_600M_512px_diffusers", 0.592),
        ("dit", "facebook/DiT-XL-2-256", 0.750),
    ],
)
def test_the_sizes_of_public_models_give_their_numbers_of_parameters(name, model, billions):
    made = network(name, model, resolution=512)
    assert meta.count(made.transformer.parameters()) / GB == pytest.approx(billions, abs=6e-4)
    assert all(p.device.type == "meta" for p in made.parameters())


def test_every_large_recipe_names_a_model_whose_sizes_are_known():
    named = {name: recipe.load(name).backbone.options.get("model") for name in recipe.shipped()}
    assert {model for model in named.values() if model} <= set(sizes.SIZES)
    with pytest.raises(UserError, match="sizes of 'some/body' are not known"):
        network("qwen-image", "some/body")


def test_what_training_qwen_image_holds_on_eight_gpus():
    """Bytes of a parameter: 16 where it is trained, 4 of an average, 2 of a frozen teacher."""
    teacher, dmd2 = Needs(teacher=True), Needs(teacher=True, critic=0)
    assert states(average=False) == pytest.approx(40.9, rel=0.02)
    assert states() == pytest.approx(51.1, rel=0.02)
    assert states(teacher) == pytest.approx(56.2, rel=0.02)
    assert states(dmd2, average=False) == pytest.approx(86.8, rel=0.02)
    assert states(dmd2) == pytest.approx(97.0, rel=0.02)


@pytest.mark.parametrize("label, gigabytes", [("twinflow", 51.1), ("dmd2", 97.0), ("sid", 97.0)])
def test_what_a_method_of_the_recipe_holds_on_eight_gpus(label, gigabytes, monkeypatch):
    monkeypatch.setattr(meta, "model", lambda section, precision: qwen_image())
    record = planner.plan(resolved("qwen-image", label), Machine(8, 80 * GB, 1e15, 0.4), 1)
    assert record["memory"]["networks"] / GB == pytest.approx(gigabytes, rel=0.02)


def test_adapters_of_qwen_image_fit_one_gpu():
    model = replace(qwen_image(), size=2)
    assert model.of_rank(64) == pytest.approx(425e6, rel=0.02)
    plan = Plan(model, Needs(), Setup(1, 80 * GB, 64, 4, recompute=True, lora=64), 1.0)
    assert plan.states / GB == pytest.approx(49.4, rel=0.02) and plan.fits
    two = Plan(model, Needs(teacher=True, critic=64), plan.setup, 1.0)
    assert (two.states - plan.states) / GB == pytest.approx(6.8, rel=0.02)


def test_the_cost_of_a_pass_of_qwen_image():
    model, width, tokens = qwen_image(), 3072, 1024 + meta.LONGEST
    layers, attention, modulation = 24 * width**2 * tokens, 4 * tokens**2 * width, 24 * width**2
    assert model.flops == pytest.approx(60 * (layers + attention + modulation), rel=0.01)
    assert model.block * 60 / model.parameters == pytest.approx(1, abs=0.01)
    assert (
        60 * tokens * width * 2 < model.kept < 1.1 * 60 * tokens * width * 2
    )  # what the blocks are given, in bfloat16
    assert (model.latent, model.words) == (16 * 64 * 64 * 4, 120 * 3584 * 2)


@pytest.mark.parametrize("method", ["twinflow", "dmd2"])
def test_the_command_tells_whether_qwen_image_fits_eight_gpus(method, monkeypatch, capsys):
    monkeypatch.setattr(meta, "model", lambda section, precision: qwen_image())
    words = ["plan", method, "--recipe", "qwen-image", "--gpus", 8, "--gpu-memory", 80]
    assert twinbench(*words) == 0
    told = capsys.readouterr().out
    assert ("It fits: " in told) == (method == "twinflow") and ("It does not fit: " in told) == (method == "dmd2")
    assert twinbench(*words, "--format", "json") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["fits"] == (method == "twinflow") and bool(record["change"]) == (method == "dmd2")
    kept = record["memory"]
    parts = sum(kept[kind] for kind in ("networks", "working", "activations", "reserve"))
    assert kept["total"] == pytest.approx(parts) and kept["networks"] / GB > (50 if method == "twinflow" else 80)


def test_the_command_is_quick_and_small():
    code = "import sys; from twinbench.cli import main; sys.argv[0] = 'twinbench'; main()"
    words = ["plan", "twinflow", "--recipe", "qwen-image", "--gpus", "8", "--format", "json"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=env, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stderr == "" and json.loads(done.stdout)["backbone"] == "Qwen/Qwen-Image"
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 60 and after.ru_maxrss * 1024 < 4 * GB


# ---- what would make it fit ----


TOY = Model(
    parameters=10**9,
    trained=10**9,
    matrices=0,
    block=10**7,
    root=0,
    depth=100,
    adapter=10**6,
    full=0,
    size=4,
    products=2,
    flops=1e12,
    saved=10**9,
    kept=10**8,
    largest=10**7,
    widths=(64,) * 100,
    latent=0,
    words=0,
)
LORA = ["--set train.lora.rank=64"]
RECOMPUTE, LEAST = ["--set train.recompute=true"], ["--set train.recompute=true", "--set train.micro_batch=1"]


@pytest.mark.parametrize(
    ("activations", "options", "words"),
    [
        (1.0, {}, RECOMPUTE),
        (2.0, {"micro": 8}, RECOMPUTE),
        (0.25, {"recompute": True}, ["--set train.micro_batch=2"]),
        (0.15, {}, LEAST),
        (-4.0, {}, [*LEAST, *LORA]),
        (-4.0, {"lora": 64, "gpus": 1}, None),
    ],
)
def test_the_first_change_that_is_enough_is_named(activations, options, words):
    """activations: GB that are left for them beside weights, gradients, moments, average and what products want."""
    memory = 20 * GB + 2 * GB + RESERVE + activations * GB
    plan = Plan(TOY, Needs(), replace(Setup(1, memory, 8), **options), 1.0)
    if words is None:
        assert plan.fits and plan.setup.lora
        return
    assert not plan.fits
    found, changed = cheapest(plan)
    assert found == words and changed.fits
    before = [each for each, other in changes(plan) if other.fits]
    assert before[0] == words


STUDENT = "--set train.evaluate=student"


@pytest.mark.parametrize(
    ("label", "items", "words"),
    [
        ("twinflow", (), (STUDENT,)),  # its targets are the network's own there
        ("twinflow-average", (), (STUDENT, "--set presets.average.twinflow-average.target=self")),
        ("dmd2", (), (STUDENT,)),
        ("dmd2", ("methods.dmd2.real=average",), ()),
        ("progressive", (), ()),
    ],
)
def test_the_average_is_left_out_where_nobody_needs_it(label, items, words):
    settings = resolved("qwen-image", label, *items)
    assert planner.bare(settings) == words
    said = [word.removeprefix("--set ") for word in words]
    eight = Machine(8, 80 * GB, 1e15, 0.4)
    assert planner.setup_of(settings, eight).average
    assert planner.setup_of(resolved("qwen-image", label, *items, *said), eight).average == (not words)
    small = Setup(1, 19 * GB + 2 * GB + RESERVE, 1, recompute=True)
    assert (cheapest(Plan(TOY, Needs(), small, 1.0, words)) or [None])[0] == [*words, *LORA][: len(words) or 1]


def test_more_gpus_then_the_host_and_then_nothing():
    wide = replace(TOY, adapter=0)  # takes no adapters
    setup = Setup(2, 6 * GB, 8, recompute=True, micro=1)
    found, changed = cheapest(Plan(wide, Needs(), setup, 1.0))
    assert found == ["--gpus 8"] and changed.setup.rows == 1
    few = Plan(wide, Needs(), replace(setup, batch=2), 1.0)  # two rows cannot be dealt to more
    found, changed = cheapest(few)
    assert found == ["--set train.offload=true"] and changed.host == changed.shards and not changed.states
    assert cheapest(replace(few, setup=replace(few.setup, memory=2 * GB))) is None


def test_a_wrong_question_is_answered_in_one_sentence(capsys):
    assert twinbench("plan", "pretrained", "--recipe", "sana-0.6b") == 2
    assert "trains nothing" in capsys.readouterr().err
    for words in (
        ["--flops", "many"],
        ["--gpus", "7"],
        ["--set", "train.offload=true"],
        ["--set", "backbone.model=a/b"],
    ):
        assert twinbench("plan", "twinflow", "--recipe", "sana-0.6b", *words) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1


def test_a_plan_knows_the_small_worlds_too():
    record = planner.plan(resolved("shapes", "dmd2"), Machine(1, GB * 80, 1e12, 0.5), 10)
    assert record["fits"] and record["cache"] is None
    assert [part["name"] for part in record["networks"]] == ["student", "critic", "head", "average", "teacher"]
    spent = record["cost"]
    assert spent["passes"] == pytest.approx(300_000)
    assert spent["gpu_hours"] == pytest.approx(spent["passes"] * spent["flops_per_pass"] / 0.5e12 / 3600)
