"""The report says what the evidence carries: no bold without an interval, no mixed judges, the teacher beside."""

import csv
import io
import json

import numpy as np
import pytest
from small import twinbench
from test_results import RUN, SCORE

from twinbench import results
from twinbench.benchmarks.fidelity_pictures import PictureFidelity
from twinbench.judges.distances import frechet, frechet_rows, kernel_distance, kernel_rows
from twinbench.report import page, summary, tables
from twinbench.report.plots import FIGURES, _curves
from twinbench.report.table import NONE
from twinbench.statistics import Metric

METRICS = {
    "overall": Metric("correct", {"split": "evaluation"}),
    "colors": Metric("correct", {"split": "evaluation", "tag": "colors"}),
    "position": Metric("correct", {"split": "evaluation", "tag": "position"}),
}


def metrics_of(benchmark, world=None):
    return METRICS if benchmark == "geneval" else {}


def write(root, label, right, *, nfe=1, seed=0, recipe="tiny", method=None, n=20, **score):
    """A run whose first `right` of the prompts of both tasks are right."""
    folder = root / recipe / f"{label}-{seed}"
    run = {
        **RUN,
        "recipe": recipe,
        "label": label,
        "method": method or label,
        "seed": seed,
        "fingerprint": f"{label}{seed}",
    }
    networks = [{"name": "student", "parameters": 1_500_000, "bytes": 6_000_000}]
    results.write_json(folder / "run.json", {**run, "group": label, "networks": networks})
    items = [
        {"key": f"evaluation/{tag}/{i:03d}", "copy": 0, "tag": tag, "split": "evaluation", "correct": i < right}
        for tag in ("colors", "position")
        for i in range(n)
    ]
    metrics = {name: {"value": right / n, "se": None, "n": 1} for name in METRICS}
    results.write_json(
        folder / f"geneval-nfe{nfe}.json", {**SCORE, "nfe": nfe, "nfe_counted": nfe, "metrics": metrics, **score}
    )
    results.write_items(folder / f"geneval-nfe{nfe}.items.jsonl.gz", items)


def render(root, format, metrics_of=metrics_of, **options):
    return page.text(format, *summary.summarize(root, metrics_of=metrics_of, **options))


def write_report(root, out, metrics_of):
    return page.write_pages(*summary.summarize(root, metrics_of=metrics_of), out)


def md(root, **options):
    return render(root, "md", metrics_of=metrics_of, **options)


GOLDEN = """\
### geneval: overall

| method   |                 NFE 1 |   NFE 50 |
|:---------|----------------------:|---------:|
| teacher  |                     ? |     1.00 [1.00, 1.00] |
| rcgm     |     0.50 [0.35, 0.65] |        ? |
| twinflow | **0.90 [0.80, 0.97]** |        ? |
"""


def squeezed(text):
    return [" ".join(line.replace("-", "").replace(":|", "|").replace("|:", "|").split()) for line in text.splitlines()]


def test_the_main_table_in_markdown(tmp_path):
    write(tmp_path, "rcgm", 10)
    write(tmp_path, "twinflow", 18)
    write(tmp_path, "teacher", 20, nfe=50, method="pretrained")
    got = md(tmp_path)
    assert "\n".join(squeezed(GOLDEN.replace("?", NONE))) in "\n".join(squeezed(got))
    assert "| twinflow | 0.90 |" in "\n".join(squeezed(got))  # relative to the teacher
    assert "higher is better; judged by shapes, version 1; images: " in got
    assert "; one seed each: [95 % interval over prompts alone]" in got and "prompts and seeds]" not in got


def test_a_row_of_one_seed_beside_others_of_three_is_named(tmp_path):
    for seed in range(3):
        write(tmp_path, "a", 10 + seed, seed=seed)
        write(tmp_path, "c", 5, seed=seed)
    write(tmp_path, "c", 5, nfe=2)
    write(tmp_path, "b", 15, seed=0)
    (board,) = summary.summarize(tmp_path, metrics_of=metrics_of)[0]
    main, (compared,) = tables.main_table(board, board.headlines[0]), tables.comparison_tables(board)
    assert "; one seed (b, c at NFE 2): [95 % interval over prompts alone]; mean over seeds [95 %" in main.caption
    assert compared.caption.endswith("; one seed (b): no interval holds the spread over seeds")
    first, *_ = json.loads(render(tmp_path, "json"))["comparisons"]
    assert (first["label"], first["other"], first["seeds"]) == ("b", "a", [1, 3])
    for seed in (1, 2):
        write(tmp_path, "b", 15, seed=seed)
    (compared,) = [
        t for t in tables.tables(*summary.summarize(tmp_path, metrics_of=metrics_of))["tiny"] if "next" in t.header
    ]
    assert "one seed" not in compared.caption


def test_a_claimed_difference_has_the_prompts_that_it_needs(tmp_path):
    write(tmp_path, "a", 15)
    write(tmp_path, "b", 10)
    (board,), _ = summary.summarize(tmp_path, claim=0.05, metrics_of=metrics_of)
    (c,) = board.comparisons["overall"]
    assert c.value == pytest.approx(0.25) and c.claimed == pytest.approx(c.needed * 25, rel=0.05)  # as the square
    (row,) = [line for line in squeezed(md(tmp_path, claim=0.05)) if line.startswith("| overall | 1 | a | b")]
    assert row.endswith(f"| {c.needed:,.0f} (40) | {c.claimed:,.0f} (40) |")
    told = json.loads(render(tmp_path, "json", claim=0.05))["comparisons"][0]
    assert (told["claim"], told["needed_for_claim"]) == (0.05, c.claimed)
    assert "| for 0.05 |" in "\n".join(squeezed(md(tmp_path, claim=0.05))) and "for 0.05" not in md(tmp_path)
    assert "claim" not in render(tmp_path, "json")
    same = json.loads(render(tmp_path, "json", claim=0.25))["comparisons"][0]
    assert same["needed_for_claim"] == pytest.approx(same["needed"], abs=1)


@pytest.mark.parametrize("claim", ["0", "-1", "nan", "inf"])
def test_a_claim_is_more_than_nothing(claim, tmp_path, capsys):
    write(tmp_path, "a", 15)
    assert twinbench("report", "--results", tmp_path, "--claim", claim) == 2
    assert "a difference is more than 0, as in --claim 0.01" in capsys.readouterr().err


def test_bold_needs_an_interval_that_excludes_the_runner_up(tmp_path):
    write(tmp_path, "a", 10)
    write(tmp_path, "b", 11)
    assert "**" not in md(tmp_path)
    write(tmp_path, "a", 4)
    assert md(tmp_path).count("**") == 2


def test_the_teacher_is_first_and_never_bold_and_never_competes(tmp_path):
    write(tmp_path, "a", 10)
    write(tmp_path, "zebra", 20, method="pretrained")
    boards, costs = summary.summarize(tmp_path, metrics_of=metrics_of)
    assert boards[0].rows == ["zebra", "a"] and costs[0].row == "zebra"
    assert boards[0].comparisons["overall"] == []
    assert "**" not in md(tmp_path)
    write(tmp_path, "b", 2)  # a is better than b, though not than the teacher
    assert "**0.50" in md(tmp_path) and "**1.00" not in md(tmp_path)


def test_other_judges_and_prompts_never_share_a_table(tmp_path):
    write(tmp_path, "a", 2)
    write(tmp_path, "b", 18, judge="detector")
    got = md(tmp_path)
    assert got.count("### geneval: overall") == 2 and "**" not in got
    assert "judged by shapes" in got and "judged by detector" in got
    for other in ({"version": "2"}, {"prompts": "p1"}):
        write(tmp_path, "b", 18, **other)
        assert md(tmp_path).count("### geneval: overall") == 2


def test_runs_on_other_prompts_are_not_compared(tmp_path):
    write(tmp_path, "a", 2, n=20)
    write(tmp_path, "b", 10, n=10)
    (comparison,) = summary.summarize(tmp_path, metrics_of=metrics_of)[0][0].comparisons["overall"]
    assert comparison.difference is None and "**" not in md(tmp_path)


def test_each_seed_is_printed_and_seeds_are_averaged(tmp_path):
    for seed, right in enumerate((10, 12, 17)):
        write(tmp_path, "a", right, seed=seed)
    assert "| a | overall | 1 | 0, 1, 2 | 0.500, 0.600, 0.850 |" in "\n".join(squeezed(md(tmp_path)))
    (board,), (cost,) = summary.summarize(tmp_path, metrics_of=metrics_of)
    assert board.cells["overall"]["a", 1].value == pytest.approx(0.65)
    assert cost.runs == 3


def test_neighbours_are_compared_with_corrected_p(tmp_path):
    for label, right in (("a", 19), ("b", 10), ("c", 10)):
        write(tmp_path, label, right)
    first, second = summary.summarize(tmp_path, metrics_of=metrics_of)[0][0].comparisons["overall"]
    assert (first.row, first.other, second.row, second.other) == ("a", "b", "b", "c")
    assert first.difference.real and first.p_holm == pytest.approx(2 * first.difference.p)
    assert (second.value, second.difference.low, second.difference.high, second.p_holm) == (0, 0, 0, 1)


def test_a_change_is_compared_with_what_it_is_like(tmp_path):
    for label, right, like, passes in (("a", 10, "", 100), ("b", 19, "a", 100), ("c", 4, "a", 300), ("d", 12, "", 100)):
        write(tmp_path, label, right)
        path = tmp_path / "tiny" / f"{label}-0" / "run.json"
        run = {**json.loads(path.read_text()), "network_passes": passes, "cpu_seconds": passes / 10}
        results.write_json(path, {**run, "resolved": {"like": like, "preset": ""}})
    (board,) = summary.summarize(tmp_path, metrics_of=metrics_of)[0]
    b, c = board.changes["overall"]
    assert (b.row, b.other, c.row, c.other) == ("b", "a", "c", "a")
    assert b.value == pytest.approx(0.45) and b.real and c.value == pytest.approx(-0.3) and c.difference.high < 0
    assert "| overall | 1 | b | a | +0.450 |" in "\n".join(squeezed(md(tmp_path)))
    assert _curves(board, 1) == {"a": ["a", "c"], "b": ["b"], "d": ["d"]}  # c is a with another budget: one curve


def test_a_missing_value_is_a_dash_and_does_not_win(tmp_path):
    write(tmp_path, "a", 10)
    write(tmp_path, "b", 2)
    folder = tmp_path / "tiny" / "nothing-0"
    results.write_json(folder / "run.json", {**RUN, "label": "nothing"})
    results.write_json(
        folder / "geneval-nfe1.json", {**SCORE, "metrics": {"overall": {"value": None, "se": None, "n": 0}}}
    )
    got = "\n".join(squeezed(md(tmp_path)))
    assert f"| nothing | {NONE} |" in got and "**0.50" in got
    assert "nan" not in got.lower()
    assert json.loads(render(tmp_path, "json", metrics_of=metrics_of))["scores"]


def fidelity(root, label, shift, features=True):
    rng = np.random.default_rng(0)
    x, reference = rng.normal(size=(60, 3)) + shift, rng.normal(size=(80, 3))
    folder = root / "tiny" / f"{label}-0"
    metrics = {
        "fd": {"value": float(3 * shift**2), "se": None, "n": 60},
        "kid": {"value": shift / 1e3, "se": None, "n": 60},
    }
    results.write_json(folder / "run.json", {**RUN, "label": label, "fingerprint": label, "group": label})
    results.write_json(folder / "fidelity-nfe1.json", {**SCORE, "benchmark": "fidelity", "metrics": metrics})
    if features:
        results.write_features(folder / "fidelity-nfe1.features.npz", x, [str(i) for i in range(60)])
        results.write_reference(root / "tiny" / "fidelity-reference.npz", reference, "shapes")


def test_the_lower_distance_is_bold_only_where_features_prove_it(tmp_path):
    fidelity(tmp_path, "near", 0.5, features=False)
    fidelity(tmp_path, "far", 2.0, features=False)
    assert "**" not in md(tmp_path)
    fidelity(tmp_path, "near", 0.5)
    fidelity(tmp_path, "far", 2.0)
    got = md(tmp_path)
    assert "**0.75**" in got and got.count("**") == 2
    assert "lower is better" in got


def test_distances_of_pictures_are_compared_by_the_share_of_each_picture(tmp_path):
    """As any score of rows; rows that an older version wrote have no share, and no interval."""
    rng = np.random.default_rng(0)
    base, real = rng.normal(size=(60, 3)), rng.normal(size=(80, 3))
    metrics, runs = PictureFidelity.metrics, {"near": base + 0.5, "far": base + 2.0}

    def put(label, shares):
        folder, items = (
            tmp_path / "tiny" / f"{label}-0",
            [{"key": str(i), "copy": 0, "split": "evaluation"} for i in range(60)],
        )
        for name, values in shares.items():
            items = [{**item, name: value} for item, value in zip(items, values, strict=True)]
        values = {"fid": frechet(runs[label], real), "kid": kernel_distance(runs[label], real)}
        results.write_json(folder / "run.json", {**RUN, "label": label, "fingerprint": label, "group": label})
        told = {name: {"value": value, "se": None, "n": 60} for name, value in values.items()}
        results.write_json(folder / "fidelity-nfe1.json", {**SCORE, "benchmark": "fidelity", "metrics": told})
        results.write_items(folder / "fidelity-nfe1.items.jsonl.gz", items)

    for label in runs:
        put(label, {})
    (board,) = summary.summarize(tmp_path, metrics_of=lambda *_: metrics)[0]
    assert board.comparisons["fid"][0].difference is None and board.cells["fid"]["near", 1].value > 0
    for label, x in runs.items():
        put(label, {"fid": frechet_rows(x, real.mean(0), np.cov(real, rowvar=False)), "kid": kernel_rows(x, real)})
    (board,) = summary.summarize(tmp_path, metrics_of=lambda *_: metrics)[0]
    for name in ("fid", "kid"):
        (c,) = board.comparisons[name]
        assert (c.row, c.other, c.real, c.prompts) == ("near", "far", True, 60) and c.needed < 20
        cell = board.cells[name]["near", 1]
        assert cell.low < cell.value < cell.high and cell.best
        assert c.p_holm == c.difference.p < 0.01


def test_two_settings_under_one_label_are_two_rows(tmp_path):
    write(tmp_path, "a", 10)
    write(tmp_path, "a", 12, seed=1)
    run = tmp_path / "tiny" / "a-1" / "run.json"
    results.write_json(run, {**json.loads(run.read_text()), "group": "0123456789"})
    assert summary.summarize(tmp_path, metrics_of=metrics_of)[0][0].rows == ["a (012345)", "a (a)"]


def test_every_format_carries_the_score(tmp_path):
    write(tmp_path, "two_words", 18)
    write(tmp_path, "b", 4, nfe=1)
    out = {format: render(tmp_path, format, metrics_of=metrics_of) for format in page.FORMATS}
    assert "0.90 [0.80, 0.97] *" in out["table"] and "\x1b" not in out["table"]
    assert r"two\_words & \textbf{0.90 [0.80, 0.97]}" in out["tex"] and r"95 \% interval" in out["tex"]
    assert "<b>0.90 [0.80, 0.97]</b>" in out["html"] and out["html"].count("data:image/png;base64,iVBOR") == len(
        FIGURES
    )
    rows = list(csv.DictReader(io.StringIO(out["csv"])))
    (row,) = [r for r in rows if r["label"] == "two_words" and r["metric"] == "overall"]
    assert (row["value"], row["best"], row["seeds"], row["relative_to_teacher"]) == ("0.9", "True", "1", "")
    scores = json.loads(out["json"])
    assert {s["label"]: s["value"] for s in scores["scores"] if s["metric"] == "colors"} == {"two_words": 0.9, "b": 0.2}
    assert scores["comparisons"][0]["value"] == pytest.approx(0.7)
    assert scores["costs"][0]["parameters"] == 1_500_000


def test_no_line_of_the_console_table_is_folded(tmp_path):
    write(tmp_path, "a-method-with-a-rather-long-name-that-would-fold", 18)
    for nfe in (2, 4, 8, 16):
        write(tmp_path, "b", 4, nfe=nfe)
    lines = render(tmp_path, "table", metrics_of=metrics_of).splitlines()
    (row,) = [line for line in lines if line.strip().startswith("a-method") and "[" in line]
    assert "0.90 [0.80, 0.97]" in row


def test_one_recipe_can_be_chosen(tmp_path):
    write(tmp_path, "a", 18)
    write(tmp_path, "b", 18, recipe="other")
    assert "## other" in md(tmp_path) and "## other" not in md(tmp_path, recipe="tiny")
    with pytest.raises(FileNotFoundError, match="no results of recipe 'absent'"):
        md(tmp_path, recipe="absent")


def test_a_report_is_a_pure_function_of_the_results(tmp_path):
    write(tmp_path / "results", "a", 18)
    write(tmp_path / "results", "b", 4, nfe=2)
    first = write_report(tmp_path / "results", tmp_path / "one", metrics_of=metrics_of)
    write_report(tmp_path / "results", tmp_path / "two", metrics_of=metrics_of)
    assert first == tmp_path / "one" / "report.html"
    names = sorted(path.name for path in first.parent.iterdir())
    assert names == sorted(["report.html", "report.md", *FIGURES])
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.parametrize("format", page.FORMATS)
def test_a_teacher_alone_or_a_run_without_values_is_still_a_report(tmp_path, format):
    write(tmp_path, "teacher", 20, nfe=50, method="pretrained")
    assert render(tmp_path, format, metrics_of=metrics_of)
    folder = tmp_path / "tiny" / "nothing-0"
    results.write_json(folder / "run.json", {**RUN, "label": "nothing"})
    results.write_json(folder / "fidelity-nfe1.json", {**SCORE, "benchmark": "fidelity", "metrics": {}})
    assert render(tmp_path, format, metrics_of=metrics_of)
