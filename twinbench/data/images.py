"""A folder of pictures. Captions stand in a text file beside each picture, or in metadata.jsonl or metadata.csv with
its `file_name`, as the model hub's image folders have them; or a caption is the class of a picture, which is the number
of its folder in sorted order, as ImageNet's are."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from twinbench.data.captioned import PICTURES, Captioned, StoredConfig, caption_of, opened
from twinbench.errors import UserError, WorkError


class ImagesConfig(StoredConfig):
    captions: Literal["beside", "class"] = Field("beside", description="text files and metadata, or folders' numbers")


class Images(Captioned):
    Config: ClassVar[type[ImagesConfig]] = ImagesConfig
    config: ImagesConfig

    def captions(self) -> Sequence[str]:
        self.root = Path(self.config.path)
        if not self.root.is_dir():
            raise UserError(f"data.path {self.config.path!r} is no folder")
        found = sorted(path for path in self.root.rglob("*") if path.suffix.lower() in PICTURES)
        if self.config.captions == "class":
            self.files = found
            classes = {name: i for i, name in enumerate(sorted({path.parent.name for path in found}))}
            return [str(classes[path.parent.name]) for path in found]
        rows = {name: row for listed in ("metadata.jsonl", "metadata.csv") for name, row in self._listed(listed)}
        if rows:
            self.files = [self.root / name for name in rows]
            return [caption_of(row, self.config.field, str(self.root / name)) for name, row in rows.items()]
        self.files = found
        return [self._beside(path) for path in found]

    def _listed(self, name: str) -> Iterable[tuple[str, dict[str, Any]]]:
        """The rows of a list, by the picture's path within the folder."""
        path = self.root / name
        if not path.is_file():
            return
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        try:
            rows = list(csv.DictReader(lines)) if path.suffix == ".csv" else [json.loads(x) for x in lines if x.strip()]
            yield from ((str(row["file_name"]), row) for row in rows)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} must hold a file_name and a caption in every row ({error})") from None

    def _beside(self, picture: Path) -> str:
        path = picture.with_suffix(".txt")
        if not path.is_file():
            raise UserError(f"{picture} has no caption: write {path.name} beside it, or a metadata.jsonl")
        return path.read_text(encoding="utf-8").strip()

    def picture(self, i: int) -> np.ndarray:
        path = self.files[i]
        if not path.is_file():
            raise WorkError(f"the picture {path} is not there; mend the list or put it back")
        return opened(path.read_bytes(), str(path))

    def pieces(self) -> Iterable[str]:
        for path in self.files[: len(self)]:
            if not path.is_file():
                raise UserError(f"the picture {path} is not there; mend the list or put it back")
            yield f"{path.relative_to(self.root)} {path.stat().st_size}"
