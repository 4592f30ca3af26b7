"""Halfway consistency: one jump to the data agrees with two, through the middle of the way.

flow     v(x_t, t, t) -> z - x                                on a share of the rows
halfway  v(x_t, t, 0) -> [v(x_t, t, s) + v(x_s, s, 0)] / 2    on the others, s = t/2, x_s = x_t - s v(x_t, t, s)
"""

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from twinbench.flow import expand, mix
from twinbench.method import Draws, Method, Strict, Term, Terms
from twinbench.objectives.losses import l2
from twinbench.objectives.times import split_roles


@dataclass(frozen=True)
class HalfwayDraws(Draws):
    """t [n]; z [n, ...] noise; jump [n]: the rows that jump, jumps of the whole batch."""

    t: Tensor
    z: Tensor
    jump: Tensor
    jumps: int


class Halfway(Method):
    class Config(Strict):
        share: float = Field(0.5, gt=0, lt=1, description="of the batch that jumps")

    @property
    def needs(self):
        return frozenset({"target"})  # the student's average, which takes the two half jumps

    def draw(self, batch, rng, turn):
        counts = split_roles({"flow": 1 - self.config.share, "jump": self.config.share}, rng.total)
        t = rng.uniform("t").to(rng.time_dtype)
        return HalfwayDraws(rng.total, t, rng.normal("z"), rng.deal(counts) == 1, counts["jump"])

    def loss(self, networks, batch, draws, turn):
        t, jump, zero = draws.t, draws.jump, torch.zeros_like(draws.t)
        x_t = mix(batch.x, draws.z, t)
        with torch.no_grad():
            first = networks.target(x_t, t, t / 2, batch.cond)
            middle = x_t - expand(t / 2, x_t) * first
            halves = (first + networks.target(middle, t / 2, zero, batch.cond)) / 2
        rows = l2(
            networks.student(x_t, t, torch.where(jump, zero, t), batch.cond),
            torch.where(expand(jump, x_t), halves, draws.z - batch.x),
        )
        flow, halfway = Term(rows[~jump], draws.rows - draws.jumps), Term(rows[jump], draws.jumps)
        return Terms({"flow": flow, "halfway": halfway})
