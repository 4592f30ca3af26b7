"""TrigFlow, the path of continuous-time consistency models, and their loss (sCM: Lu & Song 2025, arXiv 2410.11081).

    x_s = cos(s) x + sin(s) sigma z,   s in [0, pi/2];    D(x_s, s) = cos(s) x_s - sin(s) sigma F(x_s/sigma, s)

The networks speak of the straight path; this file holds the map between the two, which loses nothing (as SANA-Sprint's,
arXiv 2503.09641, there with sigma = 1). Both are the same path up to a scale n(s):

    n = cos(s) + sigma sin(s),   t = sigma sin(s) / n,   x_t = x_s / n,   sigma F = n' x_t + sigma v / n
"""

from __future__ import annotations

import torch
from torch import Tensor

from twinbench.flow import Cond, Velocity, expand
from twinbench.objectives.derivative import Derivative, along, unit_rms
from twinbench.objectives.losses import l2


class Trig:
    """TrigFlow's words for points x_t [n, ...] of the straight path at times t [n]."""

    def __init__(self, t: Tensor, x_t: Tensor, sigma: float) -> None:
        self.x_t, self.sigma = x_t, sigma
        self.s = torch.atan2(t, sigma * (1 - t))
        cos, sin = (expand(f(self.s), x_t).to(x_t.dtype) for f in (torch.cos, torch.sin))
        self.n, self.slope_n = cos + sigma * sin, sigma * cos - sin
        self.cos_sin = cos * sin

    @property
    def x(self) -> Tensor:
        """x_s."""
        return self.n * self.x_t

    def field(self, v: Tensor) -> Tensor:
        """F of a velocity; sigma F of the sample's z - x is its dx/ds."""
        return self.slope_n / self.sigma * self.x_t + v / self.n

    def slope(self, v: Tensor, y: Tensor, dv: Tensor) -> Tensor:
        """cos(s) sin(s) dF/ds, from the derivative dv of v along (y, 1): dt/ds = sigma/n^2, dx_t/ds = y dt/ds."""
        rate = self.sigma / self.n**2
        d = -self.n / self.sigma * self.x_t + self.slope_n / self.sigma * rate * y
        return self.cos_sin * (d + rate * dv / self.n - self.slope_n * v / self.n**2)


def tangent(
    f: Tensor, slope: Tensor, x: Tensor, dx: Tensor, s: Tensor, sigma: float = 0.5, share: float = 1.0
) -> Tensor:
    """g = -cos^2 (sigma F - dx/ds) - share (cos sin x_s + sigma slope), slope = cos sin dF/ds; all like x; s [n]."""
    cos, sin = expand(s.cos(), x), expand(s.sin(), x)
    return -(cos**2) * (sigma * f - dx) - share * (cos * sin * x + sigma * slope)


def scm(
    student: Velocity,
    x_t: Tensor,
    y: Tensor,
    t: Tensor,
    cond: Cond,
    *,
    sigma: float = 0.5,
    share: float = 1.0,
    const: float = 0.1,
    derivative: Derivative = "jvp",
    step: float = 5e-3,
) -> tuple[Tensor, Tensor]:
    """sCM's loss of each row [n], mean_D |F - sg(F) - sg(g / (rms(g) + const))|^2, and the tangent g [n, ...].

    v = student(x_t, t, 0); y [n, ...]: the velocity to move along, of the sample or of a teacher; share: how far the
    tangent has warmed up, in [0, 1]. derivative, step: see `along`."""
    point, direction = (x_t, t, torch.zeros_like(t)), (y, torch.ones_like(t), torch.zeros_like(t))
    v, dv = along(student, point, direction, cond, derivative, step)
    trig = Trig(t, x_t, sigma)
    f, s = trig.field(v), trig.s.to(x_t.dtype)
    g = tangent(f.detach(), trig.slope(v.detach(), y, dv), trig.x, sigma * trig.field(y), s, sigma, share)
    return l2(f, (f + unit_rms(g, const)).detach()), g


def warmed(step: int, warmup: int) -> float:
    """The share of the tangent's second half: from 0, in `warmup` steps, to 1."""
    return min(1.0, step / warmup) if warmup else 1.0
