"""TwinFlow: one network that is teacher, student and fake score (Cheng et al., arXiv 2512.05150, ICLR 2026).

On negative times the network learns the velocity of its own one-step samples (the twin). Where the two fields differ,
the one-step samples differ from the data, and their difference pushes the one-step output:

    base      any-step objective on data rows (`anystep`), and flow matching of own samples at t < 0 on fake rows
    rectify   v(z,1,0) -> v(z,1,0) - clamp( v(x',-t',-t') - v(x',t',t') ),  x' = (1 - t') (z - v(z,1,0)) + t' z'

`form: source` is the official training code: roles share one batch, robust loss, tan weight, clamps. `form: paper` and
`form: tutorial` are the paper's loss and the one of its authors' tutorial (`twinflow_paper`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from twinbench import twinflow_paper
from twinbench.anystep import AnyStep, AnyStepDraws, Shares, instant
from twinbench.flow import Batch, Hop, split, take
from twinbench.method import Draws, Networks, Term, Terms, Turn
from twinbench.objectives.targets import matching_direction
from twinbench.randomness import Rng

SOURCE_ONLY = (  # settings of the source form
    *("shares", "rectify", "match_clamp", "metric", "barron_alpha", "barron_c", "weighting", "times"),
    *("local_width", "any_step_width", "guidance_interval", "guide_at_one"),
)


@dataclass(frozen=True)
class TwinDraws(AnyStepDraws):
    """z_match [k, ...], t_match [k]: noise and times at which the two fields are compared, for the one-step rows."""

    z_match: Tensor | None = None
    t_match: Tensor | None = None


class TwinShares(Shares):
    """The official mixture: a quarter each."""

    fake: float = Field(1, ge=0)


class TwinFlow(AnyStep):
    class Config(AnyStep.Config):
        form: Literal["source", "tutorial", "paper"] = Field("source", description="whose loss; see the module")
        shares: TwinShares = TwinShares()
        rectify: float = Field(0.5, ge=0, description="weight of the rectification (source form)")
        match_clamp: float | None = Field(1.0, gt=0, description="bound of the matching direction; null for none")
        twin_share: float = Field(1 / 3, gt=0, lt=1, description="share of the batch with one-step terms (paper form)")

        @model_validator(mode="after")
        def _form_uses_its_settings(self) -> TwinFlow.Config:
            if self.form == "source":
                return self
            if self.target == "pretrained" or self.image_free:
                raise ValueError(f"form: {self.form} takes its targets from the student or its average, on data")
            for name in SOURCE_ONLY:
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"form: {self.form} has no {name}; it belongs to form: source")
            return self

    config: Config
    hop: ClassVar[Hop] = "next"

    def draw(self, batch: Batch, rng: Rng, turn: Turn) -> Draws:
        if self.config.form == "source":
            return self._draw_source(rng)
        return twinflow_paper.draw(rng, self.config.twin_share if self.config.form == "paper" else None)

    def loss(self, networks: Networks, batch: Batch, draws: Draws, turn: Turn) -> Terms:
        if isinstance(draws, twinflow_paper.PaperDraws):
            net, c = self._target_network(networks), self.config
            weight = 1 - 1 / c.cfg_scale
            return twinflow_paper.loss(
                networks.student, net, batch, draws, weight=weight, order=c.order, h=c.h, clamp=c.clamp
            )
        assert isinstance(draws, TwinDraws)
        return self._loss_source(networks, batch, draws)

    # ---- the source form ----

    def _draw_source(self, rng: Rng) -> TwinDraws:
        base = self.deal(rng)
        if not self._rectifies:
            return TwinDraws(**vars(base))
        rows = base.rows_of("one_step")
        t_match = rng.uniform("t_match", rows).to(rng.time_dtype)
        return TwinDraws(**vars(base), z_match=rng.normal("z_match", rows), t_match=t_match)

    @property
    def _rectifies(self) -> bool:
        return self.config.rectify > 0 and self.config.any_step_width == 1 and self.config.shares.one_step > 0

    def _loss_source(self, networks: Networks, batch: Batch, draws: TwinDraws) -> Terms:
        step = self.base(networks, batch, draws)
        if draws.z_match is None or draws.t_match is None:
            return Terms({"base": step.term}, step.logs)
        rows = draws.rows_of("one_step")
        v, cond = step.v[rows], take(batch.cond, rows)
        x_hat, _ = split(step.x_t[rows], v.detach(), draws.t[rows])
        push = self._direction(networks, x_hat, draws.z_match, draws.t_match, cond)
        rectify = self.config.rectify * self.metric(v, v.detach() - push)
        logs = dict(step.logs)
        if len(v):  # a micro-batch may hold no one-step row
            logs |= {"direction": push.square().mean().sqrt(), "rectify": rectify.detach().mean()}
        return Terms({"base": step.term, "rectify": Term(rectify, draws.counts["one_step"])}, logs)

    @torch.no_grad()
    def _direction(self, networks: Networks, x: Tensor, z: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        """How own samples x differ from data, by the student's two fields."""
        if not len(x):
            return x
        fake, real = instant(networks.student, -1), instant(networks.student)
        return matching_direction(fake, real, x, z, t, cond, clamp=self.config.match_clamp)
