"""The any-step objective: RCGM, and the part of TwinFlow that is RCGM.

v(x_t, t, r) is asked to agree with N hops of the target network that start h closer to the data (Sun & Lin, ICLR 2026;
eq. 1 of TwinFlow, arXiv 2512.05150; constants and order of operations: TwinFlow's `src/methodes/twinflow`). The
batch is dealt into roles, which differ in their times (`roles`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from twinbench.errors import UserError
from twinbench.flow import Batch, Cond, Velocity, mix, one_step, take
from twinbench.method import Draws, Method, Networks, Strict, Term, Terms, Turn
from twinbench.methods.roles import ROLES, AnyStepDraws, Shares, Spread, deal
from twinbench.objectives.derivative import Derivative
from twinbench.objectives.losses import barron, huber, l2
from twinbench.objectives.targets import derivative_target, guidance_direction, recursive
from twinbench.objectives.times import tan_weight
from twinbench.randomness import Rng

OF_TARGETS = ("h", "clamp", "hop_times", "derivative")  # settings of recursive targets
RECURSIVE = ("one_step", "any_step", "to_zero")  # without any of these the objective is flow matching


@dataclass(frozen=True)
class Step:
    """One evaluation of the any-step loss, for what is built upon it. v: the student's output, with gradient."""

    x_t: Tensor
    v: Tensor
    term: Term
    logs: dict[str, Tensor]


class AnyStep(Method):
    class Config(Strict):
        order: int = Field(2, ge=0, description="hops N of the target; 0 is flow matching, 1 a finite difference")
        h: float = Field(0.01, gt=0, lt=1, description="first step of the target along y")
        hop_times: Literal["random"] | None = Field(
            None, description="random: after the first step each hop ends at s ~ U(r, s before); null: equal hops"
        )
        derivative: Derivative | None = Field(
            None, description="order 1 as h -> 0 with target: self, by jvp or a difference of half width h; null: no"
        )
        clamp: float | None = Field(1.0, gt=0, description="bound of the correction; null for none")
        cfg_scale: float = Field(1.0, ge=0, description="guidance distilled; below 1 with image_free alone")
        guidance_interval: tuple[float, float] = Field((0.0, 1.0), description="guided where lo < t < hi")
        guide_at_one: bool | None = Field(
            None, description="guide rows at t = 1 too; null: if image_free (official: no)"
        )
        target: Literal["self", "average", "pretrained"] = Field(
            "average", description="the network that gives targets"
        )
        image_free: bool = Field(False, description="train on the student's own samples instead of data")
        shares: Shares = Shares()
        local_width: float = Field(0.05, gt=0, le=1, description="largest (t - r)/t of local rows")
        any_step_width: float = Field(1.0, ge=0, le=1, description="that of any-step rows (official consistc_ratio)")
        times: tuple[float, float, float] = Field((1.0, 1.0, 1.0), description="t ~ Beta(a, b) * scale")
        exact_local: float | None = Field(None, ge=0, le=1, description="share of local rows with r = t; null: 0")
        weighting: Literal["tan", "none"] = "tan"
        metric: Literal["barron", "l2", "huber"] = "barron"
        barron_alpha: float = 1.0
        barron_c: float = Field(1e-3, gt=0)
        huber_c: float | None = Field(None, gt=0, description="margin of metric: huber, in RMS error; null: 0.1")

        @model_validator(mode="after")
        def _trains_something(self) -> AnyStep.Config:
            if self.order == 0 and not self.shares.local + self.shares.fake:
                raise ValueError("order: 0 is flow matching, on local or fake rows; give shares.local")
            if self.image_free and self.target != "pretrained":
                raise ValueError("image_free needs target: pretrained (the student cannot be its own only source)")
            if self.cfg_scale < 1 and not self.image_free:
                raise ValueError(f"cfg_scale must be at least 1, got {self.cfg_scale}; below it needs image_free: true")
            return self

        @model_validator(mode="after")
        def _settings_have_an_effect(self) -> AnyStep.Config:
            self.idle_unless(self.recursive, "recursive targets (order above 0, rows that jump)", *OF_TARGETS)
            self.idle_unless(self.recursive or self.order == 0, "rows that jump", "order")
            self.idle_unless(self.order > 1, "hops that meet (order above 1)", "hop_times")
            self.idle_unless(self.order == 1, "order: 1, whose limit it is", "derivative")
            self.idle_unless(self.derivative != "jvp", "a finite step (derivative: jvp takes none)", "h")
            self.idle_unless(self.shares.local > 0, "local rows (shares.local)", "local_width", "exact_local")
            guides = self.cfg_scale != 1 or self.image_free
            self.idle_unless(guides, "guidance (cfg_scale above 1)", "guidance_interval", "guide_at_one")
            self.idle_unless(self.metric == "barron", "metric: barron", "barron_alpha", "barron_c")
            self.idle_unless(self.metric == "huber", "metric: huber", "huber_c")
            return self

        @property
        def recursive(self) -> bool:
            """Whether targets are recursive: else the objective is flow matching."""
            jumps = any(getattr(self.shares, role) > 0 for role in RECURSIVE)
            return self.order > 0 and self.any_step_width > 0 and jumps

    config: Config

    @property
    def needs(self) -> frozenset[str]:
        return {"self": frozenset[str](), "average": frozenset({"target"}), "pretrained": frozenset({"teacher"})}[
            self.config.target
        ]

    # ---- random numbers ----

    def draw(self, batch: Batch, rng: Rng, turn: Turn) -> Draws:
        return self.deal(rng)

    def deal(self, rng: Rng) -> AnyStepDraws:
        """The roles of the batch, with their times and noise."""
        c = self.config
        spread = Spread(c.times, c.local_width, c.any_step_width, c.exact_local or 0.0)
        return deal(rng, c.shares, spread, free=c.image_free, hops=self._meetings)

    @property
    def _meetings(self) -> int:
        """How many random times each target asks for."""
        return self.config.order - 1 if self.config.hop_times else 0

    # ---- loss ----

    def loss(self, networks: Networks, batch: Batch, draws: Draws, turn: Turn) -> Terms:
        assert isinstance(draws, AnyStepDraws)
        step = self.base(networks, batch, draws)
        return Terms({"base": step.term}, step.logs)

    def base(self, networks: Networks, batch: Batch, draws: AnyStepDraws) -> Step:
        """The any-step term over the rows of the batch that have one."""
        c = self.config
        fake, trained = draws.rows_of("fake"), draws.rows_of(*self.trained)
        hops = trained & ~fake
        x = self._samples(networks, batch, draws, fake)
        x_t, y = mix(x, draws.z, draws.t), draws.z - x
        sign = torch.where(fake, -1.0, 1.0).to(draws.t.dtype)
        t, r = sign * draws.t, sign * draws.r
        v = networks.student(x_t, t, r, batch.cond)
        net = self._target_network(networks)
        y = self._guide(net, x_t, y, draws, hops, batch)
        target = self._target(networks, net, v.detach(), y, x_t, draws, hops, batch)
        weight = torch.where(fake, torch.ones_like(t), tan_weight(t, r)) if c.weighting == "tan" else torch.ones_like(t)
        rows = weight.to(v.dtype) * self.metric(v, target)
        logs = {}
        if c.recursive and c.clamp and hops.any():
            moved = (target - v.detach())[hops].abs()
            logs["clamped"] = (moved >= c.clamp - 1e-6).to(v.dtype).mean()
        for role in self.trained:
            if (here := draws.rows_of(role)).any():
                logs[role] = rows.detach()[here].mean()
        return Step(x_t, v, Term(rows * trained, sum(draws.counts[role] for role in self.trained)), logs)

    @property
    def trained(self) -> tuple[str, ...]:
        """The roles that have this term: at order 0, flow matching, only those with r at t."""
        return ROLES if self.config.order else ("local", "fake")

    def metric(self, pred: Tensor, target: Tensor) -> Tensor:
        c = self.config
        if c.metric == "l2":
            return l2(pred, target)
        if c.metric == "huber":
            return huber(pred, target, c.huber_c or 0.1)
        return barron(pred, target, c.barron_alpha, c.barron_c)

    def generator(self, networks: Networks) -> Velocity:
        """The network whose samples the fake rows are."""
        return networks.student

    def _samples(self, networks: Networks, batch: Batch, draws: AnyStepDraws, fake: Tensor) -> Tensor:
        """The clean samples of the rows: data, or the student's own in one step where the role or the mode says so."""
        x = batch.x
        if draws.z_free is not None:
            free = ~fake
            x = torch.zeros_like(draws.z_free)
            if free.any():
                x[free] = one_step(networks.student, draws.z_free[free], take(batch.cond, free)).to(x.dtype)
        elif x is None:
            raise UserError("this batch has prompts only; set image_free: true or give data")
        if draws.z_fake is None or not fake.any():
            return x
        own = one_step(self.generator(networks), draws.z_fake, take(batch.cond, fake))
        return x.index_put((fake,), own)

    def _target_network(self, networks: Networks) -> Velocity:
        chosen = {"self": networks.student, "average": networks.target, "pretrained": networks.teacher}
        net = chosen[self.config.target]
        assert net is not None, f"target: {self.config.target} asks for a network that was not given"
        return net

    def _guide(self, net: Velocity, x_t: Tensor, y: Tensor, draws: AnyStepDraws, hops: Tensor, batch: Batch) -> Tensor:
        """y + w (v_cond - v_null) on guided rows among `hops`, with the w that distils `cfg_scale` in this mode.

        A network that guides itself has the fixed point v_null + (v_cond - v_null)/(1 - w), so w = 1 - 1/scale; with a
        frozen one it is scale - 1. On the student's own samples the sum is v_null + scale (v_cond - v_null) itself,
        at scale 1 too: their y knows no more than the student."""
        c = self.config
        lo, hi = c.guidance_interval
        at_one = c.image_free if c.guide_at_one is None else c.guide_at_one
        inside = (draws.t > lo) & ((draws.t < hi) | (at_one & (draws.t == 1)))
        rows = inside & hops
        if (c.cfg_scale == 1 and not c.image_free) or not rows.any():
            return y
        conditional, free = guidance_direction(
            net, x_t[rows], draws.t[rows], take(batch.cond, rows), take(batch.null, rows)
        )
        if c.image_free:
            better = free + c.cfg_scale * (conditional - free)
        else:
            w = c.cfg_scale - 1 if c.target == "pretrained" else 1 - 1 / c.cfg_scale
            better = y[rows] + w * (conditional - free)
        return y.index_put((rows,), better.to(y.dtype))

    @torch.no_grad()
    def _target(
        self,
        networks: Networks,
        net: Velocity,
        v: Tensor,
        y: Tensor,
        x_t: Tensor,
        draws: AnyStepDraws,
        rows: Tensor,
        batch: Batch,
    ) -> Tensor:
        """The recursive target on some rows; y elsewhere, and where the objective is flow matching."""
        c = self.config
        if not c.recursive or not rows.any():
            return y
        net = networks.student if c.target == "pretrained" else net  # a frozen network never learns to hop
        v, y_rows, x_t, t, r = (tensor[rows] for tensor in (v, y, x_t, draws.t, draws.r))
        u = None if draws.u_hops is None else draws.u_hops[rows]
        return y.index_put((rows,), self.hops(net, v, y_rows, x_t, t, r, take(batch.cond, rows), u))

    def hops(
        self, net: Velocity, v: Tensor, y: Tensor, x: Tensor, t: Tensor, r: Tensor, cond: Cond, u: Tensor | None
    ) -> Tensor:
        """The target of v(x, t, r) by `net`, recursive or by the derivative; see `objectives.targets`."""
        c = self.config
        if c.derivative:
            return derivative_target(net, v, y, x, t, r, cond, how=c.derivative, step=c.h, clamp=c.clamp)
        return recursive(net, v, y, x, t, r, cond, order=c.order, h=c.h, clamp=c.clamp, u=u)
