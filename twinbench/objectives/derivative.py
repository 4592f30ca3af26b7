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
    difference: central, two calls more at a distance of `step` in the direction."""
    if how == "jvp":
        velocity = net.velocity if isinstance(net, Counted) else net
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention know no tangents
            v, derivative = torch.func.jvp(lambda x, t, r: velocity(x, t, r, cond), point, direction)[:2]
        return (net.count(v, tangents=1) if isinstance(net, Counted) else v), derivative.detach()
    (x, t, r), (dx, dt, dr) = point, direction
    v = net(x, t, r, cond)
    with torch.no_grad():
        ahead = net(x + step * dx, t + step * dt, r + step * dr, cond)
        behind = net(x - step * dx, t - step * dt, r - step * dr, cond)
    return v, (ahead - behind) / (2 * step)


def unit_rms(x: Tensor, c: float = 0.1) -> Tensor:
    """x / (rms of each row + c): tangent normalisation (sCM, arXiv 2410.11081). x [n, ...]."""
    return x / (expand(x.flatten(1).square().mean(1).sqrt(), x) + c)
