"""A backbone is a velocity with its codec: prompts to conditions, latents to what is stored and judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import noop_context_fn

from twinbench import plugins
from twinbench.errors import UserError
from twinbench.flow import Cond
from twinbench.settings import Strict


class Backbone(nn.Module, ABC):
    """v(x, t, r, cond): x [n, *shape]; t, r [n] signed, at least float32."""

    Config: ClassVar[type[Strict]] = Strict  # the sizes of the network

    lora_targets: str = ""  # the linear layers that adapters sit on: one pattern of whole module names
    full: tuple[str, ...] = ()  # submodules that are trained whole beside adapters, each adapter's its own copy
    recomputing: Callable[[], Any] = staticmethod(noop_context_fn)  # context_fn of every torch checkpoint within

    shape: tuple[int, ...]  # of one latent
    blocks: Sequence[nn.Module] | nn.ModuleList  # what is sharded and recomputed, piece by piece, where there are such

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, r: Tensor, cond: Cond) -> Tensor: ...

    def pretrained(self, x: Tensor, t: Tensor, r: Tensor, cond: Cond) -> Tensor:
        """The velocity as the initial weights know it, asked with all adapters off: a teacher's. Where the network
        takes (t, r) in a form that its initial weights have not seen, this gives them t itself."""
        return self(x, t, r, cond)

    def recompute(self) -> None:
        """Keep no activations within blocks, but compute them anew in the backward pass. Raises UserError where there
        is no such way."""
        raise UserError(f"{type(self).__name__} keeps all activations; set train.recompute: null")

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> Cond:
        """The conditions of n prompts. Raises ValueError for a prompt that the codec cannot take."""

    @abstractmethod
    def pixels(self, x: Tensor) -> Tensor:
        """Latents [n, *shape] -> what is stored and judged: uint8 pictures [n, channels, h, w], or points as they
        are."""

    def latents(self, pixels: Tensor) -> Tensor:
        """uint8 pictures [n, 3, h, w] -> latents [n, *shape], float. Raises UserError where there is no encoder of
        pictures."""
        raise UserError(f"{type(self).__name__} has no encoder of pictures; its samples are what its data hold")

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
