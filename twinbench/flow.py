"""The algebra of the straight path x_t = (1 - t) x + t z: data at t = 0, noise at t = 1, velocity v = z - x.

A `Velocity` is the one interface of the program: v(x, t, r, cond) is the mean velocity from t to r; r = t asks for the
instantaneous one, t < 0 asks the same network about its own fake trajectory (TwinFlow, arXiv 2512.05150).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Cond = dict[str, Tensor]
Velocity = Callable[[Tensor, Tensor, Tensor, Cond], Tensor]
OneTime = Callable[[Tensor, Tensor, Cond], Tensor]  # (x, t, cond) -> instantaneous velocity
Hop = Literal["end", "next", "same"]  # what a sampler asks of each call: r = 0, r = the next time, r = t


@dataclass(frozen=True)
class Batch:
    """x [n, ...] clean samples, or None where only prompts are given; cond and null: n conditions and n empty ones.
    z [n, ...]: the noise that the frozen teacher carried to x, where x is its sample (`Method.pairs`)."""

    x: Tensor | None
    cond: Cond
    null: Cond
    z: Tensor | None = None


def expand(t: Tensor, like: Tensor) -> Tensor:
    """t [n] -> [n, 1, ...], to multiply `like` [n, ...]."""
    return t.view(-1, *[1] * (like.ndim - 1))


def mix(x: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x + t z. x, z [n, ...]; t [n] in [0, 1]."""
    s = expand(t, x)
    return (1 - s) * x + s * z


def split(x_t: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The data and the noise that x_t came from, if v were its velocity: x_t - |t| v and x_t + (1 - |t|) v."""
    s = expand(t.abs(), x_t)
    return x_t - s * v, x_t + (1 - s) * v


def jump(v: Velocity, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """The sample at the end of one jump from x [n, ...] at t [n]: x - t v(x, t, 0)."""
    return split(x, v(x, t, torch.zeros_like(t), cond), t)[0]


@torch.no_grad()
def one_step(v: Velocity, z: Tensor, cond: Cond) -> Tensor:
    """Samples of one evaluation, z - v(z, 1, 0); a constant."""
    return jump(v, z, times([1.0], z).repeat(len(z)), cond)


def instant(v: Velocity, sign: int = 1) -> OneTime:
    """The instantaneous velocity of a network, v(x, t, t), or with sign -1 that of its twin, v(x, -t, -t)."""
    return lambda x, t, cond: v(x, sign * t, sign * t, cond)


def take(cond: Cond, rows: Tensor) -> Cond:
    """The condition of some rows (a mask or indices)."""
    return {name: value[rows] for name, value in cond.items()}


def join(a: Cond, b: Cond) -> Cond:
    """Two conditions, one after the other; the one of fewer tokens (dimension 1) is filled up with zeros, which a mask
    reads as absent."""
    return {name: torch.cat(_level(a[name], b[name])) for name in a}


def _level(a: Tensor, b: Tensor) -> list[Tensor]:
    if a.ndim < 2 or a.shape[1] == b.shape[1]:
        return [a, b]
    tokens = max(a.shape[1], b.shape[1])
    return [F.pad(v, [*[0, 0] * (v.ndim - 2), 0, tokens - v.shape[1]]) for v in (a, b)]


def dropped(cond: Cond, null: Cond, rows: Tensor) -> Cond:
    """The condition, with the empty one in some rows (a mask [n])."""
    levelled = {name: _level(null[name], value) for name, value in cond.items()}
    return {name: torch.where(expand(rows, value), empty, value) for name, (empty, value) in levelled.items()}


def times_like(x: Tensor) -> torch.dtype:
    """The precision of times: float64 where x is float64, float32 otherwise, never lower (0.999 is 1.0 in bfloat16)."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def times(values: Sequence[float], like: Tensor) -> Tensor:
    """Times [k] in the precision and the place that go with a tensor."""
    return torch.tensor(values, dtype=times_like(like), device=like.device)


def guided(v: Velocity, null: Cond, scale: float) -> Velocity:
    """Classifier-free guidance: v_null + scale (v_cond - v_null), two calls; at scale 1 it is v itself, one call."""
    if scale == 1:
        return v

    def guided_velocity(x: Tensor, t: Tensor, r: Tensor, cond: Cond) -> Tensor:
        free = v(x, t, r, null)
        return free + scale * (v(x, t, r, cond) - free)

    return guided_velocity


@contextmanager
def held(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Within it, these parameters take no gradients."""
    taking = [p for p in parameters if p.requires_grad]
    for p in taking:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in taking:
            p.requires_grad_(True)


def inputs_only(v: Velocity) -> AbstractContextManager[None]:
    """Within it, gradients flow through a network to its inputs, and none to its parameters."""
    network = v.velocity if isinstance(v, Counted) else v
    return held(network.parameters() if isinstance(network, torch.nn.Module) else ())


class Counted:
    """A velocity that counts its calls (NFE) and its network passes.

    A pass is one forward on one row; where a gradient will flow back it counts 2 more if the network is being trained
    (parameters and inputs) and 1 more if it is frozen (inputs alone). A tangent carried along counts 1 more."""

    def __init__(self, velocity: Velocity) -> None:
        self.velocity = velocity
        self.calls = 0
        self.passes = 0

    def __call__(self, x: Tensor, t: Tensor, r: Tensor, cond: Cond) -> Tensor:
        return self.count(self.velocity(x, t, r, cond))

    def count(self, v: Tensor, tangents: int = 0) -> Tensor:
        """Count one call that gave v [n, ...], and give v back."""
        self.calls += 1
        self.passes += len(v) * (1 + tangents + (1 + self.trained) * v.requires_grad)
        return v

    @property
    def trained(self) -> bool:
        """Whether parameters of the network take gradients now."""
        if not isinstance(self.velocity, torch.nn.Module):
            return True
        return any(p.requires_grad for p in self.velocity.parameters())
