"""What a plan says is what training holds: networks, activations and passes, measured on tiny models."""

import json

import families
import pytest
import torch
from small import TINY, resolved, trained
from torch.profiler import ProfilerActivity, profile

from twinbench.flow import Batch
from twinbench.method import Turn
from twinbench.planning import meta
from twinbench.planning.plan import Plan
from twinbench.planning.planner import Machine, setup_of
from twinbench.planning.tally import method_of, needs, tally
from twinbench.randomness import Rng
from twinbench.sections import BackboneSection
from twinbench.training.networks import assemble, make_backbone
from twinbench.training.parallel import ALONE, casting, lower


def worked(method, owned, backbone, rows=8):
    """A turn of each network, with its gradients and its optimizer's step; no gradient is freed."""
    networks, _ = owned.velocities(method.needs)
    shape, words = backbone.shape, backbone.null(rows)
    for name in dict.fromkeys(method.turns(0)):
        owned.train_only(name)
        turn, batch = Turn(name), Batch(torch.zeros(rows, *shape), words, words)
        rng = Rng(0, 0, turn.key, range(rows), rows, shape)
        method.loss(networks, batch, method.draw(batch, rng, turn), turn).total().backward()
        for optimizer in owned.trained[name].optimizers:
            optimizer.step()


def held(network, optimizers=()):
    """Bytes: weights, gradients, moments."""
    parameters = list(network.parameters())
    moments = [v for o in optimizers for state in o.state.values() for v in state.values() if v.ndim]
    grads = [p.grad for p in parameters if p.grad is not None]
    return [sum(t.numel() * t.element_size() for t in tensors) for tensors in (parameters, grads, moments)]


LORA, LOW = "train.lora={rank: 3}", "train.precision=bfloat16"


@pytest.mark.parametrize(
    ("label", "items"),
    [
        ("twinflow", ()),
        ("twinflow", ("train.optimizer=muon",)),
        ("twinflow", (LORA,)),
        ("dmd", ()),
        ("dmd", (LORA,)),
        ("dmd2", ("backbone.depth=6",)),
        ("dmd2", ("methods.dmd2.fake=lora", "methods.dmd2.lora={rank: 2}")),
        ("dmd2", ("methods.dmd2.fake=lora", "methods.dmd2.lora={rank: 2}", LORA)),
        ("progressive", (LORA,)),
        ("dmd2", (LOW,)),
        ("rcgm", ("methods.rcgm.target=self", "train.evaluate=student")),
        ("dmd", ("train.evaluate=student", LORA)),
        ("dmd", ("methods.dmd.fake=lora", "methods.dmd.lora={rank: 2}", LOW)),
        ("dmd", (LORA, LOW)),
    ],
)
def test_networks_hold_what_the_plan_says(label, items):
    settings = resolved("shapes", label, *TINY, *items)
    backbone = make_backbone(settings.backbone, 0)
    train, method = settings.train, method_of(settings)
    setup = setup_of(settings, Machine(1, 1e9, 1e9, 1))
    model = meta.counted(backbone, lower(train))
    parts = {part.name: part for part in Plan(model, needs(method), setup, 1).parts}
    owned = assemble(backbone, method, train)
    with casting(train, ALONE.device):
        worked(method, owned, backbone)
    for name, one in owned.trained.items():
        part = parts.pop(name)
        measured = held(one.network, one.optimizers)
        if part.gradients:
            assert measured == [part.weights, part.gradients, part.optimizer], name
    assert bool(owned.average) == ("average" in parts)
    if owned.average:
        assert held(owned.average.network)[0] == parts.pop("average").weights
    frozen = [n for n in (owned.base, owned.teacher) if n is not None]
    frozen = list({id(n): n for n in frozen}.values())
    assert sorted(held(n)[0] for n in frozen) == sorted(part.weights for part in parts.values())


def after(call):
    """The bytes that a call has allocated and not freed, as PyTorch's allocator saw them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        kept = call()
    assert kept is not None
    return sum(e.nbytes() for e in seen.profiler.kineto_results.events() if e.name() == "[memory]")


@pytest.mark.parametrize(
    "name", [name for name in families.FAMILIES if name != "qwen-image"]
)  # it saves constants, too
def test_activations_are_those_that_pytorch_allocates(name):
    made = families.backbone(name)
    empty = meta.empty(BackboneSection(name=name, model=str(families.folder(name)), resolution=families.SIDE))
    said = meta.passed(empty, meta.condition(empty, 24))

    def forward():
        return made(torch.zeros(1, *made.shape), torch.ones(1), torch.zeros(1), meta.condition(made, 24))

    forward()  # tables that are made once
    assert after(forward) == pytest.approx(said["saved"], rel=0.02)
    made.recompute()
    made.train()
    states_of_rng = len(made.blocks) * torch.get_rng_state().numel()
    assert after(forward) - states_of_rng == pytest.approx(said["kept"], rel=0.05, abs=2000)


@pytest.mark.parametrize("label", ["twinflow", "dmd", "meanflow", "scm", "kd", "shortcut"])
def test_passes_are_those_of_a_run(label, tmp_path):
    items = ("train.unit=steps", "train.budget=3", "train.batch=16", "data.size=64", "backbone.width=16")
    items += ("methods.kd={pairs: 16, steps: 2}", "backbone.depth=1") if label == "kd" else ("backbone.depth=1",)
    folder = trained(tmp_path, "moons", label, *items)
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    counted = tally(resolved("moons", label, *items), 1, True, steps=3)
    assert counted.before + counted.passes * 16 * 3 == rows[-1]["passes"]
