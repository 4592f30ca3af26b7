"""MeanFlow, shortcut, consistency models and sCM: the exact flow map is their fixed point, and training finds one.

The data are one normal distribution, the network its exact flow map, and rows come in antithetic pairs (see
test_fixed_point). What each objective leaves of a pair's gradient there:

- MeanFlow, sCT: nothing with the exact derivative, since the residual is linear in y = z - x and its mean is the
  MeanFlow identity; second order in the step of the central difference. Weights and normalisation are even in it;
- sCD: nothing, in single rows: with the exact field for y the tangent itself is 0. (Before the warm-up ends it is not.)
- shortcut: nothing, in single rows but those of the flow: two half steps of a flow map are the whole step. But the
  smallest half steps are Euler's, and leave a part of first order in their length;
- consistency in discrete time: first order in the step t - r, the error of one Euler step over its length.
"""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from gaussian import mean_velocity
from tiny import Tiny, load
from twinbench.baselines.consistency import Consistency, ConsistencyDraws, neighbour
from twinbench.baselines.meanflow import MeanFlow, MeanFlowDraws
from twinbench.baselines.scm import SCM, SCMDraws
from twinbench.baselines.shortcut import Shortcut, ShortcutDraws, half_steps

from twinbench.flow import Batch, expand
from twinbench.method import Networks, Turn
from twinbench.objectives.targets import recursive, two_steps

LATE = Turn(step=10**6)  # every warm-up has ended


@dataclass
class Pairs:
    """2 n rows; row i + n is the mirror of row i: the same x_t, t and r, and y mirrored about its mean."""

    t: torch.Tensor
    r: torch.Tensor
    x: torch.Tensor
    z: torch.Tensor

    @property
    def batch(self):
        cond = {"row": torch.arange(len(self.t)), "shift": torch.zeros(len(self.t), dtype=torch.float64)}
        return Batch(self.x, cond, {**cond, "shift": torch.ones_like(cond["shift"])})

    @property
    def kept(self):
        return torch.zeros(len(self.t), dtype=torch.bool)


def pairs(t, r):
    generator = torch.Generator().manual_seed(7)
    x_t, y = torch.randn(2, len(t), 3, dtype=torch.float64, generator=generator)
    t, r, x_t = (torch.cat([value, value]) for value in (t, r, x_t))
    y = torch.cat([y, 2 * mean_velocity(x_t, t, t)[: len(y)] - y])
    return Pairs(t, r, x_t - expand(t, x_t) * y, x_t + expand(1 - t, x_t) * y)


def some(n=24, seed=3):
    """t and u in (0, 1), away from the ends."""
    return 0.05 + 0.9 * torch.rand(2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Student:
    """The exact flow map plus `nudge`, a leaf with a row for each row of the batch. The empty condition's field is the
    same, moved by 1."""

    def __init__(self, rows, error=0.0):
        self.nudge = torch.full((rows, 3), float(error), dtype=torch.float64, requires_grad=True)

    def __call__(self, x, t, r, cond):
        return mean_velocity(x, t, r) + self.nudge[cond["row"]] + cond["shift"][:, None]


def gradients(method, p, draws, turn=LATE, error=0.0):
    """The gradient at the student's output, of single rows and summed over each pair; scaled to a mean of rows."""
    student = Student(len(p.t), error)
    exact = Student(len(p.t))
    networks = Networks(student, target=exact, teacher=exact)
    terms = method.loss(networks, p.batch, draws, turn)
    (grad,) = torch.autograd.grad(terms.total(), student.nudge)
    grad = grad * draws.rows
    return grad, grad[: len(grad) // 2] + grad[len(grad) // 2 :]


def halves_each_time(sizes, order):
    for coarse, fine in pairwise(sizes):
        assert coarse / fine == pytest.approx(2**order, rel=0.15), sizes


# ---- MeanFlow ----


def meanflow_draws(p):
    return MeanFlowDraws(len(p.t), p.t, p.r, p.z, p.kept)


@pytest.mark.parametrize("normalise", ["loss", "gradient"])
@pytest.mark.parametrize("power", [0.0, 0.75, 1.0])
def test_meanflow_is_still_at_the_flow_map(normalise, power):
    t, u = some()
    p = pairs(t, torch.where(torch.arange(len(t)) % 4 == 0, t, t * u))
    method = MeanFlow(MeanFlow.Config(normalise=normalise, power=power))
    rows, summed = gradients(method, p, meanflow_draws(p))
    assert rows.norm(dim=1).min() > 0.05 and summed.abs().max() < 1e-12
    _, moved = gradients(method, p, meanflow_draws(p), error=0.1)
    assert moved.norm(dim=1).min() > 1e-3


def test_meanflow_by_differences_is_still_to_second_order_in_their_step():
    t, u = some()
    p = pairs(t, t * u)
    sizes = []
    for step in (0.02, 0.01, 0.005):
        method = MeanFlow(MeanFlow.Config(derivative="difference", step=step, power=0.0))
        sizes.append(gradients(method, p, meanflow_draws(p))[1].norm().item())
    halves_each_time(sizes, 2)


@pytest.mark.parametrize("scale, kappa", [(1.0, 0.0), (2.0, 0.0), (2.0, 0.5), (4.0, 0.5)])
def test_meanflow_distils_the_guidance_it_is_asked_for(scale, kappa):
    """Where the student is guided already, v_null + scale (v_cond - v_null), flow rows leave it there."""
    t, _ = some()
    p = pairs(t, t)

    class Guided(Student):
        def __call__(self, x, t, r, cond):  # the null field is one above the plain one; guidance mirrors that
            return (
                mean_velocity(x, t, r)
                + self.nudge[cond["row"]]
                + torch.where(cond["shift"] > 0, 1.0, 1 - scale)[:, None]
            )

    student = Guided(len(p.t))
    method = MeanFlow(MeanFlow.Config(cfg_scale=scale, kappa=kappa))
    terms = method.loss(Networks(student), p.batch, meanflow_draws(p), LATE)
    (grad,) = torch.autograd.grad(terms.total(), student.nudge)
    n = len(grad) // 2
    assert (grad[:n] + grad[n:]).abs().max() < 1e-12 < grad.abs().min()


# ---- shortcut ----


def shortcut_case(steps):
    """A pair of flow rows, pairs of the steps 1 and 1/2, and one of the smallest."""
    d = torch.tensor([0, 1, 0.5, 2 / steps], dtype=torch.float64)
    t = torch.tensor([0.5, 1, 0.5, 0.5], dtype=torch.float64)
    p = pairs(t, t - d)
    return p, ShortcutDraws(len(p.t), p.t, p.r, p.z, p.kept)


def test_shortcut_is_still_at_the_flow_map_but_for_its_smallest_steps():
    sizes = []
    for steps in (16, 32, 64):
        p, draws = shortcut_case(steps)
        method = Shortcut(Shortcut.Config(steps=steps, clip=None))
        rows, summed = gradients(method, p, draws)
        assert rows[0].norm() > 0.05 and summed[0].abs().max() < 1e-12  # the flow
        assert rows[1 : len(summed) - 1].abs().max() < 1e-12  # two exact half steps
        sizes.append(summed[-1].norm().item())
        _, moved = gradients(method, p, draws, error=0.1)
        assert moved.norm(dim=1).min() > 1e-2
    halves_each_time(sizes, 1)


def test_shortcut_is_rcgm_of_order_1_with_half_a_step_ahead():
    p, _ = shortcut_case(16)
    net, d = Tiny(load("twinflow_components")["rcgm"]["P_teacher"]).requires_grad_(False), 0.5
    rows = (p.t - p.r) == d
    x_t, t, r = (p.x + expand(p.t, p.x) * (p.z - p.x))[rows], p.t[rows], p.r[rows]
    cond = {"c": torch.ones(len(t), 2, dtype=torch.float64)}
    v = torch.randn(len(t), 3, dtype=torch.float64)
    target = two_steps(half_steps(net, cond, 0.0), x_t, t, r, cond)
    other = recursive(net, v, net(x_t, t, t - d / 2, cond), x_t, t, r, cond, order=1, h=d / 2, clamp=None)
    torch.testing.assert_close(v - other, 2 * (v - target), rtol=0, atol=1e-12)


def test_shortcut_guides_the_smallest_half_steps_and_only_them():
    p, _ = shortcut_case(16)
    exact = Student(len(p.t))
    cond, null = p.batch.cond, p.batch.null
    x_t = p.x + expand(p.t, p.x) * (p.z - p.x)
    far = p.r < p.t
    part = [value[far] for value in (x_t, p.t, p.r)]
    cond, null = ({name: value[far] for name, value in c.items()} for c in (cond, null))
    with torch.no_grad():
        plain, guided = (two_steps(half_steps(exact, null, 1 / 16, scale), *part, cond) for scale in (1.0, 3.0))
    smallest = part[1] - part[2] == 2 / 16
    moved = (guided - plain)[smallest]
    assert smallest.sum() == 2 and torch.equal(guided[~smallest], plain[~smallest])
    torch.testing.assert_close(moved, torch.full_like(moved, -2.0), rtol=0, atol=0.2)  # 3 times away from 1 above


# ---- consistency in discrete time ----


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"huber": 0.03},
        {"huber": 0.03, "huber_of": "element"},
        {"squared": True, "weighting": "noise"},
        {"spacing": "edm", "weighting": "root_step"},
        {"spacing": "edm", "weighting": "root_snr"},
    ],
    ids=str,
)
def test_consistency_training_is_still_to_first_order_in_its_step(settings):
    t, _ = some()
    sizes = []
    for steps in (32, 64, 128):
        p = pairs(t, neighbour(t, steps, "ratio"))
        rows, summed = gradients(
            Consistency(Consistency.Config(**settings)), p, ConsistencyDraws(len(p.t), p.t, p.r, p.z)
        )
        sizes.append((summed.norm() / rows.norm()).item())
        assert rows.norm(dim=1).min() > 1e-4
    assert sizes[0] < 0.1
    halves_each_time(sizes, 1)


def test_consistency_distillation_is_still_to_first_order_in_its_step():
    t, _ = some()
    sizes = []
    for steps in (32, 64, 128):
        p = pairs(t, neighbour(t, steps, "ratio"))
        method = Consistency(Consistency.Config(form="distillation", squared=True))
        rows, _ = gradients(method, p, ConsistencyDraws(len(p.t), p.t, p.r, p.z))
        sizes.append(rows.norm().item())
    halves_each_time(sizes, 1)


@pytest.mark.parametrize("spacing", ["ratio", "uniform", "edm"])
def test_neighbours_lie_between_the_time_and_the_data(spacing):
    t = torch.cat([torch.linspace(1e-6, 1, 1001, dtype=torch.float64)])
    for steps in (1, 8, 1280):
        r = neighbour(t, steps, spacing)
        assert (r >= 0).all() and (r < t).all() and (r.diff() >= 0).all()
        if steps == 1:
            assert (r == 0).all()


# ---- sCM ----


@pytest.mark.parametrize("weighting", ["none", "prior"])
@pytest.mark.parametrize("sigma", [0.5, 1.0])
def test_scm_is_still_at_the_flow_map(sigma, weighting):
    t, _ = some()
    p = pairs(t, 0 * t)
    draws = SCMDraws(len(p.t), p.t, p.z)
    method = SCM(SCM.Config(sigma_data=sigma, weighting=weighting))
    rows, summed = gradients(method, p, draws)
    assert rows.norm(dim=1).min() > 0.01 and summed.abs().max() < 1e-12
    teacher = SCM(SCM.Config(form="distillation", sigma_data=sigma, weighting=weighting))
    assert gradients(teacher, p, draws)[0].abs().max() < 1e-12
    for each in (method, teacher):
        _, moved = gradients(each, p, draws, error=0.1)
        assert moved.norm(dim=1).min() > 1e-3
        # while the tangent warms up the objective is another one: flow matching of v(x, t, 0)
        assert gradients(each, p, draws, turn=Turn(step=0))[1].norm() > 0.1


@pytest.mark.parametrize("form", ["training", "distillation"])
def test_scm_by_differences_is_still_to_second_order_in_their_step(form):
    t, _ = some()
    p = pairs(t, 0 * t)
    sizes = []
    for step in (0.02, 0.01, 0.005):
        method = SCM(SCM.Config(form=form, derivative="difference", step=step))
        sizes.append(gradients(method, p, SCMDraws(len(p.t), p.t, p.z))[1].norm().item())
    halves_each_time(sizes, 2)
