"""MeanFlow: the mean velocity from its own derivative (Geng et al., NeurIPS 2025, arXiv 2505.13447).

Along a path x' = v the mean velocity u from t to r obeys  u = v - (t - r) du/dt  (eq. 6), du/dt its total derivative
along (dx, dt, dr) = (v, 1, 0). So the network is asked to equal the right side, held constant (eq. 9-10):

    target = sg( y - (t - r) du/dt ),   y = z - x, guided if asked for;   loss = s / sg(s + c)^p,  s = |u - target|^2

Most rows have r = t: there it is flow matching, and no derivative is taken. Guidance in training (eq. 19 and appendix):

    y <- omega y + (1 - omega - kappa) u(x_t, t, t, null) + kappa u(x_t, t, t, cond)

whose fixed point is guidance of scale omega / (1 - kappa); that scale is `cfg_scale`, and omega follows from it.
Constants: the paper's ImageNet settings. `normalise: gradient` is NVlabs/FastGen's `opt_grad`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from twinbench.flow import Batch, Cond, Hop, Velocity, dropped, expand, mix, take
from twinbench.method import Draws, Method, Networks, Strict, Term, Terms, Turn
from twinbench.objectives.derivative import Derivative, along
from twinbench.objectives.levels import logit_normal
from twinbench.objectives.times import split_roles
from twinbench.randomness import Rng


@dataclass(frozen=True)
class MeanFlowDraws(Draws):
    """t >= r [n]; z [n, ...] noise; drop [n]: rows that see the empty condition."""

    t: Tensor
    r: Tensor
    z: Tensor
    drop: Tensor


class MeanFlow(Method):
    class Config(Strict):
        instant: float = Field(0.75, ge=0, le=1, description="share of rows with r = t, which are flow matching")
        times: tuple[float, float] = Field((-0.4, 1.0), description="mean and deviation of logit t and logit r")
        cfg_scale: float = Field(1.0, ge=1, description="guidance distilled into the student, omega / (1 - kappa)")
        kappa: float = Field(0.0, ge=0, lt=1, description="share of the guidance taken from the network's own velocity")
        guidance_interval: tuple[float, float] = Field((0.0, 1.0), description="guided where lo <= t <= hi")
        drop: float = Field(0.1, ge=0, le=1, description="share of conditions replaced by the empty one, for guidance")
        normalise: Literal["loss", "gradient"] = Field("loss", description="what the adaptive weight divides")
        power: float = Field(1.0, ge=0, description="p of the adaptive weight; 0 is the plain square error")
        const: float = Field(0.01, gt=0, description="c of the adaptive weight")
        warmup: int = Field(0, ge=0, description="steps in which the derivative's share rises to 1")
        derivative: Derivative = Field("jvp", description="jvp: exact; difference: where attention or sharding forbids")
        step: float = Field(5e-3, gt=0, description="half width of the difference, in time")

        @model_validator(mode="after")
        def _settings_have_an_effect(self) -> MeanFlow.Config:
            self.idle_unless(self.cfg_scale != 1, "guidance (cfg_scale above 1)", "kappa", "guidance_interval")
            self.idle_unless(self.power > 0, "power above 0", "const")
            self.idle_unless(self.instant < 1, "rows with r < t (instant below 1)", "warmup", "derivative", "step")
            self.idle_unless(self.derivative == "difference", "derivative: difference", "step")
            return self

    config: Config
    hop: ClassVar[Hop] = "next"

    def draw(self, batch: Batch, rng: Rng, turn: Turn) -> MeanFlowDraws:
        c = self.config
        dealt = rng.deal(split_roles({"apart": 1 - c.instant, "instant": c.instant}, rng.total))
        one, other = (logit_normal(rng.uniform(name), *c.times).to(rng.time_dtype) for name in ("t", "r"))
        t, r = torch.maximum(one, other), torch.minimum(one, other)
        r = torch.where(dealt == 1, t, r)
        return MeanFlowDraws(rng.total, t, r, rng.normal("z"), rng.uniform("drop") < c.drop)

    def loss(self, networks: Networks, batch: Batch, draws: Draws, turn: Turn) -> Terms:
        assert isinstance(draws, MeanFlowDraws) and batch.x is not None
        c, t, r = self.config, draws.t, draws.r
        x_t = mix(batch.x, draws.z, t)
        y = self._guide(networks.student, x_t, draws.z - batch.x, draws, batch)
        cond = dropped(batch.cond, batch.null, draws.drop)
        u, du = self._velocity(networks.student, x_t, t, r, y, cond)
        target = mean_target(y, du, t, r, min(1.0, turn.step / c.warmup) if c.warmup else 1.0)
        rows = (adaptive_loss if c.normalise == "loss" else adaptive_gradient)(u, target, c.power, c.const)
        error = (u - target).detach().square().flatten(1).mean(1)
        logs = {name: error[part].mean() for name, part in (("instant", r == t), ("apart", r < t)) if part.any()}
        return Terms({"meanflow": Term(rows, draws.rows)}, logs)

    @torch.no_grad()
    def _guide(self, net: Velocity, x_t: Tensor, y: Tensor, draws: MeanFlowDraws, batch: Batch) -> Tensor:
        """y guided by the network's own velocities, on rows that keep their condition and lie in the interval."""
        c, (lo, hi) = self.config, self.config.guidance_interval
        rows = ~draws.drop & (draws.t >= lo) & (draws.t <= hi)
        if c.cfg_scale == 1 or not rows.any():
            return y
        x, t, omega = x_t[rows], draws.t[rows], c.cfg_scale * (1 - c.kappa)
        better = omega * y[rows] + (1 - omega - c.kappa) * net(x, t, t, take(batch.null, rows))
        if c.kappa:
            better = better + c.kappa * net(x, t, t, take(batch.cond, rows))
        return y.index_put((rows,), better.to(y.dtype))

    def _velocity(
        self, net: Velocity, x_t: Tensor, t: Tensor, r: Tensor, y: Tensor, cond: Cond
    ) -> tuple[Tensor, Tensor]:
        """u(x_t, t, r), and its derivative along (y, 1, 0) where r < t: at r = t it is multiplied by 0."""
        apart, u, du = r < t, torch.zeros_like(y), torch.zeros_like(y)
        if apart.any():
            point, ones = (x_t[apart], t[apart], r[apart]), torch.ones_like(t[apart])
            direction = (y[apart], ones, torch.zeros_like(ones))
            out, slope = along(net, point, direction, take(cond, apart), self.config.derivative, self.config.step)
            u, du = u.index_put((apart,), out.to(u.dtype)), du.index_put((apart,), slope.to(u.dtype))
        if not (here := ~apart).any():
            return u, du
        out = net(x_t[here], t[here], r[here], take(cond, here))
        return u.index_put((here,), out.to(u.dtype)), du


def mean_target(y: Tensor, du: Tensor, t: Tensor, r: Tensor, share: float = 1.0) -> Tensor:
    """y - share (t - r) du/dt, a constant. y, du [n, ...]; t, r [n]."""
    return (y - share * expand(t - r, y).to(y.dtype) * du).detach()


def adaptive_loss(u: Tensor, target: Tensor, power: float, const: float) -> Tensor:
    """s / sg(s + c)^p, s the square error of each row, summed. u, target [n, ...] -> [n]."""
    s = (u - target).square().flatten(1).sum(1)
    return s / (s.detach() + const) ** power


def adaptive_gradient(u: Tensor, target: Tensor, power: float, const: float) -> Tensor:
    """|u - sg(u + g / (|g| + c)^p)|^2, g = (target - u) / sqrt(D): a step of bounded length. -> [n]."""
    g = (target - u).detach().flatten(1)
    g = g / g.shape[1] ** 0.5
    g = g / (g.norm(dim=1, keepdim=True) + const) ** power
    u = u.flatten(1)
    return (u - (u + g).detach()).square().sum(1)
