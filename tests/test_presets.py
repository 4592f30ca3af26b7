"""Presets: blocks that are asked for apart, laid over another label's; and what a report shows of them."""

import json

import pytest
from small import QUICK, resolved, sets, twinbench
from test_recipe import identity, write

from twinbench import bench, plugins, recipe
from twinbench.errors import UserError

PRESETS = {"orders": {"one": {"like": "rcgm", "order": 1, "train": {"lr": 0.1}}, "far": {"method": "rcgm", "order": 3}}}
METHODS = {"rcgm": {"order": 2, "shares": {"local": 2, "to_zero": 1}, "train": {"lr": 0.2, "ema": 0.5}}}


@pytest.fixture
def path(tmp_path):
    return write(tmp_path, methods=METHODS, presets=PRESETS)


def test_a_block_is_laid_over_the_one_that_it_is_like(path):
    one = resolved(path, "one")
    assert (one.method, one.config["order"], one.train.lr, one.train.ema) == ("rcgm", 1, 0.1, 0.5)
    assert one.config["shares"]["local"] == 2
    assert (one.preset, one.like) == ("orders", "rcgm")
    assert resolved(path, "far").config["shares"]["local"] == 1


def test_sections_merge_key_by_key(tmp_path):
    above = {"orders": {"one": {"like": "rcgm", "shares": {"local": 3}, "backbone": {"width": 32}}}}
    one = resolved(write(tmp_path, methods=METHODS, presets=above), "one")
    assert one.config["shares"]["local"] == 3 and one.config["shares"]["to_zero"] == 1
    assert one.backbone.options["width"] == 32


def test_a_preset_is_no_part_of_what_a_run_is(path):
    alone = resolved(path, "rcgm", "methods.rcgm.order=1", "methods.rcgm.train.lr=0.1")
    assert identity(resolved(path, "one")) == identity(alone)


def test_a_setting_that_says_nothing_is_no_part_of_what_a_run_is():
    item = resolved("moons", "twinflow")
    more = item.model_copy(update={"config": {**item.config, "added_later": None}})
    assert identity(item) == identity(more)
    assert identity(item) != identity(item.model_copy(update={"config": {**item.config, "clamp": None}}))


WRONG = {
    "twice": ({"orders": {"rcgm": {"order": 1}}}, "'rcgm' stands twice"),
    "chain": ({"orders": {"a": {"like": "rcgm"}, "b": {"like": "a"}}}, "must be a label that stands for itself"),
    "unknown": ({"orders": {"a": {"like": "rcg"}}}, "'rcg' must be a label"),
    "section": ({"orders": {"a": {"like": "rcgm", "train": 3}}}, "train must be a mapping"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_preset_is_one_sentence(tmp_path, case):
    presets, message = WRONG[case]
    with pytest.raises(UserError, match=message):
        recipe.load(write(tmp_path, methods=METHODS, presets=presets))


def test_a_preset_brings_what_it_is_like(path):
    loaded = recipe.load(path)
    assert bench.chosen_labels(loaded, None, "orders") == ["rcgm", "far", "one"]
    assert bench.chosen_labels(loaded, ["flow-matching"], "orders") == ["rcgm", "far", "one", "flow-matching"]
    assert bench.chosen_labels(loaded, ["all"], None) == bench.chosen_labels(loaded, None, None) == ["rcgm"]
    with pytest.raises(UserError, match="did you mean 'orders'"):
        bench.chosen_labels(loaded, None, "order")


def test_a_report_of_a_preset_shows_it_and_its_base_and_no_other_report_does(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.yaml").write_text(
        (recipe._folder() / "moons.yaml").read_text()
        + "presets: {orders: {rcgm-n1: {like: rcgm, order: 1}}, other: {rcgm-n3: {like: rcgm, order: 3}}}\n"
    )
    for label in ("rcgm", "rcgm-n1", "rcgm-n3", "twinflow"):
        assert twinbench("train", label, "-r", "own.yaml", *sets(*QUICK)) == 0
    assert twinbench("eval", "--nfe", "1", "--bench", "diversity", "--limit", "3") == 0
    assert twinbench("eval", "rcgm-n1", "rcgm", "--nfe", "1", "--bench", "diversity", "--prompts", "validation") == 0

    def labels(*words):
        """Of the quick look, and of the validation prompts."""
        capsys.readouterr()
        assert twinbench("report", "--format", "json", *words) == 0
        scores = json.loads(capsys.readouterr().out)["scores"]
        counts = {asked: int(asked.split()[0]) for asked in {row["asked"] for row in scores}}
        return [{row["label"] for row in scores if row["asked"] == asked} for asked in sorted(counts, key=counts.get)]

    assert labels() == [{"rcgm", "twinflow"}]
    assert labels("--preset", "orders") == [{"rcgm", "rcgm-n1"}, {"rcgm", "rcgm-n1"}]
    assert labels("--preset", "other") == [{"rcgm", "rcgm-n3"}]


SHIPPED = [name for name in recipe.shipped() if recipe.load(name).presets]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_block_of_a_shipped_preset_is_a_run_other_than_what_it_is_like(name):
    loaded = recipe.load(name)
    for label in (label for blocks in loaded.presets.values() for label in blocks):
        item = recipe.resolve(loaded, label)
        made = plugins.method(item.method)
        made(made.Config.model_validate(item.config))
        assert not item.like or identity(item) != identity(recipe.resolve(loaded, item.like)), label


def test_the_grid_has_every_pair_of_fields_under_both_divergences_at_equal_passes_and_guidance():
    loaded, cells, shared = recipe.load("shapes"), set(), set()
    for label in ("dmd", "sid", *loaded.presets["grid"]):
        item = recipe.resolve(loaded, label)
        cells.add((item.method, item.config["real"], item.config["fake"]))
        shared.add((item.train.budget, item.train.unit, item.train.batch, item.config["cfg_scale"]))
    assert len(cells) == 2 * 3 * 3 == 2 + len(loaded.presets["grid"]) and len(shared) == 1
