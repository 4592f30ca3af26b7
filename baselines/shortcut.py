"""Shortcut models: one step of d is two steps of d/2 (Frans et al., ICLR 2025, arXiv 2410.12557).

Most rows learn the flow, d = 0; the others agree with two half steps of the (averaged) network,

    v(x_t, t, t - d) -> sg( (v1 + v2) / 2 ),   v1 = v'(x_t, t, t - d/2),   v2 = v'(x_t - d/2 v1, t - d/2, t - d)

with d in {1, 1/2, ..., 2/steps} in equal numbers and t a multiple of d. The smallest half step, 1/steps, asks for the
flow itself; there, and only there, guidance enters, and the longer steps inherit it.

In the words of RCGM (`objectives.targets.recursive`) this is order 1 after a first step h = d/2 along y = v1, that is,
two hops in all: its correction is 2 (v - target), so without a clamp the gradient points the same way. Constants:
kvfrans/shortcut-models (128 steps, 1/8 of the batch, average 0.999, clip 4); its time is 1 - t, its velocity -v.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from twinbench.flow import Batch, Cond, Hop, Velocity, dropped, guided, mix, take
from twinbench.method import Draws, Method, Networks, Strict, Term, Terms, Turn
from twinbench.objectives.losses import l2
from twinbench.objectives.targets import two_steps
from twinbench.objectives.times import split_roles
from twinbench.randomness import Rng
from twinbench.settings import PowerOfTwo


@dataclass(frozen=True)
class ShortcutDraws(Draws):
    """t, r [n], t - r the step d or 0; z [n, ...] noise; drop [n]: flow rows that see the empty condition."""

    t: Tensor
    r: Tensor
    z: Tensor
    drop: Tensor


class Shortcut(Method):
    class Config(Strict):
        steps: PowerOfTwo = Field(128, ge=2, description="steps of the finest grid")
        bootstrap: float = Field(0.125, gt=0, lt=1, description="share of rows that learn steps d > 0")
        cfg_scale: float = Field(1.0, ge=1, description="guidance of the smallest step (paper with guidance: 4)")
        drop: float = Field(0.1, ge=0, le=1, description="share of the flow rows' conditions replaced by the empty one")
        target: Literal["self", "average"] = Field("average", description="the network that takes the half steps")
        clip: float | None = Field(4.0, gt=0, description="bound of the point between and of the target; null for none")

    config: Config
    hop: ClassVar[Hop] = "next"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"target"} if self.config.target == "average" else ())

    def draw(self, batch: Batch, rng: Rng, turn: Turn) -> ShortcutDraws:
        c = self.config
        grids = [2**k for k in range(c.steps.bit_length() - 1)]  # 1 / d
        shares = {"flow": 1 - c.bootstrap, **{str(n): c.bootstrap / len(grids) for n in grids}}
        role = rng.deal(split_roles(shares, rng.total))
        n = torch.tensor([c.steps, *grids])[role]
        t = 1 - (rng.uniform("t") * n).floor() / n  # in 1/n, 2/n, ..., 1
        d = torch.where(role == 0, 0.0, 1 / n)
        drop = (rng.uniform("drop") < c.drop) & (role == 0)
        return ShortcutDraws(rng.total, t.to(rng.time_dtype), (t - d).to(rng.time_dtype), rng.normal("z"), drop)

    def loss(self, networks: Networks, batch: Batch, draws: Draws, turn: Turn) -> Terms:
        assert isinstance(draws, ShortcutDraws) and batch.x is not None
        c, t, r = self.config, draws.t, draws.r
        x_t, target = mix(batch.x, draws.z, t), draws.z - batch.x
        if (far := r < t).any():
            net = networks.student if c.target == "self" else networks.target
            assert net is not None
            v = half_steps(net, take(batch.null, far), 1 / c.steps, c.cfg_scale)
            hops = two_steps(v, x_t[far], t[far], r[far], take(batch.cond, far), c.clip)
            target = target.index_put((far,), hops.to(target.dtype))
        cond = dropped(batch.cond, batch.null, draws.drop)
        rows = l2(networks.student(x_t, t, r, cond), target)
        logs = {name: rows.detach()[part].mean() for name, part in (("flow", ~far), ("shortcut", far)) if part.any()}
        return Terms({"shortcut": Term(rows, draws.rows)}, logs)


def half_steps(net: Velocity, null: Cond, smallest: float, cfg_scale: float = 1.0) -> Velocity:
    """The network as a half step asks it: for its own mean velocity, or, if it is of the `smallest` size, for the
    instantaneous one, guided. null: as many empty conditions as there will be rows."""

    def mean_velocity(x: Tensor, t: Tensor, r: Tensor, cond: Cond) -> Tensor:
        v, fine = torch.zeros_like(x), t - r <= smallest
        for rows, end, scale in ((fine, t, cfg_scale), (~fine, r, 1.0)):
            if rows.any():
                out = guided(net, take(null, rows), scale)(x[rows], t[rows], end[rows], take(cond, rows))
                v = v.index_put((rows,), out.to(x.dtype))
        return v

    return mean_velocity
