"""SiD: score identity distillation (Zhou et al., arXiv 2404.04057; constants of its `training/sid_loss.py`).

The Fisher divergence between the student's and the real noised distributions, rewritten by score identities. With R the
real field's and K the fake field's estimate of the clean sample from y = x_g + sigma n, x_g the student's sample:

    student   sum_D (R - K) ((R - x_g) - alpha (R - K)) / sg(mean_D |x_g - R|),   the gradient flows through R and K
    critic    (1/sigma^2 + 1/sigma_d^2) sum_D (K - x_g)^2,   EDM's denoising loss on the student's own samples

alpha is how much of (R - K)^2 is taken off. Both parts miss how an exact K moves with the distribution of the samples;
at alpha = 1/2, without the weight, what they miss cancels, and the gradient is half of the divergence's. The authors
take 1 and 1.2. Both losses are means over D here (the original sums: a constant that Adam does not see). The student
makes its samples from noise at t = 1.

EDM's noise level sigma meets the straight path at t = sigma / (1 + sigma): x_t = (1 - t) y, R = x_t - t v(x_t, t, t),
and K - x_g = t (eps - x_g - v), so the critic's loss is (1 + (sigma/sigma_d)^2) / (1 + sigma)^2 times flow matching's.
Student turn: sigma on EDM's grid (rho) up to the level number `tmax`; critic turn: log-normal. Every turn draws its own
numbers; the prompts are the batch's in all turns of a step.

By default R is the frozen teacher's and K a network's of its own; `matching` has the other choices. The gradient
through the student's own fields (`real: self`, `fake: shared`) moves its samples, not these fields; a shared one is
fitted in a second call, at the levels of the student's turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from twinbench.flow import Batch, Hop, expand, inputs_only, jump, mix, split
from twinbench.method import Draws, Networks, Term, Terms, Turn
from twinbench.methods.matching import Matching
from twinbench.objectives.losses import l2
from twinbench.randomness import Rng


@dataclass(frozen=True)
class ScoreDraws(Draws):
    """z [n, ...] generates; sigma [n], eps [n, ...]: EDM's noise level and the noise added to the samples; drop [n]:
    rows whose flow matching sees the empty condition."""

    z: Tensor
    sigma: Tensor
    eps: Tensor
    drop: Tensor | None = None


class SiD(Matching):
    class Config(Matching.Config):
        alpha: float = Field(1.2, ge=0, description="share of (R - K)^2 that is taken off (SiD: 1 and 1.2)")
        critic_steps: int = Field(1, ge=1, description="turns of the critic, if there is one, to one of the student")
        tmax: float = Field(0.8, gt=0, le=1, description="share of the noise grid that the student's turn uses")
        sigma_range: tuple[float, float] = Field((0.002, 80.0), description="ends of EDM's grid")
        rho: float = Field(7.0, gt=0, description="its curvature")
        sigma_data: float = Field(0.5, gt=0, description="standard deviation of the data, in the critic's weight")
        p_mean: float = Field(-1.2, description="critic turn: mean of log sigma")
        p_std: float = Field(1.2, gt=0, description="critic turn: standard deviation of log sigma")
        floor: float = Field(1e-5, gt=0, description="smallest mean |x_g - R|")

        @model_validator(mode="after")
        def _the_critic_has_turns(self) -> SiD.Config:
            self.idle_unless(self.fake != "shared", "a critic's turns (fake: critic or lora)", "p_mean", "p_std")
            return self

    config: Config
    hop: ClassVar[Hop] = "end"

    def draw(self, batch: Batch, rng: Rng, turn: Turn) -> ScoreDraws:
        c, u = self.config, rng.uniform("u")
        if turn.name == "critic":
            sigma = (c.p_mean + c.p_std * torch.special.ndtri(u)).exp()
        else:
            sigma = grid(u * c.tmax, c.sigma_range, c.rho)
        drop = self.dropped_rows(rng, turn)
        return ScoreDraws(rng.total, rng.normal("z"), sigma.to(rng.time_dtype), rng.normal("eps"), drop)

    def loss(self, networks: Networks, batch: Batch, draws: Draws, turn: Turn) -> Terms:
        assert isinstance(draws, ScoreDraws)
        c, cond, t = self.config, batch.cond, draws.sigma / (1 + draws.sigma)
        with torch.set_grad_enabled(turn.name == "student"):
            x_g = jump(networks.student, draws.z, torch.ones_like(t), cond)
        if turn.name == "critic":
            return Terms({"fake": self._fit(networks, batch, draws, x_g)})
        terms = self.hold(networks, batch, draws, t)
        if c.fake == "shared":
            terms["fake"] = self._fit(networks, batch, draws, x_g.detach())
        x_t = mix(x_g, draws.eps, t)
        with inputs_only(networks.student):
            v_fake, v_real = self.fake(networks)(x_t, t, cond), self.real(networks, batch.null)(x_t, t, cond)
        real, fake = split(x_t, v_real, t)[0], split(x_t, v_fake, t)[0]
        terms["fisher"] = Term(fisher(x_g, real, fake, c.alpha, c.floor).flatten(1).mean(1), draws.rows)
        return Terms(terms, {"direction": (real - fake).detach().square().mean().sqrt()})

    def _fit(self, networks: Networks, batch: Batch, draws: ScoreDraws, x: Tensor) -> Term:
        """EDM's denoising loss of the fake field on own samples x [n, ...]."""
        sigma = draws.sigma
        t = sigma / (1 + sigma)
        v = self.fake(networks)(mix(x, draws.eps, t), t, batch.cond)
        weight = ((1 + (sigma / self.config.sigma_data) ** 2) / (1 + sigma) ** 2).to(v.dtype)
        return Term(weight * l2(v, draws.eps - x), draws.rows)


def grid(u: Tensor, ends: tuple[float, float], rho: float) -> Tensor:
    """EDM's noise levels: from the lower end at u = 0 to the upper at u = 1, straight in sigma^(1/rho)."""
    low, high = (end ** (1 / rho) for end in ends)
    return (low + u * (high - low)) ** rho


def fisher(x: Tensor, real: Tensor, fake: Tensor, alpha: float, floor: float = 1e-5) -> Tensor:
    """SiD's loss of every number of own samples x, from the two estimates of them; all [n, ...]."""
    weight = (x - real).detach().abs().flatten(1).mean(1).clamp(min=floor)
    return (real - fake) * ((real - x) - alpha * (real - fake)) / expand(weight, x)
