"""Recipes of large models: what they say, that every method of theirs resolves, and that their tiny twins run the whole
path on a CPU."""

import json
import os
import shutil
import signal

import families
import pytest
import torch
import yaml
from small import files, sets, twinbench

from twinbench import miniature, plugins, recipe
from twinbench.backbones.pipeline import PipelineBackbone
from twinbench.backbones.tiny import MAKERS
from twinbench.data.captioned import Captioned
from twinbench.errors import UserError
from twinbench.sampler import plan
from twinbench.sections import BackboneSection
from twinbench.settings import validate
from twinbench.tensors import save_tensors
from twinbench.training.start import measured, placed, start, trained

LARGE = [name for name in recipe.shipped() if recipe.load(name).data.kind in ("images", "prompts")]
EVERY = [(name, label) for name in LARGE for label in recipe.load(name).labels()]
WANTED = [
    "flux-lora",
    "imagenet-256",
    "openuni",
    "openuni-image-free",
    "qwen-image",
    "qwen-image-lora",
    "sana-0.6b",
    "sana-1.6b",
    "sd35-medium",
    "z-image",
]
RIVALS = {"twinflow", "rcgm", "consistency", "meanflow", "dmd"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Where the tiny pipelines lie."""
    return tmp_path_factory.mktemp("runs")


def tiny(name, label, runs, *items, seed=0):
    return recipe.resolve(recipe.load(f"{name}-tiny", list(items), runs), label, seed)


def test_there_are_all_of_them_with_all_rivals():
    assert WANTED == LARGE
    for name in LARGE:
        labels = recipe.load(name).methods
        if recipe.load(name).data.kind == "prompts":
            assert {*labels} == {"twinflow", "rcgm", "dmd", "pretrained"}  # the others need pictures
            continue
        assert {*labels} >= RIVALS, name
        assert name == "imagenet-256" or {"dmd2", "flow-matching", "pretrained"} <= {*labels}


@pytest.mark.parametrize(("name", "label"), EVERY)
def test_every_method_resolves_large_and_tiny(name, label, runs):
    for item in (recipe.resolve(recipe.load(name), label), tiny(name, label, runs)):
        kind = plugins.backbone(item.backbone.name)
        assert issubclass(kind, PipelineBackbone) and issubclass(plugins.dataset(item.data.kind), Captioned)
        validate(kind.Config, item.backbone.options, name)
        data = plugins.dataset(item.data.kind)
        validate(data.Config, item.data.options, name)
        made = plugins.method(item.method)
        made(made.Config.model_validate(item.config))
        for nfe in recipe.nfe_of(item):
            assert plan(item, nfe).counted == nfe


@pytest.mark.parametrize("name", LARGE)
def test_few_steps_of_students_fit_a_stock_pipeline(name):
    loaded = recipe.load(name)
    for label in ("twinflow", "rcgm", "dmd"):
        plans = [plan(recipe.resolve(loaded, label), nfe) for nfe in loaded.eval.nfe]
        assert all(p.guidance == 1 and (p.schedule.hop == "end" or name == "imagenet-256") for p in plans)
        assert plans[0].schedule.hop == "end"


def test_official_numbers():
    full, lora = (recipe.resolve(recipe.load(name), "twinflow") for name in ("qwen-image", "qwen-image-lora"))
    assert (full.train.lr, full.train.betas, full.train.batch, full.train.budget) == (1e-5, (0.9, 0.99), 32, 10000)
    assert (full.config["order"], full.config["cfg_scale"], full.config["target"]) == (2, 5.0, "self")
    assert (lora.train.lr, lora.train.lora.rank, lora.train.lora.alpha, lora.train.batch) == (1e-4, 64, 64, 64)
    assert lora.config["target"] == "average" and lora.train.budget == 7000
    first = recipe.resolve(recipe.load("qwen-image-lora"), "twinflow-first").config
    assert (first["order"], first["target"], first["shares"]["any_step"], first["shares"]["to_zero"]) == (
        *(1, "pretrained"),
        *(0, 1),
    )
    sana = recipe.resolve(recipe.load("sana-0.6b"), "twinflow")
    assert (sana.train.optimizer, sana.train.lr, sana.train.budget) == ("radam", 1e-4, 30000)
    assert sana.config["rectify"] == 0.75
    free = recipe.resolve(recipe.load("sana-0.6b"), "twinflow-image-free").config
    assert (free["image_free"], free["cfg_scale"], free["target"]) == (True, 4.0, "pretrained")
    full, free = (recipe.resolve(recipe.load(name), "twinflow") for name in ("openuni", "openuni-image-free"))
    assert (full.train.optimizer, full.train.lr, full.train.betas, full.train.ema) == (
        "adamw",
        1e-4,
        (0.9, 0.95),
        0.999,
    )
    assert (full.config["order"], full.config["cfg_scale"], full.config["rectify"]) == (2, 5.0, 0.75)
    assert (free.config["image_free"], free.config["cfg_scale"], free.config["target"]) == (True, 4.0, "pretrained")
    mean = recipe.resolve(recipe.load("imagenet-256"), "meanflow").config
    assert mean["cfg_scale"] * (1 - mean["kappa"]) == pytest.approx(0.2)  # omega


# ---- tiny twins ----


def test_a_twin_is_its_recipe_with_what_makes_it_large_laid_over(runs, tmp_path):
    large, twin = recipe.load("qwen-image-lora"), recipe.load("qwen-image-lora-tiny", [], runs)
    assert twin.methods["twinflow"]["order"] == large.methods["twinflow"]["order"]
    assert twin.sample == large.sample and {*twin.labels()} == {*large.labels()}
    assert (twin.train.lr, twin.train.betas) == (large.train.lr, large.train.betas)
    assert twin.train.budget == 4 and twin.train.lora.rank == 4 and twin.methods["pretrained"]["train"]["budget"] == 0
    assert twin.backbone.options["model"] == str(runs / "tiny" / "qwen-image")
    assert recipe.load("qwen-image-lora-tiny", ["train.budget=7"], runs).train.budget == 7  # what is asked for wins
    tree = {**yaml.safe_load((recipe._folder() / "sana-0.6b.yaml").read_text()), "description": "mine"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tree))
    mine = recipe.load(f"{tmp_path}/mine.yaml-tiny", [], runs)
    assert (mine.name, mine.description, mine.backbone.name) == ("mine-tiny", "mine", "sana")
    with pytest.raises(UserError, match="small already"):
        recipe.load("shapes-tiny")


def test_every_family_of_a_recipe_has_a_twin():
    assert {recipe.load(name).backbone.name for name in LARGE} == {*MAKERS}


@pytest.mark.parametrize("label", plugins.names("methods"))
def test_every_method_takes_a_step_on_qwen_image(label, runs):
    quick = ["train.budget=1", "train.batch=4", "train.micro_batch=4"]
    if label in ("kd", "progressive"):
        quick += {"kd": ["methods.kd={pairs: 4, steps: 1}"], "progressive": ["methods.progressive={steps: 2}"]}[label]
    item = tiny("qwen-image", label, runs, *quick)
    if "critic_steps" in item.config:
        item = item.model_copy(update={"config": {**item.config, "critic_steps": 1}})
    _, trainer = start(item, runs)
    before = {k: v.clone() for k, v in trainer.owned.trained["student"].network.state_dict().items()}
    for row in trainer:
        assert row["progress"] <= 1
    after = trainer.owned.trained["student"].network.state_dict()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert bool(moved) == (label != "pretrained"), "the student must move"
    assert not trainer.backbone.codec._held


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("sana-0.6b", "twinflow-image-free"),
        ("imagenet-256", "meanflow"),
        ("openuni", "consistency"),
        ("openuni-image-free", "twinflow"),
        ("openuni-image-free", "rcgm"),
    ],
)
def test_other_families_take_a_step(name, label, runs):
    _, trainer = start(tiny(name, label, runs, "train.budget=1"), runs)
    assert [row["step"] for row in trainer] == [1] and trainer.finished


def test_a_run_is_what_its_weights_are_not_where_they_lie(runs, tmp_path):
    here, _ = start(tiny("z-image", "twinflow", runs, "train.budget=1"), runs)
    there, _ = start(tiny("z-image", "twinflow", tmp_path, "train.budget=1"), tmp_path)
    assert here.resolved.backbone.options["model"] != there.resolved.backbone.options["model"]
    assert here.fingerprint == there.fingerprint
    (tmp_path / "tiny" / "z-image" / "transformer" / "config.json").write_text(
        (runs / "tiny" / "z-image" / "transformer" / "config.json").read_text() + "\n"
    )
    again, _ = start(tiny("z-image", "twinflow", tmp_path, "train.budget=1"), tmp_path)
    assert again.fingerprint != here.fingerprint


def finish(item, runs):
    run, trainer = start(item, runs)
    for _ in trainer:
        pass
    run.write(**measured(trainer))
    return run.folder


def test_a_killed_run_ends_with_the_same_weights(runs, tmp_path):
    item = tiny("sd35-medium", "twinflow", runs)
    whole = finish(item, tmp_path / "whole")
    _, trainer = start(item, tmp_path / "killed")
    for row in trainer:  # a checkpoint is written after step 2
        if row["step"] == 3:
            break
    del trainer
    assert files(finish(item, tmp_path / "killed"))["weights.safetensors"] == files(whole)["weights.safetensors"]


@pytest.mark.parametrize(("name", "dtype"), [*((name, "float32") for name in MAKERS), ("qwen-image", "bfloat16")])
def test_weights_are_put_into_a_model_whose_own_are_not_read(name, dtype, runs, tmp_path):
    network = families.disturb(families.backbone(name, dtype=dtype))
    save_tensors(tmp_path / "weights.safetensors", network.state_dict(), {})
    shutil.copytree(families.folder(name), tmp_path / "model")
    for path in (tmp_path / "model" / "transformer").glob("*.safetensors"):
        path.unlink()
    item = tiny("qwen-image", "twinflow", runs)
    options = {**network.config.model_dump(), "model": str(tmp_path / "model")}
    item = item.model_copy(update={"backbone": BackboneSection(name=name, **options)})
    again = trained(item, tmp_path / "weights.safetensors")
    z, cond = families.noise(network), network.encode(families.prompts(name))
    assert torch.equal(*(families.call(one, cond, z) for one in (network, again)))
    assert not any(value.is_meta for value in (*again.parameters(), *again.buffers()))


def test_a_large_run_is_drawn_in_the_precision_of_its_training(runs, tmp_path):
    item = tiny("qwen-image", "twinflow", runs, "train.precision=bfloat16", "train.budget=1")
    weights = finish(item, tmp_path) / "weights.safetensors"
    exact, low = trained(item, weights), placed(item, trained(item, weights))
    assert exact.precision == torch.float32 and low.precision == torch.bfloat16
    assert low.target_time.sign.dtype == torch.float32
    z, cond = families.noise(exact), exact.encode(families.prompts("qwen-image"))
    a, b = (families.call(network, cond, z) for network in (exact, low))
    assert 0 < (a - b).abs().max() < 0.03 * a.abs().max() and b.dtype == torch.float32


def test_the_whole_path_from_the_command_line(tmp_path, capsys):
    where = ["--runs", tmp_path / "runs"]
    named = ["--recipe", "qwen-image", "--tiny"]
    assert twinbench("cache", *named, *where) == 0
    child = os.fork()
    if not child:
        try:
            twinbench("train", "twinflow", *named, *where)
        finally:
            os._exit(0)
    while not list(tmp_path.glob("runs/qwen-image-tiny/*/checkpoints/step-00000002*")):
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    capsys.readouterr()
    assert twinbench("train", "twinflow", *named, *where) == 0
    told = capsys.readouterr()
    folder = told.out.strip().splitlines()[-1]
    record = json.loads((tmp_path / folder / "run.json").read_text())
    assert record["finished"] and record["steps"] == 4
    assert "step 1 " not in told.err  # it went on
    scored = ["--nfe", "1", "--results", tmp_path / "results"]
    assert twinbench("eval", *named, *where, *scored) == 0
    scores = [json.loads(path.read_text()) for path in tmp_path.glob("results/qwen-image-tiny/*/diversity-nfe1*.json")]
    assert len(scores) == 1 and scores[0]["judge"].startswith("pixels/") and scores[0]["n"] == 24
    assert scores[0]["metrics"]["distance"]["value"] > 0
    assert twinbench("export", "twinflow", tmp_path / "out", *named, *where, "--results", tmp_path / "results") == 0
    import diffusers

    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    assert type(pipeline).__name__ == "QwenImagePipeline"
    exported = json.loads((tmp_path / "out" / "twinbench.json").read_text())["sample"]
    assert exported["2"]["sigmas"] == [0.999, 0.6] and exported["2"]["stochastic"]


def test_tiny_needs_a_recipe_of_a_large_model(capsys, tmp_path):
    assert twinbench("eval", "--tiny", "--runs", tmp_path) == 2 and "--recipe" in capsys.readouterr().err
    assert twinbench("train", "twinflow", "--recipe", "moons", "--tiny") == 2
    assert "small already" in capsys.readouterr().err
    assert twinbench("train", "twinflow", "--recipe", "qwen-image", "--runs", tmp_path) == 2
    assert "data.path" in capsys.readouterr().err
    assert twinbench("train", "twinflow", "--recipe", "moons", *sets("data={kind: drawn}")) == 2
    assert "large model" in capsys.readouterr().err
    assert miniature.few("qwen-image-tiny", None) == 1 and miniature.few("qwen-image", None) is None
    assert miniature.few("qwen-image-tiny", 3) == 3
