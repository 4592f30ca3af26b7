"""What a judge says: the protocols that benchmarks ask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Found:
    """One detected object. box: (x0, y0, x1, y1) in pixels, y down; score in [0, 1]; mask: bool [h, w]."""

    label: str
    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray | None = None
    color: str | None = None


class Detector(Protocol):
    """Finds objects. `name` and `version` stand in every result that it judged."""

    name: str
    version: str

    def __call__(self, pictures: np.ndarray) -> list[list[Found]]: ...
