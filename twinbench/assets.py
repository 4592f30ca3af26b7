"""Public data and weights that are not ours to ship: where they are, whether they are the right ones, how to get them.

A file lies in the folder that `TWINBENCH_ASSETS` names (`assets` by default), at the path that this list gives it. Sums
that are known are pinned here; others are recorded by the first download, in `assets.lock.json` beside the files, and
hold from then on.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from twinbench import files
from twinbench.download import Progress, download
from twinbench.errors import UserError, WorkError, unknown

LOCK = "assets.lock.json"


@dataclass(frozen=True)
class File:
    """One file: where it lies under the root, where it comes from; sha256 (whole or its first digits) and size in
    bytes where they are known."""

    path: str
    url: str
    sha256: str = ""
    size: int = 0


@dataclass(frozen=True)
class Asset:
    about: str
    licence: str
    files: tuple[File, ...]


_GENEVAL = "https://raw.githubusercontent.com/djghosh13/geneval/af4902f24d3ca90ebbb446dd9891a59e0f82725f"
_ELLA = "https://raw.githubusercontent.com/TencentQQGYLab/ELLA/3c228f1dc6c4d3cad0a47493816151a419f14db3"
_BAGEL = "https://raw.githubusercontent.com/ByteDance-Seed/Bagel/main/eval/gen/geneval/prompts"
_MMDET = "https://download.openmmlab.com/mmdetection/v3.0/mask2former/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco"
_MJHQ = "https://huggingface.co/datasets/playgroundai/MJHQ-30K/resolve/main"
_COCO = "http://images.cocodataset.org"
_ADM = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet"
_FIDELITY = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0"
_NVLABS = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics"

ASSETS = {
    "geneval": Asset(
        "GenEval's prompts as published; needed for nothing, since the program makes the same bytes itself",
        "MIT",
        (
            File(
                "geneval/evaluation_metadata.jsonl",
                f"{_GENEVAL}/prompts/evaluation_metadata.jsonl",
                "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13",
                85209,
            ),
        ),
    ),
    "geneval-rewritten": Asset(
        "GenEval's prompts, rewritten by a language model (BAGEL's file)",
        "Apache-2.0; the metadata MIT",
        (
            File(
                "geneval/variants/evaluation_metadata_long.bagel.jsonl",
                f"{_BAGEL}/evaluation_metadata_long.jsonl",
                "09472cc9c24e225417b1d5df27e688e5f2a0fcac9ec772f33d9debe4e5d49f27",
                397873,
            ),
        ),
    ),
    "geneval-detector": Asset(
        "OpenMMLab's Mask2Former Swin-S, the detector of GenEval's code; its name ends in its sha256's first digits",
        "Apache-2.0",
        (
            File(
                "weights/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco_20220504_001756-c9d0c4f2.pth",
                f"{_MMDET}/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco_20220504_001756-c9d0c4f2.pth",
                "c9d0c4f2",
            ),
        ),
    ),
    "dpg": Asset(
        "DPG-Bench's prompts and questions",
        "Apache-2.0",
        (File("dpg/dpg_bench.csv", f"{_ELLA}/dpg_bench/dpg_bench.csv"),),
    ),
    "inception": Asset(
        "Inception v3 of 2015-12-05 as TorchScript, the features of FID and KID",
        "NVIDIA Source Code License",
        (File("weights/inception-2015-12-05.pt", f"{_NVLABS}/inception-2015-12-05.pt"),),
    ),
    "inception-tensors": Asset(
        "the same network as tensors, for the judge torch-fidelity",
        "Apache-2.0",
        (
            File(
                "weights/weights-inception-2015-12-05-6726825d.pth",
                f"{_FIDELITY}/weights-inception-2015-12-05-6726825d.pth",
                "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
                95628359,
            ),
        ),
    ),
    "alexnet": Asset(
        "torchvision's AlexNet, the network of LPIPS; its name ends in its sha256's first digits",
        "BSD-3-Clause",
        (
            File(
                "weights/alexnet-owt-7be5be79.pth",
                "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
                "7be5be79",
            ),
        ),
    ),
    "mjhq-30k": Asset(
        "30,000 pictures with their prompts (3.6 GB); twinbench reference mjhq-30k then makes the reference",
        "as its page says",
        (
            File("mjhq-30k/meta_data.json", f"{_MJHQ}/meta_data.json"),
            File("mjhq-30k/mjhq30k_imgs.zip", f"{_MJHQ}/mjhq30k_imgs.zip"),
        ),
    ),
    "coco-30k": Asset(
        "COCO's 2014 validation pictures and captions (6.5 GB); twinbench reference coco-30k then makes the reference",
        "as cocodataset.org says",
        (
            File("coco-30k/annotations_trainval2014.zip", f"{_COCO}/annotations/annotations_trainval2014.zip"),
            File("coco-30k/val2014.zip", f"{_COCO}/zips/val2014.zip"),
        ),
    ),
    "imagenet-256": Asset(
        "ADM's statistics of ImageNet at 256 px, for FID of 50,000 pictures",
        "of the dataset: non-commercial research",
        (File("imagenet-256/VIRTUAL_imagenet256_labeled.npz", f"{_ADM}/256/VIRTUAL_imagenet256_labeled.npz"),),
    ),
    "imagenet-512": Asset(
        "ADM's statistics of ImageNet at 512 px, for FID of 50,000 pictures",
        "of the dataset: non-commercial research",
        (File("imagenet-512/VIRTUAL_imagenet512.npz", f"{_ADM}/512/VIRTUAL_imagenet512.npz"),),
    ),
}


def asset(name: str) -> Asset:
    """Raises UserError for an unknown name."""
    if name not in ASSETS:
        raise unknown("asset", name, sorted(ASSETS), f"known: {', '.join(ASSETS)}")
    return ASSETS[name]


def root() -> Path:
    """The folder of all assets."""
    return Path(os.environ.get("TWINBENCH_ASSETS") or "assets").expanduser()


def path(name: str, which: int = 0) -> Path:
    """The asset's file (its first, or the `which`-th). Raises UserError that says how to get it."""
    file = asset(name).files[which]
    found = root() / file.path
    if not found.is_file():
        raise UserError(
            f"{file.path} is not under {root()}: twinbench fetch {name} gets it (--from takes a local copy)"
        )
    return found


def here(name: str) -> bool:
    return all((root() / file.path).is_file() for file in asset(name).files)


def fetch(name: str, copy: Path | None = None) -> Iterator[Progress]:
    """Get the asset's files, from a local file or folder if `copy` is given; yields (file, bytes done, bytes in all).

    Files that are there are checked and kept. Raises UserError for a copy that is not there or not the right one,
    WorkError for a failed download or a wrong sum."""
    lock, several = Lock(root() / LOCK), len(asset(name).files) > 1
    if several and copy is not None and not copy.is_dir():
        raise UserError(f"{name} has several files, {copy} is one; --from takes the folder that holds them")
    for file in asset(name).files:
        target = root() / file.path
        known = lock.known(file)
        if copy is not None:
            _take(_source(copy, file), target, known, pinned=bool(file.sha256))
        elif not target.is_file():
            yield from download(known.url, target, known.sha256, known.size)
        elif problem := wrong(target, known):
            raise WorkError(f"{target}: {problem}; delete it and fetch {name} again")
        lock.record(file, target)
        yield file.path, target.stat().st_size, target.stat().st_size


def _source(copy: Path, file: File) -> Path:
    """The local copy of a file: the given file itself, or the one of that name in the given folder."""
    if not copy.is_dir():
        places = [copy]
    else:
        places = [copy / file.path, copy / Path(file.path).name, copy / Path(file.url).name]
    for place in places:
        if place.is_file():
            return place
    raise UserError(f"no {Path(file.path).name} at {copy}; name the file, or a folder that holds it")


def _take(source: Path, target: Path, known: File, pinned: bool) -> None:
    if problem := wrong(source, known):
        recorded = f"it is not the file that {root() / LOCK} recorded first; to take another one, delete its entry"
        raise UserError(f"{source}: {problem}; {'it is not the published file' if pinned else recorded}")
    if source.resolve() != target.resolve():
        with source.open("rb") as file:
            files.replace(target, lambda out: shutil.copyfileobj(file, out, 1 << 20))


def wrong(place: Path, known: File) -> str:
    """What is wrong with a file, "" if nothing that is known of it is."""
    if known.size and place.stat().st_size != known.size:
        return f"it has {place.stat().st_size} bytes, not {known.size}"
    if known.sha256 and not (got := files.sha256(place)).startswith(known.sha256):
        return f"its sha256 is {got[:12]}..., not {known.sha256[:12]}..."
    return ""


class Lock:
    """The sums that first downloads had, by path."""

    def __init__(self, place: Path) -> None:
        self.place = place
        try:
            self.sums: dict[str, dict[str, object]] = files.read_json(place) if place.is_file() else {}
        except ValueError as error:
            raise UserError(f"{error}; delete it, and the next fetch records the sums anew") from None

    def known(self, file: File) -> File:
        """The file with what is pinned or was recorded of it."""
        seen = self.sums.get(file.path, {})
        return File(
            file.path, file.url, str(seen.get("sha256") or file.sha256), int(str(seen.get("size") or file.size))
        )

    def record(self, file: File, place: Path) -> None:
        if file.path not in self.sums:
            entry = {"url": file.url, "sha256": files.sha256(place), "size": place.stat().st_size}
            self.sums[file.path] = entry
            files.write_json(self.place, self.sums)
