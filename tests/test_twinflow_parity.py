"""The official code's numbers, to 1e-10 in float64: components, averages, whole training steps and their gradients."""

import pytest
import torch
from tiny import Tiny, load, tensor
from twinbench.baselines.rcgm import RCGM

from twinbench.flow import Batch, instant, split
from twinbench.method import Networks, Turn
from twinbench.methods.anystep import ROLES, AnyStepDraws, Shares
from twinbench.methods.twinflow import TwinDraws, TwinFlow
from twinbench.methods.twinflow_paper import PaperDraws
from twinbench.objectives.losses import barron, l2
from twinbench.objectives.targets import matching_direction, recursive
from twinbench.objectives.times import split_roles, tan_weight
from twinbench.training.ema import Average, next_decay

OURS = {"e2e": "one_step", "mul": "local", "any": "any_step", "adv": "fake", "one": "to_zero"}
COMPONENTS = load("twinflow_components")


def close(got, want, tolerance=1e-10):
    torch.testing.assert_close(torch.as_tensor(got), tensor(want), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", COMPONENTS["losses"]["barron"], ids=lambda c: f"alpha{c['alpha']}-c{c['c']}")
def test_barron(case):
    pred = tensor(COMPONENTS["losses"]["pred"]).requires_grad_()
    loss = barron(pred, tensor(COMPONENTS["losses"]["target"]), case["alpha"], case["c"])
    close(loss, case["loss"])
    loss.sum().backward()
    close(pred.grad, case["grad_of_sum"])


def test_barron_pulls_every_row_with_the_same_strength():
    errors = torch.logspace(-1, 2, 4)[:, None] * torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    (grad,) = torch.autograd.grad(barron(errors.requires_grad_(), torch.zeros(4, 7)).sum(), errors)
    close(grad.norm(dim=1).double(), [2 / 7**0.5] * 4, 1e-2)


def test_l2():
    pred = tensor(COMPONENTS["losses"]["pred"]).requires_grad_()
    loss = l2(pred, tensor(COMPONENTS["losses"]["target"]))
    close(loss, COMPONENTS["losses"]["l2"]["loss"])
    loss.sum().backward()
    close(pred.grad, COMPONENTS["losses"]["l2"]["grad_of_sum"])


def test_tan_weight():
    case = COMPONENTS["tan_weighting"]
    close(tan_weight(tensor(case["t"]), tensor(case["r"])), case["w"])


def test_split():
    case = COMPONENTS["denoise"]
    x, t, r = tensor(case["x"]), tensor(case["t"]), tensor(case["r"])
    with torch.no_grad():
        v = Tiny(case["P"])(x, t, r, {"c": tensor(case["c"])})
    data, noise = split(x, v, t)
    close(v, case["F"]), close(data, case["x_hat"]), close(noise, case["z_hat"])


@pytest.mark.parametrize("case", COMPONENTS["rcgm"]["cases"], ids=lambda c: f"N{c['N']}")
def test_recursive_target(case):
    shared = COMPONENTS["rcgm"]
    x, t, r, c = (tensor(shared[k]) for k in "xtrc")
    net = Tiny(shared["P_teacher"])
    target = recursive(net, tensor(case["F_theta"]), tensor(case["v"]), x, t, r, {"c": c}, order=case["N"])
    close(target, case["target"])


def test_recursive_target_where_the_official_one_is_nan():
    shared = COMPONENTS["rcgm"]
    x, c = tensor(shared["x"])[:1], {"c": tensor(shared["c"])[:1]}
    t = tensor([0.4])
    close(recursive(Tiny(shared["P_teacher"]), x, 0.5 * x, x, t, t, c, order=2, clamp=None), (0.5 * x).tolist())


@pytest.mark.parametrize("case", COMPONENTS["dist_match"]["cases"], ids=lambda c: c["name"])
def test_matching_direction(case):
    shared = COMPONENTS["dist_match"]
    x, z, t, c = (tensor(shared[k]) for k in "xztc")
    net = Tiny(case["P"])
    close(matching_direction(instant(net, -1), instant(net), x, z, t, {"c": c}), case["F_grad"])
    push = matching_direction(instant(net, -1), instant(net), x, z, t, {"c": c}, clamp=None)
    close((-t[:, None] * push).clamp(-1, 1), case["x_grad"])


def test_roles_are_dealt_by_the_largest_remainder():
    one = dict.fromkeys(("one_step", "local", "any_step", "fake"), 1.0)
    assert split_roles(one, 6) == {"one_step": 2, "local": 2, "any_step": 1, "fake": 1}  # official: 2, 2, 2, 0
    assert split_roles({**one, "fake": 0}, 16)["fake"] == 0  # official: 1


def test_average_follows_the_official_rule():
    for run in load("twinflow_ema")["runs"]:
        start = {name: tensor(value) for name, value in run["P0"].items()}
        student, average = Tiny(run["P0"]), Average(Tiny(run["ema0"]), run["beta_max"])
        for k, (decay, b1) in enumerate(zip(run["decays"], run["ema_b1"], strict=True)):
            for i, name in enumerate(("A", "b1", "b2", "b3", "W", "Bm", "d1", "d2")):
                getattr(student, name).data = start[name] + 0.1 * torch.sin(tensor(0.7 * k + i))
            assert average.decay == pytest.approx(decay, abs=1e-12)
            average.update(student)
            close(average.network.b1, b1)
        for name, value in run["ema_final"].items():
            close(getattr(average.network, name), value)


def test_decay_rises_to_its_limit():
    decay = 0.0
    for _ in range(2000):
        decay = next_decay(decay, 0.99)
    assert decay == pytest.approx(0.99, abs=1e-4)


def official(case):
    """A recorded training step as our settings, draws, batch and networks."""
    cfg, roles = case["cfg"], {OURS[k]: v for k, v in case["probs"].items()}
    shares = Shares(**{**dict.fromkeys(ROLES, 0.0), **roles})
    emd, w = cfg["ema_decay_rate"], cfg["enhanced_ratio"]
    mode = "self" if emd == 0 else "pretrained" if emd == 1 else "average"
    scale = w if cfg["use_image_free"] else 1 + w if mode == "pretrained" else 1 / (1 - w)
    loss = cfg["loss_func_type"]
    settings = dict(
        order=cfg["estimate_order"],
        cfg_scale=scale,
        guidance_interval=cfg["enhanced_range"],
        target=mode,
        image_free=cfg["use_image_free"],
        shares=shares.model_dump(),
        any_step_width=cfg["consistc_ratio"],
        times=cfg["time_dist_ctrl"],
        metric="l2" if loss["type"] == "l2" else "barron",
        barron_alpha=loss.get("alpha", 1.0),
    )
    draws, expected = case["draws"], case["expected"]
    counts = {role: case["counts"].get(k, 0) for k, role in OURS.items()}
    role = torch.cat([torch.full((case["counts"][k],), ROLES.index(OURS[k])) for k in case["probs"]])
    common = dict(
        rows=case["B"],
        role=role,
        counts=counts,
        t=tensor(expected["t"]).abs(),
        r=tensor(expected["r"]).abs(),
        z=tensor(draws["z"]),
        z_free=tensor(draws["z_datafree"]) if "z_datafree" in draws else None,
        z_fake=tensor(draws["z_gen"]) if "z_gen" in draws else None,
    )
    batch = Batch(tensor(case["x"]), {"c": tensor(case["c"])}, {"c": tensor(case["e"])})
    student, average = Tiny(case["P"]), Average(Tiny(case["E"]), emd)
    average.decay = case["cmd_before"]
    if mode == "average":
        average.update(student)
    networks = Networks(student, target=average.network, teacher=average.network)
    return settings, common, batch, student, average, networks


STEPS = load("twinflow_train_full")["cases"] + load("twinflow_train_ablations")["cases"]


@pytest.mark.parametrize("case", STEPS, ids=lambda c: c["name"])
def test_training_step_and_its_gradients(case):
    settings, common, batch, student, average, networks = official(case)
    before = batch.x.clone()
    if "z_dm" in case["draws"]:
        method = TwinFlow(TwinFlow.Config(**settings, rectify=case["cfg"]["dist_match_cof"]))
        draws = TwinDraws(**common, z_match=tensor(case["draws"]["z_dm"]), t_match=tensor(case["draws"]["t_dm"]))
    else:
        method, draws = RCGM(RCGM.Config(**settings)), AnyStepDraws(**common)
    terms = method.loss(networks, batch, draws, Turn())
    loss = terms.total()
    close(loss.detach(), case["expected"]["loss"])
    loss.backward()
    for name, value in case["expected"]["grads"].items():
        grad = getattr(student, name).grad
        close(torch.zeros_like(tensor(value)) if grad is None else grad, value)
    if settings["target"] == "average":
        for name, value in case["expected"]["ema_after"].items():
            close(getattr(average.network, name), value)
        assert average.decay == pytest.approx(case["expected"]["cmd_after"], abs=1e-12)
    assert torch.equal(batch.x, before), "the official code overwrites its batch; ours must not"


@pytest.mark.parametrize("case", load("twinflow_tutorial")["cases"], ids=lambda c: c["name"])
def test_tutorial_form_and_its_gradients(case):
    cfg, d = case["cfg"], case["draws"]
    scale = 1 / (1 - cfg["enhanced_ratio"])
    method = TwinFlow(TwinFlow.Config(form="tutorial", order=cfg["estimate_order"], cfg_scale=scale))
    student, average = Tiny(case["P"]), Average(Tiny(case["E"]), cfg["ema_decay_rate"])
    average.decay = case["cmd_before"]
    average.update(student)
    t = tensor(d["t"])
    draws = PaperDraws(len(t), t, t - t * tensor(d["u_r"]), tensor(d["z"]), tensor(d["z_dm"]), tensor(d["t_dm"]))
    batch = Batch(tensor(case["x"]), {"c": tensor(case["c"])}, {"c": tensor(case["e"])})
    terms = method.loss(Networks(student, target=average.network), batch, draws, Turn())
    names = dict(any_step="base_rcgm", real="real_velocity", fake="fake_velocity_adv", one_step="one_step_rcgm")
    for ours, theirs in {**names, "rectify": "rectify"}.items():
        close(terms.losses[ours].value().detach(), case["expected"]["terms"][theirs]["mse"])
    loss = terms.total()
    close(loss.detach(), case["expected"]["loss"])
    loss.backward()
    for name, value in case["expected"]["grads"].items():
        close(getattr(student, name).grad, value)
