"""What a velocity is asked to equal: guided, recursive and matching targets. All of them are constants (no
gradient)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from twinbench.flow import Cond, Velocity, expand, join, mix, take

OneTime = Callable[[Tensor, Tensor, Cond], Tensor]  # (x, t, cond) -> instantaneous velocity, t > 0


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
) -> Tensor:
    """RCGM's target for v(x_t, t, r): agree with `order` hops of `net` that start h closer to the data.

        delta = ((t - r) v - sum_i (s_i - s_{i+1}) net_i) / h - y   where t - r >= h, else  v - y
        target = v - clamp(delta)

    with x_1 = x_t - h y and equal hops s_i from t - h to r. v: the student's output; y: the (guided) velocity of the
    sample; all like x_t [n, ...]; t, r [n]. `net` sees only the rows with t - r >= h. order 0 gives y itself.
    Source: RCGM as contained in TwinFlow's `src/methodes/twinflow`; eq. 1 of arXiv 2512.05150."""
    if order == 0:
        return y
    delta = v - y
    far = (t - r) >= h
    if far.any():
        start, end, c = (t - h)[far], r[far], take(cond, far)
        x = x_t[far] - h * y[far]
        moved = torch.zeros_like(x)
        for i in range(order):
            s, s_next = start + (end - start) * (i / order), start + (end - start) * ((i + 1) / order)
            hop = expand(s - s_next, x) * net(x, s, s_next, c)
            x, moved = x - hop, moved + hop
        delta[far] = (v[far] * expand((t - r)[far], x) - moved) / h - y[far]
    return v - clip(delta, clamp)


@torch.no_grad()
def matching_direction(
    fake: OneTime, real: OneTime, x: Tensor, z: Tensor, t: Tensor, cond: Cond, *, clamp: float | None = 1.0
) -> Tensor:
    """clamp(fake(x_t, t) - real(x_t, t)) at x_t = (1 - t) x + t z: up to a positive weight a row, the direction in
    which the reverse KL of the generated samples x grows. x, z [n, ...]; t [n] in (0, 1)."""
    x_t = mix(x, z, t)
    return clip(fake(x_t, t, cond) - real(x_t, t, cond), clamp)
