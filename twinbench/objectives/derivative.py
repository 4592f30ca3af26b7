"""The total derivative of a velocity along a direction in (x, t, r)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from twinbench.flow import Cond, Counted, Velocity, expand

Derivative = Literal["jvp", "difference"]


def along(
    net: Velocity,
    point: tuple[Tensor, Tensor, Tensor],
    direction: tuple[Tensor, Tensor, Tensor],
    cond: Cond,
    how: Derivative = "jvp",
    step: float = 5e-3,
) -> tuple[Tensor, Tensor]:
    """v(x, t, r) with its gradient, and its derivative along (dx, dt, dr) without one; both like x [n, ...].

    jvp: exact, by forward differentiation, one pass more; attention is not fused then.
    difference: along dt = 1, two calls more, `step` ahead and behind; nearer than that to t = 0 or 1 both on the inner
    side, since outside of [0, 1] no network is trained (below 0 it may be another: TwinFlow's twin). Second order."""
    if how == "jvp":
        velocity = net.velocity if isinstance(net, Counted) else net
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention know no tangents
            v, derivative = torch.func.jvp(lambda x, t, r: velocity(x, t, r, cond), point, direction)[:2]
        return (net.count(v, tangents=1) if isinstance(net, Counted) else v), derivative.detach()
    (x, t, r), (dx, dt, dr) = point, direction
    v = net(x, t, r, cond)
    a, b = torch.where(t + step > 1, -2.0, 1.0).to(t.dtype), torch.where(t < step, 2.0, -1.0).to(t.dtype)
    with torch.no_grad():
        first, second = (net(x + expand(s, x) * dx, t + s * dt, r + s * dr, cond) for s in (a * step, b * step))
    w = [expand(w, v).to(v.dtype) for w in (-(a + b) / (a * b), b / (a * (b - a)), a / (b * (a - b)))]
    return v, (w[0] * v.detach() + w[1] * first + w[2] * second) / step


def unit_rms(x: Tensor, c: float = 0.1) -> Tensor:
    """x / (rms of each row + c): tangent normalisation (sCM, arXiv 2410.11081). x [n, ...]."""
    return x / (expand(x.flatten(1).square().mean(1).sqrt(), x) + c)
