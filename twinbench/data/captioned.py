"""Captioned pictures: what a cache of latents and embeddings is made of. Each kind of storage is a small file beside
this one: a folder, tar files, parquet, a dataset of the hub; or prompts alone.

Sample i is the same wherever it is asked for: there is no order but that of the storage, and no state.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from twinbench.errors import UserError, WorkError
from twinbench.settings import REQUIRED, Strict

FIELDS = ("caption", "prompt", "text")  # what a caption may be called where no name is set
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


class CaptionedConfig(Strict):
    cache: str | None = Field(None, description="where latents and embeddings are kept; null: RUNS/cache")
    limit: int | None = Field(None, ge=1, description="only the first samples")
    aspect_buckets: float | None = Field(
        None,
        gt=1,
        description="the longer side over the shorter one, at most, of what pictures are cut to; null: squares",
    )


class StoredConfig(CaptionedConfig):
    path: str = Field(REQUIRED, description="where the samples lie")
    field: str | None = Field(None, description=f"what the caption is called; null: one of {', '.join(FIELDS)}")


class Captioned(ABC):
    """n pictures with a caption each, or n captions alone."""

    Config: ClassVar[type[CaptionedConfig]] = CaptionedConfig
    pictures: ClassVar[bool] = True  # whether there are any
    on_the_spot: ClassVar[bool] = False  # whether training may make the cache: there is little to encode

    def __init__(self, config: Any) -> None:
        """Raises UserError where there is nothing, or a sample lacks its caption."""
        self.config = config
        if getattr(config, "path", None) == REQUIRED:
            raise UserError("this recipe does not know where your data lie: --set data.path=...")
        self.prompts = list(self.captions())[: config.limit]
        if not self.prompts:
            raise UserError(f"{getattr(config, 'path', 'data')} holds no samples for this kind of data")
        if config.aspect_buckets and not self.pictures:
            raise UserError("prompts alone have no aspect; leave data.aspect_buckets out")

    @abstractmethod
    def captions(self) -> Sequence[str]:
        """One a sample."""

    @abstractmethod
    def picture(self, i: int) -> np.ndarray:
        """The picture of a sample, upright: uint8 [h, w, 3]. Raises WorkError if it is missing or broken."""

    @abstractmethod
    def pieces(self) -> Iterable[str]:
        """What stands for the pictures in the identity of the data: their names and sizes."""

    def __len__(self) -> int:
        return len(self.prompts)

    def sha256(self) -> str:
        """Of the captions, and of the names and sizes of the pictures, which are not read for it."""
        digest = hashlib.sha256("\n".join(self.prompts).encode())
        for piece in self.pieces():
            digest.update(f"\0{piece}".encode())
        return digest.hexdigest()


def opened(data: bytes, where: str) -> np.ndarray:
    """The picture in some bytes. Raises WorkError, with where they are from, if they are none."""
    from PIL import Image, ImageOps

    try:
        with Image.open(BytesIO(data)) as file:
            return np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:  # PIL raises all three of a damaged file
        raise WorkError(f"the picture {where} cannot be read ({error}); mend it or take it out") from None


def caption_of(row: Mapping[str, Any], field: str | None, where: str) -> str:
    """The caption in a row of metadata. Raises UserError if it has none."""
    name = field or next((name for name in FIELDS if name in row), None)
    if name is None or row.get(name) is None:
        raise UserError(f"{where} has no caption; name its field (--set data.field=...), it has {', '.join(row)}")
    return str(row[name]).strip()


def files_at(path: str, suffix: str) -> list[Path]:
    """A file, or those of a folder with this suffix, by name. Raises UserError if there are none."""
    place = Path(path)
    found = sorted(place.rglob(f"*{suffix}")) if place.is_dir() else [place] if place.suffix == suffix else []
    if not found or not all(file.is_file() for file in found):
        raise UserError(f"data.path {path!r} is no {suffix} file and no folder of such")
    return found


def sizes_of(files: Iterable[Path]) -> list[str]:
    return [f"{file.name} {file.stat().st_size}" for file in files]
