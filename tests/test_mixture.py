"""Closed forms of the mixture world, and what a network of one time gives where a score is asked for."""

import math

import pytest
import torch
from gaussian import MEAN, SCALE, mean_velocity

from twinbench.data.mixture import DEVIATION, Gaussians, Mixture, MixtureConfig, clouds, draw, score_of


def points(n, t, seed=0):
    x, _ = draw(n, seed)
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed + 1))
    return (1 - t) * x.double() + t * z.double(), z.double() - x.double(), torch.full((n,), t, dtype=torch.float64)


def test_one_cloud_is_the_normal_distribution():
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(7, 3, dtype=torch.float64, generator=generator), torch.linspace(0.05, 1, 7, dtype=torch.float64)
    torch.testing.assert_close(
        Gaussians(MEAN[None], SCALE).velocity(x, t), mean_velocity(x, t, t), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_the_score_is_the_gradient_of_the_log_density(t):
    x, _, time = points(9, t)
    x.requires_grad_()
    world = clouds()
    variance = (1 - t) ** 2 * DEVIATION**2 + t**2
    square = (x[:, None] - (1 - t) * world.means).square().sum(2)
    log_density = (-square / (2 * variance)).logsumexp(1)
    want = torch.autograd.grad(log_density.sum(), x)[0]
    torch.testing.assert_close(world.score(x.detach(), time), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_velocity_is_the_best_guess_of_noise_less_data(t):
    """Its error is orthogonal to every function of x_t: its mean vanishes on each side of each line."""
    x, y, time = points(200_000, t)
    error = y - clouds().velocity(x, time)
    for line in (x[:, 0] > 0, x[:, 1] > 0.4, x.norm(dim=1) > 0.7):
        for side in (line, ~line):
            deviation = error[side].std() / math.sqrt(side.sum())
            assert (error[side].mean(0).abs() < 4.5 * deviation).all()


def test_a_velocity_of_points_is_exact_for_them_and_near_that_of_their_source():
    x, _, t = points(400, 0.3)
    atoms = draw(5, 3)[0].double()
    weight = (-(x[:, None] - 0.7 * atoms).square().sum(2) / (2 * 0.09)).softmax(1)
    noise = (x[:, None] - 0.7 * atoms) / 0.3
    want = (weight[..., None] * (noise - atoms)).sum(1)
    torch.testing.assert_close(Gaussians(atoms).velocity(x, t), want, rtol=1e-9, atol=1e-9)
    truth = clouds().velocity(x, t)
    errors = [(Gaussians(draw(n, 4)[0].double()).velocity(x, t) - truth).square().mean().sqrt() for n in (500, 8000)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.4) and errors[1] < 0.04 * truth.square().mean().sqrt()


@pytest.mark.parametrize("t, ratio", [(0.1, 0.50), (0.5, 0.59), (0.9, 0.90), (0.001, 0.50)])
def test_an_average_velocity_read_as_a_score_has_too_flat_a_slope(t, ratio):
    """For N(0, 1) data: slope (1 - (1-t)/s_t)/t^2 in place of 1/s_t^2, s_t^2 = (1-t)^2 + t^2."""
    x = torch.tensor([[1.0]], dtype=torch.float64)
    time, s = torch.tensor([t], dtype=torch.float64), math.sqrt((1 - t) ** 2 + t**2)
    mean = (x - x / s) / t  # the flow map takes x_t to x_t / s_t
    slope = -score_of(mean, x, time).item()
    assert slope == pytest.approx((1 - (1 - t) / s) / t**2, rel=1e-9)
    truth = -Gaussians(torch.zeros(1, 1, dtype=torch.float64), 1.0).score(x, time).item()
    assert truth == pytest.approx(1 / s**2, rel=1e-9)
    assert slope / truth == pytest.approx(ratio, abs=0.006)


def test_the_world_is_drawn_from_its_distribution():
    world = Mixture(MixtureConfig(size=40_000))
    means = torch.stack([world.x[world.labels[:, 0] == k].mean(0) for k in range(8)])
    torch.testing.assert_close(means, clouds().means.float(), rtol=0, atol=0.01)
    spread = (world.x - clouds().means.float()[world.labels[:, 0]]).std()
    assert spread.item() == pytest.approx(DEVIATION, rel=0.02)
    assert set(Mixture(MixtureConfig(size=9, conditional=False)).prompts) == {""}
    assert [Mixture.tokens(p) for p in ("", "cloud 3")] == [[0], [4]]
