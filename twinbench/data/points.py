"""Points in the plane, of a few kinds: what the worlds `moons` and `mixture` have in common."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from twinbench.data.base import Request, World, of_classes


class Points(World):
    """Points [n, 2]; a prompt is one token, which kind."""

    shape = (2,)
    kinds: ClassVar[tuple[str, ...]]
    keys: ClassVar[tuple[int, int]]  # a kind, of evaluation and of validation prompts

    @classmethod
    def requests(cls, prompts: str, limit: int | None = None) -> list[Request]:
        return of_classes(prompts, limit, cls.keys, {kind: kind for kind in cls.kinds})

    @classmethod
    def tokens(cls, prompt: str) -> list[int]:
        if prompt and prompt not in cls.kinds:
            raise ValueError(f"the {cls.name} world has no prompt {prompt!r}; one of {', '.join(cls.kinds)}")
        return [1 + cls.kinds.index(prompt) if prompt else 0]

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
