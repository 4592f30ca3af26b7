"""SiD: score identity distillation (Zhou et al., arXiv 2404.04057; constants of its `training/sid_loss.py`).

The Fisher divergence between the student's and the teacher's noised distributions, rewritten by score identities. With
R the teacher's and K the critic's estimate of the clean sample from y = x_g + sigma n, x_g the student's sample:

    student   sum_D (R - K) ((R - x_g) - alpha (R - K)) / sg(mean_D |x_g - R|),   the gradient flows through R and K
    critic    (1/sigma^2 + 1/sigma_d^2) sum_D (K - x_g)^2,   EDM's denoising loss on the student's own samples

alpha = 1 is the identity in expectation; 1.2 also subtracts part of a biased square. Both losses are means over D here
(the original sums: a constant that Adam does not see). The student makes its samples from noise at t = 1.

EDM's noise level sigma meets the straight path at t = sigma / (1 + sigma): x_t = (1 - t) y, R = x_t - t v(x_t, t, t),
and K - x_g = t (eps - x_g - v), so the critic's loss is (1 + (sigma/sigma_d)^2) / (1 + sigma)^2 times flow matching's.
Student turn: sigma on EDM's grid (rho) up to the level number `tmax`; critic turn: log-normal. Every turn draws its own
numbers; the prompts are the batch's in all turns of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from twinbench.flow import Batch, Hop, Velocity, expand, guided, mix, split, times_like
from twinbench.method import Draws, Method, Networks, Strict, Term, Terms, Turn
from twinbench.objectives.losses import l2
from twinbench.randomness import Rng


@dataclass(frozen=True)
class ScoreDraws(Draws):
    """z [n, ...] generates; sigma [n], eps [n, ...]: EDM's noise level and the noise added to the samples."""

    z: Tensor
    sigma: Tensor
    eps: Tensor


class SiD(Method):
    class Config(Strict):
        alpha: float = Field(1.2, ge=0, description="1: the score identity; beyond: a biased, stronger pull")
        cfg_scale: float = Field(1.0, ge=1, description="guidance of the teacher")
        critic_steps: int = Field(1, ge=1, description="critic turns to one of the student")
        critic_rate: float = Field(1.0, gt=0, description="the critic's learning rate, relative to the student's")
        tmax: float = Field(0.8, gt=0, le=1, description="share of the noise grid that the student's turn uses")
        sigma_range: tuple[float, float] = Field((0.002, 80.0), description="ends of EDM's grid")
        rho: float = Field(7.0, gt=0, description="its curvature")
        sigma_data: float = Field(0.5, gt=0, description="standard deviation of the data, in the critic's weight")
        p_mean: float = Field(-1.2, description="critic turn: mean of log sigma")
        p_std: float = Field(1.2, gt=0, description="critic turn: standard deviation of log sigma")
        floor: float = Field(1e-5, gt=0, description="smallest mean |x_g - R|")

    config: Config
    hop: ClassVar[Hop] = "end"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"teacher", "critic"})

    def turns(self, step: int) -> Sequence[str]:
        return (*["critic"] * self.config.critic_steps, "student")

    def rate(self, turn: str) -> float:
        return self.config.critic_rate if turn == "critic" else 1.0

    def draw(self, batch: Batch, rng: Rng, turn: Turn) -> ScoreDraws:
        c, u = self.config, rng.uniform("u")
        if turn.name == "critic":
            sigma = (c.p_mean + c.p_std * torch.special.ndtri(u)).exp()
        else:
            sigma = grid(u * c.tmax, c.sigma_range, c.rho)
        return ScoreDraws(rng.total, rng.normal("z"), sigma.to(rng.time_dtype), rng.normal("eps"))

    def loss(self, networks: Networks, batch: Batch, draws: Draws, turn: Turn) -> Terms:
        assert isinstance(draws, ScoreDraws) and networks.teacher is not None and networks.critic is not None
        c, cond, sigma = self.config, batch.cond, draws.sigma
        t = sigma / (1 + sigma)
        with torch.set_grad_enabled(turn.name == "student"):
            x_g = generate(networks.student, draws.z, batch)
        x_t = mix(x_g, draws.eps, t)
        v_fake = networks.critic(x_t, t, t, cond)
        if turn.name == "critic":
            weight = ((1 + (sigma / c.sigma_data) ** 2) / (1 + sigma) ** 2).to(v_fake.dtype)
            return Terms({"fake": Term(weight * l2(v_fake, draws.eps - x_g), draws.rows)})
        teacher = guided(networks.teacher, batch.null, c.cfg_scale)
        real, fake = split(x_t, teacher(x_t, t, t, cond), t)[0], split(x_t, v_fake, t)[0]
        rows = fisher(x_g, real, fake, c.alpha, c.floor).flatten(1).mean(1)
        return Terms({"fisher": Term(rows, draws.rows)}, {"direction": (real - fake).detach().square().mean().sqrt()})


def generate(student: Velocity, z: Tensor, batch: Batch) -> Tensor:
    """Samples of one evaluation, with their gradient: z - v(z, 1, 0)."""
    ones = torch.ones(len(z), dtype=times_like(z), device=z.device)
    return z - student(z, ones, torch.zeros_like(ones), batch.cond)


def grid(u: Tensor, ends: tuple[float, float], rho: float) -> Tensor:
    """EDM's noise levels: from the lower end at u = 0 to the upper at u = 1, straight in sigma^(1/rho)."""
    low, high = (end ** (1 / rho) for end in ends)
    return (low + u * (high - low)) ** rho


def fisher(x: Tensor, real: Tensor, fake: Tensor, alpha: float, floor: float = 1e-5) -> Tensor:
    """SiD's loss of every number of own samples x, from the two estimates of them; all [n, ...]."""
    weight = (x - real).detach().abs().flatten(1).mean(1).clamp(min=floor)
    return (real - fake) * ((real - x) - alpha * (real - fake)) / expand(weight, x)
