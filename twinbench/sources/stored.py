"""Stored samples of requests: drawing goes on where it stopped, and judging draws nothing.

A large picture is a PNG file of its own; the small samples of the embedded worlds share safetensors files. Either says
whose samples it holds, prompt included: should a key ever mean another prompt, its old sample is not taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from twinbench.data.base import Request
from twinbench.errors import UserError
from twinbench.settings import digest
from twinbench.sources.pictures import PictureFiles, Place, write_png
from twinbench.tensors import read_tensors, save_tensors

SHARD = 128  # samples a safetensors file
LARGE = 64  # pixels of a side; a picture beyond has a file of its own
SHOWN = 60  # characters of a key in a file's name
Name = tuple[str, int, str]  # key, copy, prompt


def is_large(samples: Tensor) -> bool:
    """Whether samples [n, ...] are pictures uint8 [n, 3, h, w] that get a file each."""
    return samples.dtype == torch.uint8 and samples.dim() == 4 and max(samples.shape[2:]) > LARGE


class Store:
    """The samples of one drawing, in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def missing(self, requests: Sequence[Request]) -> list[Request]:
        """The requests without a stored sample, in their order."""
        held = {name for names, _ in self._shards() for name in names}
        files = self._files()
        return [r for r in requests if name_of(r) not in held and file_of(r) not in files]

    def save(self, requests: Sequence[Request], samples: Tensor) -> None:
        """samples [n, ...], one a request."""
        if is_large(samples):
            for request, picture in zip(requests, samples, strict=True):
                write_png(self.folder / file_of(request), picture.permute(1, 2, 0).numpy())
        else:
            names = [name_of(r) for r in requests]
            save_tensors(self.folder / f"{digest(names)[:16]}.safetensors", {"samples": samples}, {"requests": names})

    def read(self, requests: Sequence[Request]) -> Tensor | PictureFiles:
        """The samples of the requests, in their order: pictures with a file each are opened when they are asked for.

        Raises UserError naming one that is not there."""
        files = self._files()
        if requests and file_of(requests[0]) in files:
            for r in requests:
                if file_of(r) not in files:
                    raise self._lacks(r)
            return PictureFiles(requests, [Place(self.folder / file_of(r)) for r in requests])
        found = {name: row for names, rows in self._shards() for name, row in zip(names, rows, strict=True)}
        for r in requests:
            if name_of(r) not in found:
                raise self._lacks(r)
        return torch.stack([found[name_of(r)] for r in requests])

    def _lacks(self, r: Request) -> UserError:
        return UserError(f"no sample of {r.key!r}, copy {r.copy} in {self.folder}; run twinbench eval again")

    def _files(self) -> set[str]:
        return {path.name for path in self.folder.glob("*.png")}

    def _shards(self) -> Iterator[tuple[list[Name], Tensor]]:
        """The safetensors files: whose samples they hold, and the samples."""
        for file in sorted(self.folder.glob("*.safetensors")):
            tensors, metadata = read_tensors(file)
            if "requests" not in metadata or "samples" not in tensors:
                raise UserError(f"{file} holds no drawn samples; delete it and give the same command again")
            yield [(key, copy, prompt) for key, copy, prompt in metadata["requests"]], tensors["samples"]


def name_of(request: Request) -> Name:
    """What a stored sample is for."""
    return request.key, request.copy, request.prompt


def file_of(request: Request) -> str:
    """The name of a picture's file: readable, and another for another prompt."""
    readable = re.sub(r"[^\w-]+", "-", request.key).strip("-")[:SHOWN]
    return f"{readable}-{request.copy}-{digest(name_of(request))[:8]}.png"
