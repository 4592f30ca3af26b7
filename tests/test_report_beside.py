"""What stands beside our tables: the audit of a recipe's captions, and published numbers, which are never ours."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_results import RUN, SCORE

from twinbench import files, results
from twinbench.contamination.audit import audit, prompts_of, report
from twinbench.errors import UserError
from twinbench.report import page, published, summary
from twinbench.report.beside import beside

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
    others = beside(tmp_path, boards, str(PUBLISHED))
    (table,) = others["big"]
    assert table.name == "big-published-geneval" and {row[2] for row in table.rows} == {"1"}
    rows = {(row[0], row[3]): row for row in table.rows}
    mine = rows["Qwen-Image-TwinFlow (LoRA)", "0.86"]
    assert mine[4] == "own paper" and "2512.05150" in mine[5]
    assert all(row[4] in ("own paper", "other paper", "own repository", "second hand") and row[5] for row in table.rows)
    for format in ("table", "md", "html", "tex"):
        text = page.text(format, boards, [], others)
        assert "Qwen-Image-TwinFlow" in text and "not measured here" in text
    assert "Qwen" not in page.text("csv", boards, []) and "Qwen" not in page.text("json", boards, [], others)
    assert boards[0].rows == ["mine"]


def test_an_embedded_world_has_no_published_numbers(tmp_path):
    write(tmp_path, "shapes", "shapes", "geneval", {"overall": 0.5})
    assert published.found(boards_of(tmp_path), PUBLISHED) == {}


def test_a_distance_is_beside_published_ones_to_the_same_reference_alone(tmp_path):
    write(tmp_path, "a", "images", "fidelity", {"fid": 7.0}, judge="inception/1 + mjhq-30k/1234")
    write(tmp_path, "b", "images", "fidelity", {"fid": 7.0}, judge="inception/1 + mine/1234")
    found = published.found(boards_of(tmp_path), PUBLISHED)
    assert [t.name for t in found["a"]] == ["a-published-fid_mjhq30k"] and "b" not in found


def test_the_shipped_numbers_have_a_source_and_a_kind():
    rows = published.read(PUBLISHED)
    assert len(rows) == 437 and len({tuple(row.values()) for row in rows}) == 437
    assert all(row["source"] and row["kind"] and float(row["value"]) >= 0 for row in rows)
    assert {name for name in published.METRICS} - {row["metric"] for row in rows} == set()
    assert all(row["nfe"] == "" or int(row["nfe"]) >= 1 for row in rows)


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
    others = beside(tmp_path, boards_of(tmp_path), None)
    (table,) = others["big"]
    assert others["other"] == [] and table.header[2] == "exact"
    (row,) = [r for r in table.rows if r[0] == "geneval single_object"]
    assert row[1:3] == ("80", "1") and row[-1] == "1" and "1 captions match" in table.caption


def test_the_command_prints_them(tmp_path):
    write(tmp_path, "big", "images", "geneval", {"overall": 0.5})
    (tmp_path / "published.csv").write_text(PUBLISHED.read_text(encoding="utf-8"), encoding="utf-8")
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
        beside(tmp_path, boards_of(tmp_path), str(tmp_path / "other.csv"))
    for content in ("{", "[]", '{"captions": 3}'):
        (tmp_path / "big" / "audit.json").write_text(content)
        with pytest.raises(UserError, match=r"audit\.json .*twinbench audit writes it anew"):
            beside(tmp_path, boards_of(tmp_path), None)


def test_scores_with_flaws_are_named_under_the_table(tmp_path):
    write(tmp_path, "big", "images", "geneval", {"overall": 0.5})
    assert "count as wrong" not in page.text("md", boards_of(tmp_path), [])
    place = tmp_path / "big" / "mine-0" / "geneval-nfe1.json"
    files.write_json(place, {**files.read_json(place), "errors": 3, "untested": True})
    text = page.text("md", boards_of(tmp_path), [])
    assert "mine at NFE 1: 3 rows count as wrong that could not be judged" in text
    assert "mine at NFE 1: its judge failed its own test or was not asked" in text
