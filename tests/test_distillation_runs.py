"""KD and progressive distillation in training: what is made and paid for; a run goes on where it stopped, in the
middle of its pairs or across a phase."""

import json

import pytest
import torch
from small import resolved, trained, twinbench

from twinbench.randomness import normal
from twinbench.tensors import read_tensors
from twinbench.training.start import start

TINY = ("backbone.width=16", "backbone.depth=1", "data.size=256", "train.batch=16", "train.decay=0.5")
KD_SETTINGS = ("methods.kd.pairs=40", "methods.kd.steps=4", "methods.kd.cfg_scale=2.0")  # shards of 16, 16 and 8
TIMED = {"seconds", "peak_bytes"}


@pytest.fixture(scope="module", autouse=True)
def flow(tmp_path_factory):
    """Weights that every run here begins with: those of a new network say v = 0, of which there is nothing to learn."""
    runs = tmp_path_factory.mktemp("flow")
    return trained(runs, "moons", "flow-matching", *TINY, "train.budget=30", "train.lr=1e-2") / "weights.safetensors"


@pytest.fixture(autouse=True)
def from_flow(flow, monkeypatch):
    monkeypatch.setitem(globals(), "TINY", (*TINY, f"backbone.weights={flow}"))


def begin(runs, label, *items):
    return start(resolved("moons", label, *TINY, *items), runs)[1]


def last_of(folder):
    tensors, data = read_tensors(max((folder / "checkpoints").iterdir()))
    state = {key: value for key, value in data["state"].items() if key in ("step", "images", "passes", "phase")}
    return tensors, state | {"decay": data["decay"]}


def log_of(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row.keys() - TIMED} for row in rows]


def same_run(one, other):
    (a, state), (b, again) = last_of(one), last_of(other)
    assert state == again and a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert log_of(one) == log_of(other)
    a, b = (read_tensors(folder / "weights.safetensors")[0] for folder in (one, other))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_pairs_are_paid_for_before_the_first_step(tmp_path):
    """40 pairs of 4 guided steps, 2 passes each; then 16 rows forward and backward, 3."""
    trainer = begin(tmp_path, "kd", *KD_SETTINGS, "train.unit=passes", "train.budget=400")
    rows = list(trainer)
    made, steps = [row for row in rows if "pairs" in row], [row for row in rows if "pairs" not in row]
    assert [(row["pairs"], row["passes"]) for row in made] == [(16, 128), (32, 256), (40, 320)]
    assert [(row["step"], row["passes"]) for row in steps] == [(1, 368), (2, 416)]
    assert made[-1]["progress"] == 0.8 and made[0]["seconds"] > 0 and trainer.state.images == 32


def test_pairs_are_the_guided_teachers_samples_from_keyed_noise(tmp_path):
    trainer = begin(tmp_path, "kd", *KD_SETTINGS, "train.budget=2")
    trainer.step()
    loader = trainer.loader
    for i in (0, 17, 39):
        assert torch.equal(loader.z[i], normal((2,), 0, "pairs", i))
    cond, null = loader.prompts(loader.sample_of.tolist())

    def v(x, t):
        free = trainer.owned.teacher(x, t, t, null)
        return free + 2 * (trainer.owned.teacher(x, t, t, cond) - free)

    x = loader.z
    with torch.no_grad():
        for t in (1.0, 0.75, 0.5, 0.25):
            x = x - 0.25 * v(x, torch.full((40,), t))
    torch.testing.assert_close(loader.x, x, rtol=1e-4, atol=1e-5)
    assert (loader.x - loader.z).abs().max() > 0.1
    assert len({*loader.sample_of.tolist()}) == 40  # prompts of other samples each
    batch = loader.batch(3, [5, 2], 16)
    rows = [(loader.z == z).all(1).nonzero().item() for z in batch.z]
    assert torch.equal(batch.x, loader.x[rows]) and torch.equal(batch.cond["tokens"], cond["tokens"][rows])
    seen = [(loader.z == z).all(1).nonzero().item() for z in loader.batch(0, range(40), 40).z]
    assert sorted(seen) == list(range(40))  # an epoch holds every pair once


def test_a_budget_that_cannot_pay_for_the_pairs_is_refused_in_a_sentence(tmp_path, capsys):
    sets = [word for item in (*TINY, *KD_SETTINGS, "train.unit=passes", "train.budget=320") for word in ("--set", item)]
    assert twinbench("train", "kd", "--recipe", "moons", "--runs", tmp_path, *sets) == 2
    error = capsys.readouterr().err
    assert "40 pairs take 320 network passes" in error and "train.budget is 320" in error and "\n" not in error.strip()
    assert not list(tmp_path.iterdir())


def interrupted(runs, label, items, stop):
    """A run that stops, without a word, at the first row for which `stop`; a shard or step begun later is lost."""
    for row in begin(runs, label, *items):
        if stop(row):
            return


@pytest.mark.parametrize("micro", [None, 5])
def test_pairs_go_on_where_they_stopped(tmp_path, micro):
    items = (*KD_SETTINGS, "train.budget=5", "train.save_every=2", *([f"train.micro_batch={micro}"] if micro else []))
    whole = trained(tmp_path / "once", "moons", "kd", *TINY, *items)
    interrupted(tmp_path / "twice", "kd", items, lambda row: row.get("pairs") == 32)
    (again,) = (tmp_path / "twice").glob("*/*")
    shards = sorted(path.name for path in (again / "pairs").iterdir())
    assert len(shards) == 2 and not (again / "checkpoints").exists()
    (again / "pairs" / ".pairs-00000032.safetensors.x").write_bytes(b"cut off")
    before = (again / "pairs" / shards[0]).read_bytes()
    interrupted(tmp_path / "twice", "kd", items, lambda row: row["step"] == 3)
    trained(tmp_path / "twice", "moons", "kd", *TINY, *items)
    same_run(whole, again)
    assert (again / "pairs" / shards[0]).read_bytes() == before
    names = [sorted(path.name for path in (folder / "pairs").iterdir()) for folder in (whole, again)]
    assert names[0] == names[1] and len(names[0]) == 3
    for name in names[0]:
        (a, cost), (b, paid) = (read_tensors(folder / "pairs" / name) for folder in (whole, again))
        assert torch.equal(a["x"], b["x"]) and torch.equal(a["z"], b["z"]) and cost["passes"] == paid["passes"]


def test_a_shard_that_is_lost_later_is_made_again_and_not_paid_twice(tmp_path):
    items = (*KD_SETTINGS, "train.budget=5", "train.save_every=2")
    whole = trained(tmp_path / "once", "moons", "kd", *TINY, *items)
    interrupted(tmp_path / "twice", "kd", items, lambda row: row["step"] == 3)
    (again,) = (tmp_path / "twice").glob("*/*")
    (again / "pairs" / "pairs-00000016.safetensors").unlink()
    trained(tmp_path / "twice", "moons", "kd", *TINY, *items)
    same_run(whole, again)


# Of one row: the student forward and backward, and the teacher twice; in the first phase it is guided.
def test_progressive_passes_are_counted(tmp_path):
    items = ("methods.progressive.steps=2", "methods.progressive.cfg_scale=3.0", "train.budget=4")
    passes = [row["passes"] for row in begin(tmp_path, "progressive", *items)]
    assert passes == [16 * 7, 2 * 16 * 7, 16 * (2 * 7 + 5), 16 * (2 * 7 + 2 * 5)]


@pytest.mark.parametrize("lora", [False, True])
def test_a_phase_makes_the_average_its_teacher_and_a_run_goes_on_from_any_step(tmp_path, lora):
    items = (
        "methods.progressive.steps=4",
        "train.budget=12",
        "train.save_every=1",
        *(["train.lora.rank=2"] if lora else []),
    )
    trainer = begin(tmp_path / "once", "progressive", *items)
    teachers, averages = [], []
    while trainer.progress < 1:
        averages.append([p.clone() for p in trainer.owned.average.network.parameters()])
        trainer.step()
        teachers.append([p.clone() for p in trainer.owned.teacher.parameters()])
    trainer.save()
    for step, (teacher, before) in enumerate(zip(teachers, [None, *teachers[:-1]])):
        taken = averages[step] if step in (4, 8) else before
        assert taken is None or all(torch.equal(a, b) for a, b in zip(teacher, taken, strict=True)), step
    assert not all(torch.equal(a, b) for a, b in zip(teachers[3], teachers[4]))
    for stop in (3, 4, 5, 9):  # the last step of a phase, its first, and later
        interrupted(tmp_path / str(stop), "progressive", items, lambda row, stop=stop: row["step"] == stop)
        again = trained(tmp_path / str(stop), "moons", "progressive", *TINY, *items)
        same_run(trainer.folder, again)
    state = last_of(trainer.folder)
    assert state[1]["phase"] == 2 and any(name.startswith("teacher.") for name in state[0])
