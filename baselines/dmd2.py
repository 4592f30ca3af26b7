"""DMD2: distribution matching with a GAN term and two time scales (Yin et al., NeurIPS 2024, arXiv 2405.14867).

DMD's student and critic (`matching.ReverseKL`), and a head D that tells the student's noised samples from noised data,
x_t = (1 - t) x + t eps, by the features of the frozen teacher at (x_t, t, t):

    student   DMD's + gan softplus(-D(x_t)),                at the point where the fields are compared
    head      softplus(-D(data)) + softplus(D(samples)) + r1 |D(data) - D(data + r1_noise n)|^2

Constants: gan 5e-3 (DMD2, SDXL; against DMD's mean over D numbers, so it belongs to samples of 65,536), .03 (FastGen,
Qwen-Image). DMD2's 1e-2 on the head's loss stands against the critic's in one optimizer; here the head has its own,
which does not see a factor. Its time is drawn as the critic's is, data and samples apart (FastGen's default; DMD2 draws
it of all times). The head reads the frozen teacher, as FastGen's and LADD's do, so that it asks nothing of the critic;
DMD2's reads the critic's bottleneck and trains it. r1: the gradient penalty by a small step (Lin et al. 2025,
arXiv 2501.08316), off in both.

In a step the critic and the head take turns, `critic_steps` each, and then the student moves once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from twinbench.errors import UserError
from twinbench.flow import Batch, Hop, mix
from twinbench.method import Draws, Networks, Term, Terms, Turn
from twinbench.methods.matching import MatchDraws, ReverseKL
from twinbench.objectives.adversarial import softplus_discriminator, softplus_generator
from twinbench.objectives.losses import l2
from twinbench.randomness import Rng


@dataclass(frozen=True)
class HeadDraws(MatchDraws):
    """t_data [n], eps_data [n, ...]: times and noise of the data, in the head's turn; n [n, ...]: R1's small step."""

    t_data: Tensor | None = None
    eps_data: Tensor | None = None
    n: Tensor | None = None


class DMD2(ReverseKL):
    class Config(ReverseKL.Config):
        gan: float = Field(5e-3, ge=0, description="weight of the student's GAN term (FastGen: .03)")
        head_rate: float = Field(1.0, gt=0, description="the head's learning rate, relative to the student's")
        r1: float = Field(0.0, ge=0, description="weight of the head's gradient penalty")
        r1_noise: float = Field(0.1, gt=0, description="size of its step")
        taps: tuple[int, ...] | None = Field(None, description="blocks that the head reads; four, evenly spaced")

        @model_validator(mode="after")
        def _the_head_is_heard(self) -> DMD2.Config:
            self.idle_unless(self.gan > 0, "gan above 0", "head_rate", "r1", "taps")
            self.idle_unless(self.r1 > 0, "r1 above 0", "r1_noise")
            return self

    config: Config
    hop: ClassVar[Hop] = "end"

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"head"}

    @property
    def taps(self) -> tuple[int, ...] | None:
        return self.config.taps

    def turns(self, step: int) -> Sequence[str]:
        others = ("critic", "head") if "critic" in self.needs else ("head",)
        return (*others * self.config.critic_steps, "student")

    def rate(self, turn: str) -> float:
        return self.config.head_rate if turn == "head" else super().rate(turn)

    def draw(self, batch: Batch, rng: Rng, turn: Turn) -> HeadDraws:
        draws = vars(super().draw(batch, rng, turn))
        if turn.name != "head":
            return HeadDraws(**draws)
        n = rng.normal("n") if self.config.r1 else None
        return HeadDraws(**draws, t_data=self.between(rng, "t_data"), eps_data=rng.normal("eps_data"), n=n)

    def loss(self, networks: Networks, batch: Batch, draws: Draws, turn: Turn) -> Terms:
        assert isinstance(draws, HeadDraws) and networks.head is not None
        if turn.name == "critic":
            return self.fit(networks, batch, draws)
        if turn.name == "head":
            return self._head(networks, batch, draws)
        x_g = self.samples(networks, batch, draws)
        terms = self.match(networks, batch, draws, x_g)
        logits = networks.head(mix(x_g, draws.eps, draws.t), draws.t, batch.cond)
        gan = Term(self.config.gan * softplus_generator(logits), draws.rows)
        return Terms({**terms.losses, "gan": gan}, terms.logs)

    def _head(self, networks: Networks, batch: Batch, draws: HeadDraws) -> Terms:
        assert networks.head is not None and draws.t_data is not None and draws.eps_data is not None
        if batch.x is None:
            raise UserError("this batch has prompts only; the GAN head needs data: use dmd, or give some")
        with torch.no_grad():
            x_t = mix(self.samples(networks, batch, draws), draws.eps, draws.t)
        data = mix(batch.x, draws.eps_data, draws.t_data)
        fake, real = networks.head(x_t, draws.t, batch.cond), networks.head(data, draws.t_data, batch.cond)
        terms = {"gan": Term(softplus_discriminator(real, fake), draws.rows)}
        if draws.n is not None:
            beside = networks.head(data + self.config.r1_noise * draws.n, draws.t_data, batch.cond)
            terms["r1"] = Term(self.config.r1 * l2(real, beside), draws.rows)
        return Terms(terms, {"real": real.detach().mean(), "fake": fake.detach().mean()})
