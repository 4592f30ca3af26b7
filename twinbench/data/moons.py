"""The `moons` world: two half circles of points in the plane, for tests and figures."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from sklearn.datasets import make_moons
from torch import Tensor

from twinbench.data.base import WorldConfig
from twinbench.data.points import Points

CLASSES = ("upper moon", "lower moon")
CENTER, SCALE = np.array([0.5, 0.25]), 1.5


class MoonsConfig(WorldConfig):
    size: int = Field(4096, ge=2)
    noise: float = Field(0.05, ge=0)


class Moons(Points):
    """Points [n, 2] of standard deviation about 1/2 an axis; a prompt is one token, which moon."""

    Config = MoonsConfig
    name = "moons"
    kinds = CLASSES
    keys = (250, 50)
    vocabulary = 1 + len(CLASSES)
    classes = (len(CLASSES),)

    def make(self, config: WorldConfig) -> tuple[Tensor, list[str], Tensor]:
        assert isinstance(config, MoonsConfig)
        points, which = make_moons(config.size, noise=config.noise, random_state=config.seed)
        prompts = [CLASSES[k] for k in which]
        return torch.from_numpy((points - CENTER) / SCALE).float(), prompts, torch.from_numpy(which)[:, None]

    @classmethod
    def real(cls) -> Tensor:
        points, _ = make_moons(4096, noise=MoonsConfig().noise, random_state=1)
        return torch.from_numpy((points - CENTER) / SCALE).float()
