"""How a batch is dealt into roles, which differ in their times: all random numbers of the any-step objective.

one_step  t = 1, r = 0                     to_zero  r = 0
local     r within `local_width` of t      any_step r ~ U[0, t]
fake      r = t, both negative: the network's own trajectory (TwinFlow's twin; trained as plain flow matching)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from pydantic import Field, model_validator
from torch import Tensor

from twinbench.flow import Batch, take
from twinbench.method import Draws, Strict
from twinbench.objectives.times import split_roles
from twinbench.randomness import Rng

ROLES = ("one_step", "local", "any_step", "fake", "to_zero")


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
class Spread:
    """Where the times of a role may lie. beta: t ~ Beta(a, b) * scale; local, any_step: the largest (t - r)/t of these
    roles; exact: the share of local rows with r = t."""

    beta: tuple[float, float, float] = (1.0, 1.0, 1.0)
    local: float = 0.05
    any_step: float = 1.0
    exact: float = 0.0


@dataclass(frozen=True)
class AnyStepDraws(Draws):
    """role [n]: indices into ROLES; counts: of each role in the global batch; t, r [n] unsigned; z [n, ...] noise.
    z_free [n, ...] generates the samples where no data are used; z_fake those of the fake rows alone.
    u_hops [n, order - 1]: where the hops of a target meet, uniform numbers; None for equal hops."""

    role: Tensor
    counts: dict[str, int]
    t: Tensor
    r: Tensor
    z: Tensor
    z_free: Tensor | None = None
    z_fake: Tensor | None = None
    u_hops: Tensor | None = None

    def rows_of(self, *roles: str) -> Tensor:
        """The rows of some roles, as a mask [n]."""
        return torch.stack([self.role == ROLES.index(role) for role in roles]).any(0)


def deal(rng: Rng, shares: Shares, spread: Spread, *, free: bool, hops: int) -> AnyStepDraws:
    """The roles of the batch, with their times and noise. free: noise to generate every sample from; hops: how many
    random meeting points each target has."""
    counts = split_roles(shares.model_dump(), rng.total)
    role = rng.deal(counts)
    t, r = _times(role, rng, spread)
    return AnyStepDraws(
        rows=rng.total,
        role=role,
        counts=counts,
        t=t,
        r=r,
        z=rng.normal("z"),
        z_free=rng.normal("z_free") if free else None,
        z_fake=rng.normal("z_fake", role == ROLES.index("fake")) if counts["fake"] else None,
        u_hops=uniform_hops(rng, hops) if hops else None,
    )


def uniform_hops(rng: Rng, hops: int) -> Tensor:
    """Uniform numbers [n, hops]."""
    return torch.stack([rng.uniform(f"u_hop{i}") for i in range(hops)], 1).to(rng.time_dtype)


def _times(role: Tensor, rng: Rng, spread: Spread) -> tuple[Tensor, Tensor]:
    """t and r of each row by its role, in the precision of times."""
    a, b, scale = spread.beta
    t = rng.beta("t", a, b).clamp(0, 1) * scale
    one, zero = torch.ones_like(t), torch.zeros_like(t)
    near = t - rng.uniform("u_local") * t * min(spread.local, spread.any_step)
    if spread.exact:
        near = torch.where(rng.uniform("u_exact") < spread.exact, t, near)
    anywhere = t - rng.uniform("u_any") * t * spread.any_step
    r = torch.stack([zero, near, anywhere, t, zero]).gather(0, role[None])[0]
    t = torch.where(role == ROLES.index("one_step"), one, t)
    return t.to(rng.time_dtype), r.to(rng.time_dtype)


def fake_rows(batch: Batch, draws: AnyStepDraws) -> tuple[Batch, AnyStepDraws]:
    """The fake rows alone; a mean over them keeps the denominator that they have in the whole batch."""
    rows = draws.rows_of("fake")
    fields = ("role", "t", "r", "z", "z_free", "u_hops")
    held = {name: value[rows] for name in fields if (value := getattr(draws, name)) is not None}
    x = None if batch.x is None else batch.x[rows]
    return Batch(x, take(batch.cond, rows), take(batch.null, rows)), replace(draws, **held)
