"""Tar files in the manner of webdataset: the files of a sample share their name up to its first dot, a picture and a
.txt or .json with its caption. The tars are read where they lie, at the places that their headers name."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from twinbench.data.captioned import PICTURES, Captioned, StoredConfig, caption_of, files_at, opened, sizes_of
from twinbench.errors import UserError


@dataclass
class Entry:
    """A sample: where its files are, by suffix: tar, first byte, size."""

    name: str
    places: dict[str, tuple[Path, int, int]] = field(default_factory=dict)

    def read(self, suffix: str) -> bytes:
        path, first, size = self.places[suffix]
        with path.open("rb") as file:
            file.seek(first)
            return file.read(size)

    @property
    def picture(self) -> str | None:
        return next((suffix for suffix in PICTURES if suffix in self.places), None)

    @property
    def size(self) -> int:
        """Of the picture, in bytes."""
        return self.places[self.picture][2] if self.picture else 0


class WebDataset(Captioned):
    Config: ClassVar[type[StoredConfig]] = StoredConfig
    config: StoredConfig

    def captions(self) -> Sequence[str]:
        self.tars = files_at(self.config.path, ".tar")
        self.entries = [entry for tar in self.tars for entry in entries(tar) if entry.picture]
        return [self._caption(entry) for entry in self.entries]

    def _caption(self, entry: Entry) -> str:
        if ".txt" in entry.places and not self.config.field:
            return entry.read(".txt").decode().strip()
        if ".json" in entry.places:
            return caption_of(json.loads(entry.read(".json")), self.config.field, entry.name)
        raise UserError(f"{entry.name} has no caption: neither .txt nor .json lies beside its picture")

    def picture(self, i: int) -> np.ndarray:
        entry = self.entries[i]
        assert entry.picture
        return opened(entry.read(entry.picture), entry.name)

    def pieces(self) -> Iterable[str]:
        held = self.entries[: len(self)]
        return [*sizes_of(self.tars), *(f"{entry.name} {entry.size}" for entry in held)]


def entries(tar: Path) -> list[Entry]:
    """The samples of a tar file, in its order. Raises UserError if it is compressed or none."""
    found: dict[str, Entry] = {}
    try:
        with tarfile.open(tar, "r:") as file:
            for member in file:
                folder, _, name = member.name.rpartition("/")
                stem, dot, suffix = name.partition(".")
                if member.isfile() and dot and stem:
                    entry = found.setdefault(f"{folder}/{stem}", Entry(f"{tar.name}:{folder}/{stem}"))
                    entry.places[f".{suffix.lower()}"] = (tar, member.offset_data, member.size)
    except tarfile.TarError as error:
        raise UserError(f"{tar} is no plain tar file ({error}); unpack what is compressed") from None
    return list(found.values())
