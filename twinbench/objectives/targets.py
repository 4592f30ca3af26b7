"""What a velocity is asked to equal: guided, recursive and matching targets. All of them are constants (no
gradient)."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from twinbench.flow import Cond, OneTime, Velocity, expand, join, mix, split, take
from twinbench.objectives.derivative import Derivative, along

MatchWeight = Literal["kl", "dmd"]


def clip(x: Tensor, limit: float | None) -> Tensor:
    return x if limit is None else x.clamp(-limit, limit)


@torch.no_grad()
def guidance_direction(net: Velocity, x_t: Tensor, t: Tensor, cond: Cond, null: Cond) -> tuple[Tensor, Tensor]:
    """v(x, t, t, cond) and v(x, t, t, null), in one call of twice the rows."""
    tt = torch.cat([t, t])
    both = net(torch.cat([x_t, x_t]), tt, tt, join(cond, null))
    conditional, free = both.chunk(2)
    return conditional, free


@torch.no_grad()
def recursive(
    net: Velocity,
    v: Tensor,
    y: Tensor,
    x_t: Tensor,
    t: Tensor,
    r: Tensor,
    cond: Cond,
    *,
    order: int,
    h: float = 0.01,
    clamp: float | None = 1.0,
    u: Tensor | None = None,
) -> Tensor:
    """RCGM's target for v(x_t, t, r): agree with `order` hops of `net` that start h closer to the data.

        delta = ((t - r) v - sum_i (s_i - s_{i+1}) net_i) / h - y   where t - r >= h, else  v - y
        target = v - clamp(delta)

    with x_1 = x_t - h y and hops s_i from t - h to r (`hop_times`). v: the student's output; y: the (guided) velocity
    of the sample; all like x_t [n, ...]; t, r [n]; u [n, order - 1]: uniform numbers for random hops, None for equal
    ones. `net` sees only the rows with t - r >= h. order 0 gives y itself.
    Source: RCGM as contained in TwinFlow's `src/methodes/twinflow`; eq. 1 of arXiv 2512.05150."""
    if order == 0:
        return y
    delta = v - y
    far = (t - r) >= h
    if far.any():
        start, end, c = (t - h)[far], r[far], take(cond, far)
        x = x_t[far].to(torch.promote_types(x_t.dtype, t.dtype)) - h * y[far]  # a step of h is lost in half precision
        moved = torch.zeros_like(x)
        for s, s_next in pairwise(hop_times(start, end, order, None if u is None else u[far])):
            hop = expand(s - s_next, x) * net(x.to(x_t.dtype), s, s_next, c)
            x, moved = x - hop, moved + hop
        delta[far] = ((v[far] * expand((t - r)[far], x) - moved) / h - y[far]).to(delta.dtype)
    return v - clip(delta, clamp)


def hop_times(start: Tensor, end: Tensor, order: int, u: Tensor | None = None) -> list[Tensor]:
    """order + 1 falling times [n] from start to end: equally spaced, or with u [n, order - 1] each drawn between the
    one before it and the end, s_i ~ U(r, s_{i-1}) (the text of arXiv 2512.05150, where r = 0)."""
    if u is None:
        return [start + (end - start) * (i / order) for i in range(order + 1)]
    times = [start]
    for share in u.unbind(1):
        times.append(end + share * (times[-1] - end))
    return [*times, end]


@torch.no_grad()
def derivative_target(
    net: Velocity,
    v: Tensor,
    y: Tensor,
    x_t: Tensor,
    t: Tensor,
    r: Tensor,
    cond: Cond,
    *,
    how: Derivative,
    step: float,
    clamp: float | None,
) -> Tensor:
    """What `recursive` of order 1 tends to as h -> 0, if `net` is the network that gave v (MeanFlow, arXiv 2505.13447):

        delta = v + (t - r) d net(x_t, t, r) - y,   target = v - clamp(delta)

    d: the derivative along (dx, dt, dr) = (y, 1, 0). `how` and `step`: see `derivative.along`. Of another network, an
    average say, `recursive` has a pull (t - r) (v - net)/h beside it, which grows without bound; this has none."""
    _, slope = along(net, (x_t, t, r), (y, torch.ones_like(t), torch.zeros_like(r)), cond, how, step)
    return v - clip(v + expand(t - r, v).to(v.dtype) * slope - y, clamp)


@torch.no_grad()
def two_steps(v: Velocity, x_t: Tensor, t: Tensor, r: Tensor, cond: Cond, bound: float | None = None) -> Tensor:
    """The mean velocity from x_t [n, ...] at t [n] to r of two equal steps along v. bound: of the point between and of
    the result; None for none."""
    half = (t - r) / 2
    first = v(x_t, t, t - half, cond).to(x_t.dtype)
    middle = clip(x_t - expand(half, x_t).to(x_t.dtype) * first, bound)
    return clip((first + v(middle, t - half, r, cond).to(x_t.dtype)) / 2, bound)


@torch.no_grad()
def matching_fields(
    fake: OneTime, real: OneTime, x: Tensor, z: Tensor, t: Tensor, cond: Cond
) -> tuple[Tensor, Tensor, Tensor]:
    """x_t = (1 - t) x + t z, and there the two velocities, fake and real; all like x [n, ...]; t [n] in (0, 1)."""
    x_t = mix(x, z, t)
    return x_t, fake(x_t, t, cond), real(x_t, t, cond)


@torch.no_grad()
def matching_direction(
    fake: OneTime, real: OneTime, x: Tensor, z: Tensor, t: Tensor, cond: Cond, *, clamp: float | None = 1.0
) -> Tensor:
    """clamp(fake(x_t, t) - real(x_t, t)) at x_t = (1 - t) x + t z: up to a positive weight a row, the direction in
    which the reverse KL of the generated samples x grows. x, z [n, ...]; t [n] in (0, 1)."""
    _, v_fake, v_real = matching_fields(fake, real, x, z, t, cond)
    return clip(v_fake - v_real, clamp)


@torch.no_grad()
def matching_weight(kind: MatchWeight, x: Tensor, x_t: Tensor, v_real: Tensor, t: Tensor) -> Tensor:
    """The positive factor of each row [n] that v_fake - v_real leaves out. x: own samples; t [n], from 0.02.

    kl: (1 - t)^2 / t, which makes it the gradient of the reverse KL (s = -(x_t + (1 - t) v)/t at both ends).
    dmd: t / mean_D |x - (x_t - t v_real)|, which makes it DMD's normalised direction (arXiv 2311.18828, eq. 8)."""
    t = t.clamp(min=0.02)
    if kind == "kl":
        return (1 - t) ** 2 / t
    real, _ = split(x_t, v_real, t)
    return t / ((x - real).abs().flatten(1).mean(1) + 1e-6)
