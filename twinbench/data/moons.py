"""The `moons` world: two half circles of points in the plane, for tests and figures."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from sklearn.datasets import make_moons
from torch import Tensor

from twinbench.data.base import Request, World, WorldConfig

CLASSES = ("upper moon", "lower moon")
CENTER, SCALE = np.array([0.5, 0.25]), 1.5


class MoonsConfig(WorldConfig):
    size: int = Field(4096, ge=2)
    noise: float = Field(0.05, ge=0)


class Moons(World):
    """Points [n, 2] of standard deviation about 1/2 an axis; a prompt is one token, which moon."""

    Config = MoonsConfig
    name = "moons"
    shape = (2,)
    vocabulary = 1 + len(CLASSES)
    classes = (len(CLASSES),)

    def make(self, config: WorldConfig) -> tuple[Tensor, list[str], Tensor]:
        assert isinstance(config, MoonsConfig)
        points, which = make_moons(config.size, noise=config.noise, random_state=config.seed)
        prompts = [CLASSES[k] for k in which]
        return torch.from_numpy((points - CENTER) / SCALE).float(), prompts, torch.from_numpy(which)[:, None]

    @classmethod
    def requests(cls, prompts: str, limit: int | None = None) -> list[Request]:
        """250 keys a moon (validation: 50), 2 copies each."""
        keys = 250 if prompts == "evaluation" else 50
        return [
            Request(f"{prompts}/{moon}/{i:03d}", moon, copy, moon)
            for moon in CLASSES
            for i in range(min(keys, limit or keys))
            for copy in range(2)
        ]

    @classmethod
    def real(cls) -> Tensor:
        points, _ = make_moons(4096, noise=MoonsConfig().noise, random_state=1)
        return torch.from_numpy((points - CENTER) / SCALE).float()

    @staticmethod
    def tokens(prompt: str) -> list[int]:
        if prompt and prompt not in CLASSES:
            raise ValueError(f"the moons world has no prompt {prompt!r}; one of {', '.join(CLASSES)}")
        return [1 + CLASSES.index(prompt) if prompt else 0]

    @staticmethod
    def pixels(x: Tensor) -> Tensor:
        return x

    @staticmethod
    def preview(samples: Tensor) -> np.ndarray:
        """One picture of all points."""
        canvas = np.full((1, 96, 96, 3), 255, np.uint8)
        row, column = ((samples.flip(1) * torch.tensor([-1.0, 1.0]) + 1.5) * 32).long().clamp(0, 95).T.numpy()
        canvas[0, row, column] = (40, 70, 160)
        return canvas
