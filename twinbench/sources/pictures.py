"""Pictures on disk: uint8 [h, w, 3] in RGB, opened when they are asked for.

An evaluation holds thousands of them; a judge sees a few at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, overload

import numpy as np

from twinbench.data.base import Request
from twinbench.errors import WorkError
from twinbench.files import replace

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class BadPicture(WorkError):
    """A picture that is missing or broken."""


@dataclass(frozen=True)
class Place:
    """Where a picture is: a file, or one quarter of it (0 top left, 1 top right, 2 bottom left, 3 bottom right)."""

    path: Path
    quarter: int | None = None

    def open(self) -> np.ndarray:
        """Turned upright as its EXIF data say. Raises ValueError or OSError if the file holds no whole picture."""
        from PIL import Image, ImageOps

        with Image.open(self.path) as file:
            picture = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
        return picture if self.quarter is None else _quarter(picture, self.quarter)


def _quarter(picture: np.ndarray, index: int) -> np.ndarray:
    h, w = picture.shape[0] // 2, picture.shape[1] // 2
    if picture.shape[0] % 2 or picture.shape[1] % 2:
        raise ValueError(f"a grid of two by two pictures has even sides, got {picture.shape[1]}x{picture.shape[0]}")
    top, left = h * (index // 2), w * (index % 2)
    return picture[top : top + h, left : left + w]


class PictureFiles(Sequence[np.ndarray]):
    """The pictures of requests, in their order. One that is missing or broken raises BadPicture with its request."""

    def __init__(self, requests: Sequence[Request], places: Sequence[Place | None]) -> None:
        self.requests, self.places = list(requests), list(places)

    def __len__(self) -> int:
        return len(self.requests)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> PictureFiles: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | PictureFiles:
        if isinstance(index, slice):
            return PictureFiles(self.requests[index], self.places[index])
        request, place = self.requests[index], self.places[index]
        if place is None:
            raise BadPicture(f"no picture of {request.key!r}, copy {request.copy} ({request.prompt!r})")
        try:
            return place.open()
        except (OSError, ValueError, SyntaxError) as error:  # PIL raises all three of a damaged file
            told = error.strerror if isinstance(error, FileNotFoundError) else str(error)
            raise BadPicture(
                f"the picture of {request.key!r}, copy {request.copy} cannot be read: {place.path} ({told})"
            ) from None


def write_png(path: Path, picture: Any) -> None:
    """A picture uint8 [h, w, 3] as PNG, atomically."""
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(buffer, "PNG", compress_level=1)
    replace(path, lambda file: file.write(buffer.getvalue()))
