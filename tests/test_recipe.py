"""Recipes: what stands where, which value wins, and what makes a run another one."""

from pathlib import Path

import pytest
import yaml
from small import resolved

from twinbench import plugins, recipe, run
from twinbench.errors import UserError
from twinbench.files import read_json
from twinbench.run import Run
from twinbench.sampler import plan

SHIPPED = [(name, label) for name in recipe.shipped() for label in recipe.load(name).methods]
BASE = {
    "backbone": {"name": "mlp", "world": "moons"},
    "data": {"kind": "moons"},
    "train": {"budget": 10, "lr": 1e-3},
    "methods": {"rcgm": {}},
}


def write(folder, **changes):
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({**BASE, **changes}))
    return str(path)


def identity(item, weights="w", data="d"):
    made = Run(None, item, weights, data)
    return made.fingerprint, made.group


# ---- which value wins ----


def test_the_blocks_schedule_wins_over_the_recipes_and_that_over_the_methods_own(tmp_path):
    sample = {1: {"times": [0.9]}, 2: {"times": [0.9, 0.5], "hop": "same"}}
    path = write(tmp_path, sample=sample, methods={"rcgm": {"sample": {1: {"times": [0.8]}}}})
    item = resolved(path, "rcgm")
    assert plan(item, 1).schedule.times == (0.8,)
    assert (plan(item, 2).schedule.times, plan(item, 2).schedule.hop) == ((0.9, 0.5), "same")
    silent = plan(item, 4).schedule
    assert silent.times == pytest.approx((1, 0.75, 0.5, 0.25)) and silent.hop == "next"  # rcgm's own
    assert plan(resolved(path, "flow-matching"), 4).schedule.hop == "same"


def test_a_blocks_train_lies_over_the_recipes_and_leaves_the_rest(tmp_path):
    path = write(tmp_path, methods={"rcgm": {"train": {"lr": 0.5}}, "twinflow": {}})
    mine, other = resolved(path, "rcgm").train, resolved(path, "twinflow").train
    assert (mine.lr, other.lr) == (0.5, 1e-3)
    assert mine.model_dump(exclude={"lr"}) == other.model_dump(exclude={"lr"}) and mine.budget == 10


def test_an_override_wins_over_the_file_but_not_over_a_block(tmp_path):
    path = write(tmp_path, methods={"rcgm": {"train": {"lr": 0.5}}})
    assert resolved(path, "rcgm", "train.lr=0.25").train.lr == 0.5
    assert resolved(path, "rcgm", "methods.rcgm.train.lr=0.25").train.lr == 0.25
    assert resolved(path, "twinflow", "train.lr=0.25").train.lr == 0.25


def test_reserved_keys_of_a_block_are_not_the_methods_settings(tmp_path):
    block = {"method": "rcgm", "order": 1, "weights": "w.safetensors", "train": {"lr": 0.5}}
    block["sample"] = {8: {"steps": 8}}
    item = resolved(write(tmp_path, methods={"mine": block}), "mine")
    assert (item.label, item.method, item.backbone.weights) == ("mine", "rcgm", "w.safetensors")
    assert item.config["order"] == 1 and not {"method", "weights", "train", "sample"} & {*item.config}
    assert item.config == {**plugins.method("rcgm").Config().model_dump(), "order": 1}


def test_a_method_that_the_recipe_does_not_list_runs_with_its_defaults(tmp_path):
    item = resolved(write(tmp_path), "twinflow")
    assert item.config == plugins.method("twinflow").Config().model_dump()


def test_own_nfe_are_those_of_the_blocks_schedules_and_are_evaluated_too(tmp_path):
    methods = {"rcgm": {"sample": {8: {"steps": 8}, 3: {"steps": 3}}}, "twinflow": {}}
    path = write(tmp_path, sample={5: {"steps": 5}}, eval={"nfe": [2, 1]}, methods=methods)
    assert recipe.nfe_of(resolved(path, "rcgm")) == [1, 2, 3, 8]
    assert recipe.nfe_of(resolved(path, "twinflow")) == [1, 2]


# ---- what is shipped ----


@pytest.mark.parametrize("name, label", SHIPPED)
def test_every_shipped_method_resolves_and_its_evaluations_are_counted_right(name, label):
    item = resolved(name, label)
    assert len(SHIPPED) >= 13 and item.label == label
    assert item.data.kind == item.backbone.options.get("world", item.data.kind)
    for nfe in recipe.nfe_of(item):
        assert plan(item, nfe).counted == nfe
    for benchmark, options in item.eval.benchmarks.items():
        plugins.benchmark(benchmark, item.data.kind).Config.model_validate(options)


def test_a_shipped_recipe_shares_all_but_what_its_blocks_say():
    for name in ("shapes", "digits", "moons"):
        loaded = recipe.load(name)
        for label, block in loaded.methods.items():
            item = recipe.resolve(loaded, label)
            if "train" not in block:
                assert item.train == loaded.train
            assert item.backbone == loaded.backbone and item.data == loaded.data and item.eval == loaded.eval


# ---- reading ----


@pytest.mark.parametrize("text", ["1e-5", "'1e-5'", "1.0e-5", "0.00001"])
def test_numbers_as_yaml_reads_them_are_numbers(text):
    assert resolved("moons", "rcgm", f"train.lr={text}").train.lr == 1e-5
    assert resolved("moons", "rcgm", f"methods.rcgm.barron_c={text}").config["barron_c"] == 1e-5


def test_a_recipe_is_not_changed_by_what_is_set_on_a_copy_of_it():
    assert resolved("moons", "rcgm", "train.lr=7").train.lr == 7
    assert resolved("moons", "rcgm").train.lr == 2e-3


@pytest.mark.parametrize(
    "change, words",
    [
        ({"train": {"budget": "???"}}, "needs a value for train.budget (--set train.budget=...)"),
        ({"methods": {"rcgm": {"order": "???"}}}, "needs a value for methods.rcgm.order"),
        ({"methods": {"rcgm": {"ordr": 1}}}, "did you mean 'order'?"),
        ({"methods": {"rcgm": {"train": {"lrr": 1}}}}, "did you mean 'lr'?"),
        ({"methods": {"rcgm": {"train": 3}}}, "train must be a mapping"),
        ({"methods": {"rcgm": {"sample": [1]}}}, "sample must be a mapping"),
        ({"methods": {"rcgm": {"sample": {1: {"step": 1}}}}}, "did you mean 'steps'?"),
        ({"methods": {"mine": {}}}, "method 'mine' not found"),
        ({"methods": {"a/b": {"method": "rcgm"}}}, "'a/b'"),
        ({"sample": {1: {"steps": 1, "times": [1.0]}}}, "give steps or times"),
        ({"sample": {0: {"steps": 1}}}, "sample.0"),
        ({"eval": {"nfe": []}}, "eval.nfe"),
        ({"eval": {"nfe": [0]}}, "eval.nfe"),
        ({"train": {"budget": 1, "lr": float("inf")}}, "train.lr"),
        ({"train": {"budget": 1, "betas": [0.9, 1.0]}}, "train.betas"),
        ({"tran": {}}, "did you mean 'train'?"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line_that_names_the_key(tmp_path, change, words):
    with pytest.raises(UserError) as error:
        resolved(write(tmp_path, **change), "rcgm")
    assert words in str(error.value) and "\n" not in str(error.value)


# ---- what makes a run another one ----

OTHER = ("train.lr=0.5", "train.budget=7", "train.batch=8", "train.ema=0.5", "train.precision=bfloat16")
OTHER += ("methods.twinflow.order=1", "backbone.depth=2", "methods.twinflow.train.lr=0.1")
SAME = ("sample.1.times=[0.9]", "methods.twinflow.sample.1.times=[0.9]", "eval.nfe=[8]", "eval.chunk=4")
SAME += ("train.save_every=1", "train.keep=9", "train.micro_batch=8", "description=other", "methods.rcgm.order=1")
SAME += ("train.recompute=true", "train.offload=true")
COMMITTED = sorted((Path(__file__).parents[1] / "results").glob("*/*/run.json"))


@pytest.mark.parametrize("change", OTHER)
def test_what_training_depends_on_makes_another_run(change):
    (mine, group), (other, other_group) = (
        identity(resolved("moons", "twinflow")),
        identity(resolved("moons", "twinflow", change)),
    )
    assert mine != other and group != other_group


@pytest.mark.parametrize("change", SAME)
def test_what_training_does_not_depend_on_makes_no_other_run(change):
    assert identity(resolved("moons", "twinflow")) == identity(resolved("moons", "twinflow", change))


@pytest.mark.skipif(not COMMITTED, reason="the results are not here")
def test_no_committed_run_has_become_another_one():
    for record in map(read_json, COMMITTED):
        item = recipe.Resolved.model_validate(record["resolved"])
        now = identity(item, record["initial_weights_sha256"], record["data_sha256"])
        assert now == (record["fingerprint"], record["group"]), run.name_of(record)


def test_initial_weights_data_and_method_are_part_of_a_run():
    item = resolved("moons", "twinflow")
    every = [identity(item), identity(item, weights="x"), identity(item, data="x"), identity(resolved("moons", "rcgm"))]
    assert len({fingerprint for fingerprint, _ in every}) == len({group for _, group in every}) == 4


def test_the_label_and_where_the_weights_lie_are_not(tmp_path):
    methods = {"a": {"method": "rcgm"}, "b": {"method": "rcgm", "weights": "/elsewhere"}}
    path = write(tmp_path, methods=methods)
    assert identity(resolved(path, "a")) == identity(resolved(path, "b")) == identity(resolved(path, "rcgm"))


def test_the_group_is_the_fingerprint_without_the_seed():
    (a, group_a), (b, group_b) = (identity(resolved("moons", "twinflow", seed=seed)) for seed in (0, 1))
    assert a != b and group_a == group_b and group_a not in (a, b)


def test_a_difference_names_only_the_leaves_that_differ():
    a, b = {"x": {"y": 1, "z": 2}, "same": [1], "left": 0}, {"x": {"y": 1, "z": 3}, "same": [1], "right": None}
    assert recipe.difference(a, b) == [("left", 0, None), ("x.z", 2, 3)]
    assert recipe.difference(a, a) == []
