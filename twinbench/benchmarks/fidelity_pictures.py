"""FID, KID and CLIP score of pictures of any model, against a named set of real ones (`benchmarks.references`).

The judge's name tells the features, their resizing and the reference with its sha256; n is the number of pictures. An
FID is biased by about 1 / n and belongs to one tool: only equal n, resizing and reference compare. KID is unbiased.
Both belong to the whole set; a row keeps its picture's share of them, which can be resampled like any other score.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from twinbench.benchmarks import references
from twinbench.benchmarks.base import Benchmark, Chosen, Evidence, Judging, batches, identity, limited, row_of
from twinbench.data.base import Request
from twinbench.errors import UserError
from twinbench.judges.base import Features, Similarity
from twinbench.judges.distances import frechet_rows, kernel_rows
from twinbench.settings import REQUIRED, Strict
from twinbench.statistics import Metric, evaluate


class FidelityConfig(Strict):
    reference: str = Field(REQUIRED, description="mjhq-30k, coco-30k, imagenet-256, imagenet-512, or a folder")
    features: Chosen = Field(Judging(name="inception"), description="whose features are compared")
    clip: Chosen | None = Field(Judging(name="clip"), description="who judges picture and prompt; null for none")
    images: int | None = Field(None, ge=2, description="pictures; all prompts of the reference by default")
    batch: int = Field(64, ge=1, description="pictures held at once")


class PictureFidelity(Benchmark):
    """`fid`; `kid`, where the reference keeps its features; `clip`: 100 times the cosine of picture and prompt."""

    name = "fidelity"
    Config = FidelityConfig
    metrics: ClassVar = {name: Metric(name, stratum="split") for name in ("fid", "kid", "clip")}

    @property
    def reference(self) -> str:
        if self.config.reference == REQUIRED:
            raise UserError("fidelity needs a reference: --set eval.benchmarks.fidelity.reference=mjhq-30k")
        return self.config.reference

    @property
    def encoder(self) -> Features:
        return self.config.features.made(Features)

    @property
    def clip(self) -> Similarity | None:
        return self.config.clip.made(Similarity) if self.config.clip else None

    @cached_property
    def statistics(self) -> references.Statistics:
        """Raises UserError where the reference holds other features than this judge's."""
        told = references.statistics(self.reference, self.encoder.name)
        mine = references.kind(self.encoder)
        if not mine.startswith(told.judges):
            theirs = " or ".join(map(repr, told.judges))
            raise UserError(f"reference {self.reference} holds features of {theirs}, not of {mine!r}")
        return told

    @property
    def prompt_set(self) -> str:
        return references.title(self.reference)

    @property
    def judge_name(self) -> str:
        judges = [judge for judge in (self.encoder, self.clip) if judge]
        return f"{identity(*judges)} + {references.title(self.reference)}/{self.statistics.sha256[:12]}"

    @property
    def judges(self) -> list[dict[str, str]]:
        return [*super().judges, {"reference": references.title(self.reference), "sha256": self.statistics.sha256}]

    def requests(self, limit: int | None = None) -> list[Request]:
        if self.prompts != "evaluation":
            raise UserError(
                f"{self.name} has no {self.prompts} prompts; it is there to compare, not to choose settings"
            )
        if self.config.clip and self.reference in references.PUBLISHED:
            raise UserError(
                f"reference {self.reference} is of classes, which have no words for CLIP: "
                "--set eval.benchmarks.fidelity.clip=null"
            )
        return limited(references.requests(self.reference, self.config.images), limit)

    def judge(self, samples: Any, requests: Sequence[Request]) -> Evidence:
        encoder, clip, parts, items = self.encoder, self.clip, [], []
        for pictures, part in batches(samples, requests, self.config.batch):
            parts.append(np.asarray(encoder(pictures), np.float64))
            if clip:
                cosines = clip.scores(pictures, [r.prompt for r in part])
                items += [{**row_of(r), "clip": 100 * float(x)} for r, x in zip(part, cosines, strict=True)]
        return Evidence(items, np.concatenate(parts), [r.key for r in requests])

    def settle(self, evidence: Evidence) -> None:
        """`fid` and `kid` of every row, whose means are the distances of the set."""
        x, real = evidence.features, self.statistics
        assert x is not None
        if not evidence.items:  # nobody asked for the CLIP score
            evidence.items.extend({"key": key, "copy": 0, "split": "evaluation"} for key in evidence.keys)
        shares = {"fid": frechet_rows(x, real.mean, real.covariance)}
        if real.features is not None:
            shares["kid"] = kernel_rows(x, real.features)
        for name, values in shares.items():
            for item, value in zip(evidence.items, values.tolist(), strict=True):
                item[name] = value

    def summarize(self, evidence: Evidence) -> dict[str, float]:
        told = [name for name in self.metrics if evidence.items and name in evidence.items[0]]
        return {name: evaluate(self.metrics[name], evidence.items) for name in told}
