"""DPG-Bench's score against the numbers of the official program and against hand-computed ones; the benchmark around
it."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from twinbench.benchmarks import base
from twinbench.benchmarks.dpg import rows, score
from twinbench.benchmarks.dpg_pictures import DPG, DPGConfig
from twinbench.data.base import Request
from twinbench.errors import UserError, WorkError
from twinbench.judges.base import VQA
from twinbench.statistics import bootstrap, evaluate

SUITES = json.loads((Path(__file__).parent / "fixtures" / "dpg_cases.json").read_text())["suites"]
COLUMNS = ("item_id", "proposition_id", "dependency", "tuple", "question_natural_language")


def questions_of(suite):
    return [dict(zip(suite["csv_columns"], row, strict=True)) for row in suite["csv_rows"]]


def answers_of(suite):
    return {item["item_id"]: item["answers"][: suite["pic_num"]] for item in suite["items"]}


def table(*rows):
    return [dict(zip(COLUMNS, row, strict=True)) for row in rows]


# ---- the official program's numbers ----


@pytest.mark.parametrize("suite", SUITES, ids=lambda s: s["suite"][:1])
def test_the_official_protocol_gives_the_official_numbers(suite):
    got, want = score(questions_of(suite), answers_of(suite)), suite["expected"]
    assert got["dpg_score"] == pytest.approx(want["dpg_score"], abs=1e-12)
    assert got["l1"] == pytest.approx(want["l1"], abs=1e-12)
    assert got["l2"] == pytest.approx(want["l2"], abs=1e-12)
    assert got["failed_items"] == want["failed_items"]
    assert got["per_item"] == {i["item_id"]: i["expected"]["score"] for i in suite["items"] if i["expected"]["ok"]}


@pytest.mark.parametrize("suite", SUITES, ids=lambda s: s["suite"][:1])
def test_the_metrics_of_the_rows_are_the_numbers_of_both_protocols(suite):
    questions, answers = questions_of(suite), answers_of(suite)
    requests = [Request(key, "p", copy, "dpg") for key, said in answers.items() for copy in range(len(said))]
    items = rows(questions, requests, [answer for said in answers.values() for answer in said])
    got = DPG().summarize(base.Evidence(items))
    official, corrected = (score(questions, answers, protocol=p) for p in ("official", "corrected"))
    assert got["official"] == pytest.approx(official["dpg_score"], abs=1e-10)
    assert got["corrected"] == pytest.approx(corrected["dpg_score"], abs=1e-10)
    assert {name: got[f"official_{name}"] for name in official["l1"]} == pytest.approx(official["l1"], abs=1e-10)
    assert {name: got[name] for name in corrected["l1"]} == pytest.approx(corrected["l1"], abs=1e-10)
    assert {name: got[name] for name in corrected["l2"]} == pytest.approx(corrected["l2"], abs=1e-10)
    assert got["official_left_out"] == len(official["failed_items"])


# ---- by hand ----

HEAD = ("a", 9, "0", "global - (sketch)", "is it a sketch?")  # the row that the official program does not read
DOG = ("a", 1, "0", "entity - whole (dog)", "is there a dog?")
RED = ("a", 2, "1", "attribute - color (dog, red)", "is the dog red?")
ON = ("a", 3, "1, 4", "relation - spatial (dog, mat, on)", "is the dog on the mat?")
MAT = ("a", 4, "0", "entity - whole (mat)", "is there a mat?")
ALL = {"is it a sketch?": "yes", "is there a dog?": "yes", "is the dog red?": "yes", "is the dog on the mat?": "yes"}
ALL["is there a mat?"] = "yes"


def test_two_pictures_by_hand_under_both_protocols():
    first = {**ALL, "is there a dog?": "no"}  # raw 0 1 1 1; the rule: 0 0 0 1
    last = {**ALL, "is the dog red?": "Yes"}  # raw 1 0 1 1; only the very word counts
    questions = table(HEAD, DOG, RED, ON, MAT)
    official = score(questions, {"a": [first, last]})
    assert official["per_item"] == {"a": (1 / 4 + 3 / 4) / 2} and official["dpg_score"] == 50
    assert official["l1"] == {"entity": 100, "attribute": 0, "relation": 100}  # the last picture, without the rule
    corrected = score(questions, {"a": [first, last]}, protocol="corrected")
    assert corrected["dpg_score"] == pytest.approx(100 * (2 / 5 + 4 / 5) / 2)  # the sketch counts
    assert corrected["l1"] == {"global": 100, "entity": 75, "attribute": 0, "relation": 50}
    assert corrected["l2"]["entity - whole"] == 75 and corrected["l2"]["attribute - color"] == 0


def test_the_lost_first_row_costs_the_official_program_a_prompt():
    questions = table(DOG, RED, ("b", 1, "0", "global - (x)", "is there a dog?"))
    official = score(questions, {"a": [ALL], "b": [ALL]})
    assert official["failed_items"] == ["a"] and official["per_item"] == {"b": 1.0}
    corrected = score(questions, {"a": [ALL], "b": [ALL]}, protocol="corrected")
    assert corrected["failed_items"] == [] and corrected["per_item"] == {"a": 1.0, "b": 1.0}


def test_a_dependency_on_nothing_fails_the_prompt_only_officially_and_only_where_it_is_looked_at():
    questions = table(HEAD, DOG, ("a", 2, "1, 7", "other - count (x)", "is the dog red?"))
    with pytest.raises(ValueError, match="no item could be scored"):
        score(questions, {"a": [ALL]})
    seen_first = {**ALL, "is there a dog?": "no"}  # parent 1 is 0: parent 7 is not asked
    assert score(questions, {"a": [seen_first]})["per_item"] == {"a": 0.0}
    assert score(questions, {"a": [ALL]}, protocol="corrected")["per_item"] == {"a": 1.0}


def test_rows_that_stand_apart_belong_together_only_when_corrected():
    other = ("b", 1, "0", "global - (x)", "is there a dog?")
    questions = table(HEAD, DOG, other, (*RED[:2], "0", *RED[3:]))
    no_dog = {**ALL, "is there a dog?": "no", "is it a sketch?": "no"}
    assert score(questions, {"a": [no_dog]})["per_item"] == {"a": 1.0}  # only the second block
    assert score(questions, {"a": [no_dog]}, protocol="corrected")["per_item"] == {"a": 1 / 3}


@pytest.mark.parametrize("protocol", ["official", "corrected"])
def test_a_question_before_its_parent_is_judged_by_that_ones_own_answer(protocol):
    child, grandchild = RED, ("a", 3, "2", *ON[3:])
    answers = {"a": [{**ALL, "is there a dog?": "no"}]}
    orders = [((DOG, child, grandchild), 1 / 4), ((grandchild, child, DOG), 2 / 4)]  # the sketch is right in both
    for order, right in orders:
        told = score(table(("b", 1, "0", "x (x)", "is it a sketch?"), HEAD, *order), answers, protocol=protocol)
        assert told["per_item"] == {"a": right}


def test_nothing_is_left_out_silently():
    questions = table(HEAD, DOG, ("b", 1, "0", "global - (x)", "is there a dog?"))
    assert score(questions, {"a": [ALL]})["unanswered_items"] == ["b"]
    with pytest.raises(ValueError, match="'z'"):
        score(questions, {"a": [ALL], "z": [ALL]}, protocol="corrected")
    with pytest.raises(ValueError, match="item 'a' cannot be scored: it has no pictures"):
        score(questions, {"a": []}, protocol="corrected")
    with pytest.raises(ValueError, match="no item could be scored: of 'a', it has no pictures"):
        score(questions, {"a": []})
    with pytest.raises(ValueError, match="no item could be scored: there are no answers"):
        score(questions, {})
    with pytest.raises(ValueError, match="'a'"):
        score(questions, {"a": [{}]}, protocol="corrected")
    with pytest.raises(ValueError, match="protocol"):
        score(questions, {"a": [ALL]}, protocol="other")


# ---- the benchmark ----


class Oracle(VQA):
    """Says yes where the picture's first byte exceeds the length of the question."""

    name, version = "oracle", "1"

    def answers(self, pictures, questions):
        return ["yes" if p[0, 0, 0] > len(q) else "no" for p, q in zip(pictures, questions, strict=True)]


@pytest.fixture
def bench(tmp_path, monkeypatch):
    place = tmp_path / "dpg_bench.csv"
    names = ("item_id", "text", "keywords", *COLUMNS[1:3], "category_broad", "category_detailed", *COLUMNS[3:])
    with place.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(names)
        for item in ("a", "b", "c"):
            for row in (DOG, RED, ON, MAT):
                out.writerow((item, f"a picture, {item}\n", "", *row[1:3], "", "", *row[3:]))
    monkeypatch.setattr(base, "judge_of", lambda name, settings: Oracle())
    return DPG(None, DPGConfig(csv=str(place), copies=2, batch=4))


def test_the_benchmark_asks_every_question_of_every_picture(bench):
    requests = bench.requests()
    assert [(r.key, r.copy) for r in requests] == [(k, c) for k in "abc" for c in range(2)]
    assert requests[0].prompt == "a picture, a" and len(bench.requests(limit=1)) == 2
    pictures = [np.full((2, 2, 3), 10 + 3 * i, np.uint8) for i in range(6)]
    evidence = bench.judge(pictures, requests)
    answers = {}
    for i, r in enumerate(requests):
        said = {q[4]: "yes" if 10 + 3 * i > len(q[4]) else "no" for q in (DOG, RED, ON, MAT)}
        answers.setdefault(r.key, []).append(said)
    values = bench.summarize(evidence)
    for protocol in ("official", "corrected"):
        assert values[protocol] == pytest.approx(score(bench.questions, answers, protocol=protocol)["dpg_score"])
    assert (
        0 < values["corrected"] < 100 and values["official_left_out"] == 1
    )  # the first prompt lost its first question
    parts = [bench.judge(pictures[i : i + 2], requests[i : i + 2]) for i in (0, 2, 4)]
    assert base.join(parts) == evidence


def test_the_bootstrap_goes_by_prompt(bench):
    requests = bench.requests()
    evidence = bench.judge([np.full((2, 2, 3), 10 + 3 * i, np.uint8) for i in range(6)], requests)
    draws = bootstrap(DPG.metrics["corrected"], [evidence.items], draws=200)[:, 0]
    means = [evaluate(DPG.metrics["corrected"], [r for r in evidence.items if r["key"] == k]) for k in "abc"]
    possible = {
        round(float(np.mean([means[i], means[j], means[k]])), 9) for i in range(3) for j in range(3) for k in range(3)
    }
    assert {round(float(x), 9) for x in draws} <= possible and len(set(draws)) > 3


def test_a_missing_picture_or_table_is_one_clear_line(bench, tmp_path, monkeypatch):
    with pytest.raises(WorkError, match="6 pictures were asked for, 5 are there"):
        bench.judge([np.zeros((2, 2, 3), np.uint8)] * 5, bench.requests())
    monkeypatch.setenv("TWINBENCH_ASSETS", str(tmp_path / "none"))
    with pytest.raises(UserError, match="twinbench fetch dpg"):
        DPG().requests()
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="needs the columns"):
        DPG(None, DPGConfig(csv=str(tmp_path / "other.csv"))).requests()
    table = Path(bench.config.csv).read_bytes()
    for content, told in (
        (table.replace(b'",,1,0,', b'",,one,0,', 1), "line 3: proposition_id is whole numbers, .*'one'"),
        (table.replace(b'",,2,1,', b'",,2,none,', 1), "line 5: dependency is whole numbers, .*'none'"),
        (table.replace(b'",,2,1,', b'",,2,,', 1), "line 5 has no dependency; twinbench fetch dpg"),
        (table[: table.rindex(b",entity") + 12], "line 25 has no question_natural_language"),
        (table[: table.rindex(b'",,4') + 4], "line 25 has no dependency"),
        (b"\xff\x00", "needs the columns"),
    ):
        (tmp_path / "other.csv").write_bytes(content)
        with pytest.raises(UserError, match=told):
            DPG(None, DPGConfig(csv=str(tmp_path / "other.csv"))).requests()
    assert DPG(None, DPGConfig(vqa="blip-vqa")).config.vqa.name == "blip-vqa"


def test_other_questions_are_another_judge(bench, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text(Path(bench.config.csv).read_text().replace("is the dog red?", "is the dog blue?", 1))
    mine, theirs = bench.judge_name, DPG(None, DPGConfig(csv=str(other))).judge_name
    assert mine.startswith("oracle/1 + questions/") and theirs.startswith("oracle/1 + questions/") and mine != theirs
    other.write_text(Path(bench.config.csv).read_text())
    assert DPG(None, DPGConfig(csv=str(other))).judge_name == mine
