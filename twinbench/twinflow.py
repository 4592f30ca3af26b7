"""TwinFlow: one network that is teacher, student and fake score (Cheng et al., arXiv 2512.05150, ICLR 2026).

On negative times the network learns the velocity of its own one-step samples (the twin). Where the two fields differ,
the one-step samples differ from the data, and their difference pushes the one-step output:

    base      any-step objective on data rows (`anystep`), and flow matching of own samples at t < 0 on fake rows
    rectify   v(z,1,0) -> v(z,1,0) - clamp( v(x',-t',-t') - v(x',t',t') ),  x' = (1 - t') (z - v(z,1,0)) + t' z'

`form: source` is the official training code (roles share one batch, robust loss, tan weight, clamps); `form: paper` is
the paper's loss as its authors' tutorial writes it (every term on the whole batch, mean square error, weight 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from twinbench.anystep import AnyStep, AnyStepDraws, Shares, instant, one_step
from twinbench.flow import Batch, Hop, mix, split, take
from twinbench.method import Draws, Networks, Term, Terms, Turn
from twinbench.objectives.losses import l2
from twinbench.objectives.targets import guidance_direction, matching_direction, recursive
from twinbench.randomness import Rng


@dataclass(frozen=True)
class TwinDraws(AnyStepDraws):
    """z_match [k, ...], t_match [k]: noise and times at which the two fields are compared, for the one-step rows."""

    z_match: Tensor | None = None
    t_match: Tensor | None = None


@dataclass(frozen=True)
class PaperDraws(Draws):
    """t, r [n]; z [n, ...] noises and generates; z_match [n, ...], t_match [n]: where the two fields are compared."""

    t: Tensor
    r: Tensor
    z: Tensor
    z_match: Tensor
    t_match: Tensor


class TwinFlow(AnyStep):
    class Config(AnyStep.Config):
        form: Literal["source", "paper"] = Field("source", description="official training code, or the paper's loss")
        shares: Shares = Shares(fake=1)
        rectify: float = Field(0.5, ge=0, description="weight of the rectification (paper form: 1)")
        match_clamp: float | None = Field(1.0, gt=0, description="bound of the matching direction; null for none")

        @model_validator(mode="after")
        def _rectification_sees_one_step_rows(self) -> TwinFlow.Config:
            if self.form == "paper" and (self.target == "pretrained" or self.image_free):
                raise ValueError("form: paper takes its targets from the student or its average, on data")
            return self

    config: Config
    hop: ClassVar[Hop] = "next"

    def draw(self, batch: Batch, rng: Rng, turn: Turn) -> Draws:
        return self._draw_paper(rng) if self.config.form == "paper" else self._draw_source(rng)

    def loss(self, networks: Networks, batch: Batch, draws: Draws, turn: Turn) -> Terms:
        if isinstance(draws, PaperDraws):
            return self._loss_paper(networks, batch, draws)
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
        return self.config.rectify > 0 and self.config.range == 1 and self.config.shares.one_step > 0

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

    # ---- the paper's form ----

    def _draw_paper(self, rng: Rng) -> PaperDraws:
        t = rng.uniform("t")
        r = t - t * rng.uniform("u_any")
        t_match = rng.uniform("t_match").to(rng.time_dtype)
        z, z_match = rng.normal("z"), rng.normal("z_match")
        return PaperDraws(rng.total, t.to(rng.time_dtype), r.to(rng.time_dtype), z, z_match, t_match)

    def _loss_paper(self, networks: Networks, batch: Batch, draws: PaperDraws) -> Terms:
        """Sum of five means over the whole batch (tutorials/mnist): any-step, real velocity, fake velocity,
        rectification, and the any-step target of the one-step jump (whose y is, as there, that of the noised row)."""
        assert batch.x is not None
        c, student, net, cond = self.config, networks.student, self._target_network(networks), batch.cond
        t, r, z = draws.t, draws.r, draws.z
        one, zero = torch.ones_like(t), torch.zeros_like(t)
        x_t, y = mix(batch.x, z, t), z - batch.x
        if c.cfg_scale != 1:
            conditional, free = guidance_direction(net, x_t, t, cond, batch.null)
            y = y + (1 - 1 / c.cfg_scale) * (conditional - free)

        def hops(v: Tensor, x: Tensor, t: Tensor, r: Tensor) -> Tensor:
            return recursive(net, v.detach(), y, x, t, r, cond, order=c.order, h=c.h, clamp=c.clamp)

        x_fake = one_step(student, z, batch)
        v, v_real = student(x_t, t, r, cond), student(x_t, t, t, cond)
        v_fake, v_one = student(mix(x_fake, z, t), -t, -t, cond), student(z, one, zero, cond)
        push = matching_direction(
            instant(student, -1), instant(student), x_fake, draws.z_match, draws.t_match, cond, clamp=None
        )
        terms = {
            "any_step": l2(v, hops(v, x_t, t, r)),
            "real": l2(v_real, y),
            "fake": l2(v_fake, z - x_fake),
            "rectify": l2(v_one, v_one.detach() - push),
            "one_step": l2(v_one, hops(v_one, z, one, zero)),
        }
        logs = {"direction": push.square().mean().sqrt()}
        return Terms({name: Term(rows, draws.rows) for name, rows in terms.items()}, logs)
