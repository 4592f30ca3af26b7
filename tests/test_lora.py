"""Adapters: the official LoRA step to 1e-10; one base that is several networks, none of which leaks into another."""

import copy

import pytest
import torch
from adapted import moons, network, points, scattered, teacher_weights
from tiny import load, tensor
from torch import nn
from torch.utils.checkpoint import checkpoint

from twinbench.backbones.base import Backbone
from twinbench.errors import UserError
from twinbench.flow import Batch
from twinbench.method import Networks, Turn
from twinbench.methods.anystep import ROLES
from twinbench.methods.twinflow import TwinDraws, TwinFlow
from twinbench.settings import Lora
from twinbench.training.adapters import Adapters
from twinbench.training.ema import Average
from twinbench.training.networks import assemble

# ---- the official step ----


class Recorded(Backbone):
    """The recorded network f(x, s) = x A + s b + c W + tanh(x B + s d) with TwinFlow's time of LoRA, s = t - r/2."""

    lora_targets, full, shape = "A", ("b",), (3,)

    def __init__(self, parameters):
        super().__init__()
        held = {name: tensor(value) for name, value in parameters.items()}
        self.A, self.b = nn.Linear(3, 3, bias=False).double(), nn.Linear(1, 3, bias=False).double()
        self.A.weight.data, self.b.weight.data = held["A"].T.contiguous(), held["b1"][:, None]
        self.W, self.B, self.d = held["W"], held["Bm"], held["d1"]

    def forward(self, x, t, r, cond):
        s = (t - r / 2)[:, None]
        return self.A(x) + self.b(s) + cond["c"] @ self.W + torch.tanh(x @ self.B + s * self.d)

    def pretrained(self, x, t, r, cond):
        return self(x, t, 0 * r, cond)

    def encode(self, prompts): ...

    def pixels(self, x): ...


def put(network, deltas):
    """The recorded changes of A and b as an adapter of full rank."""
    base = network.backbone.b.original_module.weight
    network.A.lora_A.weight.data = torch.eye(3).double()
    network.A.lora_B.weight.data = tensor(deltas["dA"]).T.contiguous()
    network.b.weight.data = base.detach() + tensor(deltas["db"])[:, None]


def close(got, want):
    torch.testing.assert_close(got.detach(), tensor(want), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", load("twinflow_train_lora")["cases"], ids=lambda case: case["name"])
def test_the_official_step_with_adapters(case):
    cfg, draws, expected = case["cfg"], case["draws"], case["expected"]
    adapters = Adapters(Recorded(case["P"]))
    lora = Lora(rank=3)
    student, old = adapters.add("student", lora, 0), adapters.add("average", lora, 1)
    average = Average(student, cfg["ema_decay_rate"], old)
    put(student, case["adapters"]["default"]), put(old, case["adapters"]["old"])
    average.decay = case["cmd_before"]
    average.update(student)

    ours = {"e2e": "one_step", "mul": "local", "any": "any_step", "adv": "fake", "one": "to_zero"}
    counts = {role: case["counts"][name] for name, role in ours.items()}
    role = torch.cat([torch.full((case["counts"][name],), ROLES.index(ours[name])) for name in case["probs"]])
    t, r = tensor(expected["t"]).abs(), tensor(expected["r"]).abs()
    match = dict(z_match=tensor(draws["z_dm"]), t_match=tensor(draws["t_dm"]))
    drawn = TwinDraws(case["B"], role, counts, t, r, tensor(draws["z"]), z_fake=tensor(draws["z_gen"]), **match)
    settings = dict(order=cfg["estimate_order"], rectify=cfg["dist_match_cof"])
    method = TwinFlow(TwinFlow.Config(**settings, cfg_scale=1 / (1 - cfg["enhanced_ratio"])))
    batch = Batch(tensor(case["x"]), {"c": tensor(case["c"])}, {"c": tensor(case["e"])})
    loss = method.loss(Networks(student, target=old), batch, drawn, Turn()).total()
    loss.backward()

    close(loss, expected["loss"])
    close(student.A.lora_B.weight.grad.T, expected["grads"]["dA"])
    close(student.b.weight.grad[:, 0], expected["grads"]["db"])
    close(old.A.lora_B.weight.T, expected["old_after"]["dA"])
    close(old.b.weight[:, 0] - adapters.base.b.original_module.weight[:, 0], expected["old_after"]["db"])
    assert average.decay == pytest.approx(expected["cmd_after"], abs=1e-12)
    assert all(p.grad is None for p in old.parameters()) and adapters.base.A.base_layer.weight.grad is None


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    return teacher_weights(tmp_path_factory.mktemp("teacher"))


def test_the_teacher_is_called_at_its_own_time(pretrained):
    """TwinFlow's adapters give the network t - r/2; its source asks the teacher so too, at t/2 of a sample at t."""
    plain, halved = network(weights=pretrained), network("backbone.times=half", weights=pretrained)
    x, t, _, cond = points()
    teacher = assemble(
        halved, TwinFlow(TwinFlow.Config(target="pretrained")), moons("train.lora={rank: 2}").train
    ).teacher
    assert torch.equal(teacher(x, t, t, cond), plain(x, t, t, cond))
    assert torch.equal(halved(x, t, t, cond), plain(x, t / 2, t / 2, cond))
    assert not torch.allclose(halved(x, t, t, cond), plain(x, t, t, cond), atol=1e-2)


# ---- several networks on one base ----


def two(base):
    adapters = Adapters(base)
    return adapters, *(scattered(adapters.add(name, Lora(rank=4), 0), i) for i, name in enumerate(("one", "other")))


@pytest.mark.parametrize("options", [(), ("backbone.times=half",), ("backbone.sign=embedding",)], ids=str)
def test_an_untrained_adapter_is_the_base_and_off_it_is_the_base_bit_for_bit(pretrained, options):
    base = network(*options, weights=pretrained)
    whole, (x, t, r, cond) = copy.deepcopy(base), points()
    adapters = Adapters(base)
    student = adapters.add("student", Lora(rank=4), 0)
    want = whole(x, t, r, cond)
    assert torch.equal(student(x, t, r, cond), want)
    scattered(student)
    assert not torch.allclose(student(x, t, r, cond), want, atol=1e-2)
    assert torch.equal(base(x, t, r, cond), want)
    assert torch.equal(adapters.off()(x, t, t, cond), whole.pretrained(x, t, t, cond))
    merged = copy.deepcopy(whole)
    merged.load_state_dict(student.merged())
    torch.testing.assert_close(merged(x, t, r, cond), student(x, t, r, cond), rtol=1e-5, atol=1e-6)
    original = adapters.off().merged()
    assert all(torch.equal(original.pop(name), value) for name, value in whole.state_dict().items()) and not original


def test_adapters_of_a_base_in_low_precision_are_trained_in_full(pretrained):
    base = network(weights=pretrained).bfloat16()
    student = Adapters(base).add("student", Lora(rank=4), 0)
    assert {p.dtype for p in student.parameters()} == {torch.float32}
    assert {name: value.dtype for name, value in student.merged().items()} == dict.fromkeys(
        network().state_dict(), torch.bfloat16
    )


def test_a_seed_gives_the_same_adapter_and_leaves_chance_alone():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first, again, other = (Adapters(network()).add("student", Lora(), seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    key = "layers.0.lora_A.weight"
    assert torch.equal(first[key], again[key]) and not torch.equal(first[key], other[key])
    assert first[key].shape == (16, 16) and not first["layers.0.lora_B.weight"].any()


def test_alpha_scales_what_an_adapter_adds(pretrained):
    x, t, r, cond = points()
    added = []
    for alpha in (None, 4, 8):
        adapters = Adapters(network("backbone.times=half", weights=pretrained))
        student = adapters.add("student", Lora(rank=4, alpha=alpha), 0)
        student.layers.get_submodule("1").lora_B.weight.data.fill_(1e-2)
        added.append(student(x, t, r, cond) - adapters.base(x, t, r, cond))
    assert torch.equal(added[0], added[1])
    torch.testing.assert_close(added[2], 2 * added[1], rtol=1e-4, atol=1e-6)


class Recomputing(Recorded):
    """The recorded network in two blocks, each computed again in the backward pass."""

    lora_targets, full = "A|C", ("b",)

    def __init__(self, parameters):
        super().__init__(parameters)
        self.C = nn.Linear(3, 3, bias=False).double()
        self.C.weight.data = self.A.weight.data.flip(0)
        self.options = None  # of checkpoint; None: nothing is recomputed

    def forward(self, x, t, r, cond):
        def block(x):
            return self.C(torch.tanh(super(Recomputing, self).forward(x, t, r, cond)))

        if self.options is None:
            return block(x)
        return checkpoint(block, x, use_reentrant=False, **self.options())


def line():
    x = torch.linspace(-1, 1, 12).double().view(4, 3)
    return x, torch.linspace(0.1, 0.9, 4).double(), {"c": x[:, :2]}


def leak(base):
    """The gradients of a loss in which one adapter's network is asked of what the other's gave."""
    _, one, other = two(base)
    x, t, cond = line()
    other.requires_grad_(False)
    (one(x, t, t / 2, cond) + other(one(x, t, 0 * t, cond), t, t, cond)).square().mean().backward()
    assert all(p.grad is None for p in other.parameters())
    return {name: p.grad for name, p in one.named_parameters()}


def test_recomputed_blocks_are_those_of_their_own_adapter():
    case = load("twinflow_train_lora")["cases"][0]
    kept, again, naive = (Recomputing(case["P"]) for _ in range(3))
    again.options = lambda: {"context_fn": again.recomputing}
    want = leak(kept)
    for name, grad in leak(again).items():
        torch.testing.assert_close(grad, want[name], rtol=1e-12, atol=1e-12)
        assert grad.abs().max() > 1e-4
    naive.options = dict  # without the context the block would run with all adapters off: torch sees the difference
    with pytest.raises(torch.utils.checkpoint.CheckpointError):
        leak(naive)


def test_a_switch_left_to_the_last_call_would_leak():
    """What is prevented: with the adapter simply left on after a call, the same blocks give other gradients."""
    case = load("twinflow_train_lora")["cases"][0]
    want, base = leak(Recomputing(case["P"])), Recomputing(case["P"])
    base.options = dict
    adapters, one, _ = two(base)  # both take gradients, as whoever is on does by peft's switch: nothing else differs
    x, t, cond = line()

    def left_on(name, *args):
        adapters.switch(name, True)
        return base(*args)

    loss = left_on("one", x, t, t / 2, cond) + left_on("other", left_on("one", x, t, 0 * t, cond), t, t, cond)
    loss.square().mean().backward()
    wrong = [name for name, p in one.named_parameters() if p.grad is None or not torch.allclose(p.grad, want[name])]
    assert wrong


def test_a_backbone_without_targets_is_refused():
    base = Recorded(load("twinflow_train_lora")["cases"][0]["P"])
    base.lora_targets = ""
    with pytest.raises(UserError, match=r"Recorded names no layers for adapters; train it whole \(train\.lora: null\)"):
        Adapters(base)
