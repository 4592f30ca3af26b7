"""sCM: consistency in continuous time, in TrigFlow (Lu & Song, ICLR 2025, arXiv 2410.11081; its
algorithm 1).

    x_s = cos(s) x + sin(s) sigma z,   s in [0, pi/2];    D(x_s, s) = cos(s) x_s - sin(s) sigma F(x_s/sigma, s)
    g = -cos^2(s) (sigma F - dx/ds) - k cos(s) sin(s) (x_s + sigma dF/ds),   k = min(1, step/warmup)
    loss = w / D | F - sg(F) - sg(g / (|g| + c)) |^2,  the norm in units of sqrt(D)

`training` (sCT) moves along dx/ds = cos(s) sigma z - sin(s) x, `distillation` (sCD) along the frozen teacher's guided
field. The network speaks of the straight path, so this file holds the map between the two, which loses nothing (as
SANA-Sprint's, arXiv 2503.09641, there with sigma = 1). Both are the same path up to a scale n(s):

    n = cos(s) + sigma sin(s),   t = sigma sin(s) / n,   x_t = x_s / n,   sigma F = n' x_t + sigma v / n

with v = v(x_t, t, 0) of the student and v(x_t, t, t) of the teacher. With it, at k = 1, g is -(1 - t) sigma/n times
[v - y + t dv/dt], MeanFlow's residual for r = 0. sCM's own are its times, its weight, and the normalised tangent.

The learned log-variance is left out: its optimum cancels any weight that depends on s alone, so w = 1 is its constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from twinbench.flow import Batch, Hop, expand, guided, mix
from twinbench.method import Draws, Method, Networks, Strict, Term, Terms, Turn
from twinbench.objectives.derivative import Derivative, along, unit_rms
from twinbench.objectives.levels import edm_level, logit_normal
from twinbench.objectives.losses import l2
from twinbench.randomness import Rng


@dataclass(frozen=True)
class SCMDraws(Draws):
    """t [n] straight-path times; z [n, ...] noise."""

    t: Tensor
    z: Tensor


class SCM(Method):
    class Config(Strict):
        form: Literal["training", "distillation"] = Field("training", description="sCT, or sCD with the frozen teacher")
        cfg_scale: float = Field(1.0, ge=1, description="guidance of the teacher's field (distillation)")
        times: tuple[float, float] = Field((-1.0, 1.4), description="mean and deviation of log sigma_t = logit t")
        sigma_data: float = Field(0.5, gt=0, description="deviation of the data, TrigFlow's unit")
        warmup: int = Field(10000, ge=0, description="steps in which the tangent's second half rises (k)")
        const: float = Field(0.1, gt=0, description="c of the tangent's normalisation")
        weighting: Literal["none", "prior"] = Field(
            "none", description="prior: 1/(sigma tan s), for a learned variance"
        )
        derivative: Derivative = Field("jvp", description="jvp: exact; difference: where attention or sharding forbids")
        step: float = Field(5e-3, gt=0, description="half width of the difference, in straight-path time")

        @model_validator(mode="after")
        def _only_a_teacher_guides(self) -> SCM.Config:
            if self.form == "training" and self.cfg_scale != 1:
                raise ValueError("cfg_scale guides the teacher's field; it needs form: distillation")
            return self

    config: Config
    hop: ClassVar[Hop] = "end"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"teacher"} if self.config.form == "distillation" else ())

    def draw(self, batch: Batch, rng: Rng, turn: Turn) -> SCMDraws:
        t = logit_normal(rng.uniform("t"), *self.config.times)
        return SCMDraws(rng.total, t.to(rng.time_dtype), rng.normal("z"))

    def loss(self, networks: Networks, batch: Batch, draws: Draws, turn: Turn) -> Terms:
        assert isinstance(draws, SCMDraws) and batch.x is not None
        c, t = self.config, draws.t
        x_t, y = mix(batch.x, draws.z, t), draws.z - batch.x
        if c.form == "distillation":
            assert networks.teacher is not None
            with torch.no_grad():
                y = guided(networks.teacher, batch.null, c.cfg_scale)(x_t, t, t, batch.cond).to(y.dtype)
        point, direction = (x_t, t, torch.zeros_like(t)), (y, torch.ones_like(t), torch.zeros_like(t))
        v, dv = along(networks.student, point, direction, batch.cond, c.derivative, c.step)
        trig = Trig(t, x_t, c.sigma_data)
        f, s = trig.field(v), trig.s.to(x_t.dtype)
        share = min(1.0, turn.step / c.warmup) if c.warmup else 1.0
        g = tangent(
            f.detach(), trig.slope(v.detach(), y, dv), trig.x, c.sigma_data * trig.field(y), s, c.sigma_data, share
        )
        w = 1 / edm_level(t).to(f.dtype) if c.weighting == "prior" else torch.ones_like(s)
        logs = {"tangent": g.square().mean().sqrt()}
        return Terms({"scm": Term(w * l2(f, (f + unit_rms(g, c.const)).detach()), draws.rows)}, logs)


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
