"""Two benchmarks of pictures with a judge that counts light: what a test can check by hand, and no network."""

import hashlib
import os
import time
from pathlib import Path
from typing import ClassVar

import numpy as np

from twinbench.benchmarks.base import Benchmark, Chosen, Evidence, Judging, batches, limited, row_of
from twinbench.data.base import Request
from twinbench.errors import UserError, WorkError
from twinbench.settings import Strict
from twinbench.statistics import Metric

THINGS = ("cat", "dog", "red bench", "bench in the rain", "photo", "cat and a dog")


class Eye:
    """Light of a picture in [0, 1]. `blind` fails its own test, `damaged` breaks in it; `lost` has no weights."""

    class Config(Strict):
        blind: bool = False
        damaged: bool = False
        lost: bool = False

    name = "eye"

    def __init__(self, config):
        self.config = config

    @property
    def version(self):
        if self.config.lost:
            raise UserError("judge eye: its weights are not there; twinbench fetch eye gets them")
        return "1"

    def selftest(self):
        if self.config.blind:
            raise WorkError("a white picture looks black to it")
        if self.config.damaged:
            raise KeyError("no weights\nat all")

    def __call__(self, picture):
        return float(picture.mean() / 255)


class Config(Strict):
    eye: Chosen = Judging(name="eye")
    copies: int = 2
    batch: int = 3
    fails_at: str = ""  # a key at which the judge raises, unless the picture is plain


class Painted(Benchmark):
    """Light in [0, 1] and whether it is more than half; `sha256` is of the picture that the judge saw."""

    name = "painted"
    Config = Config
    part = 4
    metrics: ClassVar = {"light": Metric("light"), "right": Metric("correct")}
    judge_name = "eye/1"

    def requests(self, limit=None):
        pairs = [(i, copy) for i in range(len(THINGS)) for copy in range(self.config.copies)]
        return limited([Request(f"{i:05d}", f"a photo of a {THINGS[i]}", copy, "things") for i, copy in pairs], limit)

    def judge(self, samples, requests):
        items, eye = [], self.config.eye.made()
        for pictures, part in batches(samples, requests, self.config.batch):
            for picture, request in zip(pictures, part):
                note(request)
                if request.key == self.config.fails_at and picture.std() > 0:
                    raise RuntimeError("too bright to look at")
                sha256 = hashlib.sha256(np.ascontiguousarray(picture).tobytes()).hexdigest()
                light = eye(picture)
                items.append({**row_of(request), "light": light, "correct": light > 0.5, "sha256": sha256})
        return Evidence(items)


class Measured(Painted):
    """A score of the whole set: how far the mean colour is from gray."""

    name = "measured"
    metrics: ClassVar = {}
    prompt_set = "painted"

    def judge(self, samples, requests):
        rows = [p.reshape(-1, 3).mean(0) for pictures, _ in batches(samples, requests, 3) for p in pictures]
        return Evidence(features=np.stack(rows), keys=[r.key for r in requests], reference=np.full((2, 3), 127.5))

    def summarize(self, evidence):
        return {"fd": float(np.abs(evidence.features.mean(0) - evidence.reference.mean(0)).sum())}


def note(request):
    """Write what is judged into the file that a test names, slowly enough to be killed."""
    if log := os.environ.get("PAINTED_LOG"):
        time.sleep(0.01)
        with Path(log).open("a") as file:
            file.write(f"{request.key} {request.copy}\n")


ENTRIES = """[twinbench.benchmarks]
painted = painted:Painted
measured = painted:Measured
[twinbench.judges]
eye = painted:Eye
"""


def install(site):
    """Make the benchmarks known by entry point to every process that has the folder on its path."""
    folder = Path(site) / "painted-1.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: painted\nVersion: 1\n")
    (folder / "entry_points.txt").write_text(ENTRIES)
    return str(site)
