"""Averages, checkpoints and the loop: what is resumed, accumulated or stopped is the run that was begun."""

import json
import math

import pytest
import torch
from torch import nn

from twinbench import recipe
from twinbench.errors import UserError, WorkError
from twinbench.sections import Train
from twinbench.tensors import read_tensors
from twinbench.training.checkpoint import State, checkpoints, load_checkpoint, save_checkpoint
from twinbench.training.ema import Average, next_decay
from twinbench.training.networks import Owned, Trained, make_optimizers
from twinbench.training.start import start

SMALL = [
    "backbone.width=16",
    "backbone.depth=1",
    "data.size=128",
    "train.batch=16",
    "train.budget=6",
    "train.save_every=2",
    "eval.nfe=[1]",
]


def begin(runs, *overrides, method="twinflow", seed=0):
    """The trainer of a small run in the moons world, at its newest checkpoint."""
    return start(recipe.resolve(recipe.load("moons", [*SMALL, *overrides]), method, seed), runs)[1]


def weights(trainer):
    return read_tensors(trainer.folder / "weights.safetensors")[0]


def identical(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def log_of(trainer):
    rows = [json.loads(line) for line in (trainer.folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "peak_bytes")} for row in rows]


# ---- the average ----


def line(*values):
    """A network of one row of parameters."""
    net = nn.Linear(len(values), 1, bias=False).double()
    net.weight.data = torch.tensor([values], dtype=torch.float64)
    return net


def test_the_first_update_copies():
    average = Average(line(0.1, 7.0), 0.99)
    average.update(line(0.3, -5.0))
    assert average.network.weight.tolist() == [[0.3, -5.0]]


def test_the_average_is_the_weighted_mean_of_all_it_saw():
    average, limit, seen = Average(line(0.0), 0.9), 0.9, []
    decays = [0.0]
    for k in range(12):
        seen.append(math.sin(k))
        average.update(line(seen[-1]))
        decays.append(next_decay(decays[-1], limit))
    assert average.decay == decays[-1]
    shares = [(1 - decays[k]) * math.prod(decays[k + 1 : 12]) for k in range(12)]
    assert sum(shares) == pytest.approx(1, abs=1e-12)
    assert average.network.weight.item() == pytest.approx(sum(map(math.prod, zip(shares, seen))), abs=1e-12)


def test_the_average_is_a_copy_without_gradient():
    net = line(1.0)
    average = Average(net, 0.9)
    net.weight.data.fill_(5.0)
    assert average.network.weight.item() == 1.0 and not average.network.weight.requires_grad
    average.update(net)
    assert average.network.weight is not net.weight and net.weight.requires_grad


def test_the_target_follows_before_the_loss_sees_it(tmp_path):
    """The average of a step includes the student as the step finds it, and not what the step makes of it."""
    trainer = begin(tmp_path)
    for _ in range(2):
        before = {name: value.clone() for name, value in trainer.backbone.state_dict().items()}
        old = {name: value.clone() for name, value in trainer.owned.average.network.state_dict().items()}
        decay = trainer.owned.average.decay
        trainer.step()
        for name, value in trainer.owned.average.network.state_dict().items():
            torch.testing.assert_close(value, decay * old[name] + (1 - decay) * before[name], rtol=1e-6, atol=1e-7)
    changed = trainer.backbone.state_dict()
    assert any(not torch.equal(changed[name], value) for name, value in before.items())


# ---- checkpoints ----


class Blocks(nn.Module):
    """Something with matrices inside blocks, which Muon takes, and other parameters, which it leaves."""

    def __init__(self):
        super().__init__()
        self.first, self.blocks = nn.Linear(3, 4), nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.register_buffer("scale", torch.tensor([1.5]))

    def forward(self, x):
        x = self.first(x * self.scale)
        for block in self.blocks:
            x = x + block(x).tanh()
        return x


def owned_of(optimizer, seed=0):
    torch.manual_seed(seed)
    net = Blocks()
    train = Train(budget=1, optimizer=optimizer, lr=0.01, weight_decay=0.1)
    return Owned({"student": Trained(net, make_optimizers(net, train))}, Average(net, 0.9), None)


def train_on(owned, steps):
    trained = owned.trained["student"]
    for k in steps:
        owned.average.update(trained.network)
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(k))
        trained.network(x).square().mean().backward()
        for optimizer in trained.optimizers:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_checkpoint_is_the_state_bit_for_bit(tmp_path, optimizer):
    owned, other = owned_of(optimizer), owned_of(optimizer, seed=1)
    train_on(owned, range(4))
    state = State(4, 20, 300, 0.1 + 0.2, 1 / 3, 12345)
    path = save_checkpoint(tmp_path, owned, state, keep=2)
    assert load_checkpoint(path, other) == state
    assert other.average.decay == owned.average.decay > 0
    for kind in (lambda o: o.trained["student"].network, lambda o: o.average.network):
        identical(kind(owned).state_dict(), kind(other).state_dict())
    pairs = list(zip(owned.trained["student"].optimizers, other.trained["student"].optimizers, strict=True))
    assert len(pairs) == (2 if optimizer == "muon" else 1)
    for saved, loaded in pairs:
        slots, found = saved.state_dict()["state"], loaded.state_dict()["state"]
        assert slots.keys() == found.keys() and slots
        for parameter, slot in slots.items():
            identical(slot, found[parameter])
            assert all(slot[name].dtype == found[parameter][name].dtype for name in slot)
    train_on(owned, range(4, 7))
    train_on(other, range(4, 7))  # and so is what follows from it
    identical(owned.trained["student"].network.state_dict(), other.trained["student"].network.state_dict())
    identical(owned.average.network.state_dict(), other.average.network.state_dict())


def test_muon_without_matrices_in_blocks_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"set train\.optimizer: adamw"):
        begin(tmp_path, "train.optimizer=muon")


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    owned = owned_of("adamw")
    for step in (8, 9, 10, 100):
        save_checkpoint(tmp_path, owned, State(step), keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000010.safetensors", "step-00000100.safetensors"]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, owned_of("adamw"), State(1), keep=1)
    other = owned_of("adamw")
    other.average.network.blocks.append(nn.Linear(4, 4))
    with pytest.raises(UserError, match=r"step-00000001\.safetensors does not fit .*blocks\.2\.bias"):
        load_checkpoint(path, other)


# ---- the loop ----


@pytest.mark.parametrize("method", ["flow-matching", "twinflow"])
@pytest.mark.parametrize("killed_after", [1, 3, 5])
def test_a_killed_run_ends_where_an_uninterrupted_one_does(tmp_path, method, killed_after):
    whole = begin(tmp_path / "whole", method=method)
    list(whole)
    killed = iter(begin(tmp_path / "killed", method=method))
    for _ in range(killed_after):
        next(killed)
    resumed = begin(tmp_path / "killed", method=method)
    saved = killed_after // 2 * 2
    assert resumed.state.step == saved
    assert [row["step"] for row in resumed] == list(range(saved + 1, 7))
    identical(weights(whole), weights(resumed))
    assert log_of(whole) == log_of(resumed) and len(log_of(whole)) == 6
    assert (whole.state.step, whole.state.images, whole.state.passes) == (
        resumed.state.step,
        resumed.state.images,
        resumed.state.passes,
    )
    other = begin(tmp_path / "other", method=method, seed=1)
    list(other)
    assert not torch.equal(weights(other)["last.weight"], weights(whole)["last.weight"])


def test_a_truncated_checkpoint_is_named_and_the_one_before_it_serves(tmp_path):
    trainer = begin(tmp_path)
    list(trainer)
    newest = checkpoints(trainer.folder / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"step-00000006\.safetensors is damaged"):
        begin(tmp_path)
    newest.unlink()
    assert begin(tmp_path).state.step == 4


def test_training_stops_at_a_term_that_is_not_finite(tmp_path):
    trainer = begin(tmp_path)
    trainer.step(), trainer.step()
    trainer.backbone.last.bias.data[0] = math.nan
    with pytest.raises(WorkError, match=r"step 3, turn 'student': term 'base' is not finite") as error:
        trainer.step()
    (kept,) = (trainer.folder / "failed").iterdir()
    assert str(kept) in str(error.value)
    assert read_tensors(kept)[0]["student.last.bias"][0].isnan()
    assert trainer.state.step == 2 and len(log_of(trainer)) == 2  # the step was not made


def test_training_stops_at_a_gradient_that_is_not_finite_before_it_reaches_the_weights(tmp_path):
    trainer = begin(tmp_path)
    trainer.step()
    before = {name: value.clone() for name, value in trainer.backbone.state_dict().items()}
    trainer.backbone.last.bias.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(WorkError, match=r"step 2, turn 'student': the gradient norm is not finite"):
        trainer.step()
    identical(before, trainer.backbone.state_dict())
    assert len(list((trainer.folder / "failed").iterdir())) == 1


@pytest.mark.parametrize("method", ["flow-matching", "rcgm", "twinflow"])
def test_accumulated_gradients_are_those_of_the_batch(tmp_path, method):
    settings = ["train.batch=64", "train.budget=4", "train.lr=1e-3"]
    ends, logs, passes = [], [], []
    for size in ("null", "16", "13"):
        trainer = begin(tmp_path / size, *settings, f"train.micro_batch={size}", method=method)
        list(trainer)
        ends.append(weights(trainer)), logs.append(log_of(trainer)), passes.append(trainer.state.passes)
    for end, log in zip(ends[1:], logs[1:]):
        for name, value in ends[0].items():
            torch.testing.assert_close(end[name], value, rtol=0, atol=1e-5)
        for row, whole in zip(log, logs[0], strict=True):
            term = "flow" if method == "flow-matching" else "base"
            assert row[term] == pytest.approx(whole[term], rel=1e-5)
            assert all(math.isfinite(v) for v in row.values() if isinstance(v, float))
    assert passes[0] == passes[1] == passes[2]  # the cost is counted in rows


@pytest.mark.parametrize("block", ["{}", "{form: paper}", "{image_free: true, target: pretrained, cfg_scale: 2}"])
def test_lower_precision_trains_nearly_the_same(tmp_path, block):
    set_block = f"methods.twinflow={block}"
    rows = [begin(tmp_path / p, set_block, f"train.precision={p}").step() for p in ("float32", "bfloat16")]
    for name in set(rows[0]) & {"base", "rectify", "any_step", "real", "fake"}:
        assert rows[1][name] == pytest.approx(rows[0][name], rel=0.05, abs=0.01)


def test_logs_of_a_role_are_means_over_the_micro_batches_that_hold_it(tmp_path):
    """With micro-batches of one row the log of every role is the mean over its rows, as it is for the whole batch."""
    rows = [begin(tmp_path / size, f"train.micro_batch={size}").step() for size in ("null", "1")]
    for role in ("one_step", "local", "any_step", "fake", "rectify"):
        assert rows[1][f"log.{role}"] == pytest.approx(rows[0][f"log.{role}"], rel=1e-4)
