"""Diversity of pictures of any model: how far the pictures of one prompt lie apart, by LPIPS or in any features.

The mean over pairs of a prompt's pictures, then over prompts, on GenEval's prompts with four pictures each, as TwinFlow
measures it; the pictures are those that GenEval judges, under its settings. One-step generators collapse: no score
should be read without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import combinations
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from twinbench import plugins
from twinbench.benchmarks.base import Benchmark, Chosen, Evidence, Judging, batches, identity, row_of
from twinbench.data.base import Request
from twinbench.errors import UserError
from twinbench.judges.base import Distance, Features
from twinbench.settings import Strict, validate
from twinbench.statistics import Metric


class DiversityConfig(Strict):
    distance: Chosen | None = Field(Judging(name="lpips"), description="how far two pictures lie apart")
    features: Chosen | None = Field(None, description="an encoder instead: the L2 distance of its features")
    asks: Literal["geneval", "geneval-rewritten", "dpg"] = Field("geneval", description="whose prompts and pictures")

    @model_validator(mode="after")
    def _one_of(self) -> DiversityConfig:
        if (self.distance is None) == (self.features is None):
            raise ValueError("give distance or features, and null for the other")
        return self


class PictureDiversity(Benchmark):
    name = "diversity"
    Config = DiversityConfig
    metrics: ClassVar[Mapping[str, Metric]] = {"distance": Metric("distance", stratum="split")}
    settings: Mapping[str, Any] = MappingProxyType({})

    def beside(self, known: Mapping[str, Mapping[str, Any]]) -> None:
        self.settings = known.get(self.config.asks, {})

    @cached_property
    def asked(self) -> Benchmark:
        """The benchmark whose pictures these are, under its own settings."""
        kind = plugins.benchmark(self.config.asks)
        return kind(None, validate(kind.Config, dict(self.settings), f"benchmark {kind.name!r}"), self.prompts)

    @property
    def prompt_set(self) -> str:
        return self.asked.prompt_set

    @property
    def distance(self) -> Distance | None:
        return self.config.distance.made(Distance) if self.config.distance else None

    @property
    def encoder(self) -> Features:
        return self.config.features.made(Features)

    @property
    def judge_name(self) -> str:
        return identity(self.distance or self.encoder)

    def requests(self, limit: int | None = None) -> Sequence[Request]:
        requests = self.asked.requests(limit)
        if not any(r.copy for r in requests):
            raise UserError(
                f"diversity compares the pictures of a prompt, and {self.asked.name} asks for one; "
                f"eval.benchmarks.{self.asked.name}.copies=4 asks for four"
            )
        return requests

    def judge(self, samples: Any, requests: Sequence[Request]) -> Evidence:
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(request.key, []).append(i)
        pictures = [picture for part, _ in batches(samples, requests, len(requests)) for picture in part]
        items = []
        for rows in groups.values():
            pairs = list(combinations([pictures[i] for i in rows], 2))
            row = {name: value for name, value in row_of(requests[rows[0]]).items() if name != "copy"}
            if pairs:
                items.append({**row, "distance": float(np.mean(self._distances(pairs)))})
        return Evidence(items)

    def _distances(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
        first, second = ([pair[side] for pair in pairs] for side in (0, 1))
        if self.distance:
            return self.distance(first, second)
        return np.linalg.norm(self.encoder(first) - self.encoder(second), axis=1)
