"""SANA-Sprint: sCM distillation with a latent adversarial term (Chen et al. 2025, arXiv 2503.09641; constants of its
trainer in diffusers, `train_sana_sprint_diffusers.py`).

    student   scm * sCM(x_t; the frozen teacher's guided field) + gan * mean(-D(x_r))
    head      mean (relu(1 - D(data_r)) + relu(1 + D(x_r))) / 2

sCM is that of `objectives.trigflow`. x_r = (1 - r) x_g + r eps, r logit-normal(-.6, 1), is the student's sample x_g =
x_t - t v(x_t, t, 0), noised again; its x_t is noised data, in half of the rows at the largest time, t = 1: pure noise,
so that one evaluation is judged too. data_r: data at the same r, with noise of their own. D reads the features of the
frozen teacher (LADD, Sauer et al. 2024, arXiv 2403.12015). Head and student take turns, one each, and the tangent warms
up with the student's steps.

The defaults are the trainer's numbers, for data of deviation 0.5. The trainer halves latents of deviation 1, and their
noise, and draws tan s = e^n / 0.5: on such latents it is `sigma_data: 1` and both means log 2 higher, `times: [0.893,
1.6]` and `head_times: [0.093, 1.0]`. Guidance is one scale here; there it is drawn of {4, 4.5, 5} and shown to the
network. Left out, too: the mismatched pairs of sample and prompt, an option there, and the learned log-variance (see
`scm`). That one also weighs sCM against the GAN: with it a row's gradient of sCM has length 2, here 2/sqrt(D).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from twinbench.flow import Batch, Hop, guided, jump, mix
from twinbench.method import Draws, Method, Networks, Strict, Term, Terms, Turn
from twinbench.objectives.adversarial import hinge_discriminator, hinge_generator
from twinbench.objectives.derivative import Derivative
from twinbench.objectives.levels import logit_normal
from twinbench.objectives.trigflow import scm, warmed
from twinbench.randomness import Rng


@dataclass(frozen=True)
class SprintDraws(Draws):
    """t_g [n], z_g [n, ...]: where the judged samples start; r [n], eps [n, ...]: how they are noised again. t [n],
    z [n, ...]: in the student's turn the point of sCM, in the head's r again and the noise of the data."""

    t_g: Tensor
    z_g: Tensor
    r: Tensor
    eps: Tensor
    t: Tensor
    z: Tensor


class SanaSprint(Method):
    class Config(Strict):
        cfg_scale: float = Field(1.0, ge=1, description="guidance of the teacher's field (SANA-Sprint: 4 to 5)")
        scm: float = Field(1.0, ge=0, description="weight of sCM")
        gan: float = Field(0.5, ge=0, description="weight of the adversarial term")
        times: tuple[float, float] = Field((0.2, 1.6), description="mean and deviation of logit t")
        head_times: tuple[float, float] = Field((-0.6, 1.0), description="the same of r, at which the head judges")
        largest: float = Field(0.5, ge=0, le=1, description="share of judged samples that start at t = 1")
        sigma_data: float = Field(0.5, gt=0, description="deviation of the data, TrigFlow's unit")
        warmup: int = Field(4000, ge=0, description="steps in which the tangent's second half rises")
        const: float = Field(0.1, gt=0, description="constant of the tangent's normalisation")
        derivative: Derivative = Field("jvp", description="jvp: exact; difference: where attention or sharding forbids")
        step: float = Field(5e-3, gt=0, description="half width of the difference, in straight-path time")
        head_rate: float = Field(1.0, gt=0, description="the head's learning rate, relative to the student's")
        taps: tuple[int, ...] | None = Field(None, description="blocks that the head reads; four, evenly spaced")

        @model_validator(mode="after")
        def _settings_have_an_effect(self) -> SanaSprint.Config:
            field = ("cfg_scale", "sigma_data", "warmup", "const", "derivative", "step")
            self.idle_unless(self.scm > 0, "scm above 0", *field)
            self.idle_unless(self.gan > 0, "gan above 0", "head_times", "largest", "head_rate", "taps")
            self.idle_unless(self.derivative == "difference", "derivative: difference", "step")
            return self

    config: Config
    hop: ClassVar[Hop] = "end"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"teacher", "head"})

    @property
    def taps(self) -> tuple[int, ...] | None:
        return self.config.taps

    def turns(self, step: int) -> Sequence[str]:
        return ("head", "student")

    def rate(self, turn: str) -> float:
        return self.config.head_rate if turn == "head" else 1.0

    def draw(self, batch: Batch, rng: Rng, turn: Turn) -> SprintDraws:
        c, dtype = self.config, rng.time_dtype
        t_g = logit_normal(rng.uniform("t_g"), *c.times)
        t_g = torch.where(rng.uniform("largest") < c.largest, torch.ones_like(t_g), t_g).to(dtype)
        r = logit_normal(rng.uniform("r"), *c.head_times).to(dtype)
        t = r if turn.name == "head" else logit_normal(rng.uniform("t"), *c.times).to(dtype)
        return SprintDraws(rng.total, t_g, rng.normal("z_g"), r, rng.normal("eps"), t, rng.normal("z"))

    def loss(self, networks: Networks, batch: Batch, draws: Draws, turn: Turn) -> Terms:
        assert isinstance(draws, SprintDraws) and batch.x is not None and networks.head is not None
        c, cond, t = self.config, batch.cond, draws.t
        x_t = mix(batch.x, draws.z, t)
        with torch.set_grad_enabled(turn.name == "student"):
            x_g = jump(networks.student, mix(batch.x, draws.z_g, draws.t_g), draws.t_g, cond)
        fake = networks.head(mix(x_g, draws.eps, draws.r), draws.r, cond)
        if turn.name == "head":
            real = networks.head(x_t, t, cond)
            logs = {"real": real.detach().mean(), "fake": fake.detach().mean()}
            return Terms({"gan": Term(hinge_discriminator(real, fake), draws.rows)}, logs)
        assert networks.teacher is not None
        with torch.no_grad():
            y = guided(networks.teacher, batch.null, c.cfg_scale)(x_t, t, t, cond).to(x_t.dtype)
        rows, g = scm(
            networks.student,
            x_t,
            y,
            t,
            cond,
            sigma=c.sigma_data,
            share=warmed(turn.step, c.warmup),
            const=c.const,
            derivative=c.derivative,
            step=c.step,
        )
        terms = {"scm": Term(c.scm * rows, draws.rows), "gan": Term(c.gan * hinge_generator(fake), draws.rows)}
        return Terms(terms, {"tangent": g.square().mean().sqrt()})
