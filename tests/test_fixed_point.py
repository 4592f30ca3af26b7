"""The exact velocity is a fixed point of every objective.

The data are one normal distribution, and the network is its exact flow map. Rows come in antithetic pairs: the
same x_t, t and r, and y = z - x mirrored about E[y | x_t] = v(x_t, t, t), which keeps the distribution of y given
x_t. So the expected gradient vanishes where that of each pair does:

- flow matching: to round-off, for any metric, since every metric's gradient is odd in the residual;
- RCGM and TwinFlow: to first order in h. A row's residual is odd under the mirror but for a part of order h (one Euler
  step of length h along the mean of y is not yet the flow map); clamp and Barron's weight are symmetric and keep that;
- TwinFlow's rectification: to round-off, since the network's twin is the velocity of its samples, which are the data.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from gaussian import MEAN, SCALE, flow_map, mean_velocity
from twinbench.baselines.flow_matching import FlowDraws, FlowMatching
from twinbench.baselines.rcgm import RCGM

from twinbench.flow import Batch, expand
from twinbench.method import Networks, Turn
from twinbench.methods.anystep import ROLES, AnyStepDraws
from twinbench.methods.twinflow import TwinDraws, TwinFlow
from twinbench.methods.twinflow_paper import PaperDraws

PLAIN = dict(metric="l2", clamp=None, weighting="none")


class Student:
    """The exact flow map (plus a constant error); what it gives where gradients flow is a leaf, kept in `outputs`."""

    def __init__(self, error=0.0):
        self.error, self.outputs = error, []

    def __call__(self, x, t, r, cond):
        v = mean_velocity(x, t, r) + self.error
        if torch.is_grad_enabled():
            self.outputs.append(v.detach().requires_grad_())
            return self.outputs[-1]
        return v


@dataclass
class Pairs:
    """2 n rows, row i + n being the mirror of row i: samples x and noises z that meet at the same x_t."""

    role: torch.Tensor
    t: torch.Tensor
    r: torch.Tensor
    x: torch.Tensor
    z: torch.Tensor

    @property
    def batch(self):
        cond = {"c": torch.zeros(len(self.x), 1)}
        return Batch(self.x, cond, cond)


def pairs(roles, h, each=8):
    """`each` pairs of every role. The first half of the local rows are nearer to t than h (and stay so), the
    others farther."""
    generator = torch.Generator().manual_seed(7)
    n = each * len(roles)
    role = torch.tensor([ROLES.index(name) for name in roles]).repeat_interleave(each)
    t, u = 0.15 + 0.8 * torch.rand(2, n, dtype=torch.float64, generator=generator)
    near = t - h * torch.where(torch.arange(n) % 2 == 0, 0.5 * u, 3 + u)
    r = torch.stack([torch.zeros(n), near, t * (1 - u), t, torch.zeros(n)]).gather(0, role[None])[0]
    t = torch.where(role == ROLES.index("one_step"), 1.0, t)
    x, z = torch.randn(2, n, 3, dtype=torch.float64, generator=generator)
    x = MEAN + SCALE * x
    x_t, y = (1 - t[:, None]) * x + t[:, None] * z, z - x
    t, r, role, x_t = (torch.cat([value, value]) for value in (t, r, role, x_t))
    y = torch.cat([y, 2 * mean_velocity(x_t[:n], t[:n], t[:n]) - y])
    return Pairs(role, t, r, x_t - expand(t, x_t) * y, x_t + expand(1 - t, x_t) * y)


def draws_of(p, kind=AnyStepDraws):
    """The pairs as draws; the samples of fake rows are the student's own, from the noise that it maps there."""
    fake, first = p.role == ROLES.index("fake"), p.role == ROLES.index("one_step")
    counts = {name: int((p.role == i).sum()) for i, name in enumerate(ROLES)}
    common = dict(rows=len(p.t), role=p.role, counts=counts, t=p.t, r=p.r, z=p.z)
    common["z_fake"] = (p.x[fake] - MEAN) / SCALE if fake.any() else None
    if kind is AnyStepDraws:
        return AnyStepDraws(**common)
    generator = torch.Generator().manual_seed(8)
    z_match = torch.randn(int(first.sum()), 3, dtype=torch.float64, generator=generator)
    t_match = torch.rand(len(z_match), dtype=torch.float64, generator=generator)
    return TwinDraws(**common, z_match=z_match, t_match=t_match)


def gradients(method, p, draws, error=0.0):
    """The loss's gradient at the student's output, of single rows and summed over each pair; scaled to a mean of
    rows."""
    student = Student(error)
    networks = Networks(student, target=mean_velocity, teacher=mean_velocity)
    terms = method.loss(networks, p.batch, draws, Turn())
    (output,) = student.outputs
    (grad,) = torch.autograd.grad(terms.total(), output)
    grad = grad * draws.rows
    n = len(grad) // 2
    return grad, grad[:n] + grad[n:]


def test_the_flow_map_is_what_the_ode_says():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    t, r = tensor_of(0.9, 5), tensor_of(0.2, 5)
    torch.testing.assert_close(mean_velocity(x, t, r), (x - flow_map(x, t, r)) / 0.7, rtol=1e-12, atol=1e-12)
    step = 1e-6
    moved = (flow_map(x, t, t + step) - flow_map(x, t, t - step)) / (2 * step)
    torch.testing.assert_close(mean_velocity(x, t, t), moved, rtol=1e-8, atol=1e-8)
    # regression of y on x_t: E[y | x_t] = E y + cov(y, x_t)/var(x_t) (x_t - E x_t)
    cov, var = 0.9 - 0.1 * SCALE**2, 0.1**2 * SCALE**2 + 0.9**2
    torch.testing.assert_close(mean_velocity(x, t, t), -MEAN + cov / var * (x - 0.1 * MEAN), rtol=1e-12, atol=1e-12)


def tensor_of(value, n):
    return torch.full((n,), value, dtype=torch.float64)


@pytest.mark.parametrize("weighting", ["none", "tan"])
@pytest.mark.parametrize("metric", ["l2", "barron"])
def test_flow_matching_is_still_at_the_exact_velocity(metric, weighting):
    method = FlowMatching(FlowMatching.Config(metric=metric, weighting=weighting))
    p = pairs(["any_step"], 0.01)
    draws = FlowDraws(len(p.t), p.t, p.z, torch.zeros(len(p.t), dtype=torch.bool))
    rows, summed = gradients(method, p, draws)
    assert rows.norm(dim=1).min() > 0.01 and summed.abs().max() < 1e-12
    _, moved = gradients(method, p, draws, error=0.1)
    assert moved.norm(dim=1).min() > 1e-3  # and nowhere else


CASES = [
    pytest.param(kind, order, settings, id=f"{kind.__name__.lower()}-order{order}-{name}")
    for kind in (RCGM, TwinFlow)
    for order in (1, 2, 4)
    for name, settings in (("plain", PLAIN), ("default", {}))
]


@pytest.mark.parametrize("target", ["average", "self", "pretrained"])
@pytest.mark.parametrize("kind, order, settings", CASES)
def test_any_step_objectives_are_still_to_first_order_in_h(kind, order, settings, target):
    roles = ["one_step", "local", "any_step", "to_zero", *(["fake"] if kind is TwinFlow else [])]
    sizes = []
    for h in (0.01, 0.005, 0.0025):
        method = kind(kind.Config(order=order, h=h, target=target, **settings))
        p = pairs(roles, h)
        rows, summed = gradients(method, p, draws_of(p, TwinDraws if kind is TwinFlow else AnyStepDraws))
        assert rows.norm(dim=1).mean() > 0.5  # the rows themselves pull with their full strength
        fake = p.role[: len(summed)] == ROLES.index("fake")
        assert summed[fake].abs().sum() < 1e-12  # fake rows are flow matching
        sizes.append(torch.stack([summed[p.role[: len(summed)] == i].norm() for i in (0, 1, 2, 4)]))
    assert (sizes[0] < 40 * 0.01).all()
    for coarse, fine in pairwise(sizes):
        torch.testing.assert_close(coarse / fine, torch.full_like(coarse, 2.0), rtol=0, atol=0.25)


@pytest.mark.parametrize("scale", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("target", ["self", "average", "pretrained"])
def test_the_fixed_point_has_the_guidance_that_was_asked_for(target, scale):
    """On rows with r = t, where the empty condition's field lies 1 above the data's: the guided field, v_null + scale
    (v - v_null), stays, whether it guides itself or a frozen one that is not guided does; the plain field does not."""

    def field(offset):
        return lambda x, t, r, cond: mean_velocity(x, t, r) + torch.where(cond["null"] > 0, 1.0, offset)

    p = pairs(["local"], 0.01)
    draws, zero = replace(draws_of(p), r=p.t), torch.zeros(len(p.t), 1)
    batch = replace(p.batch, cond={"null": zero}, null={"null": zero + 1})
    method = RCGM(RCGM.Config(order=0, target=target, cfg_scale=scale, metric="l2", weighting="none"))
    for offset, still in ((1 - scale, True), (-0.5, False)):
        student, outputs = field(offset), []

        def leaf(*point, student=student, outputs=outputs):
            outputs.append(student(*point).requires_grad_(torch.is_grad_enabled()))
            return outputs[-1]

        terms = method.loss(Networks(leaf, target=student, teacher=field(0.0)), batch, draws, Turn())
        (grad,) = torch.autograd.grad(terms.total(), next(v for v in outputs if v.requires_grad))
        summed = grad.unflatten(0, (2, -1)).sum(0) * len(p.t)
        assert (summed.abs().max() < 1e-12) == still and grad.abs().max() > 1e-3


@pytest.mark.parametrize("kind", [RCGM, TwinFlow])
def test_a_wrong_velocity_is_pulled_by_an_amount_that_does_not_vanish_with_h(kind):
    for h in (0.01, 0.0025):
        p = pairs(["one_step", "any_step"], h)
        method = kind(kind.Config(h=h, **PLAIN))
        _, summed = gradients(method, p, draws_of(p, TwinDraws if kind is TwinFlow else AnyStepDraws), error=0.1)
        assert summed.norm(dim=1).min() > 0.5


def test_an_exact_flow_map_makes_the_order_irrelevant():
    p = pairs(["one_step", "local", "any_step"], 0.01)
    each = [gradients(RCGM(RCGM.Config(order=n, **PLAIN)), p, draws_of(p))[0] for n in (1, 2, 4)]
    torch.testing.assert_close(each[1], each[0], rtol=0, atol=1e-9)
    torch.testing.assert_close(each[2], each[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("settings", [PLAIN, {}], ids=["plain", "default"])
def test_rectification_is_still_when_the_samples_are_the_data(settings):
    p = pairs(["one_step"], 0.01)
    draws = draws_of(p, TwinDraws)
    pull = [gradients(TwinFlow(TwinFlow.Config(rectify=weight, **settings)), p, draws)[0] for weight in (0.0, 1.0)]
    torch.testing.assert_close(pull[1], pull[0], rtol=0, atol=1e-12)


def test_rectification_pushes_the_samples_towards_the_data():
    """Where the one-step samples lie d too high, the twin that knows them sees their velocity, and the loss asks
    v(z,1,0) to grow (x = z - v) in every row: the direction of the reverse KL."""
    shift = 0.2
    p = pairs(["one_step"], 0.01)
    draws = draws_of(p, TwinDraws)

    class Shifted(Student):
        def __call__(self, x, t, r, cond):
            twin = (t < 0)[:, None]  # the velocity of N(MEAN + shift, SCALE^2): that of the data, moved along
            moved = mean_velocity(x - (1 - t.abs())[:, None] * shift, t, r) - shift
            plain = super().__call__(x, t, r, cond)
            return torch.where(twin, moved, plain) if not torch.is_grad_enabled() else plain

    def pull(weight):
        student = Shifted()
        networks = Networks(student, target=mean_velocity)
        terms = TwinFlow(TwinFlow.Config(rectify=weight)).loss(networks, p.batch, draws, Turn())
        return torch.autograd.grad(terms.total(), student.outputs[0])[0]

    assert (pull(1.0) - pull(0.0)).max() < 0


def test_tutorial_form_is_still_but_for_its_fake_term():
    """The tutorial noises its fake samples with the noise that made them: y is then a function of x_t, and not the
    velocity of the data. So each fake row's gradient is its expectation given x_t, and it does not vanish."""
    h = 0.0025
    p = pairs(["any_step"], h)
    n = len(p.t) // 2
    generator = torch.Generator().manual_seed(9)
    z_match = torch.randn(2 * n, 3, dtype=torch.float64, generator=generator)
    draws = PaperDraws(2 * n, p.t, p.r, p.z, z_match, torch.rand(2 * n, dtype=torch.float64, generator=generator))
    student = Student()
    method = TwinFlow(TwinFlow.Config(form="tutorial", h=h, clamp=None))
    terms = method.loss(Networks(student, target=mean_velocity), p.batch, draws, Turn())
    any_step, real, fake = (
        torch.autograd.grad(terms.losses[name].value(), output, retain_graph=True)[0]
        for name, output in zip(("any_step", "real", "fake"), student.outputs)
    )
    assert (real[:n] + real[n:]).abs().max() < 1e-12
    assert (any_step[:n] + any_step[n:]).norm() < 40 * h / n
    assert terms.losses["rectify"].value() < 1e-24  # the two fields agree
    assert fake.norm(dim=1).mean() * 2 * n > 0.2


@pytest.mark.parametrize("order", [1, 2, 4])
def test_paper_form_is_still_to_first_order_in_h_and_its_twin_wholly(order):
    """One-step rows start from the noise that the flow map carries to the samples of the pairs."""
    generator = torch.Generator().manual_seed(9)
    sizes = []
    for h in (0.01, 0.005, 0.0025):
        p = pairs(["any_step", "fake"], h)
        n, twin = len(p.t), p.role == ROLES.index("fake")
        z = torch.where(twin[:, None], (p.x - MEAN) / SCALE, p.z)
        z_match = torch.randn(n, 3, dtype=torch.float64, generator=generator)
        t_match = torch.rand(n, dtype=torch.float64, generator=generator)
        draws = PaperDraws(n, p.t, p.r, z, z_match, t_match, twin, int(twin.sum()), p.z)
        method, summed = TwinFlow(TwinFlow.Config(form="paper", order=order, h=h, clamp=None)), {}
        for error in (0.0, 0.1):
            student = Student(error)
            terms = method.loss(Networks(student, target=mean_velocity), p.batch, draws, Turn())
            any_step, one_step, fake = student.outputs
            assert terms.losses["rectify"].value() < 1e-24  # the two fields agree
            for name, output in (("any_step", any_step), ("fake", fake)):
                (grad,) = torch.autograd.grad(terms.losses[name].value() * len(output), output, retain_graph=True)
                assert grad.norm(dim=1).mean() > 0.5
                summed[name, error] = grad.unflatten(0, (2, -1)).sum(0)
            assert torch.autograd.grad(terms.losses["rectify"].value(), one_step)[0].abs().max() < 1e-12
        assert summed["fake", 0.0].abs().max() < 1e-12
        assert summed["any_step", 0.1].norm(dim=1).min() > 0.5
        sizes.append(summed["any_step", 0.0].norm())
    assert sizes[0] < 40 * 0.01
    for coarse, fine in pairwise(sizes):
        assert coarse / fine == pytest.approx(2, abs=0.25)


def test_draws_are_not_changed():
    p = pairs(["one_step", "fake"], 0.01)
    draws = draws_of(p, TwinDraws)
    before = replace(draws, z=draws.z.clone(), t=draws.t.clone(), z_fake=draws.z_fake.clone())
    gradients(TwinFlow(), p, draws)
    assert all(torch.equal(getattr(draws, k), getattr(before, k)) for k in ("z", "t", "r", "z_fake", "z_match"))
