"""Images that somebody else drew, in the layouts in which they are passed on.

    DIR/00012/metadata.jsonl, samples/0000.png ...   GenEval's own: a folder a prompt, a PNG a copy
    DIR/<item id>.png                                DPG-Bench's own: two by two pictures a prompt, or one
    DIR/manifest.jsonl                               any: {"file": ..., "key" or "prompt": ..., "copy": 0} a line

GenEval's evaluator takes whatever number of samples it finds; here it must be the number that the benchmark asks for,
so that nothing is left out unsaid.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twinbench import files
from twinbench.data.base import Request, World
from twinbench.errors import UserError
from twinbench.settings import digest
from twinbench.sources.pictures import SUFFIXES, PictureFiles, Place

Found = dict[tuple[str, int], Place]  # by key or prompt, and copy


@dataclass(frozen=True)
class Given:
    """What is known of how images were drawn: at most the number of evaluations."""

    nfe: int = 0

    @property
    def counted(self) -> None:
        return None

    def as_dict(self) -> dict[str, Any]:
        return {}


class Folder:
    """A folder of images as a source: there is nothing to draw."""

    block = 1

    def __init__(
        self,
        images: Path,
        plan: Given,
        prompts: str,
        requests: Sequence[Request],
        work: Path,
        world: type[World] | None = None,
    ) -> None:
        """requests: all that are asked for; work: where judged parts are kept, by a name that stands for the images;
        world: whose samples the pictures are, if of an embedded one. Raises UserError for a folder in none of the
        layouts, and where it holds more copies of a prompt than are asked for."""
        self.plan, self.prompts, self.folder, self.world = plan, prompts, work, world
        self.found = places(images, requests)

    def draw(self, requests: Sequence[Request]) -> Iterator[int]:
        yield len(requests)

    def read(self, requests: Sequence[Request]) -> Any:
        places = [self.found.get((r.key, r.copy)) or self.found.get((r.prompt, r.copy)) for r in requests]
        pictures = PictureFiles(requests, places)
        return pictures if self.world is None else _samples(pictures, self.world)


def _samples(pictures: PictureFiles, world: type[World]) -> Any:
    """Pictures as a world's own samples, uint8 [n, c, h, w]."""
    import torch

    channels = world.shape[0]
    rows = np.stack([picture[..., :channels].transpose(2, 0, 1) for picture in pictures])
    if rows.shape[1:] != world.shape:
        raise UserError(f"{world.name} asks for samples of shape {world.shape}, the pictures have {rows.shape[1:]}")
    return torch.from_numpy(np.ascontiguousarray(rows))


# ---- layouts ----


def places(images: Path, requests: Sequence[Request]) -> Found:
    """Where the picture of each request is. Raises UserError for a folder in none of the layouts."""
    if not images.is_dir():
        raise UserError(f"{images} is not a folder of images")
    if (images / "manifest.jsonl").is_file():
        return _manifest(images)
    folders = [p for p in sorted(images.iterdir()) if p.name.isdigit()]
    prompts = [p for p in folders if (p / "samples").is_dir() or (p / "metadata.jsonl").is_file()]
    if prompts:
        return _geneval(prompts, requests)
    return _grids(images, requests)


def _manifest(images: Path) -> Found:
    out: Found = {}
    for number, row in _rows(images / "manifest.jsonl"):
        name = row.get("key", row.get("prompt"))
        if not isinstance(row.get("file"), str) or not isinstance(name, str):
            raise UserError(f"{images / 'manifest.jsonl'}, line {number} needs a file, and a key or a prompt")
        if not isinstance(copy := row.get("copy", 0), int):
            raise UserError(f"{images / 'manifest.jsonl'}, line {number}: a copy is a whole number, not {copy!r}")
        place = (name, copy)
        if place in out:
            raise UserError(f"{images / 'manifest.jsonl'}, line {number} names {name!r}, copy {place[1]} a second time")
        out[place] = Place(images / row["file"])
    return out


def _geneval(folders: Sequence[Path], requests: Sequence[Request]) -> Found:
    """Samples are the files whose names begin with digits and .png. Digits below the number of copies are the copy;
    where some are not, as with samples numbered from 1, their order is."""
    asked = {r.key: r.prompt for r in requests}
    copies = 1 + max((r.copy for r in requests), default=0)
    seen: dict[str, Path] = {}
    out: Found = {}
    for folder in folders:
        key = f"{int(folder.name):05d}"
        if key not in asked:
            continue
        if key in seen:
            raise UserError(f"{seen[key]} and {folder.name} are both prompt {key}; take one of them away")
        seen[key] = folder
        (_, metadata), *_ = _rows(folder / "metadata.jsonl")
        if metadata.get("prompt") != asked[key]:
            raise UserError(f"{folder} shows {metadata.get('prompt')!r}, prompt {key} is {asked[key]!r}")
        samples = _numbered(folder / "samples", copies)
        if len(samples) > copies:
            raise UserError(
                f"{folder} holds {len(samples)} samples, asked for are {copies}; "
                f"--set eval.benchmarks.geneval.copies={len(samples)} judges all of them"
            )
        numbers = [number for number, _ in samples]
        told = len(set(numbers)) == len(numbers) and max(numbers, default=0) < copies
        out |= {(key, number if told else i): Place(path) for i, (number, path) in enumerate(samples)}
    return out


def _numbered(samples: Path, copies: int) -> list[tuple[int, Path]]:
    """The samples of a prompt with their digits, in their order. Raises UserError where some lack and pictures of
    another kind are there."""
    inside = sorted(samples.glob("*"))
    found = [(int(p.name.split(".")[0]), p) for p in inside if re.match(r"\d+\.png", p.name)]
    others = [p for p in inside if p.suffix.lower() in SUFFIXES and p.stem.isdigit() and p.suffix != ".png"]
    if others and len(found) < copies:
        raise UserError(
            f"{others[0]} does not count, in GenEval's layout only .png does; convert it, or name the pictures in a "
            "manifest.jsonl"
        )
    return sorted(found, key=lambda sample: sample[0])


def _grids(images: Path, requests: Sequence[Request]) -> Found:
    """One file a prompt, by its key; with copies it is cut, without it is the picture."""
    known: dict[str, Path] = {}
    for path in sorted(p for p in images.iterdir() if p.suffix.lower() in SUFFIXES):
        if path.stem in known:
            raise UserError(f"{images} holds two pictures of {path.stem!r}: {known[path.stem].name} and {path.name}")
        known[path.stem] = path
    if not known:
        raise UserError(
            f"{images} holds neither GenEval's folders (00000/samples) nor pictures named by prompt nor manifest.jsonl"
        )
    copies = 1 + max((r.copy for r in requests), default=0)
    if copies > 4:
        raise UserError(f"a grid of two by two holds 4 copies, asked for are {copies}")
    return {(r.key, r.copy): Place(known[r.key], r.copy if copies > 1 else None) for r in requests if r.key in known}


def _rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The JSON objects of a file, with their lines' numbers. Raises UserError."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        rows = [(number, json.loads(line)) for number, line in enumerate(lines, 1) if line.strip()]
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON, one object a line ({error})") from None
    if not rows or not all(isinstance(row, dict) for _, row in rows):
        raise UserError(f"{path} is not JSON, one object a line")
    return rows


def fingerprint(images: Path) -> str:
    """The sha256 of what is there: every picture and what says whose it is, by name and content."""
    if not images.is_dir():
        raise UserError(f"{images} is not a folder of images")
    kept = [p for p in sorted(images.rglob("*")) if p.is_file() and p.suffix.lower() in (*SUFFIXES, ".jsonl")]
    return digest([(str(path.relative_to(images)), files.sha256(path)) for path in kept])
