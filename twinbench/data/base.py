"""A world: clean samples with captions, small enough to live in memory, and the codec between captions and tokens."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from twinbench.settings import Strict


@dataclass(frozen=True)
class Request:
    """One sample that is asked for. key names the prompt; copies of a key differ by their noise alone. split: heldout
    for compositions that training never shows; else evaluation, of validation prompts too."""

    key: str
    prompt: str
    copy: int
    tag: str
    split: str = "evaluation"


class WorldConfig(Strict):
    seed: int = Field(0, ge=0)


class World(ABC):
    """Samples x [n, *shape], float in about [-1, 1], and one prompt each."""

    Config: ClassVar[type[WorldConfig]] = WorldConfig
    name: ClassVar[str]
    shape: ClassVar[tuple[int, ...]]
    vocabulary: ClassVar[int]  # token ids are below this; 0 says nothing
    phrases: ClassVar[int] = 1
    slots: ClassVar[int] = 1  # tokens of a prompt; a multiple of phrases
    classes: ClassVar[tuple[int, ...]]  # of each label, for the encoder

    def __init__(self, config: WorldConfig) -> None:
        self.config = config
        self.x, self.prompts, self.labels = self.make(config)

    @abstractmethod
    def make(self, config: WorldConfig) -> tuple[Tensor, list[str], Tensor]:
        """All samples, their prompts, and their labels [n, len(classes)]."""

    @classmethod
    @abstractmethod
    def requests(cls, prompts: str, limit: int | None = None) -> Sequence[Request]:
        """What is drawn for an evaluation; prompts: "evaluation", or "validation" for the choice of settings.
        limit: keys a task and split."""

    @classmethod
    @abstractmethod
    def real(cls) -> Tensor:
        """Real samples [m, *shape] of the evaluation prompts: the reference of distances."""

    @staticmethod
    @abstractmethod
    def tokens(prompt: str) -> list[int]:
        """The token ids of a prompt; of "" all zero. Raises ValueError for a prompt from outside the world."""

    @staticmethod
    @abstractmethod
    def pixels(x: Tensor) -> Tensor:
        """What is stored and judged: x [n, *shape] as uint8 pictures, or as it is where a sample is no picture."""

    @staticmethod
    @abstractmethod
    def preview(samples: Tensor) -> np.ndarray:
        """Samples as `pixels` gives them, as RGB tiles: uint8 [n, h, w, 3]."""

    def __len__(self) -> int:
        return len(self.x)

    def sha256(self) -> str:
        """Of the content: samples and prompts."""
        content = hashlib.sha256(self.x.contiguous().numpy().tobytes())
        content.update("\n".join(self.prompts).encode())
        return content.hexdigest()


def of_classes(prompts: str, limit: int | None, keys: tuple[int, int], classes: Mapping[str, str]) -> list[Request]:
    """The requests of a world of classes, 2 copies a key. keys: of a class for evaluation and for validation, at most
    `limit` of them; classes: the prompt of each."""
    count = keys[prompts != "evaluation"]
    return [
        Request(f"{prompts}/{name}/{i:03d}", prompt, copy, name)
        for name, prompt in classes.items()
        for i in range(min(count, limit or count))
        for copy in range(2)
    ]


def to_bytes(x: Tensor) -> Tensor:
    """[-1, 1] -> uint8, rounded."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def from_bytes(pixels: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def enlarge(pixels: Tensor, times: int) -> np.ndarray:
    """uint8 [n, 1 or 3, h, w] -> tiles [n, times h, times w, 3] of plain squares."""
    rgb = pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    return rgb.repeat(times, 1).repeat(times, 2)
