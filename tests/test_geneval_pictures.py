"""The official GenEval as a benchmark of pictures: what it asks, that it judges by the official rules, that nothing is
left out. The judges here read a picture's first pixel, which says which recorded case it stands for."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from twinbench import plugins
from twinbench.benchmarks import base
from twinbench.benchmarks.geneval import prompts, summarize, verdict
from twinbench.benchmarks.geneval_pictures import GenEval, GenEvalConfig, GenEvalRewritten
from twinbench.data.base import Request
from twinbench.errors import UserError, WorkError
from twinbench.judges.base import Colors, Detector, Found

CASES = json.loads((Path(__file__).parent / "fixtures" / "geneval_cases.json").read_text())
OFFICIAL = [c for c in CASES["cases"] if not c["options"]]


def case_of(picture):
    return OFFICIAL[int(picture[0, 0, 0]) + 256 * int(picture[0, 0, 1])]


def picture_of(number):
    return np.full((4, 4, 3), 0, np.uint8) + np.array([number % 256, number // 256, 0], np.uint8)


class Recorded(Detector):
    """Finds what the case of the picture has found, in chunks of any size."""

    name, version = "recorded", "1"

    def __call__(self, pictures):
        return [
            [Found(d["label"], d["score"], tuple(d["box"]), None, d["color"]) for d in case_of(p)["detections"]]
            for p in pictures
        ]


class Named(Colors):
    name, version = "colors", "2"

    def colors_of(self, pictures, found, labels):
        known = [
            {(d["label"], tuple(d["box"]), d["score"]): d["color"] for d in case_of(p)["detections"]} for p in pictures
        ]
        return [k[f.label, f.box, f.score] for k, f in zip(known, found, strict=True)]


@pytest.fixture
def bench(monkeypatch):
    made = {"mask2former": Recorded(), "clip-colors": Named()}
    monkeypatch.setattr(base, "judge_of", lambda name, settings: made[name])
    return GenEval(None, GenEvalConfig(copies=1, batch=7))


def test_the_official_prompts_are_asked_four_times_each():
    requests = GenEval().requests()
    assert len(requests) == 4 * 553 and [r.prompt for r in requests[::4]] == [p["prompt"] for p in prompts()]
    assert requests[5] == Request("00001", prompts()[1]["prompt"], 1, "single_object")
    assert requests[-1].key == "00552"
    looked = GenEval().requests(limit=3)
    assert len(looked) == 6 * 3 * 4 and len({r.tag for r in looked}) == 6
    with pytest.raises(UserError, match="validation"):
        GenEval(prompts="validation").requests()


def test_every_recorded_case_gets_the_official_verdict(bench):
    bench.metadata = {f"{i:05d}": c["metadata"] for i, c in enumerate(OFFICIAL)}
    requests = [Request(k, m["prompt"], 0, m["tag"]) for k, m in bench.metadata.items()]
    evidence = bench.judge([picture_of(i) for i in range(len(requests))], requests)
    assert len(evidence.items) == len(OFFICIAL) > 100
    for row, case in zip(evidence.items, OFFICIAL, strict=True):
        assert row["correct"] is case["expected"]["correct"], case["id"]
        assert row["reason"] in case["expected"]["reason_alternatives"], case["id"]
        assert {k: len(v) for k, v in row["found"].items()} == {k: len(v) for k, v in case["expected"]["kept"].items()}


def test_the_metrics_are_those_of_the_official_summary(bench):
    recorded = json.loads((Path(__file__).parent / "fixtures" / "geneval_summary.json").read_text())["cases"]
    for case in recorded:
        groups, items = {}, []
        for row in case["results"]:
            groups.setdefault(row["metadata"], []).append(row)
        for key, rows in groups.items():
            right = any(r["correct"] for r in rows)
            items += [
                {"key": key, "tag": r["tag"], "split": "evaluation", "correct": r["correct"], "any": right}
                for r in rows
            ]
        got, want = base.Benchmark.summarize(bench, base.Evidence(items)), summarize(case["results"])
        assert got["overall"] == pytest.approx(want["overall"]) and got["images"] == pytest.approx(want["images"])
        if len({len(rows) for rows in groups.values()}) == 1:  # as the benchmark makes sure
            assert got["prompts"] == pytest.approx(want["prompts"])
        assert {k: v for k, v in got.items() if k in want} == pytest.approx({k: v for k, v in want.items() if k in got})


def test_shares_judged_apart_are_the_whole(bench):
    requests = [Request(f"{i:05d}", "p", 0, "t") for i in range(20)]
    pictures = [picture_of(i) for i in range(20)]
    whole = bench.judge(pictures, requests)
    assert base.join([bench.judge(pictures[i : i + 6], requests[i : i + 6]) for i in range(0, 20, 6)]) == whole
    stacked = torch.stack([torch.from_numpy(p).permute(2, 0, 1) for p in pictures])
    assert bench.judge(stacked, requests) == whole


def test_a_prompt_with_any_right_picture_counts_once(bench, monkeypatch):
    metadata = prompts()[0]  # a bench
    hit = Found(metadata["include"][0]["class"], 0.9, (0, 0, 1, 1))
    bench.config = GenEvalConfig(copies=2)
    monkeypatch.setattr(Recorded, "__call__", lambda self, ps: [[hit] if p[0, 0, 0] else [] for p in ps])
    requests = bench.requests()[:4]
    pictures = [picture_of(0), picture_of(1), picture_of(0), picture_of(0)]
    values = bench.summarize(bench.judge(pictures, requests))
    assert values["images"] == 0.25 and values["prompts"] == 0.5
    assert verdict(metadata, [hit])[0]


def test_nothing_is_left_out_silently(bench):
    requests = [Request(f"{i:05d}", "p", 0, "t") for i in range(3)]
    with pytest.raises(WorkError, match="3 pictures were asked for, 2 are there"):
        bench.judge([picture_of(0)] * 2, requests)
    evidence = bench.judge([picture_of(0)] * 3, requests)
    bench.config = GenEvalConfig(copies=2)
    with pytest.raises(WorkError, match="00000 has 1 judged pictures, not 2"):
        bench.summarize(evidence)


def test_judges_and_changed_rules_are_named(bench):
    assert bench.judge_name == "recorded/1 + colors/2"
    bench.config = GenEvalConfig(threshold=0.2)
    assert bench.judge_name == "recorded/1 + colors/2 + threshold 0.2"


def test_a_threshold_below_what_the_detector_tells_is_refused(bench, monkeypatch):
    monkeypatch.setattr(Recorded, "floor", 0.05)
    assert bench.judge_name == "recorded/1 + colors/2"
    for name in ("threshold", "counting_threshold"):
        bench.config = GenEvalConfig(**{name: 0.02})
        with pytest.raises(UserError, match=rf"geneval\.{name} 0\.02 is below 0\.05, .*floor: 0\.02}}' lowers it"):
            _ = bench.judge_name


def test_rewritten_prompts_come_with_the_same_metadata(tmp_path, monkeypatch):
    monkeypatch.setenv("TWINBENCH_ASSETS", str(tmp_path))
    with pytest.raises(UserError, match="twinbench fetch geneval-rewritten"):
        GenEvalRewritten().requests()
    place = tmp_path / "geneval" / "variants" / "evaluation_metadata_long.bagel.jsonl"
    place.parent.mkdir(parents=True)
    long = [{**record, "prompt": f"In great detail, {record['prompt']}."} for record in prompts()]
    place.write_text("".join(json.dumps(record) + "\n" for record in long))
    requests = GenEvalRewritten().requests()
    assert len(requests) == 2212 and requests[0].prompt == f"In great detail, {prompts()[0]['prompt']}."
    place.write_text("".join(json.dumps(record) + "\n" for record in long[1:]))
    with pytest.raises(UserError, match="553 records"):
        GenEvalRewritten().requests()


def test_a_world_may_have_its_own_reading_of_a_benchmark():
    assert plugins.benchmark("geneval") is GenEval and plugins.benchmark("geneval", "images") is GenEval
    assert plugins.benchmark("geneval", "shapes").__name__ == "ShapesGenEval"
    assert plugins.benchmark("geneval", "shapes").name == "geneval"
    assert plugins.benchmark("fidelity", "digits").__name__ == "Fidelity"
    assert plugins.benchmark("fidelity").__name__ == "PictureFidelity" == plugins.benchmark("fidelity", None).__name__
