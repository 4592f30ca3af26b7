"""Flow matching: v(x_t, t, t) regresses z - x (Lipman et al. 2023; Liu et al. 2023). The teacher, and the control: what
the same data and budget give without any few-step objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from twinbench.flow import Batch, Hop, dropped, mix
from twinbench.method import Draws, Method, Networks, Strict, Term, Terms, Turn
from twinbench.objectives.losses import barron, l2
from twinbench.objectives.times import tan_weight
from twinbench.randomness import Rng


@dataclass(frozen=True)
class FlowDraws(Draws):
    """t [n] times; z [n, ...] noise; drop [n]: rows that see the empty condition."""

    t: Tensor
    z: Tensor
    drop: Tensor


class FlowMatching(Method):
    class Config(Strict):
        times: tuple[float, float] = Field((1.0, 1.0), description="t ~ Beta(a, b); a > 1 trains more near noise")
        drop: float = Field(0.0, ge=0, le=1, description="share of conditions replaced by the empty one, for guidance")
        metric: Literal["l2", "barron"] = "l2"
        weighting: Literal["none", "tan"] = "none"

    config: Config
    hop: ClassVar[Hop] = "same"

    def draw(self, batch: Batch, rng: Rng, turn: Turn) -> FlowDraws:
        t = rng.beta("t", *self.config.times).to(rng.time_dtype)
        return FlowDraws(rng.total, t, rng.normal("z"), rng.uniform("drop") < self.config.drop)

    def loss(self, networks: Networks, batch: Batch, draws: Draws, turn: Turn) -> Terms:
        assert isinstance(draws, FlowDraws) and batch.x is not None
        x_t = mix(batch.x, draws.z, draws.t)
        v = networks.student(x_t, draws.t, draws.t, dropped(batch.cond, batch.null, draws.drop))
        distance = l2 if self.config.metric == "l2" else barron
        rows = distance(v, draws.z - batch.x)
        if self.config.weighting == "tan":
            rows = tan_weight(draws.t, draws.t).to(rows.dtype) * rows
        return Terms({"flow": Term(rows, draws.rows)})
