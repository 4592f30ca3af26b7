"""Knowledge distillation: regression on the teacher's own pairs (Luhman & Luhman 2021, arXiv 2101.02388).

    x = the frozen teacher's sample from z, many Euler steps, guided;    v(z, 1, 0) -> z - x

The pairs are a fixed set, made before the first step; making them counts in the budget as any pass does. The plain
baseline: no target moves and no sample is drawn twice, but it knows no more than the pairs it has paid for, and no time
but t = 1: sample it in one step, or renoise between jumps and see what it makes of times it was never asked for.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator

from twinbench.flow import Batch, Hop, times
from twinbench.method import Draws, Method, Networks, Pairs, Strict, Term, Terms, Turn
from twinbench.objectives.losses import huber, l2
from twinbench.randomness import Rng


class KD(Method):
    class Config(Strict):
        pairs: int = Field(4096, ge=1, description="pairs of noise and teacher's sample")
        steps: int = Field(16, ge=1, description="Euler steps of the teacher to a sample")
        cfg_scale: float = Field(1.0, ge=1, description="guidance of the teacher")
        metric: Literal["l2", "huber"] = Field("l2", description="huber: sqrt(mean square + c^2) - c")
        huber: float = Field(0.00054, gt=0, description="margin c of the pseudo-Huber distance (iCT: 0.00054)")

        @model_validator(mode="after")
        def _the_margin_has_an_effect(self) -> KD.Config:
            self.idle_unless(self.metric == "huber", "metric: huber", "huber")
            return self

    config: Config
    hop: ClassVar[Hop] = "end"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"teacher"})

    @property
    def pairs(self) -> Pairs:
        return Pairs(self.config.pairs, self.config.steps, self.config.cfg_scale)

    def draw(self, batch: Batch, rng: Rng, turn: Turn) -> Draws:
        return Draws(rng.total)

    def loss(self, networks: Networks, batch: Batch, draws: Draws, turn: Turn) -> Terms:
        assert batch.x is not None and batch.z is not None
        one = times([1.0], batch.z).repeat(len(batch.z))
        v = networks.student(batch.z, one, torch.zeros_like(one), batch.cond)
        target, c = batch.z - batch.x, self.config
        return Terms({"kd": Term(l2(v, target) if c.metric == "l2" else huber(v, target, c.huber), draws.rows)})
