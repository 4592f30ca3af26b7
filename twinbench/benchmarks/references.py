"""What pictures of a model are compared with: the features of real pictures, and the prompts that ask for their like.

A reference is a folder of the assets, by name, or any folder:

    prompts.jsonl     {"key", "prompt", "tag"} a line; none for the classes of ImageNet
    <features>.npz    mu [d], sigma [d, d], n, judge (who gave the features), features [n, d] in half precision

`twinbench reference` makes both from pictures. ADM's published statistics of ImageNet are taken as they are: mu and
sigma alone, hence no kernel distance, of the first code's resizing.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twinbench import assets, files
from twinbench.data.base import Request
from twinbench.errors import UserError, WorkError, unknown

PROMPT = ("key", "prompt", "tag")  # what a prompt's row says
CLASSES, CLASS_IMAGES = 1000, 50_000  # of ImageNet, and of an FID by ADM's protocol
PUBLISHED = {  # statistics that others made with the first code
    "imagenet-256": "VIRTUAL_imagenet256_labeled.npz",
    "imagenet-512": "VIRTUAL_imagenet512.npz",
}
FETCHED = ("mjhq-30k", "coco-30k")  # whose pictures make a reference
FIRST = ("inception/1, legacy_tensorflow", "torch-fidelity/1, tensorflow")  # judges with the first code's features


@dataclass(frozen=True)
class Statistics:
    """Of real features: mean [d], covariance [d, d], their number (0: not told), the features themselves if kept.
    judges: who gives such features, as `kind` begins."""

    mean: np.ndarray
    covariance: np.ndarray
    n: int
    judges: tuple[str, ...]
    sha256: str
    features: np.ndarray | None


def folder(name: str) -> Path:
    """Raises UserError if there is no such reference."""
    place = Path(name) if Path(name).is_dir() else assets.root() / name
    if place.is_dir():
        return place
    if name in PUBLISHED:
        raise UserError(f"no reference {name!r} under {assets.root()}; twinbench fetch {name} gets it")
    if name in FETCHED:
        made = f"twinbench fetch {name}, then twinbench reference {name}"
        raise UserError(f"no reference {name!r} under {assets.root()}; {made} makes it")
    hint = f"{', '.join((*FETCHED, *PUBLISHED))}, or a folder of your own: twinbench reference FOLDER"
    raise unknown("reference", name, [*FETCHED, *PUBLISHED], hint)


def title(name: str) -> str:
    return Path(name).name


def statistics(name: str, features: str) -> Statistics:
    """The statistics of a reference in the features of the judge of this name. Raises UserError if they are not there
    or damaged."""
    place = folder(name) / PUBLISHED.get(name, f"{features}.npz")
    if not place.is_file():
        mend = f"fetch {name} gets" if name in PUBLISHED else f"reference {name} --features {features} makes"
        raise UserError(f"{place} is not there; twinbench {mend} it")
    try:
        with np.load(place, allow_pickle=False) as held:
            kept = held.get("features")
            judges = (str(held["judge"]),) if "judge" in held else FIRST if name in PUBLISHED else ("",)
            n = int(held["n"]) if "n" in held else 0
            mean, covariance = held["mu"].astype(np.float64), held["sigma"].astype(np.float64)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{place} holds no statistics (mu, sigma): {error}") from None
    return Statistics(mean, covariance, n, judges, files.sha256(place), kept)


def kind(judge: Any) -> str:
    """Which features a judge gives: its name, rules and weights; its packages' versions matter in the last digits."""
    told = f"{judge.rules}, weights {judge.weights[:12]}" if hasattr(judge, "weights") else judge.version
    return f"{judge.name}/{told}"


def save(place: Path, features: np.ndarray, judge: str) -> None:
    """The statistics of features [n, d], in float64, and the features in half precision."""
    x = np.asarray(features, np.float64)
    arrays = {"mu": x.mean(0), "sigma": np.cov(x, rowvar=False), "n": len(x), "features": x.astype(np.float16)}
    files.replace(place, lambda file: np.savez(file, judge=np.str_(judge), **arrays))


def requests(name: str, images: int | None) -> list[Request]:
    """One picture for each of the reference's prompts, or for the classes of ImageNet in turn; the first `images`."""
    if name in PUBLISHED:
        return [Request(f"{i:05d}", str(i % CLASSES), 0, "class") for i in range(images or CLASS_IMAGES)]
    place = folder(name) / "prompts.jsonl"
    if not place.is_file():
        raise UserError(f"{place} is not there; twinbench reference {name} makes it")
    return [Request(row["key"], row["prompt"], 0, row["tag"]) for row in _listed(place, PROMPT)[:images]]


def _listed(place: Path, names: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a prompts.jsonl. Raises UserError at a line that is no JSON object with these names."""
    rows = []
    for number, line in enumerate(place.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not set(names) <= set(row):
            raise UserError(f"{place}, line {number} is no JSON object with {', '.join(names)}")
        rows.append(row)
    return rows


# ---- making one ----

Wanted = Sequence[tuple[Mapping[str, str], str]]  # (prompt row, the picture's file)


def wanted(name: str) -> tuple[Wanted, Path]:
    """The prompts of a reference with their pictures' file names, and the archive or folder that holds those."""
    place = folder(name)
    if name == "mjhq-30k":
        told = json.loads(assets.path(name).read_text(encoding="utf-8"))
        made = [
            ({"key": key, "prompt": row["prompt"], "tag": row["category"]}, f"{row['category']}/{key}.jpg")
            for key, row in told.items()
        ]
        return made, assets.path(name, 1)
    if name == "coco-30k":
        return _coco(assets.path(name)), assets.path(name, 1)
    listed = place / "prompts.jsonl"
    if not listed.is_file():
        raise UserError(f"{listed} must list key, prompt, tag and file of each picture in {place}")
    names = (*PROMPT, "file")
    return [({name: row[name] for name in names}, row["file"]) for row in _listed(listed, names)], place


def _coco(annotations: Path, n: int = 30_000) -> Wanted:
    """n of COCO's validation pictures of 2014, drawn by a fixed seed, each with its first caption."""
    with zipfile.ZipFile(annotations) as archive:
        told = json.loads(archive.read("annotations/captions_val2014.json"))
    first: dict[int, tuple[int, str]] = {}
    for row in told["annotations"]:
        first[row["image_id"]] = min(
            first.get(row["image_id"], (row["id"], row["caption"])), (row["id"], row["caption"])
        )
    names = sorted((row["id"], row["file_name"]) for row in told["images"] if row["id"] in first)
    chosen = sorted(np.random.default_rng(0).permutation(len(names))[:n])
    return [
        ({"key": f"{names[i][0]:012d}", "prompt": first[names[i][0]][1].strip(), "tag": "coco"}, names[i][1])
        for i in chosen
    ]


class Stored(Sequence[np.ndarray]):
    """Real pictures of an archive or a folder by the ends of their names: uint8 [h, w, 3], the middle square, opened
    when they are asked for. Raises UserError for one that is not there."""

    def __init__(self, place: Path, names: Sequence[str]) -> None:
        self.archive = None if place.is_dir() else zipfile.ZipFile(place)
        inside = self.archive.namelist() if self.archive else [p.relative_to(place).as_posix() for p in _walk(place)]
        self.place, ends = place, dict[str, str]()
        for name in inside:
            parts = name.split("/")
            ends |= {"/".join(parts[i:]): name for i in range(len(parts))}
        if lost := [name for name in names if name not in ends]:
            raise UserError(f"{place} lacks {len(lost)} pictures, {lost[0]} among them")
        self.names = [ends[name] for name in names]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: Any) -> Any:
        from PIL import Image

        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        opened = self.archive.open(self.names[index]) if self.archive else (self.place / self.names[index]).open("rb")
        try:
            with opened as file, Image.open(file) as image:
                picture = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, zipfile.BadZipFile) as error:  # PIL raises the first three
            raise WorkError(f"{self.names[index]} in {self.place} cannot be read ({error})") from None
        side = min(picture.shape[:2])
        top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
        return picture[top : top + side, left : left + side]


def _walk(place: Path) -> Iterator[Path]:
    return (path for path in sorted(place.rglob("*")) if path.is_file())


def make(name: str, judge: Any, batch: int = 64) -> Iterator[tuple[float, str]]:
    """Write the prompts and the statistics of a reference in a judge's features; yields progress."""
    rows, place = wanted(name)
    pictures, features = Stored(place, [file for _, file in rows]), []
    for start in range(0, len(rows), batch):
        yield start / len(rows), f"{start} of {len(rows)} pictures"
        features.append(judge(pictures[start : start + batch]))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row, _ in rows)
    files.write_text(folder(name) / "prompts.jsonl", lines)
    save(folder(name) / f"{judge.name}.npz", np.concatenate(features), kind(judge))
    yield 1.0, f"{len(rows)} pictures"
