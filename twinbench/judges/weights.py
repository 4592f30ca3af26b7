"""Where a judge's weights lie, and their sha256. Nothing is downloaded but from a model hub, by its own client.

A file is looked for where the setting says, else among the assets (`twinbench fetch`). A model is a folder, or the id
of a repository on the hub; only safetensors are read.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from twinbench import assets, sums
from twinbench.errors import UserError


class Missing(UserError):
    """Weights of a judge that are not there; its setting `weights` may say where they are."""

    def __init__(self, judge: str, told: str) -> None:
        super().__init__(f"judge {judge}: {told}")
        self.judge = judge


def file(setting: str | None, asset: str, judge: str) -> Path:
    """The file that the setting names, else the published one among the assets. Raises Missing, which says what to
    fetch."""
    if setting is None:
        try:
            return assets.path(asset)
        except UserError as error:
            raise Missing(judge, str(error)) from None
    path = Path(setting).expanduser()
    if not path.is_file():
        raise Missing(judge, f"weights {setting} is no file; twinbench fetch {asset} gets the published one")
    return path


def model(setting: str, judge: str) -> Path:
    """The folder of a model: the setting itself, or a copy of that repository from the hub.

    Raises Missing if it is neither at hand nor to be had."""
    folder = Path(setting).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        wanted = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
        return Path(snapshot_download(setting, allow_patterns=wanted))
    except Exception as error:  # the hub's client raises many kinds; all mean the same here
        told = f"the model {setting} is not to be had ({type(error).__name__}): hf download {setting}"
        raise Missing(judge, told) from None


def told(error: Exception) -> str:
    """What a library says of a file that it cannot read, in a line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:120]


def fingerprint(path: Path) -> str:
    """The sha256 of a file; of a folder, that of its files' names and sha256s, sorted."""
    return _fingerprint(path.resolve())


@cache
def _fingerprint(path: Path) -> str:
    if path.is_file():
        return sums.sha256(path)
    inside = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    lines = [f"{sums.sha256(p)}  {p.relative_to(path).as_posix()}\n" for p in inside]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
