"""MeanFlow, sCM and consistency models: the numbers recorded from NVlabs/FastGen, to 1e-10 in float64."""

import pytest
import torch
from tiny import Tiny, load, tensor
from twinbench.baselines.consistency import (
    Consistency,
    ConsistencyDraws,
    distance,
    ect_neighbour,
    elementwise_huber,
    neighbour,
    weight,
)
from twinbench.baselines.meanflow import MeanFlow, MeanFlowDraws, adaptive_gradient, mean_target

from twinbench.flow import Batch, mix
from twinbench.method import Networks, Turn
from twinbench.objectives.derivative import along, unit_rms
from twinbench.objectives.levels import edm_level, flow_time
from twinbench.objectives.losses import l2
from twinbench.objectives.trigflow import Trig, tangent
from twinbench.randomness import Rng

MEANFLOW, SCM, CM = (load(f"fastgen_{name}") for name in ("meanflow", "scm", "cm"))


def close(got, want, tolerance=1e-10):
    torch.testing.assert_close(got.detach(), torch.as_tensor(want, dtype=torch.float64), rtol=tolerance, atol=tolerance)


def same_gradients(network, wanted):
    for name, value in wanted.items():
        grad = getattr(network, name).grad
        close(torch.zeros_like(tensor(value)) if grad is None else grad, value)


# ---- MeanFlow ----


@pytest.mark.parametrize("case", MEANFLOW["cases"], ids=lambda c: c["loss_type"])
def test_meanflow_derivative_loss_and_gradients(case):
    x, z, t, r, c = (tensor(MEANFLOW[name]) for name in ("x0", "z", "t", "r", "c"))
    x_t, y = mix(x, z, t), z - x
    close(x_t, MEANFLOW["x_t"]), close(y, MEANFLOW["v"])
    net = Tiny(MEANFLOW["P"])
    u, du = along(net, (x_t, t, r), (y, torch.ones_like(t), torch.zeros_like(t)), {"c": c})
    close(u, case["u"]), close(du, case["jvp"])
    target = mean_target(y, du, t, r, case["warmup"])
    close((target - u) / 3**0.5, case["tangent"])
    power = float(case["norm"].removeprefix("poly_"))
    loss = adaptive_gradient(u, target, power, case["const"])
    close(loss, case["loss"])
    loss.mean().backward()
    same_gradients(net, case["grads"])


@pytest.mark.parametrize("case", MEANFLOW["cases"], ids=lambda c: c["loss_type"])
def test_the_method_asks_for_the_derivative_only_where_it_matters_and_gets_the_same(case):
    """Row 1 has r = t: it goes through the network without a tangent."""
    x, z, t, r, c = (tensor(MEANFLOW[name]) for name in ("x0", "z", "t", "r", "c"))
    net = Tiny(MEANFLOW["P"])
    settings = dict(normalise="gradient", const=case["const"], warmup=case["warmup_steps"])
    draws = MeanFlowDraws(4, t, r, z, torch.zeros(4, dtype=torch.bool))
    batch, turn = Batch(x, {"c": c}, {"c": 0 * c}), Turn(step=case["iteration"])
    terms = MeanFlow(MeanFlow.Config(**settings)).loss(Networks(net), batch, draws, turn)
    close(terms.losses["meanflow"].rows, case["loss"])
    terms.total().backward()
    same_gradients(net, case["grads"])


# ---- sCM ----


@pytest.mark.parametrize("case", SCM["cases"], ids=lambda c: c["mode"])
def test_scm_tangent_loss_and_gradients(case):
    """The recorded network is TrigFlow's own, F(x/sigma, s, 0)."""
    sigma, s, x, z = SCM["sigma_data"], tensor(SCM["t_hat"]), tensor(SCM["x0"]), tensor(SCM["z"])
    cond, zero = {"c": tensor(SCM["c"])}, torch.zeros_like(s)
    cos, sin = s.cos()[:, None], s.sin()[:, None]
    x_s = cos * x + sin * z  # the recorded z has the deviation sigma
    close(x_s, SCM["x_t"])
    if case["mode"] == "sCT":
        dx = cos * z - sin * x
    else:
        with torch.no_grad():
            dx = sigma * Tiny(SCM["P_teacher"])(x_s / sigma, s, zero, cond)
    close(dx, case["dxt_dt"])
    net = Tiny(SCM["P"])
    direction = (cos * sin * dx / sigma, (cos * sin)[:, 0], zero)
    f, slope = along(net, (x_s / sigma, s, zero), direction, cond)
    close(f, case["F"]), close(slope, case["jvp"])
    share = min(1, case["iteration"] / 10000)
    assert share == case["warmup"] and case["spatial_invariance"] and case["prior_weighting"]
    g = unit_rms(tangent(f.detach(), slope, x_s, dx, s, sigma, share))
    plain = l2(f, (f + g).detach())
    close(plain, case["loss_unweighted"])
    logvar = tensor(SCM["logvar"])
    loss = plain / (sigma * s.tan()) / (logvar.exp() * 3) + logvar
    close(loss, case["loss"])
    loss.mean().backward()
    same_gradients(net, case["grads"])


@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_trigflow_and_the_straight_path_are_one_path(sigma):
    x, z, s = tensor(SCM["x0"]), tensor(SCM["z"]), tensor(SCM["t_hat"])
    cos, sin = s.cos()[:, None], s.sin()[:, None]
    t = sigma * s.sin() / (s.cos() + sigma * s.sin())
    trig = Trig(t, mix(x, z, t), sigma)
    close(trig.s, s, 1e-14), close(trig.x, cos * x + sin * sigma * z, 1e-14)
    close(sigma * trig.field(z - x), cos * sigma * z - sin * x, 1e-14)
    # the consistency function is the same one
    v = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    close(cos * trig.x - sin * sigma * trig.field(v), trig.x_t - t[:, None] * v, 1e-14)
    if sigma == 1:  # SANA-Sprint's form of the map
        n = (t**2 + (1 - t) ** 2).sqrt()[:, None]
        tt = t[:, None]
        close(trig.x_t, trig.x * n, 1e-14)
        close(trig.field(v), ((1 - 2 * tt) * trig.x_t + (1 - 2 * tt + 2 * tt**2) * v) / n, 1e-14)


@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_scm_derivative_through_the_straight_path_is_trigflows_own(sigma):
    """Differentiate F(x_s, s) through the map itself, and compare with what the method computes from dv."""
    x, z, s = tensor(SCM["x0"]), tensor(SCM["z"]), tensor(SCM["t_hat"])
    cond, zero, net = {"c": tensor(SCM["c"])}, torch.zeros_like(s), Tiny(SCM["P"])
    t = sigma * s.sin() / (s.cos() + sigma * s.sin())
    x_t, y = mix(x, z, t), z - x
    trig = Trig(t, x_t, sigma)

    def field(x_s, s):
        t = sigma * s.sin() / (s.cos() + sigma * s.sin())
        x_t = x_s / (s.cos() + sigma * s.sin())[:, None]
        return Trig(t, x_t, sigma).field(net(x_t, t, torch.zeros_like(t), cond))

    cos_sin = s.cos() * s.sin()
    direction = (cos_sin[:, None] * sigma * trig.field(y), cos_sin)
    f, slope = torch.func.jvp(field, (trig.x, s), direction)
    v, dv = along(net, (x_t, t, zero), (y, torch.ones_like(t), zero), cond)
    close(trig.field(v), f, 1e-12), close(trig.slope(v, y, dv), slope, 1e-12)
    # and the whole tangent is MeanFlow's residual for r = 0, up to a positive factor
    g = tangent(f.detach(), slope.detach(), trig.x, sigma * trig.field(y), s, sigma)
    residual = v - mean_target(y, dv, t, zero)
    close(g, -((1 - t)[:, None] * sigma / trig.n * residual).detach(), 1e-12)


# ---- consistency in discrete time ----


@pytest.mark.parametrize("case", CM["t_to_r"], ids=lambda c: f"ratio{c['ratio']}")
def test_ect_neighbours(case):
    close(ect_neighbour(tensor(CM["t"]), case["ratio"]).clamp(min=case["min_r"]), case["r"])


@pytest.mark.parametrize("case", CM["cases"], ids=lambda c: c["weighting"])
def test_consistency_distance_weight_and_gradient(case):
    pred, target = tensor(CM["D_t"]).requires_grad_(), tensor(CM["D_r"])
    plain = distance(pred, target, case["huber_c"], case["squared"])
    close(plain, case["unweighted"])
    how = {"default": "step", "sigma_sq": "noise"}[case["weighting"]]
    loss = plain * weight(tensor(CM["t"]), tensor(CM["r_used"]), how)
    close(loss, case["loss"])
    loss.mean().backward()
    close(pred.grad, case["grad"])


def test_a_rows_and_its_elements_huber_are_one_for_a_single_number_and_else_part():
    """Far above the margin one is the length of the row's difference, the other the mean of its absolute values; far
    below, both are squares over 2 c, summed and averaged."""
    pred, target = tensor(CM["D_t"]), tensor(CM["D_r"])
    gap, one = pred - target, (slice(None), slice(0, 1))
    close(elementwise_huber(pred[one], target[one], 0.3), distance(pred[one], target[one], 0.3), 1e-14)
    close(elementwise_huber(pred, target, 1e-9), gap.abs().flatten(1).mean(1), 1e-8)
    close(distance(pred, target, 1e-9), gap.flatten(1).norm(dim=1), 1e-8)
    for c in (1e3, 1e4):
        sums, means = distance(pred, target, c) * 2 * c, elementwise_huber(pred, target, c) * 2 * c
        close(sums, gap.square().flatten(1).sum(1), 1e-4), close(means, sums / gap[0].numel(), 1e-4)


def test_snr_weight_is_that_of_ect():
    t, sigma = tensor(CM["t"]), CM["sigma_data"]
    close(weight(t, 0 * t, "snr", sigma), (t**2 + sigma**2) / (t * sigma) ** 2)


@pytest.mark.parametrize("how", ["step", "snr"])
def test_a_root_weight_is_the_square_root(how):
    t, r = tensor(CM["t"]), tensor(CM["r_used"])
    close(weight(t, r, f"root_{how}", 0.7), weight(t, r, how, 0.7).sqrt(), 1e-14)


def rows_of(draws, **settings):
    """The loss of each row of a small network."""
    generator = torch.Generator().manual_seed(1)
    x, c = (torch.randn(len(draws.t), k, dtype=torch.float64, generator=generator) for k in (3, 2))
    method, net = Consistency(Consistency.Config(**settings)), Tiny(MEANFLOW["P"])
    return method.loss(Networks(net), Batch(x, {"c": c}, {"c": c}), draws, Turn()).losses["consistency"].rows


def test_weights_are_of_the_times_and_with_edms_spacing_of_its_levels():
    t = tensor([0.01, 0.3, 0.7, 0.95, 0.995, 1.0])  # the last two above the largest level, 80
    for spacing, level in (("uniform", lambda t: t), ("edm", lambda t: edm_level(t).clamp(max=80))):
        r = neighbour(t, 4, spacing)
        draws = ConsistencyDraws(6, t, r, torch.ones(6, 3, dtype=torch.float64))
        here, there, plain = level(t), level(r), rows_of(draws, spacing=spacing, weighting="none")
        assert plain.min() > 0.01
        wanted = {"step": 1 / (here - there), "noise": 1 / here**2, "snr": 1 / here**2 + 1 / 0.5**2}
        for how, factor in wanted.items():
            close(rows_of(draws, spacing=spacing, weighting=how) / plain, factor.detach())
            if how != "noise":
                close(rows_of(draws, spacing=spacing, weighting=f"root_{how}") / plain, factor.sqrt())


def test_ects_rules_are_settings_of_it():
    """Levels log-normal(-1.1, 2), half of the way first and then half of the rest, weight 1/(sigma_t - sigma_r), the
    plain distance, no average."""
    n, ect = 4000, dict(spacing="edm", steps=2, doublings=7, log_level=(-1.1, 2.0))
    method = Consistency(Consistency.Config(**ect))
    assert method.needs == frozenset()
    for stage in (0, 3, 7):
        turn = Turn(progress=(stage + 0.5) / 8)
        draws = method.draw(None, Rng(0, 0, "student", range(n), n, (3,), torch.float64), turn)
        level = edm_level(draws.t)
        logs = level.log()
        assert logs.mean().item() == pytest.approx(-1.1, abs=4 * 2 / n**0.5)
        assert logs.std().item() == pytest.approx(2.0, abs=4 * 2 / (2 * n) ** 0.5)
        near = ect_neighbour(level.clamp(max=80), 1 - 2.0 ** -(stage + 1))
        close(edm_level(draws.r), near, 1e-9)
        close(rows_of(draws, **ect), rows_of(draws, **ect, weighting="none") / (level.clamp(max=80) - near), 1e-6)


def test_levels_and_times_are_inverse():
    t = tensor([0.0, 0.1, 0.5, 0.999, 1.0])
    close(flow_time(edm_level(t)), t, 1e-14)
