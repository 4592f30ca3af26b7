"""The `mixture` world: clouds of points on a circle, with velocity and score in closed form at every time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from twinbench.data.base import WorldConfig
from twinbench.data.points import Points

CLOUDS, RADIUS, DEVIATION = 8, 0.8, 0.1
CLASSES = tuple(f"cloud {k}" for k in range(CLOUDS))


@dataclass(frozen=True)
class Gaussians:
    """Equal parts of normal distributions N(mean, deviation^2); means [k, D]. Deviation 0 is the empirical distribution
    of k points, so its velocity is exact for these points and estimates that of what they were drawn from."""

    means: Tensor
    deviation: float = 0.0

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """E[z - x_0 | x_t = x] for x_t = (1 - t) x_0 + t z. x [n, D]; t [n] in (0, 1], or above 0 if deviation is."""
        s = t[:, None].to(x.dtype)
        variance = (1 - s) ** 2 * self.deviation**2 + s**2
        # |x - (1 - t) mean|^2 but for |x|^2, which all parts share
        far = (1 - s) ** 2 * self.means.square().sum(1) - 2 * (1 - s) * (x @ self.means.T)
        share = (-far / (2 * variance)).softmax(1)
        mean = share @ self.means
        return -mean + (s - (1 - s) * self.deviation**2) / variance * (x - (1 - s) * mean)

    def score(self, x: Tensor, t: Tensor) -> Tensor:
        """The gradient of the log density of x_t at x; t as in `velocity`."""
        return score_of(self.velocity(x, t), x, t)


def score_of(v: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The score that a velocity stands for on this path: -(x + (1 - t) v)/t, true of the instantaneous velocity alone.
    v, x [n, D]; t [n] > 0."""
    s = t[:, None].to(x.dtype)
    return -(x + (1 - s) * v) / s


def clouds(dtype: torch.dtype = torch.float64) -> Gaussians:
    """The distribution of the world."""
    angle = torch.arange(CLOUDS, dtype=dtype) * (2 * math.pi / CLOUDS)
    return Gaussians(RADIUS * torch.stack([angle.cos(), angle.sin()], 1), DEVIATION)


def draw(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """n samples [n, 2], float32, and the cloud of each [n]."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(CLOUDS, (n,), generator=generator)
    return clouds().means.float()[which] + DEVIATION * torch.randn(n, 2, generator=generator), which


class MixtureConfig(WorldConfig):
    size: int = Field(8192, ge=2)
    conditional: bool = Field(True, description="prompts say which cloud; false: every prompt is empty")


class Mixture(Points):
    """Points [n, 2] of standard deviation about 0.6 an axis; a prompt is one token, which cloud."""

    Config = MixtureConfig
    name = "mixture"
    kinds = CLASSES
    keys = (64, 16)
    vocabulary = 1 + CLOUDS
    classes = (CLOUDS,)

    def make(self, config: WorldConfig) -> tuple[Tensor, list[str], Tensor]:
        assert isinstance(config, MixtureConfig)
        points, which = draw(config.size, config.seed)
        prompts = [CLASSES[k] if config.conditional else "" for k in which]
        return points, prompts, which[:, None]

    @classmethod
    def real(cls) -> Tensor:
        return draw(4096, 1)[0]
