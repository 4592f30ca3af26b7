"""Data of one normal distribution: the exact flow map, in closed form, as a network would give it."""

import torch

from twinbench.flow import expand

MEAN, SCALE = torch.tensor([0.4, -0.3, 0.1], dtype=torch.float64), 0.6


def deviation(t):
    """Of x_t = (1 - t) x + t z, x ~ N(MEAN, SCALE^2)."""
    return ((1 - t) ** 2 * SCALE**2 + t**2).sqrt()


def flow_map(x, t, r):
    """x_r from x_t along the probability-flow ODE. x [n, 3]; t, r [n] >= 0."""
    here, there = ((1 - expand(s, x)) * MEAN for s in (t, r))
    return there + expand(deviation(r) / deviation(t), x) * (x - here)


def mean_velocity(x, t, r, cond=None):
    """(x_t - x_r)/(t - r), written without the 0/0 at r = t; the twin's field (t < 0) is the same one."""
    t, r = t.abs(), r.abs()
    growth = -2 * SCALE**2 + (1 + SCALE**2) * (t + r)  # (deviation(t)^2 - deviation(r)^2)/(t - r)
    slope = growth / (deviation(t) * (deviation(t) + deviation(r)))
    return -MEAN + expand(slope, x) * (x - (1 - expand(t, x)) * MEAN)
