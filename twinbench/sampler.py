"""Schedules, and one sampler over any velocity.

The family is UCGM-S (Sun et al., arXiv 2505.07447, as in TwinFlow's `sampling_loop`): a grid of times, a hop (how
far each call looks ahead), renoising between hops, extrapolation of the predictions, Heun's correction for Euler
hops.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from twinbench import plugins
from twinbench.errors import UserError
from twinbench.flow import Cond, Hop, Velocity, split, times_like
from twinbench.recipe import Resolved
from twinbench.sections import Sample

Trace = list[tuple[float, float, Tensor]]


@dataclass(frozen=True)
class Schedule:
    """times: falling, in (0, 1]; the last hop ends at 0.

    hop: what each call is asked for: the way to the end (r = 0), to the next time, or the velocity here (r = t, Euler).
    renoise: share of fresh noise in [0, 1] between hops; "sde" takes the share of the reverse diffusion, anew each hop.
    extrapolation: from the third call on, predictions go beyond the previous ones by this factor.
    heun: correct each Euler hop but the last by a second call."""

    times: tuple[float, ...]
    hop: Hop = "end"
    renoise: float | Literal["sde"] = 0.0
    extrapolation: float = 0.0
    heun: bool = False

    def __post_init__(self) -> None:
        times = tuple(float(t) for t in self.times)
        object.__setattr__(self, "times", times)
        if not times or not (times[0] <= 1 and times[-1] > 0 and all(a > b for a, b in pairwise(times))):
            raise ValueError(f"times must fall strictly within (0, 1], got {list(times)}")
        if self.hop not in ("end", "next", "same"):
            raise ValueError(f"hop must be end, next or same, got {self.hop!r}")
        if self.renoise != "sde" and not 0 <= self.renoise <= 1:
            raise ValueError(f"renoise must lie in [0, 1] or be 'sde', got {self.renoise}")
        if self.heun and (self.hop != "same" or times[0] == 1 or self.renoise != 0):
            raise ValueError("heun corrects Euler hops: it needs hop 'same', renoise 0 and a first time below 1")

    @property
    def calls(self) -> int:
        """Velocity calls of one sample (guidance doubles the network evaluations)."""
        return len(self.times) * (1 + self.heun) - self.heun


def schedule_times(
    steps: int, gap: tuple[float, float] = (0.0, 0.0), curve: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> Tensor:
    """float64 [steps], falling from 1 - gap[0]; where gap[1] > 0 the last time is about gap[1], and the last hop jumps
    from there to 0. curve (a, b, c): t = 1 - K(u), K(u) = (1 - (1 - u^a)^b)^c (Kumaraswamy)."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    first, last = gap
    if last:
        u = torch.linspace(first, 1 - last, steps, dtype=torch.float64)
    else:
        u = torch.linspace(first, 1, steps + 1, dtype=torch.float64)[:-1]
    a, b, c = curve
    return 1 - (1 - (1 - u**a) ** b) ** c


@torch.no_grad()
def sample(
    v: Velocity,
    z: Tensor,
    cond: Cond,
    schedule: Schedule,
    noise: Callable[[int], Tensor] | None = None,
    trace: Trace | None = None,
) -> Tensor:
    """Carry noise z [n, ...] (taken to be x at times[0]) to x at 0. noise(i): fresh noise for the renoising after
    hop i, asked only where it is used. trace collects (t, r, x0_hat) of every hop. The network sees
    z's precision; the sums keep at least that of times."""
    if schedule.renoise != 0 and noise is None and len(schedule.times) > 1:
        raise ValueError("a schedule with renoise needs noise(i)")
    grid = [*schedule.times, 0.0]
    x, previous = z, None
    for i, (t, s) in enumerate(pairwise(grid)):
        r = {"end": 0.0, "next": s, "same": t}[schedule.hop]
        data, fresh = _predict(v, x, t, r, cond, z.dtype)
        if trace is not None:
            trace.append((t, r, data))
        raw = (data, fresh)
        if previous is not None and i >= 2 and schedule.extrapolation:
            data = data + schedule.extrapolation * (data - previous[0])
            fresh = fresh + schedule.extrapolation * (fresh - previous[1])
        previous, start = raw, x
        share = _renoise_share(schedule.renoise, t, s)
        if share and s > 0:
            assert noise is not None
            fresh = (1 - share) ** 0.5 * fresh + share**0.5 * noise(i)
        x = (1 - s) * data + s * fresh
        if schedule.heun and i < len(schedule.times) - 1:
            _, again = _predict(v, x, s, s, cond, z.dtype)
            x = start * ((1 - s) / (1 - t)) + (s - (1 - s) * t / (1 - t)) * (fresh + again) / 2
    return x.to(z.dtype)


def _predict(v: Velocity, x: Tensor, t: float, r: float, cond: Cond, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    times = torch.tensor([t, r], dtype=torch.float64).to(times_like(x)).to(x.device)
    t_rows, r_rows = times[0].expand(len(x)), times[1].expand(len(x))
    return split(x, v(x.to(dtype), t_rows, r_rows, cond), t_rows)


def _renoise_share(renoise: float | Literal["sde"], t: float, s: float) -> float:
    if renoise != "sde":
        return renoise
    return min(max(2 * t * (t - s) / s**2, 0.0), 1.0) if s > 0 else 0.0


# ---- what a recipe says of it ----


@dataclass(frozen=True)
class Plan:
    """How one number of evaluations is spent: a schedule and a guidance scale."""

    nfe: int
    schedule: Schedule
    guidance: float = 1.0

    @property
    def counted(self) -> int:
        return self.schedule.calls * (1 + (self.guidance != 1))

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self.schedule), "guidance": self.guidance}


def plan(resolved: Resolved, nfe: int) -> Plan:
    """The recipe's schedule for this many evaluations, or uniform times with the method's own hop.

    Raises UserError if the schedule would take another number of evaluations."""
    hop = plugins.method(resolved.method).hop
    s = resolved.sample.get(nfe) or Sample(steps=nfe)
    times = s.times or tuple(schedule_times(s.steps or 1, s.gap, s.curve).tolist())
    try:
        schedule = Schedule(times, s.hop or hop, s.renoise, s.extrapolation, s.heun)
    except ValueError as error:
        raise UserError(f"recipe {resolved.recipe!r}, sample.{nfe}: {error}") from None
    made = Plan(nfe, schedule, s.guidance)
    if made.counted != nfe:
        raise UserError(f"recipe {resolved.recipe!r}, sample.{nfe}: this schedule takes {made.counted} evaluations")
    return made
