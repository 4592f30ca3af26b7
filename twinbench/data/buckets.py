"""Aspect buckets: the few heights and widths that pictures are brought to, so that a batch holds one of them, while
little is cut away and no picture takes more of the network than the square one does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

PARTS = 16  # of the square's side, at least: how finely sides are chosen, where the backbone lets them

Size = tuple[int, int]  # height, width
Buckets = Mapping[tuple[int, ...], Sequence[int]]  # samples by the height and width of their latents


def buckets(side: int, cell: int, widest: float = 1.0) -> list[Size]:
    """In pixels, the squarest first. side: of the square one, a multiple of cell; cell: what heights and widths are
    multiples of. widest: the longer side over the shorter one, at most; at 1 there is the square alone.

    To each shorter side belongs the longest one with which the area is not above the square's."""
    cells = side // cell
    step = cell * max((d for d in range(1, cells // PARTS + 1) if cells % d == 0), default=1)
    n = side // step
    pairs = [(short, n * n // short) for short in range(n, 0, -1)]
    within = [(short * step, long * step) for short, long in pairs if long <= widest * short]
    return [size for short, long in within for size in dict.fromkeys([(short, long), (long, short)])]


def nearest(sizes: Sequence[Size], height: int, width: int) -> Size:
    """The one whose aspect ratio is nearest to that of a picture, by the quotient of both."""
    return min(sizes, key=lambda size: _quotient(height * size[1], width * size[0]))


def _quotient(a: int, b: int) -> float:
    return max(a, b) / min(a, b)


def covering(picture: np.ndarray, size: Size) -> np.ndarray:
    """The middle of a picture uint8 [h, w, 3], scaled by Lanczos until it covers the size: uint8 [*size, 3]."""
    from PIL import Image

    (h, w), (height, width) = picture.shape[:2], size
    scale = max(height / h, width / w)
    across, down = max(width, round(w * scale)), max(height, round(h * scale))
    whole = (across, down) == (w, h)
    scaled = picture if whole else Image.fromarray(picture).resize((across, down), Image.Resampling.LANCZOS)
    top, left = (down - height) // 2, (across - width) // 2
    return np.asarray(scaled)[top : top + height, left : left + width]


def grouped(sizes: Iterable[tuple[int, ...]]) -> Buckets:
    """The samples of each size, in a fixed order of sizes."""
    found: dict[tuple[int, ...], list[int]] = {}
    for i, size in enumerate(sizes):
        found.setdefault(size, []).append(i)
    return dict(sorted(found.items()))
