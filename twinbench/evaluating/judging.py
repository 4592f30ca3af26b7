"""Judging: the evidence of one benchmark on one drawing, part by part.

A part is what is judged at once: some pictures, with all copies of their prompts. Its evidence depends on nothing but
the part, and is stored when it is there; so judging goes on where it stopped, and any number of processes gives the
same bytes.

Nothing is left out: a picture that is missing or broken, or at which a judge fails, stops the work with its name. If
the work is to keep going, a gray picture is judged in its place; its rows count as wrong, whatever was said of it, and
tell the `error`. A score that belongs to the whole set has no such rows, and always stops.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twinbench.benchmarks.base import Benchmark, Evidence, Item, join
from twinbench.data.base import Request
from twinbench.errors import UserError, WorkError
from twinbench.files import plain
from twinbench.ranks import ALONE, Ranks
from twinbench.settings import digest
from twinbench.sources.base import Source
from twinbench.sources.pictures import BadPicture
from twinbench.sources.stored import name_of
from twinbench.tensors import read_tensors, save_tensors

SAMPLES = 2048  # of an embedded world that are judged at once
GRAY = (512, 512, 3)


class Judging:
    """One benchmark on the images of one source."""

    def __init__(
        self, benchmark: Benchmark, source: Source, requests: Sequence[Request], *, keep_going: bool = False
    ) -> None:
        self.benchmark, self.source, self.requests, self.keep_going = benchmark, source, list(requests), keep_going
        self.parts = parted(self.requests, benchmark.part if benchmark.world is None else SAMPLES)

    def judge(self, ranks: Ranks = ALONE) -> Iterator[int]:
        """Judge this process's parts that are not judged yet; yields how many of its requests are done.

        Raises WorkError naming the picture that is missing or broken, or at which the judge fails."""
        done = 0
        for i in ranks.share(range(len(self.parts)), 1):
            if not self._file(i).is_file():
                self._save(i, self._evidence(self.parts[i]))
            done += len(self.parts[i])
            yield done

    def result(self) -> Evidence:
        """The evidence of all parts in the order of the requests, counted. Raises WorkError where some is missing."""
        evidence = join([self._load(i) for i in range(len(self.parts))])
        self.benchmark.settle(evidence)
        complete(evidence, self.requests)
        return evidence

    def clear(self) -> None:
        """Forget the parts, once the result is kept elsewhere or is to be judged again."""
        for i in range(len(self.parts)):
            self._file(i).unlink(missing_ok=True)

    # ---- one part ----

    def _evidence(self, part: list[Request]) -> Evidence:
        try:
            return self.benchmark.judge(self.source.read(part), part)
        except UserError:
            raise
        except Exception as error:
            groups = [list(group) for _, group in groupby(part, key=lambda r: r.key)]
            found = [self._group(group) for group in groups]
            if not any("error" in item for evidence in found for item in evidence.items):
                raise WorkError(
                    f"{self._judge} fails on {len(part)} pictures from {part[0].key!r} on, on none of them alone "
                    f"({_told(error)})"
                ) from error
            return join(found)

    def _group(self, group: list[Request]) -> Evidence:
        """The evidence of one prompt, with rows that tell the error of those of its pictures that have one."""
        samples, errors = [], {}
        for r in group:
            try:
                (sample,) = self.source.read([r])
                self.benchmark.judge(_together([sample]), [r])
            except UserError:
                raise
            except Exception as error:
                errors[r.copy] = self._failed(r, error)
                sample = self._gray()
            samples.append(sample)
        try:
            evidence = self.benchmark.judge(_together(samples), group)
        except UserError:
            raise
        except Exception as error:
            raise WorkError(f"{self._judge} fails on {group[0].key!r} ({_told(error)})") from error
        if errors and (evidence.features is not None or not evidence.items):
            raise WorkError(f"{next(iter(errors.values()))}; {self.benchmark.name} needs every picture")
        for item in evidence.items:
            if told := errors.get(item["copy"]) if "copy" in item else next(iter(errors.values()), None):
                item |= {**self._nothing(item), "error": told}
        return evidence

    def _failed(self, r: Request, error: Exception) -> str:
        """What went wrong with a picture; raises it as WorkError unless the work is to keep going."""
        broken = isinstance(error, BadPicture)
        told = str(error) if broken else f"{self._judge} fails on {r.key!r}, copy {r.copy} ({_told(error)})"
        if self.keep_going:
            return told
        raise WorkError(f"{told}; --keep-going counts it as wrong") from error

    def _nothing(self, item: Item) -> Item:
        """The metrics' columns of a row, at their least."""
        columns = {metric.column for metric in self.benchmark.metrics.values()}
        return {c: type(item[c])(0) for c in sorted(columns) if item.get(c) is not None}

    def _gray(self) -> Any:
        if self.benchmark.world is None:
            return np.full(GRAY, 127, np.uint8)
        return torch.full(self.benchmark.world.shape, 127, dtype=torch.uint8)

    @property
    def _judge(self) -> str:
        return f"{self.benchmark.name}: the judge {self.benchmark.judge_name}"

    # ---- on disk ----

    def _file(self, i: int) -> Path:
        b = self.benchmark
        made = [b.name, b.version, b.judge_name, b.config.model_dump(mode="json"), self.keep_going]
        key = digest([*made, [name_of(r) for r in self.parts[i]]])
        return self.source.folder / "judged" / f"{b.name}-{key[:16]}.safetensors"

    def _save(self, i: int, evidence: Evidence) -> None:
        arrays = {"features": evidence.features, "reference": evidence.reference if i == 0 else None}
        tensors = {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items() if a is not None}
        save_tensors(self._file(i), tensors, {"items": plain(evidence.items), "keys": list(evidence.keys)})

    def _load(self, i: int) -> Evidence:
        path = self._file(i)
        if not path.is_file():
            raise WorkError(f"{path} is not there: the processes do not share their folders")
        tensors, told = read_tensors(path)
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        return Evidence(told["items"], arrays.get("features"), told["keys"], arrays.get("reference"))


def parted(requests: Sequence[Request], size: int) -> list[list[Request]]:
    """Consecutive requests, `size` or a few more at a time: the copies of a prompt stay together."""
    parts: list[list[Request]] = []
    for _, group in groupby(requests, key=lambda r: r.key):
        if not parts or len(parts[-1]) >= size:
            parts.append([])
        parts[-1] += group
    return parts


def complete(evidence: Evidence, requests: Sequence[Request]) -> None:
    """Raises WorkError naming a request without evidence."""
    said = evidence.items
    if said:
        by_copy = all("copy" in item for item in said)
        have = {(item["key"], item["copy"] if by_copy else 0) for item in said}
        lacking = [r for r in requests if (r.key, r.copy if by_copy else 0) not in have]
    else:
        counts, wanted = Counter(evidence.keys), Counter(r.key for r in requests if r.split == "evaluation")
        lacking = [r for r in requests if counts[r.key] < wanted[r.key]]
    if lacking:
        raise WorkError(
            f"{len(lacking)} pictures were not judged, {lacking[0].key!r}, copy {lacking[0].copy} among them"
        )


def _together(samples: list[Any]) -> Any:
    """Samples of a world as one Tensor, pictures as they are."""
    return torch.stack(samples) if isinstance(samples[0], torch.Tensor) else samples


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".replace("\n", " ")
