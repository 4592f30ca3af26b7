"""The small committed results: one folder a run, one score file a benchmark and NFE, its evidence beside it.

    results/<recipe>/<label>-<fingerprint>/run.json                        schema twinbench.run/1
                                           <benchmark>-nfe<k>.json         schema twinbench.score/1
                                           <benchmark>-nfe<k>.items.jsonl.gz  one row an image or question
                                           <benchmark>-nfe<k>.features.npz features [n, d], keys [n]   (optional)
    results/<recipe>/<benchmark>-reference.npz                             features [m, d], judge      (optional)

Every file is written to a temporary name beside it and then renamed, so that a reader sees the old file or the new one.
"""

from __future__ import annotations

import gzip
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from twinbench.files import plain, read_json, replace, write_json

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Record", "load", "read_items", "read_json", "records", "write_items", "write_json"]

RUN, SCORE = "twinbench.run/1", "twinbench.score/1"
IDENTITY = ("recipe", "label", "method", "fingerprint", "group", "seed")
COSTS = ("network_passes", "seconds", "peak_bytes")
ASKED = ("benchmark", "version", "judge", "nfe", "nfe_counted", "schedule")
COLUMNS = (*IDENTITY, *ASKED, "metric", "value", "se", "n", "copies", *COSTS)


@dataclass(frozen=True)
class Record:
    """One score file with the run that it belongs to."""

    folder: Path
    run: dict[str, Any]
    score: dict[str, Any]
    stem: str  # of the score's files

    def beside(self, suffix: str) -> Path:
        """The file of evidence: suffix is "items.jsonl.gz" or "features.npz"."""
        return self.folder / f"{self.stem}.{suffix}"

    def items(self) -> list[dict[str, Any]] | None:
        """The item rows, None where they were not kept."""
        path = self.beside("items.jsonl.gz")
        return read_items(path) if path.exists() else None

    def features(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(features [n, d], keys [n]), None where they were not kept."""
        path = self.beside("features.npz")
        if not path.exists():
            return None
        file = _arrays(path)
        return file["features"], file["keys"]

    def reference(self) -> np.ndarray | None:
        """The features [m, d] of the recipe's real data under the same judge, None where there are none."""
        path = self.folder.parent / f"{self.score['benchmark']}-reference.npz"
        if not path.exists():
            return None
        file = _arrays(path)
        return file["features"] if str(file["judge"]) == self.score["judge"] else None


# ---- writing ----


def write_items(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes one JSON object a line, compressed; the same rows give the same bytes."""
    text = "".join(json.dumps(plain(row), allow_nan=False, ensure_ascii=False) + "\n" for row in rows)
    replace(Path(path), lambda file: file.write(gzip.compress(text.encode(), mtime=0)))


def write_features(path: str | Path, features: Any, keys: Iterable[str]) -> None:
    """Writes the features [n, d] of drawn images, in half precision, with the key of each."""
    features, keys = np.asarray(features, np.float16), np.asarray(list(keys), np.str_)
    if len(features) != len(keys):
        raise ValueError(f"{len(features)} features have {len(keys)} keys")
    replace(Path(path), lambda file: np.savez_compressed(file, features=features, keys=keys))


def write_reference(path: str | Path, features: Any, judge: str) -> None:
    """Writes the features [m, d] of the real data, in half precision, with the judge that gave them."""
    features = np.asarray(features, np.float16)
    replace(Path(path), lambda file: np.savez_compressed(file, features=features, judge=np.str_(judge)))


# ---- reading ----


def read_items(path: str | Path) -> list[dict[str, Any]]:
    """ValueError that names the file and the line if one is not JSON."""
    rows = []
    for number, line in enumerate(_unpacked(Path(path)).removesuffix("\n").split("\n"), 1):
        if not line:
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not valid JSON: {error}") from error
    return rows


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _unpacked(path: Path) -> str:
    try:
        return gzip.decompress(path.read_bytes()).decode()
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def records(path: str | Path) -> Iterator[Record]:
    """Every score under the results root, one recipe's folder or one run's folder, in the order of the paths.

    FileNotFoundError if there is none; ValueError that names the file if one is corrupt."""
    root, empty = Path(path), True
    for file in sorted(f for pattern in ("run.json", "*/run.json", "*/*/run.json") for f in root.glob(pattern)):
        run = _checked(file, RUN, (*IDENTITY, *COSTS))
        for score in sorted(file.parent.glob("*-nfe*.json")):
            empty = False
            yield Record(file.parent, run, _checked(score, SCORE, (*ASKED, "copies", "metrics")), score.stem)
    if empty:
        raise FileNotFoundError(f"no results under {root}; twinbench eval writes them")


def load(path: str | Path) -> pd.DataFrame:
    """One row a metric, with COLUMNS; `schedule` as canonical JSON, the last three are the training's cost.

    `path`: the results root, one recipe's folder or one run's folder. Errors as of `records`."""
    import pandas as pd

    rows = []
    for record in records(path):
        run = {key: record.run[key] for key in (*IDENTITY, *COSTS)}
        score = {key: record.score[key] for key in (*ASKED, "copies")}
        score["schedule"] = json.dumps(score["schedule"], sort_keys=True, separators=(",", ":"))
        rows += [{**run, **score, "metric": name, **entry} for name, entry in record.score["metrics"].items()]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"value": float, "se": float})


def _checked(path: Path, schema: str, keys: Iterable[str]) -> dict[str, Any]:
    obj = read_json(path)
    if not isinstance(obj, dict) or obj.get("schema") != schema:
        raise ValueError(f"{path} is not of schema {schema}")
    missing = [key for key in keys if key not in obj]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}")
    return obj
