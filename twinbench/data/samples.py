"""What a run trains on: clean latents and conditions by the numbers of samples. An embedded world lives in memory; of a
large model they come from its encoders, or from a cache of what those said."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from twinbench.backbones.base import Backbone
from twinbench.backbones.codec import Words, padded
from twinbench.backbones.pipeline import PipelineBackbone
from twinbench.data.base import World, from_bytes
from twinbench.data.buckets import Buckets, buckets, covering, grouped, nearest
from twinbench.data.captioned import Captioned
from twinbench.flow import Cond, take


class Samples(ABC):
    """n samples, each with a condition."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def latents(self, rows: Sequence[int]) -> Tensor | None:
        """x of some samples of one bucket: float32 [n, *shape]; None where there are prompts alone."""

    @abstractmethod
    def cond(self, rows: Sequence[int]) -> Cond:
        """The conditions of some samples."""

    @abstractmethod
    def null(self, n: int) -> Cond:
        """n empty conditions."""

    def buckets(self) -> Buckets:
        """All samples, by the height and width of their latents; by () where these are alike."""
        return {(): range(len(self))}


class WorldSamples(Samples):
    """Those of an embedded world: its tensors, and each of its prompts encoded once."""

    def __init__(self, world: World, backbone: Backbone) -> None:
        self.world, self.backbone = world, backbone
        prompts, rows = np.unique(np.array(world.prompts), return_inverse=True)
        self.conditions, self.prompt_of = backbone.encode(prompts.tolist()), torch.from_numpy(rows)

    def __len__(self) -> int:
        return len(self.world)

    def latents(self, rows: Sequence[int]) -> Tensor:
        return self.world.x[rows].float()

    def cond(self, rows: Sequence[int]) -> Cond:
        return take(self.conditions, self.prompt_of[list(rows)])

    def null(self, n: int) -> Cond:
        return self.backbone.null(n)


class WordSamples(Samples):
    """Those whose words are known one by one: `padded` makes a condition of them."""

    masked: bool

    @abstractmethod
    def words(self, i: int) -> Words:
        """Of one sample, without padding."""

    @abstractmethod
    def nothing(self) -> Words:
        """Of the empty condition."""

    def cond(self, rows: Sequence[int]) -> Cond:
        return padded([self.words(i) for i in rows], self.masked)

    def null(self, n: int) -> Cond:
        one = padded([self.nothing()], self.masked)
        return {name: value.expand(n, *value.shape[1:]) for name, value in one.items()}


class Encoded(WordSamples):
    """Captioned pictures through the text encoders and the VAE of a backbone, whose transformer is not asked. They are
    loaded with the first sample, onto `device`; what comes out lies on the CPU."""

    def __init__(self, data: Captioned, backbone: PipelineBackbone, device: torch.device | str = "cpu") -> None:
        self.data, self.backbone, self.device = data, backbone, torch.device(device)
        self.masked = backbone.masked
        cell, widest = backbone.factor * backbone.patch, data.config.aspect_buckets or 1.0
        self.sizes = buckets(backbone.config.resolution, cell, widest)

    def __len__(self) -> int:
        return len(self.data)

    @property
    def alike(self) -> bool:
        """Whether all latents have one shape."""
        return len(self.sizes) == 1

    def buckets(self) -> Buckets:
        """Where latents differ, every picture is opened for it."""
        if self.alike:
            return super().buckets()
        sizes = (nearest(self.sizes, *self.data.picture(i).shape[:2]) for i in range(len(self)))
        return grouped((h // self.backbone.factor, w // self.backbone.factor) for h, w in sizes)

    @torch.no_grad()
    def latent(self, i: int) -> Tensor:
        """Of one sample: [C, h, w]."""
        picture = self.data.picture(i)
        picture = covering(picture, nearest(self.sizes, *picture.shape[:2]))
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
        vae = self.backbone.codec.vae(self.device)
        return self.backbone.encoded(vae, from_bytes(pixels).to(self.device))[0].float().cpu()

    @torch.no_grad()
    def words(self, i: int) -> Words:
        words = self.backbone.words(self.backbone.codec.pipeline(self.device), self.data.prompts[i])
        return {name: value.cpu() for name, value in words.items()}

    @torch.no_grad()
    def nothing(self) -> Words:
        words = self.backbone.nothing(self.backbone.codec.pipeline(self.device))
        return {name: value.cpu() for name, value in words.items()}

    def latents(self, rows: Sequence[int]) -> Tensor | None:
        return torch.stack([self.latent(i) for i in rows]) if self.data.pictures else None
