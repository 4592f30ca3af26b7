"""A run is a method under a recipe: a folder that knows what made it.

runs/<recipe>/<label>-<fingerprint>/
    recipe.yaml  run.json  log.jsonl  checkpoints/  samples/  images/  weights.safetensors
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from twinbench.errors import UserError
from twinbench.files import write_json, write_text
from twinbench.recipe import Resolved
from twinbench.settings import digest

SHOWN = 10  # characters of a fingerprint in a folder's name
NEEDED = ("label", "fingerprint", "seed", "recipe", "resolved", "steps", "network_passes", "weights_sha256", "finished")
PACKAGES = ("twinbench", "torch", "numpy", "scipy", "diffusers", "transformers", "pydantic")


@dataclass(frozen=True)
class Run:
    """A run's folder and its settings. `weights` is the sha256 of the initial weights, `data` that of the samples."""

    root: Path
    resolved: Resolved
    weights: str
    data: str

    @cached_property
    def fingerprint(self) -> str:
        """What the weights depend on: the same settings resume, any other value is a new run."""
        return digest(self.resolved.identity(self.weights, self.data))

    @cached_property
    def group(self) -> str:
        """The fingerprint without the seed."""
        identity = self.resolved.identity(self.weights, self.data)
        return digest({key: value for key, value in identity.items() if key != "seed"})

    @property
    def finished(self) -> bool:
        """Whether run.json says so."""
        try:
            return bool(read(self.folder)["finished"])
        except UserError:
            return False

    @property
    def name(self) -> str:
        return f"{self.resolved.label}-{self.fingerprint[:SHOWN]}"

    @property
    def folder(self) -> Path:
        return self.root / self.resolved.recipe / self.name

    def open(self) -> Path:
        """Make the folder and write recipe.yaml. Raises UserError if it cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            target = self.folder / "recipe.yaml"
            if not target.exists():
                write_text(target, yaml.safe_dump(self.resolved.model_dump(mode="json"), sort_keys=False))
        except OSError as error:
            raise UserError(
                f"cannot write the run folder {self.folder} ({error.strerror}); choose another --runs"
            ) from None
        return self.folder

    def record(self, **measured: Any) -> dict[str, Any]:
        """run.json: what it is, what made it, what it cost."""
        r = self.resolved
        return {
            "schema": "twinbench.run/1",
            "label": r.label,
            "method": r.method,
            "recipe": r.recipe,
            "seed": r.seed,
            "fingerprint": self.fingerprint,
            "group": self.group,
            "initial_weights_sha256": self.weights,
            "data_sha256": self.data,
            "resolved": r.model_dump(mode="json"),
            **environment(),
            **measured,
        }

    def write(self, **measured: Any) -> None:
        write_json(self.folder / "run.json", self.record(**measured))


def name_of(record: dict[str, Any]) -> str:
    """The folder's name of a run by its record."""
    return f"{record['label']}-{record['fingerprint'][:SHOWN]}"


def read(folder: Path) -> dict[str, Any]:
    """run.json of a folder. Raises UserError if there is none or it is damaged."""
    path = folder / "run.json"
    try:
        record = json.loads(path.read_text())
        if record["schema"] == "twinbench.run/1" and {*NEEDED} <= {*record}:
            return record
    except FileNotFoundError:
        raise UserError(f"{folder} holds no run.json; twinbench train writes one") from None
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{path} is damaged; delete it and run twinbench train again")


def every(root: Path, recipe: str | None = None) -> list[Path]:
    """The folders of all runs, by name."""
    folders = sorted(path.parent for path in root.glob("*/*/run.json"))
    return [folder for folder in folders if recipe in (None, folder.parent.name)]


def finished(root: Path, recipe: str | None = None) -> list[Path]:
    """The folders of finished runs, by name."""
    return [folder for folder in every(root, recipe) if read(folder)["finished"]]


def find(root: Path, names: Iterable[str], recipe: str | None = None) -> list[Path]:
    """Folders by path, label, folder's name, or the start of a fingerprint (6 characters or more). Raises UserError for
    one not found."""
    known = {folder: read(folder) for folder in every(root, recipe)}
    chosen = []
    for name in names:
        if (Path(name) / "run.json").is_file():
            chosen.append(Path(name).resolve())
            continue
        found = [f for f, record in known.items() if name in (record["label"], f.name) or _begins(record, name)]
        if not found:
            raise UserError(f"run {name!r} not found under {root} (twinbench list runs)")
        chosen += found
    return chosen


def _begins(record: dict[str, Any], name: str) -> bool:
    return len(name) >= 6 and record["fingerprint"].startswith(name)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a run's folder. Raises UserError if another process does."""
    with (folder / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process trains {folder}; wait for it, or stop it") from None
        yield


def environment() -> dict[str, Any]:
    """What a result may depend on beside its settings."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "git": _git(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "hardware": {"cpu": _cpu(), "cores": os.cpu_count(), "gpu": gpu, "system": platform.system()},
        "threads": torch.get_num_threads(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def _git() -> str | None:
    """The commit of the source tree, with a + if it was changed; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        call = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        return subprocess.run(call, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
