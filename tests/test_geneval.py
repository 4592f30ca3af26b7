"""GenEval's rules against the numbers that its official code gave."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinbench.benchmarks import geneval
from twinbench.judges.base import Found

FIXTURES = Path(__file__).parent / "fixtures"


def load(name):
    return json.loads((FIXTURES / name).read_text())


def found(detections):
    return [Found(d["label"], d["score"], tuple(d["box"]), None, d["color"]) for d in detections]


def test_the_553_prompts_have_the_official_bytes():
    text = "".join(json.dumps(row) + "\n" for row in geneval.prompts())
    assert len(geneval.prompts()) == 553
    assert hashlib.sha256(text.encode()).hexdigest() == geneval.PROMPTS_SHA256


CASES = load("geneval_cases.json")


@pytest.mark.parametrize("case", CASES["cases"], ids=lambda c: c["id"])
def test_verdict_and_reason_are_the_official_ones(case):
    options = {**CASES["defaults"], **case["options"]}
    objects = found(case["detections"])
    correct, reason = geneval.verdict(case["metadata"], objects, **options)
    assert correct is case["expected"]["correct"]
    assert reason in case["expected"]["reason_alternatives"]
    if "sort_implementation_sensitive" in case["flags"]:
        return
    counting = case["metadata"]["tag"] == "counting"
    limit = options["counting_threshold" if counting else "threshold"]
    kept = geneval.keep(objects, limit, options["max_objects"], options["max_overlap"])
    assert {k: [objects.index(o) for o in v] for k, v in kept.items()} == case["expected"]["kept"]


def test_relations_are_the_official_ones():
    for row in load("geneval_geometry.json")["relative_position"]:
        assert sorted(geneval.relation(row["a"], row["b"], row["position_threshold"])) == row["relations"], row


def test_iou_is_the_official_one():
    for row in load("geneval_geometry.json")["iou"]:
        assert geneval.iou(row["a"], row["b"]) == pytest.approx(row["iou"], abs=1e-6)


def test_iou_is_of_float32_to_the_last_digit():
    """The official lines, on the float32 numbers that its detector gives."""

    def official(a, b):
        def area(box):
            return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)

        shared = area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
        union = area(a) + area(b) - shared
        return shared / union if union else 0

    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 700, (200, 2, 2))
    pairs = np.concatenate([corners, corners + rng.uniform(100, 400, (200, 2, 2))], 2).astype(np.float32)
    for a, b in pairs:
        assert geneval.iou(a.tolist(), b.tolist()) == float(official(a, b))


def test_summary_is_the_official_one():
    for case in load("geneval_summary.json")["cases"]:
        got, want = geneval.summarize(case["results"]), case["expected"]
        assert f"{got['overall']:.5f}" == want["overall"]
        assert f"{got['images']:.2%}" == want["pct_correct_images"]
        assert f"{got['prompts']:.2%}" == want["pct_correct_prompts"]
        for task in want["tasks"]:
            assert f"{got[task['tag']]:.2%}" == task["percent"]


def test_colour_is_asked_only_where_a_clause_names_one():
    asked = []
    metadata = {
        "tag": "colors",
        "include": [{"class": "cup", "count": 1}, {"class": "dog", "count": 1, "color": "red"}],
    }
    objects = [Found("cup", 0.9, (0, 0, 1, 1)), Found("dog", 0.9, (0, 0, 1, 1))]
    correct, _ = geneval.verdict(metadata, objects, color_of=lambda o, c: asked.append((o.label, c)) or "red")
    assert correct and asked == [("dog", "dog")]


boxes = st.tuples(st.integers(0, 99), st.integers(0, 99), st.integers(1, 50), st.integers(1, 50)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@given(boxes, boxes)
def test_relation_is_antisymmetric(a, b):
    mirror = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert {mirror[r] for r in geneval.relation(a, b)} == geneval.relation(b, a)
