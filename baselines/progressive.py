"""Progressive distillation: one step of the student is two of its teacher (Salimans & Ho, ICLR 2022, arXiv 2202.00512;
guidance distilled in the first phase: Meng et al., CVPR 2023, arXiv 2210.03142).

    v(x_t, t, t - 2d) -> sg( (x_t - x_{t-2d}) / 2d ),   x_{t-2d} the teacher's, in two steps of d;   t a multiple of 2d

A DDIM step is Euler's on the straight path, so the target is the mean of the teacher's two velocities. In the first
phase the teacher is the frozen multi-step network, v(x, t, t), guided; 1/(2d) = `steps`. Every later phase halves the
steps, in an equal share of the budget, and its teacher is the student's average as the last phase left it, asked for
the step that it has learned, v(x, t, t - d): guidance is in it. The student is told its step by r, so one network
serves all phases; it goes on from where it stands, with its optimizer. Sampled in 1/(2d) uniform steps it is best at
the last phase's one step: of the longer schedules it keeps what later phases do not overwrite.

weighting `truncated` is the paper's max(SNR, 1) on the clean estimate x_t - t v, as a weight of the velocity's error.
`anneal: phase` is its learning rate, which falls to 0 in every phase: the recipe's `decay` is then a share of each
phase, all of it in the paper. Else it is one of the budget, and the last phases have the smallest rates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from twinbench.flow import Batch, Hop, Velocity, guided, mix
from twinbench.method import Draws, Method, Networks, Strict, Term, Terms, Turn
from twinbench.objectives.losses import l2
from twinbench.objectives.targets import two_steps
from twinbench.randomness import Rng
from twinbench.settings import PowerOfTwo


@dataclass(frozen=True)
class ProgressiveDraws(Draws):
    """t, r [n], t - r the phase's step; z [n, ...] noise."""

    t: Tensor
    r: Tensor
    z: Tensor


class Progressive(Method):
    class Config(Strict):
        steps: PowerOfTwo = Field(16, ge=1, description="the student's steps in the first phase; then halved")
        cfg_scale: float = Field(1.0, ge=1, description="guidance of the first phase's teacher")
        weighting: Literal["none", "truncated"] = Field("none", description="truncated: max(t^2, (1 - t)^2)")
        anneal: Literal["phase"] | None = Field(None, description="phase: the rate falls in each; null: in the budget")

        @model_validator(mode="after")
        def _settings_have_an_effect(self) -> Progressive.Config:
            self.idle_unless(self.steps > 1, "several steps (steps above 1)", "weighting", "anneal")
            return self

    config: Config
    hop: ClassVar[Hop] = "next"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"teacher"})

    def phase(self, progress: float) -> int:
        phases = self.config.steps.bit_length()
        return min(int(progress * phases), phases - 1)

    def course(self, progress: float) -> float:
        if not self.config.anneal:
            return progress
        return progress * self.config.steps.bit_length() - self.phase(progress)

    def draw(self, batch: Batch, rng: Rng, turn: Turn) -> ProgressiveDraws:
        n = self.config.steps >> self.phase(turn.progress)
        t = 1 - (rng.uniform("t") * n).floor() / n  # in 1/n, 2/n, ..., 1
        return ProgressiveDraws(rng.total, t.to(rng.time_dtype), (t - 1 / n).to(rng.time_dtype), rng.normal("z"))

    def loss(self, networks: Networks, batch: Batch, draws: Draws, turn: Turn) -> Terms:
        assert isinstance(draws, ProgressiveDraws) and batch.x is not None and networks.teacher is not None
        t, r, x_t = draws.t, draws.r, mix(batch.x, draws.z, draws.t)
        if self.phase(turn.progress):
            target = two_steps(networks.teacher, x_t, t, r, batch.cond)
        else:
            target = two_steps(
                euler(guided(networks.teacher, batch.null, self.config.cfg_scale)), x_t, t, r, batch.cond
            )
        rows = l2(networks.student(x_t, t, r, batch.cond), target)
        if self.config.weighting == "truncated":
            rows = rows * torch.maximum(t, 1 - t).square().to(rows.dtype)
        return Terms({"progressive": Term(rows, draws.rows)})


def euler(v: Velocity) -> Velocity:
    """A network of one time as one of two: the velocity here stands for the mean of the step."""
    return lambda x, t, r, cond: v(x, t, t, cond)
