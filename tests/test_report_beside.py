"""What stands beside our tables: the audit of a recipe's captions, and published numbers, which are never ours."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_results import RUN, SCORE

from twinbench import files, results
from twinbench.contamination.audit import Match, audit, report
from twinbench.contamination.prompts import prompts_of
from twinbench.errors import UserError
from twinbench.report import contamination, page, published, summary
from twinbench.report.beside import beside
from twinbench.report.table import NONE

PUBLISHED = Path(__file__).parents[1] / "results" / "published.csv"


def write(root, recipe, kind, benchmark, metrics, nfe=1, judge="j/1"):
    folder = root / recipe / "mine-0"
    run = {**RUN, "recipe": recipe, "label": "mine", "method": "mine", "resolved": {"data": {"kind": kind}}}
    results.write_json(folder / "run.json", {**run, "group": "mine", "networks": []})
    values = {name: {"value": value, "se": None, "n": 1} for name, value in metrics.items()}
    score = {**SCORE, "benchmark": benchmark, "judge": judge, "nfe": nfe, "nfe_counted": nfe, "metrics": values}
    results.write_json(folder / f"{benchmark}-nfe{nfe}.json", score)


def boards_of(root):
    return summary.summarize(root, metrics_of=lambda benchmark, world: {})[0]


def test_published_numbers_stand_in_tables_of_their_own(tmp_path):
    write(tmp_path, "big", "images", "geneval", {"overall": 0.5})
    boards = boards_of(tmp_path)
    rows = published.rows(boards, PUBLISHED)
    others = beside(tmp_path, boards, rows)
    (table,) = others["big"]
    assert table.name == "big-published-geneval" and {row[2] for row in table.rows} == {"1"}
    rows = {(row[0], row[3]): row for row in table.rows}
    mine = rows["Qwen-Image-TwinFlow (LoRA)", "0.86"]
    assert mine[4] == "own paper" and "2512.05150" in mine[5]
    assert all(row[4] in ("own paper", "other paper", "own repository", "second hand") and row[5] for row in table.rows)
    for format in ("table", "md", "html", "tex"):
        text = page.text(format, boards, [], others)
        assert "Qwen-Image-TwinFlow" in text and "not measured here" in text
    assert boards[0].rows == ["mine"]


def test_published_rows_are_marked_in_csv_and_apart_in_json(tmp_path):
    write(tmp_path, "big", "images", "geneval", {"overall": 0.5})
    boards = boards_of(tmp_path)
    rows = published.rows(boards, PUBLISHED)
    told = json.loads(page.text("json", boards, [], {}, rows))
    assert {row["label"] for row in told["scores"]} == {"mine"}
    (lora,) = [r for r in told["published"] if r["label"] == "Qwen-Image-TwinFlow (LoRA)" and r["kind"] == "own paper"]
    assert (lora["metric"], lora["nfe"], lora["value"], lora["published_as"]) == ("overall", 1, 0.86, "geneval")
    lines = list(csv.DictReader(io.StringIO(page.text("csv", boards, [], {}, rows))))
    assert len(lines) == 1 + len(rows) and {r["label"] for r in lines if r["published"] == "False"} == {"mine"}
    ours, theirs = lines[0], next(r for r in lines if r["label"] == lora["label"] and r["kind"] == "own paper")
    assert (ours["value"], ours["seeds"], ours["source"]) == ("0.5", "1", "")
    assert (theirs["published"], theirs["value"], theirs["seeds"]) == ("True", "0.86", "") and theirs["source"]
    for format in ("csv", "json"):
        assert "published" not in page.text(format, boards, [])
        assert "published" in page.text(format, boards, [], {}, [])  # asked for, and there is none


def test_an_embedded_world_has_no_published_numbers(tmp_path):
    write(tmp_path, "shapes", "shapes", "geneval", {"overall": 0.5})
    assert published.rows(boards_of(tmp_path), PUBLISHED) == []


def test_a_distance_is_beside_published_ones_to_the_same_reference_alone(tmp_path):
    write(tmp_path, "a", "images", "fidelity", {"fid": 7.0}, judge="inception/1 + mjhq-30k/1234")
    write(tmp_path, "b", "images", "fidelity", {"fid": 7.0}, judge="inception/1 + mine/1234")
    found = published.tables(published.rows(boards_of(tmp_path), PUBLISHED))
    assert [t.name for t in found["a"]] == ["a-published-fid_mjhq30k"] and "b" not in found


def test_the_shipped_numbers_have_a_source_and_a_kind():
    rows = published.read(PUBLISHED)
    assert len(rows) == 437 and len({tuple(row.values()) for row in rows}) == 437
    assert all(row["source"] and row["kind"] and float(row["value"]) >= 0 for row in rows)
    assert {name for name in published.METRICS} - {row["metric"] for row in rows} == set()
    assert all(row["nfe"] == "" or int(row["nfe"]) >= 1 for row in rows)


def test_published_are_those_of_the_results_or_else_the_shipped_ones(tmp_path):
    assert published.place(tmp_path, "published").read_bytes() == PUBLISHED.read_bytes()
    (tmp_path / "published.csv").write_text("a")
    assert published.place(tmp_path, "published") == tmp_path / "published.csv"
    assert published.place(tmp_path, "x.csv") == Path("x.csv")


def test_another_file_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="no published numbers"):
        published.read(tmp_path / "none.csv")
    (tmp_path / "x.csv").write_text("a,b\n")
    with pytest.raises(UserError, match="must have the columns"):
        published.read(tmp_path / "x.csv")


def test_an_audit_is_shown_where_a_recipe_has_one(tmp_path):
    write(tmp_path, "big", "images", "geneval", {"overall": 0.5})
    write(tmp_path, "other", "images", "geneval", {"overall": 0.5})
    captions, prompts = ["a photo of a bench", "something else"], prompts_of("geneval")
    files.write_json(tmp_path / "big" / "audit.json", report(captions, prompts, audit(captions, prompts)))
    others = beside(tmp_path, boards_of(tmp_path))
    table, examples = others["big"]
    assert others["other"] == [] and table.header[2] == "exact"
    (row,) = [r for r in table.rows if r[0] == "geneval single_object"]
    assert row[1:3] == ("80", "1") and row[-1] == "1" and "1 captions match" in table.caption
    assert "once, under the strictest kind" in table.caption
    assert examples.rows == (("exact", captions[0], "geneval 00000", captions[0]),)


def test_meanings_that_nobody_compared_are_a_dash_and_not_none():
    captions, prompts = ["x" * 99], prompts_of("geneval")
    near = [Match(0, prompt, "embedding") for prompt in prompts[:3]]
    for judge, matches, shown in ((None, [], NONE), ("clip/1", [], "0"), ("clip/1", near, "3")):
        table, *examples = contamination.tables("", report(captions, prompts, matches, judge))
        assert dict(zip(table.header, table.rows[0]))["embedding"] == shown
        assert dict(zip(table.header, table.rows[0]))["exact"] == "0" and (judge or "nobody") in table.caption
        assert [len(t.rows) for t in examples] == ([2] if matches else [])  # two of a kind, cut
    assert examples[0].rows[0][1] == "x" * 57 + "..."


def test_the_command_prints_them(tmp_path):
    write(tmp_path, "big", "images", "geneval", {"overall": 0.5})
    command = [sys.executable, "-m", "twinbench", "report", "--results", str(tmp_path), "--format", "md"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    plain = page.text("md", *summary.summarize(tmp_path))
    assert "published" not in plain
    told = subprocess.run([*command, "--against", "published"], env=env, capture_output=True, text=True)
    assert "### published: geneval" in told.stdout and told.stdout.startswith(plain.rstrip()), told.stderr
    with PUBLISHED.open(encoding="utf-8") as file:
        wanted = [r["model"] for r in csv.DictReader(file) if r["metric"] == "geneval" and r["nfe"] == "1"]
    assert all(model in told.stdout for model in wanted)


def test_files_that_are_no_audit_and_no_table_are_refused(tmp_path):
    write(tmp_path, "big", "images", "geneval", {"overall": 0.5})
    (tmp_path / "other.csv").write_bytes(b"\xff\x00")
    with pytest.raises(UserError, match="must have the columns model"):
        published.rows(boards_of(tmp_path), tmp_path / "other.csv")
    for content in ("{", "[]", '{"captions": 3}'):
        (tmp_path / "big" / "audit.json").write_text(content)
        with pytest.raises(UserError, match=r"audit\.json .*twinbench audit writes it anew"):
            beside(tmp_path, boards_of(tmp_path))


def test_scores_with_flaws_are_named_under_the_table(tmp_path):
    write(tmp_path, "big", "images", "geneval", {"overall": 0.5})
    assert "count as wrong" not in page.text("md", boards_of(tmp_path), [])
    place = tmp_path / "big" / "mine-0" / "geneval-nfe1.json"
    files.write_json(place, {**files.read_json(place), "errors": 3, "untested": True})
    text = page.text("md", boards_of(tmp_path), [])
    assert "mine at NFE 1: 3 rows count as wrong that could not be judged" in text
    assert "mine at NFE 1: its judge failed its own test or was not asked" in text
