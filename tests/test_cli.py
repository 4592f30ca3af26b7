"""The command line: the whole story, every wrong input in one line, and interrupts."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
from importlib import resources

import pytest
from small import QUICK, TINY, files, sets, trained, twinbench

from twinbench import cli, recipe

COMMANDS = tuple(cli.COMMANDS)
MOONS = ("--recipe", "moons", *sets(*QUICK))


def process(*words, **more):
    """The command line in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-m", "twinbench", *map(str, words)]
    return subprocess.run(call, capture_output=True, text=True, env=environment, timeout=60, **more)


def last_error(capsys):
    err = capsys.readouterr().err
    lines = err.splitlines()
    assert lines and "Traceback" not in err
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A folder with one finished run."""
    folder = tmp_path_factory.mktemp("done")
    trained(folder / "runs", "moons", "rcgm", *QUICK)
    return folder


# ---- bad input ----

TRAIN = ("train", "rcgm", *MOONS)
BAD = {
    "method": (("train", "twinflw", "-r", "moons"), ["'twinflw'", "did you mean 'twinflow'?", "list methods"]),
    "recipe": (("train", "rcgm", "-r", "moon"), ["'moon'", "did you mean 'moons'?", "list recipes"]),
    "recipe file": (("show", "no.yaml"), ["'no.yaml' does not exist"]),
    "section": ((*TRAIN, *sets("tran.lr=1")), ["'tran'", "did you mean 'train'?"]),
    "key": ((*TRAIN, *sets("train.lrr=1")), ["'lrr'", "did you mean 'lr'?"]),
    "method key": ((*TRAIN, *sets("methods.rcgm.ordr=1")), ["'rcgm'", "'ordr'", "did you mean 'order'?"]),
    "backbone key": ((*TRAIN, *sets("backbone.widht=16")), ["'widht'", "did you mean 'width'?"]),
    "data key": ((*TRAIN, *sets("data.nois=0")), ["'nois'", "did you mean 'noise'?"]),
    "type": ((*TRAIN, *sets("train.lr=fast")), ["train.lr", "'fast'"]),
    "range": ((*TRAIN, *sets("train.batch=0")), ["train.batch", "got 0"]),
    "section type": ((*TRAIN, *sets("methods.rcgm.train=3")), ["train must be a mapping", "3"]),
    "no equals": ((*TRAIN, *sets("train.lr")), ["'train.lr'", "key=value"]),
    "yaml": ((*TRAIN, *sets("train.lr=[")), ["train.lr=["]),
    "missing": ((*TRAIN, *sets("train.lr=???")), ["needs a value for train.lr", "--set train.lr="]),
    "odd width": ((*TRAIN, *sets("backbone.width=17")), ["width", "17"]),
    "other world": ((*TRAIN, *sets("backbone.world=digits")), ["mlp", "patch-transformer"]),
    "weights": ((*TRAIN, *sets("backbone.weights=no.safetensors")), ["'no.safetensors'", "not found", "shipped"]),
    "weights of a run": ((*TRAIN, *sets("backbone.weights=run:abc")), ["'abc'", "list runs"]),
    "not shipped": ((*TRAIN, *sets("backbone.weights=shipped")), ["'moons'", "backbone.weights: none"]),
    "schedule": ((*TRAIN, *sets("sample.2.steps=3")), ["sample.2", "takes 3 evaluations"]),
    "nfe 0": (("eval", "--nfe", "0"), ["--nfe 0", "--nfe 1,2,4"]),
    "nfe 1.5": (("eval", "--nfe", "1.5"), ["--nfe 1.5", "--nfe 1,2,4"]),
    "no runs": (("eval",), ["no finished runs under runs", "twinbench train"]),
    "no results": (("report",), ["no results under results", "twinbench eval"]),
    "format": (("report", "--format", "doc"), ["--format doc", "html"]),
    "run": (("eval", "nosuch"), ["'nosuch'", "list runs"]),
    "group": (("list", "method"), ["'method'", "did you mean 'methods'?"]),
    "label": (("show", "moons", "--diff", "rcgm", "twinflo"), ["'twinflo'", "did you mean 'twinflow'?"]),
    "bench label": (("bench", "--recipe", "moons", "--methods", "rcgn"), ["'rcgn'", "did you mean 'rcgm'?"]),
    "command": (("trian",), ["'trian'", "--help"]),
    "argument": (("train",), ["method", "train --help"]),
    "arguments": (("train", "rcgm", "moons"), ["moons", "train --help"]),
    "option": (("train", "rcgm", "--lr", "1"), ["--lr", "train --help"]),
    "seed": (("train", "rcgm", "--seed", "-1"), ["--seed", "train --help"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_that_names_it_and_its_mend_and_writes_nothing(here, capsys, name):
    words, parts = BAD[name]
    assert twinbench(*words) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and out == ""
    assert [part for part in parts if part not in err] == []
    assert [*here.iterdir()] == []


def test_a_process_ends_with_the_same_line_and_code(here):
    ended = process("train", "twinflw", "--recipe", "moons", cwd=here)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: method 'twinflw' not found; did you mean 'twinflow'? (twinbench list methods)\n"


@pytest.mark.parametrize("text", [b"train: [", b"- 1", b"\xff\xfe\x00", b""], ids=["open", "list", "binary", "empty"])
def test_a_damaged_recipe_file_is_named(here, capsys, text):
    (here / "mine.yaml").write_bytes(text)
    assert twinbench("train", "rcgm", "--recipe", "mine.yaml") == 2
    assert "mine" in last_error(capsys)
    assert [*files(here)] == ["mine.yaml"]


@pytest.mark.parametrize("content", [b"", b"no tensors", None], ids=["empty", "text", "cut"])
def test_damaged_weights_are_named(here, capsys, done, content):
    (weights,) = done.glob("runs/*/*/weights.safetensors")
    path = here / "w.safetensors"
    path.write_bytes(weights.read_bytes()[:-100] if content is None else content)
    assert twinbench(*TRAIN, *sets("backbone.weights=w.safetensors")) == 2
    assert "w.safetensors is damaged" in last_error(capsys)
    assert [*files(here)] == ["w.safetensors"]


def test_weights_of_another_backbone_are_named_with_the_first_key(here, capsys, done):
    (weights,) = done.glob("runs/*/*/weights.safetensors")
    assert twinbench(*TRAIN, *sets(f"backbone.weights={weights}", "backbone.width=32")) == 2
    message = last_error(capsys)
    assert str(weights) in message and "does not fit" in message and files(here) == {}


def test_a_damaged_checkpoint_is_named_and_without_it_the_run_goes_on_from_the_one_before(here, capsys):
    settings = sets("train.budget=6")
    assert twinbench(*TRAIN, *settings) == 0
    (folder,) = here.glob("runs/*/*")
    weights = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").unlink()
    saved = sorted((folder / "checkpoints").iterdir())
    assert [path.name[5:13] for path in saved] == ["00000004", "00000006"]
    saved[-1].write_bytes(saved[-1].read_bytes()[:-1])
    capsys.readouterr()
    before = files(here)
    assert twinbench(*TRAIN, *settings) == 2
    message = last_error(capsys)
    assert saved[-1].name in message and "delete it" in message and files(here) == before
    saved[-1].unlink()
    assert twinbench(*TRAIN, *settings) == 0
    assert (folder / "weights.safetensors").read_bytes() == weights


@pytest.mark.parametrize("where", ["runs", "runs/moons"])
def test_a_run_folder_that_cannot_be_written_is_named(here, capsys, where):
    (here / where).parent.mkdir(exist_ok=True)
    (here / where).write_text("a file")
    assert twinbench(*TRAIN) == 2
    message = last_error(capsys)
    assert "runs/moons/rcgm-" in message and "--runs" in message
    assert [*files(here)] == [where]


def test_a_results_folder_that_cannot_be_written_is_named(here, capsys, done):
    (here / "results").write_text("a file")
    assert twinbench("eval", "rcgm", "--nfe", "1", "--limit", "2", "--runs", done / "runs") == 2
    assert "results" in last_error(capsys)
    assert (here / "results").read_text() == "a file"


def test_a_benchmark_that_the_recipe_does_not_have_is_refused(here, capsys, done):
    before = files(done)
    for name in ("nosuch", "geneval"):
        assert twinbench("eval", "rcgm", "--bench", name, "--runs", done / "runs") == 2
        message = last_error(capsys)
        assert f"'{name}'" in message and "fidelity, diversity" in message
    assert files(done) == before and files(here) == {}


def test_a_training_that_breaks_down_is_a_failure_at_work_in_one_line(here, capsys):
    assert twinbench(*TRAIN, *sets("train.lr=1e30")) == 1
    message = last_error(capsys)
    assert "step 2" in message and "not finite" in message and "train.lr" in message
    assert (here / message.rsplit(": ", 1)[1]).is_file()  # what it says is left, is left


# ---- interrupts ----


def test_an_interrupt_ends_with_130_and_leaves_what_was_saved(here):
    words = ("train", "rcgm", "--recipe", "moons", *sets(*QUICK, "train.budget=100000"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-m", "twinbench", *words]
    child = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    assert child.stderr and "train rcgm" in child.stderr.readline()
    while not [*here.glob("runs/*/*/checkpoints/step-*.safetensors")]:
        assert child.poll() is None
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert (child.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "error: interrupted; the same command goes on from the last save"
    assert "Traceback" not in err
    (record,) = here.glob("runs/*/*/run.json")
    record = json.loads(record.read_text())
    log = (here / "runs" / "moons" / f"rcgm-{record['fingerprint'][:10]}" / "log.jsonl").read_text().splitlines()
    assert record["finished"] is False and record["steps"] == len(log) > 0  # nothing is lost


# ---- help and names ----


def test_help_fits_a_screen_and_names_every_command(capsys):
    assert twinbench("--help") == 0
    text = capsys.readouterr().out
    assert text.count("\n") <= 24 and all(f"\n  {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example(capsys, name):
    assert twinbench(name, "--help") == 0
    assert f"Example: twinbench {name} " in " ".join(capsys.readouterr().out.split())


HEAVY = """
import sys
from twinbench import cli
for words in (["--help"], ["train", "--help"], ["list", "methods"], ["list", "recipes"], ["show", "shapes"]):
    sys.argv = ["twinbench", *words]
    try: cli.main()
    except SystemExit as end: assert not end.code
print("HEAVY", sorted({"torch", "pandas", "scipy", "matplotlib", "numpy"} & {*sys.modules}))
"""


def test_help_lists_and_recipes_import_nothing_heavy():
    ended = subprocess.run([sys.executable, "-c", HEAVY], capture_output=True, text=True, timeout=60)
    assert ended.stdout.splitlines()[-1] == "HEAVY []", ended.stderr


@pytest.mark.parametrize(
    "group, some",
    [
        ("methods", {"flow-matching", "pretrained", "rcgm", "twinflow"}),
        ("backbones", {"mlp", "patch-transformer"}),
        ("datasets", {"digits", "moons", "shapes"}),
        ("benchmarks", {"diversity", "fidelity", "geneval"}),
        ("judges", {"shapes-exact"}),
    ],
)
def test_list_names_what_is_installed(capsys, group, some):
    assert twinbench("list", group) == 0
    lines = capsys.readouterr().out.splitlines()
    assert some <= {*lines} and lines == sorted(lines)


def test_list_recipes_has_a_line_of_description_each(capsys):
    assert twinbench("list", "recipes") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipe.shipped()
    assert all(len(line.split()) > 3 for line in lines)


def test_list_runs_says_what_each_run_is(here, capsys, done):
    assert twinbench("list", "runs") == 0 and capsys.readouterr().out == ""
    assert twinbench("list", "runs", "--runs", done / "runs") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert "moons/rcgm-" in line and "seed 0  3 steps" in line and line.endswith("finished")


def test_show_diff_prints_only_the_differences(capsys):
    assert twinbench("show", "shapes", "--diff", "rcgm", "twinflow") == 0
    assert capsys.readouterr().out.splitlines() == [
        "# rcgm | twinflow",
        "config.form: None | source",
        "config.match_clamp: None | 1.0",
        "config.rectify: None | 0.5",
        "config.shares.fake: 0 | 1",
        "config.twin_share: None | 0.3333333333333333",
        "method: rcgm | twinflow",
    ]
    assert twinbench("show", "shapes", "--diff", "rcgm", "rcgm") == 0 and capsys.readouterr().out == ""


def test_what_show_prints_is_a_recipe(here, capsys):
    assert twinbench("show", "digits", *sets("train.lr=0.25")) == 0
    (here / "again.yaml").write_text(capsys.readouterr().out)
    for label in recipe.load("digits").methods:
        want = recipe.resolve(recipe.load("digits", ["train.lr=0.25"]), label)
        again = recipe.resolve(recipe.load("again.yaml"), label)
        assert again == want.model_copy(update={"source": "again.yaml"})


# ---- the whole story ----


def test_train_eval_and_report(here, capsys):
    for label in ("flow-matching", "rcgm"):
        assert twinbench("train", label, *MOONS) == 0
        folder = here / capsys.readouterr().out.strip()
        assert {"run.json", "recipe.yaml", "log.jsonl", "weights.safetensors"} <= {p.name for p in folder.iterdir()}
    evaluation = ("eval", "--nfe", "1,2", "--limit", "20")
    assert twinbench(*evaluation) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert len([*here.glob("results/moons/*/*-nfe[12]-limit20.json")]) == 2 * 2 * 2

    shown = {}
    for format in ("table", "md", "csv", "json"):
        assert twinbench("report", "--format", format) == 0
        shown[format] = capsys.readouterr().out
    assert (here / shown["table"].splitlines()[-1].removeprefix("report: ")).is_file()
    assert all(label in shown[name] for name in shown for label in ("flow-matching", "rcgm"))
    scores = [*csv.DictReader(io.StringIO(shown["csv"]))]
    assert {(row["label"], row["nfe"]) for row in scores} == {(m, n) for m in ("flow-matching", "rcgm") for n in "12"}
    for row in scores:  # the report says what the score file says
        (path,) = here.glob(f"results/moons/{row['label']}-*/{row['benchmark']}-nfe{row['nfe']}-limit20.json")
        assert float(row["value"]) == pytest.approx(json.loads(path.read_text())["metrics"][row["metric"]]["value"])
    assert {row["row"] for row in json.loads(shown["json"])["costs"]} == {"flow-matching", "rcgm"}

    before = stamps(here / "runs") | stamps(here / "results" / "moons")
    for words in (("train", "rcgm", *MOONS), evaluation):
        assert twinbench(*words) == 0
    assert stamps(here / "runs") | stamps(here / "results" / "moons") == before  # nothing is done twice

    assert twinbench("train", "rcgm", *MOONS, *sets("train.lr=0.001")) == 0
    assert len([*here.glob("runs/moons/rcgm-*")]) == 2  # another training is another run
    assert before.items() <= stamps(here / "runs").items() | stamps(here / "results" / "moons").items()

    trained_ones = stamps(here / "runs", "weights.safetensors")
    names = {path.name for path in here.glob("results/moons/*")}
    first = json.loads(next(here.glob("results/moons/flow-*/diversity-nfe1-limit20.json")).read_text())
    assert twinbench(*evaluation, "--bench", "diversity", *sets("sample.1.times=[0.9]")) == 0
    assert stamps(here / "runs", "weights.safetensors") == trained_ones  # another sampling trains nothing
    again = json.loads(next(here.glob("results/moons/flow-*/diversity-nfe1-limit20.json")).read_text())
    assert (first["schedule"]["times"], again["schedule"]["times"]) == ([1.0], [0.9])
    assert first["metrics"] != again["metrics"] and first["drawing"] != again["drawing"]
    assert names < {path.name for path in here.glob("results/moons/*")}  # and the third run is judged now


def stamps(folder, pattern="*"):
    return {path: path.stat().st_mtime_ns for path in folder.rglob(pattern) if path.is_file()}


def test_fresh_starts_anew_and_ends_the_same(here, capsys):
    assert twinbench(*TRAIN) == 0
    (weights,) = here.glob("runs/*/*/weights.safetensors")
    before, stamp = weights.read_bytes(), weights.stat().st_mtime_ns
    assert twinbench(*TRAIN, "--fresh") == 0
    assert weights.read_bytes() == before and weights.stat().st_mtime_ns > stamp


def test_bad_input_with_fresh_deletes_nothing(here, capsys):
    assert twinbench(*TRAIN) == 0
    before = files(here)
    assert twinbench(*TRAIN, "--fresh", *sets("sample.2.steps=3")) == 2
    assert files(here) == before


def test_a_run_can_start_from_another_runs_weights(here, capsys, done):
    (folder,) = done.glob("runs/*/*")
    fingerprint = json.loads((folder / "run.json").read_text())["fingerprint"]
    words = ("train", "pretrained", *MOONS, *sets(f"backbone.weights=run:{fingerprint[:12]}"), "--runs", done / "runs")
    assert twinbench(*words) == 0
    copied = (here / capsys.readouterr().out.strip()) / "weights.safetensors"
    from twinbench.tensors import read_tensors

    ours, theirs = read_tensors(copied)[0], read_tensors(folder / "weights.safetensors")[0]
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_the_shapes_story_runs_too_with_its_exact_judge(here, capsys):
    settings = sets(*TINY, "data.size=200", "train.unit=steps", "train.budget=2", "train.batch=8")
    assert twinbench("train", "twinflow", "--recipe", "shapes", *settings) == 0
    assert twinbench("eval", "twinflow", "--nfe", "1", "--bench", "geneval", "--limit", "2") == 0
    (path,) = here.glob("results/shapes/*/geneval-nfe1-limit2.json")
    score = json.loads(path.read_text())
    assert score["judge"] == "shapes-exact/1" and score["n"] == (6 + 4) * 2 * 2
    assert 0 <= score["metrics"]["overall"]["value"] < 0.2  # two steps learn nothing


def test_eval_finds_a_recipe_file_again(here, capsys):
    text = (resources.files("twinbench.recipes") / "moons.yaml").read_text()
    (here / "shapes.yaml").write_text(text)  # a shipped recipe's name must not take its place
    assert twinbench("train", "rcgm", "--recipe", "shapes.yaml", *sets(*QUICK)) == 0
    times = sets("sample.1.times=[0.9]", "eval.benchmarks={diversity: {}}")
    assert twinbench("eval", "--nfe", "1", "--limit", "2", *times) == 0
    (score,) = here.glob("results/shapes/rcgm-*/*-nfe1-limit2.json")
    assert json.loads(score.read_text())["schedule"]["times"] == [0.9]
