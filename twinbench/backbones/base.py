"""A backbone is a velocity with its codec: prompts to conditions, latents to what is stored and judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from twinbench import plugins
from twinbench.flow import Cond
from twinbench.settings import Strict


class Backbone(nn.Module, ABC):
    """v(x, t, r, cond): x [n, *shape]; t, r [n] signed, at least float32."""

    Config: ClassVar[type[Strict]] = Strict  # the sizes of the network

    shape: tuple[int, ...]  # of one latent

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, r: Tensor, cond: Cond) -> Tensor: ...

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Cond:
        """The conditions of n prompts. Raises ValueError for a prompt that the codec cannot take."""

    @abstractmethod
    def pixels(self, x: Tensor) -> Tensor:
        """Latents [n, *shape] -> what is stored and judged: uint8 pictures [n, channels, h, w], or points as they
        are."""

    def null(self, n: int) -> Cond:
        """n empty conditions."""
        return {name: value.expand(n, *value.shape[1:]) for name, value in self.encode([""]).items()}


class WorldConfig(Strict):
    world: str  # whose words and shapes: a dataset's name


class WorldBackbone(Backbone):
    """A backbone for an embedded world: the world is its codec."""

    Config: ClassVar[type[Strict]] = WorldConfig

    def __init__(self, world: str) -> None:
        super().__init__()
        self.world = plugins.dataset(world)
        self.shape = self.world.shape

    def encode(self, prompts: Sequence[str]) -> Cond:
        return {"tokens": torch.tensor([self.world.tokens(p) for p in prompts])}

    def pixels(self, x: Tensor) -> Tensor:
        return self.world.pixels(x)
