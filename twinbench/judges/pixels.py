"""A picture as its own features: its colours on a coarse grid. It sees no objects; it serves where no judge is at hand,
to try a path or to tell whether pictures differ at all."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from twinbench.errors import WorkError
from twinbench.judges.base import Features, Judge, Pictures
from twinbench.settings import Strict


class PixelsConfig(Strict):
    side: int = Field(8, ge=1, le=64, description="cells of the grid's side")


class Pixels(Judge, Features):
    """float64 [n, 3 side^2]: the mean colour of each cell, 0 to 1."""

    Config: ClassVar[type[PixelsConfig]] = PixelsConfig
    name = "pixels"

    @property
    def weights(self) -> str:
        return "none"

    @property
    def rules(self) -> str:
        return f"1, grid {self.config.side}"

    def __call__(self, pictures: Pictures) -> np.ndarray:
        return np.stack([self._features(np.asarray(picture)) for picture in pictures])

    def _features(self, picture: np.ndarray) -> np.ndarray:
        rows, columns = (np.linspace(0, n, self.config.side + 1).round().astype(int)[:-1] for n in picture.shape[:2])
        sums = np.add.reduceat(np.add.reduceat(picture.astype(np.float64), rows, 0), columns, 1)
        ones = np.ones(picture.shape[:2])
        counts = np.add.reduceat(np.add.reduceat(ones, rows, 0), columns, 1)
        return (sums / counts[..., None] / 255).ravel()

    def selftest(self) -> None:
        half = np.zeros((64, 64, 3), np.uint8)
        half[:, 32:] = 255
        if not np.isclose(self([half])[0].mean(), 0.5):
            raise WorkError("pixels: half of a picture is white, and its mean is not one half")
