"""Distillation from a teacher's trajectories: KD on fixed pairs, progressive distillation by halving steps.

At the exact flow map, for data of one normal distribution (see test_fixed_point; here rows are still one by one, and no
mirror is needed, since both targets are the teacher's and hold no sample's own noise):

- progressive: nothing is left after the first phase, where the teacher takes the very steps it is asked for. In the
  first one a step is Euler's, and leaves a part of first order in its length;
- KD: pairs of an exact teacher leave nothing; those of n Euler steps a part of first order in 1/n.
"""

import json
from itertools import pairwise

import pytest
import torch
from gaussian import flow_map, mean_velocity
from small import resolved, trained, twinbench
from tiny import Tiny, load
from twinbench.baselines.kd import KD
from twinbench.baselines.progressive import Progressive, ProgressiveDraws, two_steps

from twinbench.flow import Batch
from twinbench.method import Draws, Networks, Turn
from twinbench.randomness import Rng, normal
from twinbench.sampler import Schedule, sample, schedule_times
from twinbench.tensors import read_tensors
from twinbench.training.start import start

N = 16
ONE, ZERO = torch.ones(N, dtype=torch.float64), torch.zeros(N, dtype=torch.float64)


def noise(seed=0):
    return torch.randn(N, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def halves_each_time(sizes):
    for coarse, fine in pairwise(sizes):
        assert coarse / fine == pytest.approx(2, rel=0.15), sizes


# ---- fixed points ----


def progressive_rows(method, progress, student=mean_velocity):
    """The rows of the loss with the exact flow map as teacher, in the phase of some progress."""
    batch, turn = Batch(noise(1), {}, {}), Turn(progress=progress)
    draws = method.draw(batch, Rng(0, 0, "student", range(N), N, (3,), torch.float64), turn)
    return method.loss(Networks(student, teacher=mean_velocity), batch, draws, turn).losses["progressive"].rows


@pytest.mark.parametrize("weighting", ["none", "truncated"])
def test_progressive_is_still_at_the_flow_map_after_its_first_phase(weighting):
    method = Progressive(Progressive.Config(steps=8, weighting=weighting))
    for progress in (0.3, 0.6, 1.0):
        assert progressive_rows(method, progress).max() < 1e-24
        moved = progressive_rows(method, progress, lambda *point: mean_velocity(*point) + 0.1)
        assert moved.min() > 0.01 * (1 if weighting == "none" else 0.25) * (1 - 1e-9)


def test_progressives_first_phase_is_still_to_first_order_in_its_step():
    sizes = []
    for steps in (16, 32, 64):
        t = torch.arange(steps // 16, steps + 1, steps // 16, dtype=torch.float64) / steps  # the same times
        batch, turn = Batch(noise(1), {}, {}), Turn()
        draws = ProgressiveDraws(N, t, t - 1 / steps, noise())
        method = Progressive(Progressive.Config(steps=steps))
        rows = (
            method.loss(Networks(mean_velocity, teacher=mean_velocity), batch, draws, turn).losses["progressive"].rows
        )
        sizes.append(rows.sqrt().sum().item())
    halves_each_time(sizes)


def kd_loss(x, student=mean_velocity, **settings):
    batch = Batch(x, {}, {}, z=noise())
    return KD(KD.Config(**settings)).loss(Networks(student), batch, Draws(N), Turn()).total().item()


@pytest.mark.parametrize("metric", ["l2", "huber"])
def test_kd_is_still_at_the_flow_map_of_its_pairs(metric):
    exact = flow_map(noise(), ONE, ZERO)
    assert kd_loss(exact, metric=metric) < 1e-24
    assert kd_loss(exact, lambda *point: mean_velocity(*point) + 0.1, metric=metric, huber=0.01) == pytest.approx(
        0.1**2 if metric == "l2" else (0.1**2 + 0.01**2) ** 0.5 - 0.01
    )
    sizes = []
    for steps in (16, 32, 64):
        times = tuple(schedule_times(steps).tolist())
        sizes.append(kd_loss(sample(mean_velocity, noise(), {}, Schedule(times, hop="same"))) ** 0.5)
    halves_each_time(sizes)


# ---- what is asked of whom ----


def test_guidance_enters_in_the_first_phase_alone():
    def teacher(x, t, r, cond):  # the empty condition's field is 1 above the plain one
        return mean_velocity(x, t, r) + cond["shift"][:, None]

    batch = Batch(noise(1), {"shift": ZERO}, {"shift": ONE})
    method = Progressive(Progressive.Config(steps=512, cfg_scale=3.0))
    for progress, offset in ((0.0, -2.0), (0.11, 0.0)):  # v_null + 3 (v - v_null) lies 2 below v
        turn = Turn(progress=progress)
        n = 512 >> method.phase(progress)
        t = torch.linspace(0.5, 1, N, dtype=torch.float64).mul(n).floor() / n
        draws = ProgressiveDraws(N, t, t - 1 / n, noise())
        rows = method.loss(Networks(mean_velocity, teacher=teacher), batch, draws, turn).losses["progressive"].rows
        assert rows.sqrt().mean().item() == pytest.approx(abs(offset), abs=0.02)


def test_two_steps_of_a_network_are_where_they_lead():
    net = Tiny(load("twinflow_components")["rcgm"]["P_teacher"]).requires_grad_(False)
    cond, x = {"c": noise(4)[:, :2]}, noise(5)
    t, r = ONE * 0.9, ONE * 0.4
    middle = x - 0.25 * net(x, t, ONE * 0.65, cond)
    end = middle - 0.25 * net(middle, ONE * 0.65, r, cond)
    torch.testing.assert_close(two_steps(net, x, t, r, cond), (x - end) / 0.5, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 16])
def test_phases_halve_the_steps_in_equal_shares(steps):
    method = Progressive(Progressive.Config(steps=steps))
    count = steps.bit_length()
    phases = [method.phase(i / 1000) for i in range(1001)]
    assert sorted({*phases}) == list(range(count)) and phases == sorted(phases)
    assert all(abs(phases[:-1].count(k) - 1000 / count) <= 1 for k in range(count))
    for k in range(count):
        rng = Rng(0, 0, "student", range(64), 64, (3,), torch.float64)
        draws = method.draw(Batch(None, {}, {}), rng, Turn(progress=(k + 0.5) / count))
        n = steps >> k
        assert torch.equal(draws.t - draws.r, torch.full_like(draws.t, 1 / n)) and draws.r.min() >= 0
        assert {*(draws.t * n).tolist()} == {*map(float, range(1, n + 1))}


def test_steps_must_be_a_power_of_two():
    with pytest.raises(ValueError, match="power of two"):
        Progressive.Config(steps=12)


# ---- runs ----

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
