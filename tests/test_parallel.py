"""Two processes train what one trains: the same gradients, samples, costs and checkpoints, whichever is killed when."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from processes import free_port, together, train
from small import resolved, sets

from twinbench import plugins
from twinbench.errors import UserError
from twinbench.method import Turn
from twinbench.miniature import named
from twinbench.recipe import load, resolve
from twinbench.tensors import read_tensors
from twinbench.training.ema import Average
from twinbench.training.parallel import joined, whole
from twinbench.training.shards import Shards
from twinbench.training.start import start

DIGITS = ("backbone.weights=none", "backbone.width=16", "backbone.depth=1", "backbone.heads=2")
STEPS = ("train.unit=steps", "train.batch=8", "train.save_every=2", "eval.nfe=[1]")
MOONS = ("backbone.width=16", "backbone.depth=2", "data.size=128", *STEPS, "train.budget=8")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The end of an uninterrupted run of one process."""
    return end(train(resolved("moons", "twinflow", *MOONS), tmp_path_factory.mktemp("one")))


def end(trainer):
    return read_tensors(trainer.folder / "weights.safetensors")[0], log_of(trainer.folder), trainer.state


def ends(runs, settings, size=2, steps=None):
    """The end of a run of several processes, once each of them is there."""
    return together(lambda: end_or_state(train(settings, runs, steps)), size)


def end_or_state(trainer):
    return end(trainer) if trainer.progress >= 1 else trainer.state


def log_of(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "peak_bytes")} for row in rows]


def close(a, b, tolerance):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")


def identical(a, b):
    assert a.keys() == b.keys() and [name for name in a if not torch.equal(a[name], b[name])] == []


# ---- what each step is ----


def gradients(settings, runs):
    """The gradients of a first step from weights that are not at rest."""
    with joined(settings.train, gpu=False) as group:
        _, trainer = start(settings, runs, group=group)
        student = trainer.owned.trained["student"].network
        for p in student.parameters():
            p.data.add_(0.03)
        trainer.owned.average.update(student)
        trainer._gradients(Turn())
        return {name: whole(p.grad).clone() for name, p in student.named_parameters()}


@pytest.mark.parametrize("micro", ["null", "1"])
def test_gradients_are_those_of_one_process(tmp_path, micro):
    """With one row at a time, most calls are those of rows that the other process has not."""
    settings = resolved("digits", "twinflow", *DIGITS, *STEPS, "train.budget=2", f"train.micro_batch={micro}")
    alone = gradients(settings, tmp_path / "one")
    for found in together(partial(gradients, settings, tmp_path / "two")):
        close(found, alone, 1e-6)
    assert max(float(g.abs().max()) for g in alone.values()) > 0.1


OWN = {
    "dmd": ("methods.dmd.critic_steps=2",),
    "dmd2": ("methods.dmd2.critic_steps=2",),
    "progressive": ("methods.progressive.steps=4",),
    "kd": ("methods.kd.pairs=11", "methods.kd.steps=2"),
}


@pytest.mark.parametrize("label", ["dmd", "dmd2", "scm", "meanflow", "progressive", "kd"])
def test_every_kind_of_network_is_trained_alike(tmp_path, label):
    """A critic, a GAN head, two ways through torch.func.jvp, a teacher that changes, and one that makes pairs."""
    own = OWN.get(label, ())
    settings = resolved("digits", label, *DIGITS, *STEPS, *own, "train.budget=2", "train.micro_batch=2")
    weights, log, state = end(train(settings, tmp_path / "one"))
    for found, rows, cost in ends(tmp_path / "two", settings):
        close(found, weights, 1e-5)
        assert (cost.step, cost.images, cost.passes, cost.phase) == (2, 16, state.passes, state.phase)
        for row, whole_row in zip(rows, log, strict=True):
            assert row["gradient"] == pytest.approx(whole_row["gradient"], rel=1e-4)


SHARED = ("methods.sid.real=self", "methods.sid.fake=shared")  # its gradient flows through its own frozen field


@pytest.mark.parametrize(
    ("label", "own"),
    [
        ("twinflow", ("train.recompute=true",)),
        ("twinflow", ("train.lora={rank: 2}",)),
        ("sid", ("train.recompute=true", *SHARED)),
    ],
)
def test_a_pipeline_is_trained_alike(tmp_path, label, own):
    items = ["train.budget=2", "train.batch=2", *own]
    settings = resolve(load(named("sana-0.6b", True), items, tmp_path), label, 0)
    weights, _, state = end(train(settings, tmp_path / "one"))
    for found, _, cost in ends(tmp_path / "two", settings):
        close(found, weights, 1e-5)
        assert cost.passes == state.passes


def test_shards_may_wait_in_the_memory_of_the_host(tmp_path, one):
    weights = ends(tmp_path, resolved("moons", "twinflow", *MOONS, "train.offload=true"))[1][0]
    close(weights, one[0], 1e-5)
    with pytest.raises(UserError, match=r"train\.offload goes with sharding"):
        train(resolved("moons", "twinflow", *MOONS, "train.offload=true"), tmp_path)


@pytest.mark.parametrize("label, term", [("twinflow", "base"), ("dmd2", "critic.fake"), ("progressive", "progressive")])
def test_lower_precision_trains_nearly_the_same(tmp_path, label, term):
    own = OWN.get(label, ())
    settings = resolved("digits", label, *DIGITS, *STEPS, *own, "train.budget=2", "train.precision=bfloat16")
    _, log, _ = end(train(settings, tmp_path / "one"))
    for _, rows, _ in ends(tmp_path / "two", settings):
        for row, alone in zip(rows, log, strict=True):
            assert row[term] == pytest.approx(alone[term], rel=0.05)


def followed(seed=0):
    """What an average says, and its weights, after passes without a gradient and changes of the network that it
    follows; beside it those of a plain one."""
    kind = plugins.backbone("mlp")
    torch.manual_seed(seed)
    network = kind(kind.Config(world="moons", width=8, depth=2))
    torch.nn.init.normal_(network.last.weight)
    plain = copy.deepcopy(network)
    follower = Average(plain, 0.9)
    call = (torch.ones(3, 2), torch.full((3,), 0.7), torch.full((3,), 0.2), network.null(3))
    with joined(resolved("moons", "twinflow", *MOONS).train, gpu=False) as group, torch.no_grad():
        average, said = Average(network, 0.9, group.copies(network)(None)), []
        for k in range(4):
            said.append((average.network(*call), follower.network(*call)))
            for net, own in ((network, average), (plain, follower)):
                for p in net.parameters():
                    p.mul_(1.1 + 0.1 * k)
                own.update(net)
            weights = zip(average.network.parameters(), follower.network.parameters(), strict=True)
            said += [(whole(p.detach()), q.clone()) for p, q in weights]
        return said


def test_an_average_is_not_stale_after_a_pass_without_a_gradient():
    said = followed()
    assert not torch.allclose(said[0][0], said[len(said) // 4][0], atol=0.01)  # there is something to follow
    for process in together(followed):
        for sharded, plain in process:
            torch.testing.assert_close(sharded, plain, rtol=1e-6, atol=1e-6)


# ---- what is saved ----


@pytest.mark.parametrize("first, then", [(2, 1), (1, 2)])
def test_any_number_of_processes_goes_on(tmp_path, one, first, then):
    settings = resolved("moons", "twinflow", *MOONS)
    together(lambda: train(settings, tmp_path, steps=5).state, first)  # saved after 4
    for weights, log, state in ends(tmp_path, settings, then):
        close(weights, one[0], 1e-5)
        assert [row["step"] for row in log] == [*range(1, 9)]
        assert (state.images, state.passes) == (one[2].images, one[2].passes)
        for row, alone in zip(log, one[1], strict=True):
            assert row["base"] == pytest.approx(alone["base"], rel=1e-4)


def test_what_two_processes_saved_is_what_one_loads(tmp_path):
    settings = resolved("moons", "rcgm", *MOONS, "train.budget=2", "train.optimizer=radam")
    saved, loaded = together(partial(held, settings, tmp_path))[0], held(settings, tmp_path)
    identical(saved, loaded)
    assert sum(name.startswith("optimizer") for name in saved) > 10
    identical(
        read_tensors(next(tmp_path.glob("*/*/weights.safetensors")))[0],
        {name.removeprefix("average."): value for name, value in loaded.items() if name.startswith("average.")},
    )


def test_what_is_written_aside_is_the_moment_at_which_it_was_asked_for(tmp_path):
    """The networks are trained on while it is written: in place, by the optimizer and the average."""
    kept = []
    for folder, more in ((tmp_path / "waited", ()), (tmp_path / "aside", ("train.save_aside=true",))):
        ends(folder, resolved("moons", "twinflow", *MOONS, "train.keep=9", *more))
        (run,) = folder.glob("*/*/")
        kept.append([(p.name, held_by(p)) for p in sorted((run / "checkpoints").iterdir())])
    assert [name for name, _ in kept[0]] == [name for name, _ in kept[1]]
    assert [name for name, _ in kept[0]] == [f"step-{step:08d}" for step in (2, 4, 6, 8)]
    for (_, waited), (_, aside) in zip(*kept, strict=True):
        identical(waited, aside)


def held_by(path):
    shards = Shards(path)
    return shards.read({name: shards.empty(name) for name in shards.stored})


def test_to_write_aside_takes_several_processes(tmp_path):
    with pytest.raises(UserError, match=r"train\.save_aside goes with sharding"):
        train(resolved("moons", "rcgm", *MOONS, "train.save_aside=true"), tmp_path)


def held(settings, runs):
    """All tensors of a run at its end, in one piece."""
    return train(settings, runs, last=in_one_piece)


def in_one_piece(trainer):
    tensors = {f"average.{k}": v for k, v in trainer.owned.average.network.state_dict().items()}
    for turn, trained in trainer.owned.trained.items():
        tensors |= {f"{turn}.{k}": v for k, v in trained.network.state_dict().items()}
        for which, optimizer in enumerate(trained.optimizers):
            for i, slots in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{turn}.{which}.{i}.{k}": torch.as_tensor(v) for k, v in slots.items()}
    return {name: whole(value) for name, value in tensors.items()}


# ---- torchrun ----


def torchrun(runs, *settings, restarts=0):
    words = ["torch.distributed.run", "--nproc-per-node", "2"]
    words += ["--standalone", "--max-restarts", str(restarts)] if restarts else ["--master-port", str(free_port())]
    words += ["-m", "twinbench", "train", "dmd", "--recipe", "moons", "--runs", str(runs), *sets(*settings)]
    return subprocess.Popen([sys.executable, "-m", *words], stdout=-1, stderr=-1, text=True, env=THREADS)


THREADS = {**os.environ, "OMP_NUM_THREADS": "1"}


def children(pid):
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


@pytest.mark.parametrize("aside", ["null", "true"])
def test_a_lost_process_ends_all_and_the_same_command_goes_on(tmp_path, aside):
    """Bit for bit, of the same number of processes: student, critic, both their optimizers and the average."""
    settings = [*MOONS, "train.budget=14", "methods.dmd.critic_steps=1", f"train.save_aside={aside}"]
    whole_run = together(partial(train, resolved("moons", "dmd", *settings), tmp_path / "whole", last=in_one_piece))[0]
    run = torchrun(tmp_path / "killed", *settings)
    while not [*(tmp_path / "killed").glob("*/*/checkpoints/step-00000004")] and run.poll() is None:
        time.sleep(0.01)
    os.kill(children(run.pid)[1], signal.SIGKILL)
    _, said = run.communicate(timeout=120)
    assert run.returncode == 1
    assert "error: another process of this training failed or was lost; the same command goes on from the last" in said
    assert not [*(tmp_path / "killed").glob("*/*/weights.safetensors")]
    (folder,) = (tmp_path / "killed").glob("*/*/")
    again = together(partial(train, resolved("moons", "dmd", *settings), tmp_path / "killed", last=in_one_piece))[0]
    identical(whole_run, again)
    (other,) = (tmp_path / "whole").glob("*/*/")
    assert folder.name == other.name and log_of(folder) == log_of(other)
    assert (folder / "weights.safetensors").read_bytes() == (other / "weights.safetensors").read_bytes()


def test_torchrun_starts_a_lost_training_again(tmp_path):
    settings = [*MOONS, "train.budget=14", "methods.dmd.critic_steps=1"]
    run = torchrun(tmp_path / "killed", *settings, restarts=2)
    while not [*(tmp_path / "killed").glob("*/*/checkpoints/step-00000004")] and run.poll() is None:
        time.sleep(0.01)
    os.kill(children(run.pid)[0], signal.SIGKILL)
    assert run.wait(timeout=180) == 0
    together(partial(train, resolved("moons", "dmd", *settings), tmp_path / "whole", last=lambda trainer: None))
    again, whole_run = (next((tmp_path / n).glob("*/*/weights.safetensors")) for n in ("killed", "whole"))
    assert again.read_bytes() == whole_run.read_bytes()


def test_a_batch_that_cannot_be_dealt_is_refused():
    with pytest.raises(UserError, match=r"train\.batch 9 cannot be dealt to 2 processes; make it a multiple of 2"):
        together(partial(gradients, resolved("moons", "twinflow", *MOONS, "train.batch=9"), Path("nowhere")))
