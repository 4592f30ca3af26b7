"""The `digits` world: scikit-learn's 1797 real handwritten digits (UCI optical recognition), 8x8 pixels in 17 grays."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from twinbench.data.base import Request, World, WorldConfig, enlarge, of_classes, to_bytes

CLASSES = tuple(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])


def prompt(digit: int) -> str:
    return f"a handwritten {CLASSES[digit]}"


class Digits(World):
    """Pictures [n, 1, 8, 8]; a prompt is one token, the digit + 1."""

    name = "digits"
    shape = (1, 8, 8)
    vocabulary = 1 + len(CLASSES)
    classes = (len(CLASSES),)

    def make(self, config: WorldConfig) -> tuple[Tensor, list[str], Tensor]:
        target = torch.from_numpy(load_digits().target)
        return self.real(), [prompt(int(k)) for k in target], target[:, None]

    @classmethod
    def requests(cls, prompts: str, limit: int | None = None) -> list[Request]:
        return of_classes(prompts, limit, (60, 20), {word: prompt(k) for k, word in enumerate(CLASSES)})

    @classmethod
    def real(cls) -> Tensor:
        return torch.from_numpy(load_digits().images).float()[:, None] / 8 - 1

    @staticmethod
    def tokens(prompt: str) -> list[int]:
        word = prompt.rsplit(" ", 1)[-1]
        if prompt and word not in CLASSES:
            raise ValueError(f"the digits world has no word {word!r} (in {prompt!r})")
        return [1 + CLASSES.index(word) if prompt else 0]

    pixels = staticmethod(to_bytes)

    @staticmethod
    def preview(samples: Tensor) -> np.ndarray:
        return enlarge(samples, 8)
