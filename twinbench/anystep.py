"""The any-step objective: RCGM, and the part of TwinFlow that is RCGM.

v(x_t, t, r) is asked to agree with N hops of the target network that start h closer to the data (Sun & Lin, ICLR 2026;
eq. 1 of TwinFlow, arXiv 2512.05150; constants and order of operations: TwinFlow's `src/methodes/twinflow`). The
batch is dealt into roles, which differ in their times:

    one_step  t = 1, r = 0                     to_zero  r = 0
    local     r within `local_width` of t      any_step r ~ U[0, t]
    fake      r = t, both negative: the network's own trajectory (TwinFlow's twin; trained as plain flow matching)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from twinbench.flow import Batch, Velocity, mix, take, times_like
from twinbench.method import Draws, Method, Networks, Strict, Term, Terms, Turn
from twinbench.objectives.losses import barron, l2
from twinbench.objectives.targets import guidance_direction, recursive
from twinbench.objectives.times import split_roles, tan_weight
from twinbench.randomness import Rng

ROLES = ("one_step", "local", "any_step", "fake", "to_zero")
RECURSIVE = ("one_step", "any_step", "to_zero")  # without any of these the objective is flow matching


class Shares(Strict):
    """How the batch is dealt; only proportions matter."""

    one_step: float = Field(1, ge=0)
    local: float = Field(1, ge=0)
    any_step: float = Field(1, ge=0)
    fake: float = Field(0, ge=0)
    to_zero: float = Field(0, ge=0)

    @model_validator(mode="after")
    def _some(self) -> Shares:
        if not any(self.model_dump().values()):
            raise ValueError("at least one share must be positive")
        return self


@dataclass(frozen=True)
class AnyStepDraws(Draws):
    """role [n]: indices into ROLES; counts: of each role in the global batch; t, r [n] unsigned; z [n, ...] noise.
    z_free [n, ...] generates the samples where no data are used; z_fake those of the fake rows alone."""

    role: Tensor
    counts: dict[str, int]
    t: Tensor
    r: Tensor
    z: Tensor
    z_free: Tensor | None = None
    z_fake: Tensor | None = None

    def rows_of(self, *roles: str) -> Tensor:
        """The rows of some roles, as a mask [n]."""
        return torch.isin(self.role, torch.tensor([ROLES.index(role) for role in roles]))


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
        clamp: float | None = Field(1.0, gt=0, description="bound of the correction; null for none")
        cfg_scale: float = Field(1.0, ge=1, description="guidance distilled into the student")
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
        weighting: Literal["tan", "none"] = "tan"
        metric: Literal["barron", "l2"] = "barron"
        barron_alpha: float = 1.0
        barron_c: float = Field(1e-3, gt=0)

        @model_validator(mode="after")
        def _trains_something(self) -> AnyStep.Config:
            if self.order == 0 and not self.shares.local + self.shares.fake:
                raise ValueError("order: 0 is flow matching, on local or fake rows; give shares.local")
            if self.image_free and self.target != "pretrained":
                raise ValueError("image_free needs target: pretrained (the student cannot be its own only source)")
            return self

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
        counts = split_roles(c.shares.model_dump(), rng.total)
        role = rng.deal(counts)
        fake = role == ROLES.index("fake")
        t, r = self._times(role, rng)
        return AnyStepDraws(
            rows=rng.total,
            role=role,
            counts=counts,
            t=t,
            r=r,
            z=rng.normal("z"),
            z_free=rng.normal("z_free") if c.image_free else None,
            z_fake=rng.normal("z_fake", fake) if counts["fake"] else None,
        )

    def _times(self, role: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """t and r of each row by its role, in the precision of times."""
        c = self.config
        a, b, scale = c.times
        t = rng.beta("t", a, b).clamp(0, 1) * scale
        one, zero = torch.ones_like(t), torch.zeros_like(t)
        near = t - rng.uniform("u_local") * t * min(c.local_width, c.any_step_width)
        anywhere = t - rng.uniform("u_any") * t * c.any_step_width
        r = torch.stack([zero, near, anywhere, t, zero]).gather(0, role[None])[0]
        t = torch.where(role == ROLES.index("one_step"), one, t)
        return t.to(rng.time_dtype), r.to(rng.time_dtype)

    # ---- loss ----

    def loss(self, networks: Networks, batch: Batch, draws: Draws, turn: Turn) -> Terms:
        assert isinstance(draws, AnyStepDraws)
        step = self.base(networks, batch, draws)
        return Terms({"base": step.term}, step.logs)

    def base(self, networks: Networks, batch: Batch, draws: AnyStepDraws) -> Step:
        """The any-step term over all rows of the batch."""
        c = self.config
        fake = draws.rows_of("fake")
        x = self._samples(networks.student, batch, draws, fake)
        x_t, y = mix(x, draws.z, draws.t), draws.z - x
        sign = torch.where(fake, -1.0, 1.0).to(draws.t.dtype)
        t, r = sign * draws.t, sign * draws.r
        v = networks.student(x_t, t, r, batch.cond)
        net = self._target_network(networks)
        y = self._guide(net, x_t, y, draws, fake, batch)
        target = self._target(networks, net, v.detach(), y, x_t, draws, fake, batch)
        weight = torch.where(fake, torch.ones_like(t), tan_weight(t, r)) if c.weighting == "tan" else torch.ones_like(t)
        rows = weight.to(v.dtype) * self.metric(v, target)
        logs = {}
        if self._recursive and c.clamp and not fake.all():
            moved = (target - v.detach())[~fake].abs()
            logs["clamped"] = (moved >= c.clamp - 1e-6).to(v.dtype).mean()
        for i, role in enumerate(ROLES):
            if (here := draws.role == i).any():
                logs[role] = rows.detach()[here].mean()
        if c.order:
            return Step(x_t, v, Term(rows, draws.rows), logs)
        kept = draws.rows_of("local", "fake")
        return Step(x_t, v, Term(rows * kept, draws.counts["local"] + draws.counts["fake"]), logs)

    @property
    def _recursive(self) -> bool:
        """Whether targets are recursive: else the objective is flow matching."""
        c = self.config
        return c.order > 0 and c.any_step_width > 0 and any(getattr(c.shares, role) > 0 for role in RECURSIVE)

    def metric(self, pred: Tensor, target: Tensor) -> Tensor:
        if self.config.metric == "l2":
            return l2(pred, target)
        return barron(pred, target, self.config.barron_alpha, self.config.barron_c)

    def _samples(self, student: Velocity, batch: Batch, draws: AnyStepDraws, fake: Tensor) -> Tensor:
        """The clean samples of the rows: data, or the student's own in one step where the role or the mode says so."""
        if draws.z_free is not None:
            x = one_step(student, draws.z_free, batch)
        elif batch.x is None:
            raise ValueError("this batch has prompts only; set image_free: true or give data")
        else:
            x = batch.x
        if draws.z_fake is None or not fake.any():
            return x
        own = one_step(student, draws.z_fake, Batch(None, take(batch.cond, fake), take(batch.null, fake)))
        return x.index_put((fake,), own)

    def _target_network(self, networks: Networks) -> Velocity:
        chosen = {"self": networks.student, "average": networks.target, "pretrained": networks.teacher}
        net = chosen[self.config.target]
        assert net is not None, f"target: {self.config.target} asks for a network that was not given"
        return net

    def _guide(self, net: Velocity, x_t: Tensor, y: Tensor, draws: AnyStepDraws, fake: Tensor, batch: Batch) -> Tensor:
        """y + w (v_cond - v_null) on guided rows, with the w that distils `cfg_scale` in this mode.

        A network that guides itself has the fixed point v_null + (v_cond - v_null)/(1 - w), so w = 1 - 1/scale; with a
        frozen one it is scale - 1. On the student's own samples the sum is v_null + scale (v_cond - v_null) itself."""
        c = self.config
        lo, hi = c.guidance_interval
        at_one = c.image_free if c.guide_at_one is None else c.guide_at_one
        inside = (draws.t > lo) & ((draws.t < hi) | (at_one & (draws.t == 1)))
        rows = inside & ~fake
        if c.cfg_scale == 1 or not rows.any():
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
        fake: Tensor,
        batch: Batch,
    ) -> Tensor:
        """The recursive target on all rows but the fake ones; y where the objective is flow matching."""
        c = self.config
        if not self._recursive or fake.all():
            return y
        net = networks.student if c.target == "pretrained" else net  # a frozen network never learns to hop
        rows = ~fake
        v, y_rows, x_t, t, r = (tensor[rows] for tensor in (v, y, x_t, draws.t, draws.r))
        hops = recursive(net, v, y_rows, x_t, t, r, take(batch.cond, rows), order=c.order, h=c.h, clamp=c.clamp)
        return y.index_put((rows,), hops)


@torch.no_grad()
def one_step(net: Velocity, z: Tensor, batch: Batch) -> Tensor:
    """Samples of one evaluation: z - v(z, 1, 0)."""
    ones = torch.ones(len(z), dtype=times_like(z), device=z.device)
    return z - net(z, ones, torch.zeros_like(ones), batch.cond)


def instant(net: Velocity, sign: int = 1):
    """The one-time velocity of a two-time network: v(x, t, t), or with sign -1 that of its twin, v(x, -t, -t)."""
    return lambda x, t, cond: net(x, sign * t, sign * t, cond)
