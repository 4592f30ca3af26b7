"""DMD: distribution matching distillation (Yin et al., arXiv 2311.18828; DMD2, 2405.14867; VSD, 2305.16213).

Samples x_g of the student move down the reverse KL to the teacher's distribution. Its gradient is the difference of two
scores at noised samples x_t = (1 - t) x_g + t eps; here of two estimates of the clean one, x0 = x_t - t v(x_t, t, t):

    student   1/2 mean |x_g - sg(x_g - g)|^2,   g = (x0_fake - x0_real) / (mean_D |x_g - x0_real| + floor)
    critic    mean |v_fake(x_t, t, t) - (eps - sg(x_g))|^2,   flow matching of the student's own samples

real is the frozen teacher with guidance, fake the critic. `normalise: none` leaves g undivided (VSD). DMD2's two time
scales are `critic_steps` turns of the critic to one of the student; its few-step form (backward simulation) is `times`,
the falling times of the student's sampler: each row starts from where that sampler, without gradient, has carried it by
a random one of them. DMD2's GAN term is not part of this file.

`fake: shared` has no critic: the student's own negative times, v(x, -t, -t), are the fake field, as in TwinFlow. Then
both losses are one student turn, and one call on x_t gives the fake field and is fitted. It has a single time scale:
with momentum, student and twin circle round each other, so give it `train: {betas: [0.0, 0.95]}`.

Turns draw numbers of their own, so the critic sees fresh samples in each; DMD2 shares those of the student's turn with
one of the critic's. The prompts are the batch's in all turns of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from twinbench.flow import Batch, Cond, Hop, Velocity, expand, guided, mix, split, take, times_like
from twinbench.method import Draws, Method, Networks, Strict, Term, Terms, Turn
from twinbench.objectives.losses import l2
from twinbench.randomness import Rng
from twinbench.sampler import Schedule


@dataclass(frozen=True)
class MatchDraws(Draws):
    """z [n, k, ...]: a noise for each of the sampler's k times; stop [n]: at which of them a row is generated.
    t [n], eps [n, ...]: times and noise at which real and fake are compared, or the critic is fitted."""

    z: Tensor
    stop: Tensor
    t: Tensor
    eps: Tensor


class DMD(Method):
    class Config(Strict):
        cfg_scale: float = Field(1.0, ge=1, description="guidance of the teacher (DMD2: 8 for SDXL)")
        fake: Literal["critic", "shared"] = Field("critic", description="a network of its own, or negative times")
        normalise: Literal["dmd", "none"] = Field("dmd", description="divide g by the row's mean |x_g - x0_real|")
        floor: float = Field(1e-6, ge=0, description="added to that mean")
        critic_steps: int = Field(5, ge=1, description="critic turns to one of the student")
        critic_rate: float = Field(1.0, gt=0, description="the critic's learning rate, relative to the student's")
        times: tuple[float, ...] = Field((1.0,), description="times of the few-step sampler that is trained")
        t_range: tuple[float, float] = Field((0.02, 0.98), description="t ~ U[lo, hi]")

        @model_validator(mode="after")
        def _times_fall(self) -> DMD.Config:
            Schedule(self.times)
            if not 0 < self.t_range[0] < self.t_range[1] < 1:
                raise ValueError(f"t_range must rise within (0, 1), got {list(self.t_range)}")
            return self

    config: Config
    hop: ClassVar[Hop] = "end"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"teacher", "critic"} if self.config.fake == "critic" else {"teacher"})

    def turns(self, step: int) -> Sequence[str]:
        return (*["critic"] * self.config.critic_steps, "student") if self.config.fake == "critic" else ("student",)

    def rate(self, turn: str) -> float:
        return self.config.critic_rate if turn == "critic" else 1.0

    def draw(self, batch: Batch, rng: Rng, turn: Turn) -> MatchDraws:
        k, (lo, hi) = len(self.config.times), self.config.t_range
        z = torch.stack([rng.normal(f"z{i}") for i in range(k)], 1)
        t = (lo + (hi - lo) * rng.uniform("t")).to(rng.time_dtype)
        return MatchDraws(rng.total, z, (k * rng.uniform("stop")).long(), t, rng.normal("eps"))

    def loss(self, networks: Networks, batch: Batch, draws: Draws, turn: Turn) -> Terms:
        assert isinstance(draws, MatchDraws)
        return self._critic(networks, batch, draws) if turn.name == "critic" else self._student(networks, batch, draws)

    def _critic(self, networks: Networks, batch: Batch, draws: MatchDraws) -> Terms:
        assert networks.critic is not None
        t, eps = draws.t, draws.eps
        with torch.no_grad():
            x = self._generate(networks.student, draws, batch.cond)
        v = networks.critic(mix(x, eps, t), t, t, batch.cond)
        return Terms({"fake": Term(l2(v, eps - x), draws.rows)})

    def _student(self, networks: Networks, batch: Batch, draws: MatchDraws) -> Terms:
        assert networks.teacher is not None
        c, cond, t, eps, terms = self.config, batch.cond, draws.t, draws.eps, {}
        x_g = self._generate(networks.student, draws, cond)
        x = x_g.detach()
        x_t = mix(x, eps, t)
        if c.fake == "shared":
            v_fake = networks.student(x_t, -t, -t, cond)
            terms["fake"] = Term(l2(v_fake, eps - x), draws.rows)
        else:
            assert networks.critic is not None
            with torch.no_grad():
                v_fake = networks.critic(x_t, t, t, cond)
        with torch.no_grad():
            v_real = guided(networks.teacher, batch.null, c.cfg_scale)(x_t, t, t, cond)
            fake, real = split(x_t, v_fake, t)[0], split(x_t, v_real, t)[0]
            g = direction(x, fake, real, c.floor) if c.normalise == "dmd" else fake - real
        terms["match"] = Term(0.5 * l2(x_g, x - g), draws.rows)
        return Terms(terms, {"direction": g.square().mean().sqrt()})

    def _generate(self, student: Velocity, draws: MatchDraws, cond: Cond) -> Tensor:
        """Samples [n, ...] of the student's sampler, up to time number `stop` of each row: jumps to the end, renoised
        in between. Only the last jump carries a gradient."""
        z, stop = draws.z, draws.stop
        times = torch.tensor(self.config.times, dtype=times_like(z), device=z.device)
        x = z[:, 0]
        with torch.no_grad():
            for i in range(len(times) - 1):
                on = stop > i
                if on.any():
                    data = jump(student, x[on], times[i].expand(int(on.sum())), take(cond, on))
                    x = x.index_put((on,), mix(data, z[on, i + 1], times[i + 1].expand(len(data))))
        return jump(student, x, times[stop], cond)


def jump(student: Velocity, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """The sample at the end of one jump from x [n, ...] at t [n]: x - t v(x, t, 0)."""
    return split(x, student(x, t, torch.zeros_like(t), cond), t)[0]


def direction(x: Tensor, fake: Tensor, real: Tensor, floor: float = 1e-6) -> Tensor:
    """DMD's normalised direction (fake - real) / (mean |x - real| + floor), the mean within each row; x: own samples,
    fake, real: the two estimates of them from one noised version; all [n, ...]."""
    return (fake - real) / (expand((x - real).abs().flatten(1).mean(1), x) + floor)
