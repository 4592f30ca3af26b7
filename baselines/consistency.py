"""Consistency models in discrete time: neighbouring points of a path have the same end (Song et al., ICML 2023, arXiv
2303.01469; schedule, weights and tuning from a pretrained net: ECT, Geng et al., ICLR 2025, arXiv 2406.14548).

    D(x_t, t) = x_t - t v(x_t, t, 0);    loss = w(t, r) | D(x_t, t) - sg D'(x_r, r) |,   r < t,   D(x, 0) = x

`training` takes x_r on the same line, x_r = (1 - r) x + r z. `distillation` takes it from one Euler step of the frozen
teacher, x_r = x_t - (t - r) v_teacher(x_t, t, t), guided by `cfg_scale`. D' is the student itself (ECT) or its average.

How near r is to t decides between bias and variance. CM and LCM walk a uniform grid, r = t - 1/N, and N = 8 hops to the
data suit a short training from a pretrained net (the default). ECT's constant rule in flow time is `ratio`,
r = t (1 - 1/N): the same step at the noise, but many more hops to the data, each with its own error. Its other rule is
one of EDM levels (`edm`), whose sampler starts at sigma = 80; ours starts at t = 1, an infinite level, near which that
rule's steps vanish. With it weights, too, are of the levels, 1/(sigma_t - sigma_r), and `log_level: [-1.1, 2.0]` draws
them as ECT does. ECT doubles N in the course of training (`doublings`). The distance is ECT's: not squared, c = 0;
iCT's pseudo-Huber is `huber`, LCM's, which takes each number alone, `huber_of: element`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from twinbench.flow import Batch, Cond, Hop, Velocity, expand, guided, jump, mix, take
from twinbench.method import Draws, Method, Networks, Strict, Term, Terms, Turn
from twinbench.objectives.levels import edm_level, flow_time, logit_normal
from twinbench.randomness import Rng

LARGEST = 80.0  # EDM level at which its samplers start
TINY = 1e-6  # the smallest time that is drawn
Weighting = Literal["none", "step", "root_step", "noise", "snr", "root_snr"]


@dataclass(frozen=True)
class ConsistencyDraws(Draws):
    """t > r [n] neighbouring times; z [n, ...] noise."""

    t: Tensor
    r: Tensor
    z: Tensor


class Consistency(Method):
    class Config(Strict):
        form: Literal["training", "distillation"] = Field("training", description="x_r from data, or from the teacher")
        target: Literal["self", "average"] = Field("self", description="the network that gives targets")
        cfg_scale: float = Field(1.0, ge=1, description="guidance of the teacher's step (distillation)")
        steps: int = Field(8, ge=1, description="N: a neighbour is about 1/N nearer to the data")
        doublings: int = Field(0, ge=0, description="times that N doubles, in equal shares of the budget")
        spacing: Literal["uniform", "ratio", "edm"] = Field("uniform", description="how r follows from t")
        times: tuple[float, float] = Field((1.0, 1.0), description="t ~ Beta(a, b); a > 1 trains more near noise")
        log_level: tuple[float, float] | None = Field(
            None, description="mean and deviation of log t/(1 - t), normal (ECT: -1.1, 2.0); null: Beta, by `times`"
        )
        squared: bool = Field(False, description="square the distance")
        huber: float = Field(0.0, ge=0, description="margin c of the pseudo-Huber distance sqrt(s + c^2) - c")
        huber_of: Literal["element"] | None = Field(
            None, description="element: the mean over the row's numbers of its distances (LCM); null: of the whole row"
        )
        weighting: Weighting = Field(
            "step",
            description="step: 1/(t - r); noise: 1/t^2; snr: 1/t^2 + 1/sigma_data^2; root_step, root_snr: their roots",
        )
        sigma_data: float = Field(0.5, gt=0, description="deviation of the data, for the weightings snr")

        @model_validator(mode="after")
        def _settings_have_an_effect(self) -> Consistency.Config:
            self.idle_unless(self.form == "distillation", "a teacher (form: distillation)", "cfg_scale")
            if self.squared and self.huber:
                raise ValueError("huber is the margin of a distance that is not squared; set squared: false")
            self.idle_unless(self.huber > 0, "huber above 0", "huber_of")
            self.idle_unless(self.weighting in ("snr", "root_snr"), "weighting: snr", "sigma_data")
            self.idle_unless(self.log_level is None, "Beta times (log_level: null)", "times")
            return self

    config: Config
    hop: ClassVar[Hop] = "end"

    @property
    def needs(self) -> frozenset[str]:
        teacher = {"teacher"} if self.config.form == "distillation" else set()
        return frozenset(teacher | ({"target"} if self.config.target == "average" else set()))

    def draw(self, batch: Batch, rng: Rng, turn: Turn) -> ConsistencyDraws:
        c = self.config
        if c.log_level:
            t = logit_normal(rng.uniform("t"), *c.log_level).clamp(min=TINY)
        else:
            t = 1 - rng.beta("t", c.times[1], c.times[0])  # never 0
        stage = min(int(turn.progress * (c.doublings + 1)), c.doublings)
        r = neighbour(t, c.steps * 2**stage, c.spacing)
        return ConsistencyDraws(rng.total, t.to(rng.time_dtype), r.to(rng.time_dtype), rng.normal("z"))

    def loss(self, networks: Networks, batch: Batch, draws: Draws, turn: Turn) -> Terms:
        assert isinstance(draws, ConsistencyDraws) and batch.x is not None
        c, t, r = self.config, draws.t, draws.r
        x_t = mix(batch.x, draws.z, t)
        if c.form == "training":
            x_r = mix(batch.x, draws.z, r)
        else:
            assert networks.teacher is not None
            x_r = euler(guided(networks.teacher, batch.null, c.cfg_scale), x_t, t, r, batch.cond)
        net = networks.student if c.target == "self" else networks.target
        assert net is not None
        target = end(net, x_r, r, batch.cond)
        here = jump(networks.student, x_t, t, batch.cond)
        far = elementwise_huber(here, target, c.huber) if c.huber_of else distance(here, target, c.huber, c.squared)
        times = (edm_level(t).clamp(max=LARGEST), edm_level(r)) if c.spacing == "edm" else (t, r)
        rows = far * weight(*times, c.weighting, c.sigma_data).to(here.dtype)
        return Terms(
            {"consistency": Term(rows, draws.rows)}, {"moved": (here - target).detach().square().mean().sqrt()}
        )


@torch.no_grad()
def euler(v: Velocity, x_t: Tensor, t: Tensor, r: Tensor, cond: Cond) -> Tensor:
    """x_r from x_t by one step along the instantaneous velocity."""
    return x_t - expand(t - r, x_t).to(x_t.dtype) * v(x_t, t, t, cond)


@torch.no_grad()
def end(net: Velocity, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """D(x, t), the network's end of the path through x at t; x itself where t = 0."""
    rows = t > 0
    if not rows.any():
        return x
    return x.index_put((rows,), jump(net, x[rows], t[rows], take(cond, rows)).to(x.dtype))


def neighbour(t: Tensor, steps: int, spacing: str) -> Tensor:
    """r of each t [n], in flow time: 1/steps of the way to 0 (ratio), 1/steps (uniform), or ECT's rule (edm)."""
    if spacing == "ratio":
        return t * (1 - 1 / steps)
    if spacing == "uniform":
        return (t - 1 / steps).clamp(min=0)
    return flow_time(ect_neighbour(edm_level(t).clamp(max=LARGEST), 1 - 1 / steps))


def ect_neighbour(sigma: Tensor, ratio: float, k: float = 8.0) -> Tensor:
    """ECT's level next to sigma: a share (1 - ratio)(1 + k sigmoid(-sigma)) nearer to the data, and at least 0."""
    return sigma * (1 - (1 - ratio) * (1 + k * torch.sigmoid(-sigma))).clamp(min=0)


def distance(pred: Tensor, target: Tensor, huber: float = 0.0, squared: bool = False) -> Tensor:
    """sqrt(s + c^2) - c of the summed square error s of each row; or s itself. [n, ...] -> [n]."""
    s = (pred - target).square().flatten(1).sum(1)
    if squared:
        return s
    if huber:
        return (s + huber**2).sqrt() - huber
    here = s > 0  # the root has no slope at 0
    return torch.where(here, s.where(here, torch.ones_like(s)).sqrt(), torch.zeros_like(s))


def elementwise_huber(pred: Tensor, target: Tensor, c: float) -> Tensor:
    """The mean of sqrt(d^2 + c^2) - c over the numbers d of each row's difference. [n, ...] -> [n].

    Source: LCM (Luo et al., arXiv 2310.04378) as in diffusers' `train_lcm_distill_*.py`, there with c = 0.001."""
    return (((pred - target).square() + c**2).sqrt() - c).flatten(1).mean(1)


def weight(t: Tensor, r: Tensor, how: Weighting, sigma_data: float = 0.5) -> Tensor:
    """The weight of each row by its times [n], flow times or EDM levels. On the straight path D(x_t) moves by
    t times what v moves, so `noise` with the squared distance is the square error of the velocity."""
    if how == "none":
        return torch.ones_like(t)
    if how.startswith("root_"):
        return weight(t, r, "step" if how == "root_step" else "snr", sigma_data).sqrt()
    if how == "step":
        return 1 / (t - r)
    return 1 / t**2 + (1 / sigma_data**2 if how == "snr" else 0.0)
