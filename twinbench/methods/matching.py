"""Matching distributions: what DMD, DMD2 and SiD share.

Samples x_g of the student are noised, x_t = (1 - t) x_g + t eps, and two fields are compared there: that of real data
and that of the student's samples, both at r = t. Who they are is a choice of its own, the same for every divergence:

    real   teacher   the frozen teacher
           average   the student's average                \\  v(x, t, t) of the network that is trained, held to the
           self      the student itself, as a constant    /   data by flow matching of weight `flow`
    fake   critic    a network of its own, fitted to the samples in turns of its own
           lora      the same, held as a low-rank adapter of the frozen network
           shared    the student's own negative times, v(x, -t, -t), fitted in the student's turn (TwinFlow's twin)

Guidance acts on the real field, whoever it is: null + cfg_scale (cond - null).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from twinbench.errors import UserError
from twinbench.flow import (
    Batch,
    Cond,
    OneTime,
    Velocity,
    dropped,
    expand,
    guided,
    instant,
    jump,
    mix,
    split,
    take,
    times,
)
from twinbench.method import Draws, Method, Networks, Strict, Term, Terms, Turn
from twinbench.objectives.losses import l2
from twinbench.randomness import Rng
from twinbench.sampler import Schedule
from twinbench.settings import Lora


@dataclass(frozen=True)
class MatchDraws(Draws):
    """z [n, k, ...]: a noise for each of the sampler's k times; stop [n]: at which of them a row is generated.
    t [n], eps [n, ...]: times and noise at which real and fake are compared, or the critic is fitted.
    drop [n]: rows whose flow matching sees the empty condition; None where there is none."""

    z: Tensor
    stop: Tensor
    t: Tensor
    eps: Tensor
    drop: Tensor | None = None


class Matching(Method):
    """A method with a real and a fake field."""

    class Config(Strict):
        cfg_scale: float = Field(1.0, ge=1, description="guidance of the real field (DMD2: 8 for SDXL)")
        real: Literal["teacher", "average", "self"] = Field("teacher", description="whose field is that of real data")
        fake: Literal["critic", "lora", "shared"] = Field("critic", description="whose field is that of own samples")
        lora: Lora = Field(Lora(), description="size of its adapter, if it is one")
        critic_steps: int = Field(5, ge=1, description="turns of the critic, if there is one, to one of the student")
        critic_rate: float = Field(1.0, gt=0, description="the critic's learning rate, relative to the student's")
        flow: float = Field(1.0, ge=0, description="weight of flow matching on data where `real` is not the teacher")
        drop: float = Field(0.1, ge=0, le=1, description="share of its conditions that are empty")

        @model_validator(mode="after")
        def _settings_have_an_effect(self) -> Matching.Config:
            self.idle_unless(self.fake == "lora", "fake: lora", "lora")
            self.idle_unless(self.fake != "shared", "a critic (fake: critic or lora)", "critic_rate")
            self.idle_unless(self.real != "teacher", "real: average or self", "flow", "drop")
            self.idle_unless(self.flow > 0, "flow above 0", "drop")
            return self

    config: Config

    @property
    def needs(self) -> frozenset[str]:
        real = {"teacher": {"teacher"}, "average": {"target"}, "self": set[str]()}[self.config.real]
        return frozenset(real if self.config.fake == "shared" else real | {"critic"})

    @property
    def critic(self) -> Literal["network", "lora"]:
        return "lora" if self.config.fake == "lora" else "network"

    @property
    def critic_lora(self) -> Lora:
        return self.config.lora

    def turns(self, step: int) -> Sequence[str]:
        return (*["critic"] * (self.config.critic_steps * ("critic" in self.needs)), "student")

    def rate(self, turn: str) -> float:
        return self.config.critic_rate if turn == "critic" else 1.0

    def real(self, networks: Networks, null: Cond) -> OneTime:
        """The field of real data, guided."""
        net = {"teacher": networks.teacher, "average": networks.target, "self": networks.student}[self.config.real]
        assert net is not None, f"real: {self.config.real} asks for a network that was not given"
        return instant(guided(net, null, self.config.cfg_scale))

    def fake(self, networks: Networks) -> OneTime:
        """The field of the student's samples."""
        if self.config.fake == "shared":
            return instant(networks.student, -1)
        assert networks.critic is not None
        return instant(networks.critic)

    @property
    def _holds(self) -> bool:
        """Whether the student is also held to the data: where its own field is the real one."""
        return self.config.real != "teacher" and self.config.flow > 0

    def dropped_rows(self, rng: Rng, turn: Turn) -> Tensor | None:
        """The draw of `hold`."""
        return rng.uniform("drop") < self.config.drop if self._holds and turn.name == "student" else None

    def hold(self, networks: Networks, batch: Batch, draws: Any, t: Tensor) -> dict[str, Term]:
        """Flow matching of the student at r = t, at the times and with the noise of the comparison; no term where the
        teacher is the real field. Raises ValueError for a batch of prompts alone."""
        if not self._holds:
            return {}
        if batch.x is None:
            raise UserError("this batch has prompts only; set real: teacher, flow: 0, or give data")
        v = networks.student(mix(batch.x, draws.eps, t), t, t, dropped(batch.cond, batch.null, draws.drop))
        return {"flow": Term(self.config.flow * l2(v, draws.eps - batch.x), draws.rows)}


class ReverseKL(Matching):
    """DMD's terms: the student's, the critic's (Yin et al., arXiv 2311.18828; DMD2, 2405.14867)."""

    class Config(Matching.Config):
        normalise: Literal["dmd", "none"] = Field("dmd", description="divide g by the row's mean |x_g - x0_real|")
        floor: float = Field(1e-6, ge=0, description="added to that mean")
        times: tuple[float, ...] = Field((1.0,), description="times of the few-step sampler that is trained")
        t_range: tuple[float, float] = Field((0.02, 0.98), description="t ~ U[lo, hi]")

        @model_validator(mode="after")
        def _times_are_times(self) -> ReverseKL.Config:
            Schedule(self.times)
            if not 0 < self.t_range[0] < self.t_range[1] < 1:
                raise ValueError(f"t_range must rise within (0, 1), got {list(self.t_range)}")
            self.idle_unless(self.normalise == "dmd", "normalise: dmd", "floor")
            return self

    config: Config

    def draw(self, batch: Batch, rng: Rng, turn: Turn) -> MatchDraws:
        k = len(self.config.times)
        z = torch.stack([rng.normal(f"z{i}") for i in range(k)], 1)
        stop = (k * rng.uniform("stop")).long()
        t = self.between(rng, "t")
        return MatchDraws(rng.total, z, stop, t, rng.normal("eps"), self.dropped_rows(rng, turn))

    def between(self, rng: Rng, name: str) -> Tensor:
        """Times t [n] ~ U[lo, hi]."""
        lo, hi = self.config.t_range
        return (lo + (hi - lo) * rng.uniform(name)).to(rng.time_dtype)

    def samples(self, networks: Networks, batch: Batch, draws: MatchDraws) -> Tensor:
        """The student's own samples x_g [n, ...]; the last jump carries a gradient where the turn is the student's."""
        return generate(networks.student, draws.z, draws.stop, self.config.times, batch.cond)

    def fit(self, networks: Networks, batch: Batch, draws: MatchDraws) -> Terms:
        """The critic's turn: mean |v_fake(x_t, t, t) - (eps - x_g)|^2, flow matching of the student's samples."""
        with torch.no_grad():
            x = self.samples(networks, batch, draws)
        v = self.fake(networks)(mix(x, draws.eps, draws.t), draws.t, batch.cond)
        return Terms({"fake": Term(l2(v, draws.eps - x), draws.rows)})

    def match(self, networks: Networks, batch: Batch, draws: MatchDraws, x_g: Tensor) -> Terms:
        """The student's turn: 1/2 mean |x_g - sg(x_g - g)|^2 with g of `direction`. Of a shared field, the one call
        that gives it is fitted too."""
        c, cond, t, terms = self.config, batch.cond, draws.t, self.hold(networks, batch, draws, draws.t)
        x = x_g.detach()
        x_t = mix(x, draws.eps, t)
        with torch.set_grad_enabled(c.fake == "shared"):
            v_fake = self.fake(networks)(x_t, t, cond)
        if c.fake == "shared":
            terms["fake"] = Term(l2(v_fake, draws.eps - x), draws.rows)
        with torch.no_grad():
            v_real = self.real(networks, batch.null)(x_t, t, cond)
            fake, real = split(x_t, v_fake, t)[0], split(x_t, v_real, t)[0]
            g = direction(x, fake, real, c.floor) if c.normalise == "dmd" else fake - real
        terms["match"] = Term(0.5 * l2(x_g, x - g), draws.rows)
        return Terms(terms, {"direction": g.square().mean().sqrt()})


def generate(student: Velocity, z: Tensor, stop: Tensor, schedule: Sequence[float], cond: Cond) -> Tensor:
    """Samples [n, ...] of the student's sampler, up to time number `stop` [n] of each row: jumps to the end, renoised
    in between with z [n, k, ...]. Only the last jump carries a gradient (DMD2's backward simulation)."""
    falling = times(schedule, z)
    x = z[:, 0]
    with torch.no_grad():
        for i in range(len(falling) - 1):
            on = stop > i
            if on.any():
                data = jump(student, x[on], falling[i].expand(int(on.sum())), take(cond, on))
                x = x.index_put((on,), mix(data, z[on, i + 1], falling[i + 1].expand(len(data))))
    return jump(student, x, falling[stop], cond)


def direction(x: Tensor, fake: Tensor, real: Tensor, floor: float = 1e-6) -> Tensor:
    """DMD's normalised direction (fake - real) / (mean |x - real| + floor), the mean within each row; x: own samples,
    fake, real: the two estimates of them from one noised version; all [n, ...]."""
    return (fake - real) / (expand((x - real).abs().flatten(1).mean(1), x) + floor)
