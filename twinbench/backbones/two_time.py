"""The second time r, and the sign of t, for a pretrained transformer that knows one time, and only its size.

A sinusoid of t passes an MLP and becomes the embedding e(t). What is added to it:

    foldable   e(|t|) + e2(r) + [t < 0] s     e2's last layer and s start at zero: at first the pretrained network, bit
                                              for bit, for every r and both signs. At a fixed r the addition is a
                                              constant of the last bias, so a few-step student is a stock checkpoint.
    official   e(t) + e2(r) (t - r)           TwinFlow's source: t is fed with its sign, e2 is a second time module.

Everything hangs on hooks of the unmodified transformer. They are bound methods of its owner, so a deep copy hooks into
itself, and what adapters put in the place of `target_time` is what is asked. The times do not pass through the
transformer's arguments: some families round theirs to bfloat16, in which 0.999 is 1.0 and a step of 0.01 loses its
digits; here the time module is given the float32 ones.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Form = Literal["foldable", "official"]
Initial = Literal["copy", "normal"]  # how a family's official second module starts: as the first one, or N(0, 0.02)


@dataclass(frozen=True)
class Times:
    """t, r [n] signed; fed, fed_r [n]: the same as the family's time module takes them."""

    t: Tensor
    r: Tensor
    fed: Tensor
    fed_r: Tensor


class TwoTimed(nn.Module):
    """What owns a transformer and its `target_time`. Outside of `at` the transformer is untouched."""

    target_time: nn.Module
    times: Times | None = None

    @contextmanager
    def at(self, times: Times | None) -> Iterator[None]:
        """The times of the calls within."""
        before, self.times = self.times, times
        try:
            yield
        finally:
            self.times = before

    def hook(self, form: Form, modules: Sequence[nn.Module], layers: Sequence[nn.Module]) -> None:
        """Hook into the time modules, whose first argument is the time, and the last layers of their MLPs."""
        for module in modules:
            module.register_forward_pre_hook(self._exact)
            if form == "official":
                module.register_forward_hook(self._gated, with_kwargs=True)
        if form == "foldable":
            for layer in layers:
                layer.register_forward_hook(self._shifted)

    def _exact(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return None if self.times is None else (self.times.fed, *args[1:])

    def _shifted(self, layer: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        return out if self.times is None else out + self.target_time(self.times.t, self.times.r).to(out.dtype)

    def _gated(self, module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], out: Any) -> Any:
        if self.times is None:
            return out
        gap = (self.times.t - self.times.r)[:, None]
        more = self.target_time(self.times.fed_r, *args[1:], **options)
        if isinstance(out, tuple):
            return tuple(a + (b * gap).to(a.dtype) for a, b in zip(out, more, strict=True))
        return out + (more * gap).to(out.dtype)


class TargetTime(nn.Module):
    """e2(r) + [t < 0] s, with e2(r) = W2 silu(W1 waves(1000 r) + b1) + b2."""

    def __init__(self, width: int, waves: int = 256) -> None:
        super().__init__()
        self.waves = waves
        self.linear_1, self.linear_2 = nn.Linear(waves, width), nn.Linear(width, width)
        self.sign = nn.Parameter(torch.zeros(width))
        nn.init.zeros_(self.linear_2.weight)
        nn.init.zeros_(self.linear_2.bias)

    def forward(self, t: Tensor, r: Tensor) -> Tensor:
        """t, r [n] -> [n, width]"""
        return self.embedded(r) + (t < 0).to(self.sign.dtype)[:, None] * self.sign

    def embedded(self, r: Tensor) -> Tensor:
        """e2(|r|): [n] -> [n, width]"""
        waves = sinusoid(1000 * r.abs(), self.waves).to(self.linear_1.weight.dtype)
        return self.linear_2(nn.functional.silu(self.linear_1(waves)))

    @torch.no_grad()
    def constant(self, r: float) -> Tensor:
        """e2(r) in float32 [width], whatever the precision of the weights."""
        twin = copy.deepcopy(self).float()
        return twin.embedded(torch.tensor([r], dtype=torch.float32, device=twin.sign.device))[0]


def second_module(module: nn.Module, initial: Initial) -> nn.Module:
    """The official e2: a time module of its own.

    Source: the transformers of TwinFlow's repository, with their `time_text_embed_2` and `time_embed_2`."""
    second = copy.deepcopy(module)
    return second.apply(_normal) if initial == "normal" else second


def _normal(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def sinusoid(x: Tensor, width: int) -> Tensor:
    """cos and sin of x [n] at width/2 frequencies from 1 down to 1/10000: [n, width], in x's precision."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, device=x.device, dtype=x.dtype) / half)
    angle = x[:, None] * frequencies
    return torch.cat([angle.cos(), angle.sin()], 1)
