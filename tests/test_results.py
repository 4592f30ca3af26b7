"""What is written is what is read, and no reader ever sees half a file."""

import gzip
import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinbench import files, recipe, results
from twinbench.run import Run

RESULTS = Path(__file__).parents[1] / "results"
RUN = {
    "schema": "twinbench.run/1", "label": "twinflow", "method": "twinflow", "fingerprint": "f0", "group": "g0",
    "seed": 0, "recipe": "tiny", "resolved": {}, "git": None, "versions": {}, "hardware": "cpu", "threads": 1,
    "steps": 10, "images": 160, "network_passes": 480, "seconds": 1.5, "peak_bytes": 1 << 20, "networks": [],
    "finished": True, "weights_sha256": "00",
}  # fmt: skip
SCORE = {
    "schema": "twinbench.score/1", "benchmark": "geneval", "version": "1", "judge": "shapes", "prompts": "p0", "nfe": 1,
    "nfe_counted": 1, "schedule": {"times": [0.999], "hop": "end"}, "drawing": "d0", "n": 4, "copies": 2,
    "metrics": {"overall": {"value": 0.5, "se": 0.1, "n": 4}}, "seconds": 0.2,
}  # fmt: skip
COLUMNS = [
    "recipe", "label", "method", "fingerprint", "group", "seed", "benchmark", "version", "judge", "nfe", "nfe_counted",
    "schedule", "metric", "value", "se", "n", "copies", "network_passes", "seconds", "peak_bytes",
]  # fmt: skip


@pytest.fixture
def root(tmp_path):
    for label, seed in (("twinflow", 0), ("twinflow", 1), ("rcgm", 0)):
        folder = tmp_path / "tiny" / f"{label}-f{seed}"
        results.write_json(folder / "run.json", {**RUN, "label": label, "seed": seed, "fingerprint": f"f{seed}"})
        for nfe in (1, 2):
            results.write_json(folder / f"geneval-nfe{nfe}.json", {**SCORE, "nfe": nfe, "nfe_counted": nfe})
    return tmp_path


def test_load_has_the_promised_columns_and_one_row_a_metric(root):
    frame = results.load(root)
    assert list(frame.columns) == COLUMNS
    assert len(frame) == 6
    row = frame[(frame.label == "rcgm") & (frame.nfe == 2)].iloc[0]
    assert (row.recipe, row.value, row.se, row.n, row.copies) == ("tiny", 0.5, 0.1, 4, 2)
    assert (row.network_passes, row.seconds, row.peak_bytes) == (480, 1.5, 1 << 20)  # of training, not of drawing
    assert row.schedule == '{"hop":"end","times":[0.999]}'


def test_load_reads_the_root_a_recipe_or_a_run(root):
    assert len(results.load(root / "tiny")) == 6
    assert set(results.load(root / "tiny" / "rcgm-f0").label) == {"rcgm"}


def test_a_value_of_nan_is_null_in_the_file_and_nan_again_when_read(root):
    path = root / "tiny" / "rcgm-f0" / "fidelity-nfe1.json"
    metrics = {"fd": {"value": float("nan"), "se": None, "n": 4}}
    results.write_json(path, {**SCORE, "benchmark": "fidelity", "metrics": metrics})
    assert json.loads(path.read_text())["metrics"]["fd"] == {"value": None, "se": None, "n": 4}
    row = results.load(root).query("metric == 'fd'").iloc[0]
    assert math.isnan(row.value) and math.isnan(row.se)


def test_a_corrupt_file_is_named(root):
    path = root / "tiny" / "rcgm-f0" / "geneval-nfe1.json"
    path.write_text('{"schema": ')
    with pytest.raises(ValueError, match=r"geneval-nfe1\.json is not valid JSON"):
        results.load(root)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"geneval-nfe1\.json is not of schema"):
        results.load(root)
    path.write_text(json.dumps({"schema": "twinbench.score/1"}))
    with pytest.raises(ValueError, match=r"geneval-nfe1\.json lacks benchmark"):
        results.load(root)


def test_nothing_to_load_says_what_writes_it(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(FileNotFoundError, match=r"no results under .*; twinbench eval writes them"):
            results.load(path)


def test_an_object_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    results.write_json(path, {"b": 1, "a": (np.float32(0.5), np.int64(2), True)})
    old = path.read_bytes()
    assert old == b'{\n "a": [\n  0.5,\n  2,\n  true\n ],\n "b": 1\n}\n'
    with pytest.raises(TypeError):
        results.write_json(path, {"a": 1, "b": object()})
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_a_write_that_dies_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    results.write_items(path, [{"a": 1}])

    def die(*_):
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", die)
    with pytest.raises(OSError, match="disk full"):
        results.write_items(path, [{"a": 2}])
    assert results.read_items(path) == [{"a": 1}] and list(tmp_path.iterdir()) == [path]


values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@given(st.lists(st.dictionaries(st.text(), values)))
def test_items_come_back_as_they_were(tmp_path_factory, rows):
    try:
        json.dumps(rows, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    path = tmp_path_factory.mktemp("items") / "x.items.jsonl.gz"
    results.write_items(path, rows)
    assert results.read_items(path) == rows


def test_a_corrupt_line_of_items_is_named(tmp_path):
    path = tmp_path / "x.items.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n{"a": \n'))
    with pytest.raises(ValueError, match=r"x\.items\.jsonl\.gz, line 2"):
        results.read_items(path)


def test_features_lie_beside_the_score_and_the_reference_belongs_to_one_judge(root):
    record = next(r for r in results.records(root) if r.run["label"] == "rcgm" and r.score["nfe"] == 2)
    assert record.items() is None and record.features() is None and record.reference() is None
    x = np.arange(6.0).reshape(3, 2)
    results.write_features(root / "tiny/rcgm-f0/geneval-nfe2.features.npz", x, ["a", "b", "c"])
    features, keys = record.features()
    assert np.array_equal(features, x) and list(keys) == ["a", "b", "c"]
    results.write_reference(root / "tiny/geneval-reference.npz", x, "another")
    assert record.reference() is None
    results.write_reference(root / "tiny/geneval-reference.npz", x, "shapes")
    assert np.array_equal(record.reference(), x)


# ---- the committed results ----


def test_todays_recipes_are_those_of_the_committed_runs():
    """A run's label under its recipe, with the same seed, initial weights and data, has the same name."""
    records = [(path, json.loads(path.read_text())) for path in sorted(RESULTS.glob("*/*/run.json"))]
    if not records:
        pytest.skip("not a checkout: no results lie beside the tests")
    load, other, known = cache(recipe.load), [], set(recipe.shipped())
    records = [(path, record) for path, record in records if record["recipe"] in known]
    for path, record in records:
        resolved = recipe.resolve(load(record["recipe"]), record["label"], record["seed"])
        run = Run(RESULTS, resolved, record["initial_weights_sha256"], record["data_sha256"])
        if (run.fingerprint, run.group, run.folder) != (record["fingerprint"], record["group"], path.parent):
            other.append(str(path.relative_to(RESULTS)))
    assert other == [] and records
