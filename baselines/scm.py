"""sCM: consistency in continuous time, in TrigFlow (Lu & Song, ICLR 2025, arXiv 2410.11081; its
algorithm 1).

    x_s = cos(s) x + sin(s) sigma z,   s in [0, pi/2];    D(x_s, s) = cos(s) x_s - sin(s) sigma F(x_s/sigma, s)
    g = -cos^2(s) (sigma F - dx/ds) - k cos(s) sin(s) (x_s + sigma dF/ds),   k = min(1, step/warmup)
    loss = w / D | F - sg(F) - sg(g / (|g| + c)) |^2,  the norm in units of sqrt(D)

`training` (sCT) moves along dx/ds = cos(s) sigma z - sin(s) x, `distillation` (sCD) along the frozen teacher's guided
field. The network speaks of the straight path, v = v(x_t, t, 0) of the student and v(x_t, t, t) of the teacher; the map
between the two paths is `objectives.trigflow`. With it, at k = 1, g is -(1 - t) sigma/n times [v - y + t dv/dt],
MeanFlow's residual for r = 0. sCM's own are its times, its weight, and the normalised tangent.

The learned log-variance is left out: its optimum cancels any weight that depends on s alone, so w = 1 is its constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from twinbench.flow import Batch, Hop, guided, mix
from twinbench.method import Draws, Method, Networks, Strict, Term, Terms, Turn
from twinbench.objectives.derivative import Derivative
from twinbench.objectives.levels import edm_level, logit_normal
from twinbench.objectives.trigflow import scm, warmed
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
        def _settings_have_an_effect(self) -> SCM.Config:
            self.idle_unless(self.form == "distillation", "a teacher (form: distillation)", "cfg_scale")
            self.idle_unless(self.derivative == "difference", "derivative: difference", "step")
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
        share = warmed(turn.step, c.warmup)
        rows, g = scm(
            networks.student,
            x_t,
            y,
            t,
            batch.cond,
            sigma=c.sigma_data,
            share=share,
            const=c.const,
            derivative=c.derivative,
            step=c.step,
        )
        if c.weighting == "prior":
            rows = rows / edm_level(t).to(rows.dtype)
        return Terms({"scm": Term(rows, draws.rows)}, {"tangent": g.square().mean().sqrt()})
