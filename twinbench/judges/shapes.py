"""The exact judge of the `shapes` world: image analysis, no network.

A pixel is painted where any channel leaves mid-gray by more than PAINTED; painted pixels take the nearest colour of the
palette; connected regions of one colour are matched against every shape by intersection over union (IoU).
"""

from __future__ import annotations

from functools import cache
from typing import ClassVar

import numpy as np
from scipy import ndimage

from twinbench.data.captions import COLOR_NAMES, SHAPES
from twinbench.data.shapes import CELL, OBJECT, PALETTE, render, template
from twinbench.errors import WorkError
from twinbench.judges.base import Found, present
from twinbench.settings import Strict

PAINTED = 0.5  # half-way between gray (0) and a corner of the colour cube (1)
GHOST = 0.25  # a stain fainter than an object but plain to the eye
MIN_IOU = 0.6
_SIZES = (OBJECT - 1, OBJECT, OBJECT + 1)
_FRAME = OBJECT + 3  # templates and regions are compared on a canvas of this size, at every shift that fits


class ShapesDetector:
    """Objects of a picture: class, box, mask, colour; score = IoU with the best template, in [MIN_IOU, 1]."""

    Config: ClassVar[type[Strict]] = Strict  # nothing to set
    name = "shapes-exact"
    version = "1"

    def __init__(self, config: Strict | None = None) -> None:
        self.config = config or self.Config()

    @property
    def identity(self) -> dict[str, str]:
        return {"judge": self.name, "rules": self.version, "weights": "none", **present("numpy", "scipy")}

    def __call__(self, pictures: np.ndarray) -> list[list[Found]]:
        """pictures: float [n, 3, h, w] in [-1, 1]; one list of objects a picture."""
        return [_objects(picture) for picture in np.asarray(pictures, np.float32)]

    def selftest(self) -> None:
        """Every shape in every colour and every cell, beside another one. WorkError if any picture is misread."""
        grid = np.stack(np.meshgrid(range(len(SHAPES)), range(len(COLOR_NAMES)), range(4)), -1).reshape(-1, 3)
        kinds, paints = np.full((2, len(grid), 4), -1)
        for i in (0, 1):
            shape, color, cell = ((grid + i) % (len(SHAPES), len(COLOR_NAMES), 4)).T
            kinds[range(len(grid)), cell], paints[range(len(grid)), cell] = shape, color
        for picture, kind, paint in zip(render(kinds, paints), kinds, paints, strict=True):
            drawn = {(SHAPES[kind[c]], COLOR_NAMES[paint[c]], c) for c in np.flatnonzero(kind >= 0)}
            found = self(picture[None])[0]
            seen = {(f.label, f.color, int(f.box[0] // CELL + 2 * (f.box[1] // CELL))) for f in found}
            if seen != drawn or len(found) != len(drawn):
                raise WorkError(f"judge {self.name} fails its self-test: it sees {sorted(seen)}, not {sorted(drawn)}")


def ghosts(picture: np.ndarray, found: list[Found]) -> int:
    """Pixels stained by more than GHOST that belong to no found object. picture: [3, h, w] in [-1, 1]."""
    stained = np.abs(picture).max(0) > GHOST
    for item in found:
        if item.mask is not None:
            stained &= ~item.mask
    return int(stained.sum())


def _objects(picture: np.ndarray) -> list[Found]:
    painted = np.abs(picture).max(0) > PAINTED
    distance = ((picture[None] - PALETTE[:, :, None, None]) ** 2).sum(1)
    nearest = np.where(painted, distance.argmin(0), -1)
    out = []
    for color in np.unique(nearest[painted]):
        regions, _ = ndimage.label(nearest == color, np.ones((3, 3)))
        for k, where in enumerate(ndimage.find_objects(regions), 1):
            mask = regions == k
            shape, score = classify(mask[where])
            if score >= MIN_IOU:
                y, x = where
                box = (float(x.start), float(y.start), float(x.stop), float(y.stop))
                out.append(Found(SHAPES[shape], score, box, mask, COLOR_NAMES[color]))
    return out


def classify(region: np.ndarray) -> tuple[int, float]:
    """The best shape for a boolean region and its IoU; (0, 0.0) if the region is larger than any object."""
    h, w = region.shape
    if max(h, w) > _FRAME - 1 or region.sum() < 4:
        return 0, 0.0
    bank, areas, kinds = _bank()
    canvas = np.zeros((_FRAME, _FRAME), np.float32)
    canvas[1 : 1 + h, 1 : 1 + w] = region
    shared = bank @ canvas.ravel()
    iou = shared / (areas + region.sum() - shared)
    best = int(iou.argmax())
    return int(kinds[best]), float(iou[best])


@cache
def _bank() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every shape, size and shift on the canvas: [templates, pixels], their areas and their shapes."""
    rows, kinds = [], []
    for kind, shape in enumerate(SHAPES):
        for size in _SIZES:
            for dy in range(_FRAME - size + 1):
                for dx in range(_FRAME - size + 1):
                    canvas = np.zeros((_FRAME, _FRAME), np.float32)
                    canvas[dy : dy + size, dx : dx + size] = template(shape, size)
                    rows.append(canvas.ravel())
                    kinds.append(kind)
    bank = np.stack(rows)
    return bank, bank.sum(1), np.array(kinds)
