"""The audit on a made training set: every planted overlap is found under its kind, and nothing else is."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinbench import assets
from twinbench.contamination import prompts as known_prompts
from twinbench.contamination.audit import KINDS, audit, captions_of, clean, report
from twinbench.contamination.minhash import Near, grams, overlap
from twinbench.contamination.prompts import Prompt, prompts_of
from twinbench.data.geneval import prompts
from twinbench.data.scenes import Scene, Thing, scene
from twinbench.errors import UserError
from twinbench.report.table import NONE

GENEVAL = prompts_of("geneval")


def of_task(task, nth):
    return [p for p in GENEVAL if p.task == task][nth]


def swapped(prompt):
    """A prompt of two objects with the objects exchanged, their relation turned round."""
    converse = {"left of": "right of", "right of": "left of", "above": "below", "below": "above", "and": "and"}
    body = prompt.text.removeprefix("a photo of ")
    link = next(w for w in converse if f" {w} " in body)
    first, second = body.split(f" {link} ")
    return f"a photo of {second} {converse[link]} {first}"


LONG = "A weathered fisherman in a yellow coat mends a net on a quay while gulls circle over the harbour at dawn."
DPG = [Prompt("dpg", "partiprompts1", "partiprompts", LONG)]
INNOCENT = [
    "a dog chases a ball through the park at sunset",
    "two old friends share a bench and a sandwich by the river",
    "a photo of a purple mountain",
    "an aerial view of a city with many cars",
    "a red fox above a waterfall, oil painting",
    "portrait of a woman holding an umbrella in the rain",
]
PLANTED = [  # caption, the prompt that it matches, kind
    (of_task("single_object", 3).text, of_task("single_object", 3), "exact"),
    (
        "A PHOTO of " + of_task("counting", 5).text.removeprefix("a photo of ") + "!",
        of_task("counting", 5),
        "normalised",
    ),
    ("Image: " + of_task("colors", 7).text.removeprefix("a photo of "), of_task("colors", 7), "scene"),
    (swapped(of_task("position", 11)), of_task("position", 11), "unordered"),
    (swapped(of_task("two_object", 2)), of_task("two_object", 2), "unordered"),
    (swapped(of_task("color_attr", 4)), of_task("color_attr", 4), "unordered"),
    (LONG.replace("yellow", "orange"), DPG[0], "near"),
]


def test_every_planted_overlap_is_found_under_its_kind_and_nothing_else():
    captions = [INNOCENT[0], *(c for c, *_ in PLANTED), *INNOCENT[1:]]
    matches = audit(captions, [*GENEVAL, *DPG])
    strict = [(captions[m.caption], m.prompt, m.kind) for m in matches if m.kind != "near" or m.prompt.bench == "dpg"]
    assert strict == PLANTED
    for m in matches:  # GenEval's prompts are short and alike: what is near one is a planted caption, and truly near
        assert captions[m.caption] in {c for c, *_ in PLANTED}
    assert clean(captions, matches) == INNOCENT


def test_the_report_counts_prompts_by_the_strictest_kind():
    prompt = of_task("colors", 7)
    captions = [f"Image: {prompt.text.removeprefix('a photo of ')}", prompt.text, "a bird in the sky", prompt.text]
    found = report(captions, GENEVAL, audit(captions, GENEVAL))
    colors = found["benchmarks"]["geneval"]["colors"]
    assert colors["prompts"] == 94 and colors["captions"] == 3 and colors["matched"]["exact"] == 1
    assert colors["matched"]["scene"] == 0  # the same prompt is matched exactly by another caption
    assert colors["examples"]["scene"][0] == {"caption": captions[0], "prompt": prompt.text, "key": prompt.key}
    assert (found["captions"], found["flagged"], found["template"]) == (4, 3, 2)
    assert set(found["benchmarks"]["geneval"]) == {p.task for p in GENEVAL}
    assert set(colors["matched"]) == set(KINDS)


def test_meanings_match_where_a_judge_of_texts_is_given():
    units = {"a hound": (1.0, 0.0), "a photo of a dog": (0.95, np.sqrt(1 - 0.95**2)), "a kite": (0.0, 1.0)}
    known = [Prompt("geneval", "0", "single_object", "a photo of a dog")]
    matches = audit(["a hound", "a kite"], known, lambda texts: np.array([units[t] for t in texts]))
    assert [(m.caption, m.kind) for m in matches] == [(0, "embedding")]
    assert audit(["a hound", "a kite"], known) == []


# ---- scenes ----


def test_every_official_prompt_is_read_as_its_metadata_say():
    for record in prompts():
        clauses = record["include"][::-1] if record["tag"] == "position" else record["include"]
        things = tuple(Thing(c["class"], c["count"], c.get("color", "")) for c in clauses)
        relation = record["include"][1]["position"][0] if record["tag"] == "position" else ""
        assert scene(record["prompt"]) == Scene(things, relation), record["prompt"]


@pytest.mark.parametrize(
    "caption, expected",
    [
        ("an orange orange", Scene((Thing("orange", 1, "orange"),))),
        ("an orange", Scene((Thing("orange"),))),
        ("a hot dog", Scene((Thing("hot dog"),))),
        ("2 knives", Scene((Thing("knife", 2),))),
        ("some dogs", Scene((Thing("dog", 0),))),
        ("three people", Scene((Thing("person", 3),))),
        ("a sofa on top of a mouse", Scene((Thing("couch"), Thing("computer mouse")), "above")),
        ("a cat to the left of a dog", Scene((Thing("cat"), Thing("dog")), "left of")),
        ("a cat left of a dog right of a cow", None),
        ("a cat left of", None),
        ("a red", None),
        ("a red car in the snow", None),
        ("", None),
    ],
)
def test_captions_are_read_whole_or_not_at_all(caption, expected):
    assert scene(caption) == expected


def test_a_relation_is_the_same_fact_from_either_side_and_no_other():
    a = scene("a cat left of a dog")
    assert a.unordered == scene("a dog right of a cat").unordered
    others = [
        "a dog left of a cat",
        "a cat right of a dog",
        "a cat above a dog",
        "a cat and a dog",
        "two cats left of a dog",
    ]
    assert all(scene(other).unordered != a.unordered for other in others)
    assert scene("a cat below a dog").unordered == scene("a dog above a cat").unordered


# ---- near texts ----


def test_near_texts_are_all_found_with_their_true_overlap():
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), 6)) for _ in range(400)]
    known = [" ".join(rng.choice(words, 25)) for _ in range(100)]
    near = Near(known, 0.8)
    found = 0
    for i, text in enumerate(known):
        parts = text.split()
        parts[int(rng.integers(25))] = words[int(rng.integers(400))]
        other = " ".join(parts)
        true = {j: overlap(grams(other), k) for j, k in enumerate(near.grams)}
        wanted = {j: share for j, share in true.items() if share >= 0.8}
        assert dict(near.find(other)) == wanted
        found += i in wanted
    assert found > 50


@given(st.text(max_size=30))
def test_a_text_is_near_itself(text):
    assert list(Near([text], 1.0).find(text)) == [(0, 1.0)]


# ---- files and the command ----


def test_captions_come_from_lines_json_or_a_dataset(tmp_path):
    (tmp_path / "c.txt").write_text("one\n\ntwo\n")
    (tmp_path / "c.jsonl").write_text('{"caption": "one", "x": 1}\n{"prompt": "two"}\n')
    assert captions_of(str(tmp_path / "c.txt")).texts == captions_of(str(tmp_path / "c.jsonl")).texts == ["one", "two"]
    (tmp_path / "bad.jsonl").write_text('{"caption": "one"}\n{"title": "two"}\n')
    with pytest.raises(UserError, match="line 2"):
        captions_of(str(tmp_path / "bad.jsonl"))
    with pytest.raises(UserError, match="do not exist"):
        captions_of(str(tmp_path / "none.txt"))
    with pytest.raises(UserError, match="not found"):
        captions_of("nothing")
    (tmp_path / "folder").mkdir()
    for other in ("x.csv", str(tmp_path / "folder")):
        with pytest.raises(UserError, match=r"give .txt \(one a line\) or .jsonl"):
            captions_of(other)
    assert len(captions_of("moons").texts) > 1000


TABLE = "item_id,text,proposition_id,dependency,tuple,question_natural_language\n"


def test_dpgs_prompts_are_those_of_a_table_or_of_the_texts_as_published(tmp_path, monkeypatch):
    monkeypatch.setenv("TWINBENCH_ASSETS", str(tmp_path))
    with pytest.raises(UserError, match="twinbench fetch dpg"):
        prompts_of("dpg")
    (tmp_path / "dpg" / "prompts").mkdir(parents=True)
    for name, text in (("12", "two cats"), ("vrd3", "a dog\n")):
        (tmp_path / "dpg" / "prompts" / f"{name}.txt").write_text(text)
    with pytest.raises(UserError, match=r"not hold the 1065 prompts as published"):
        prompts_of("dpg")
    sums = "".join(
        f"{hashlib.sha256(text).hexdigest()}  dpg/prompts/{name}.txt\n"
        for name, text in (("12", b"two cats"), ("vrd3", b"a dog\n"))
    )
    monkeypatch.setattr(known_prompts, "DPG_TEXTS", hashlib.sha256(sums.encode()).hexdigest())
    texts = [Prompt("dpg", "12", "plain", "two cats"), Prompt("dpg", "vrd3", "vrd", "a dog")]
    assert prompts_of("dpg") == texts
    (tmp_path / "own.csv").write_text(TABLE + "a1,three cows,1,0,entity - whole,Cows?\n")
    assert prompts_of("dpg", tmp_path / "own.csv") == [Prompt("dpg", "a1", "a", "three cows")]
    (tmp_path / "dpg" / "dpg_bench.csv").write_text(TABLE + "b1,four cows,1,0,entity - whole,Cows?\n")
    assert [prompt.text for prompt in prompts_of("dpg")] == ["four cows"]
    (tmp_path / "own.csv").write_text("a,b\n")
    with pytest.raises(UserError, match="is not DPG-Bench's table"):
        prompts_of("dpg", tmp_path / "own.csv")


@pytest.mark.skipif(not list(assets.root().glob("dpg/prompts/*.txt")), reason="DPG-Bench's prompts are not here")
def test_the_published_texts_have_the_pinned_sum(monkeypatch):
    monkeypatch.setattr(assets, "here", lambda name: False)
    assert len(prompts_of("dpg")) == 1065


def test_the_command_writes_the_audit_and_the_clean_list(tmp_path):
    rows = [{"text": caption, "id": i} for i, (caption, *_) in enumerate(PLANTED[:3])] + [{"text": c} for c in INNOCENT]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "twinbench", "audit", "--captions", "train.jsonl", "--out", "results/shapes"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "geneval colors" in done.stdout and "3 of 9 captions match" in done.stdout
    assert "examples" in done.stdout and PLANTED[1][0] in done.stdout
    row = next(line for line in done.stdout.splitlines() if "geneval colors" in line)
    assert row.split()[-2:] == [NONE, "1"]  # meanings were not compared
    audit = json.loads((tmp_path / "results" / "shapes" / "audit.json").read_text())
    assert audit["flagged"] == 3 and audit["source"] == "train.jsonl" and audit["embedding"] is None
    lines = (tmp_path / "results" / "shapes" / "clean.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == INNOCENT
    wrong = subprocess.run([*command, "--bench", "wise"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert wrong.returncode == 2 and "geneval, dpg" in wrong.stderr
    (tmp_path / "own.csv").write_text(TABLE + f"a1,{PLANTED[0][0]},1,0,entity - whole,Cows?\n")
    words = ("--bench", "dpg", "--dpg-csv", "own.csv")
    done = subprocess.run([*command, *words], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "1 of 9 captions match" in done.stdout, done.stderr
    idle = subprocess.run([*command, *words[2:]], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert idle.returncode == 2 and "geneval asks no question of DPG-Bench" in idle.stderr


def test_captions_are_utf_8_and_end_with_their_lines_alone(tmp_path):
    rows = ["a photo of a cow", "a dog\u2028and a cat"]
    text = "".join(json.dumps({"caption": row}, ensure_ascii=False) + "\r\n" for row in rows)
    (tmp_path / "a.jsonl").write_bytes(text.encode())
    assert captions_of(str(tmp_path / "a.jsonl")).texts == rows
    (tmp_path / "b.txt").write_bytes(b"a photo\xff")
    with pytest.raises(UserError, match="not UTF-8"):
        captions_of(str(tmp_path / "b.txt"))
