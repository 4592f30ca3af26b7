"""Distillation from a teacher's trajectories: KD on fixed pairs, progressive distillation by halving steps.

At the exact flow map, for data of one normal distribution (see test_fixed_point; here rows are still one by one, and no
mirror is needed, since both targets are the teacher's and hold no sample's own noise):

- progressive: nothing is left after the first phase, where the teacher takes the very steps it is asked for. In the
  first one a step is Euler's, and leaves a part of first order in its length;
- KD: pairs of an exact teacher leave nothing; those of n Euler steps a part of first order in 1/n.
"""

from itertools import pairwise

import pytest
import torch
from gaussian import flow_map, mean_velocity
from tiny import Tiny, load
from twinbench.baselines.kd import KD
from twinbench.baselines.progressive import Progressive, ProgressiveDraws

from twinbench.flow import Batch
from twinbench.method import Draws, Networks, Turn
from twinbench.objectives.targets import two_steps
from twinbench.randomness import Rng
from twinbench.sampler import Schedule, sample, schedule_times

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
    margin = {"huber": 0.01} if metric == "huber" else {}
    assert kd_loss(exact, lambda *point: mean_velocity(*point) + 0.1, metric=metric, **margin) == pytest.approx(
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
