"""A benchmark asks for images and judges them.

requests -> (drawn elsewhere) -> judge: evidence -> summarize: scores
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from twinbench.data.base import Request, World
from twinbench.settings import Strict
from twinbench.statistics import Metric, evaluate

Item = dict[str, Any]


@dataclass(frozen=True)
class Evidence:
    """What a judge said: one row an image or question; or, where the score belongs to the whole set, features [n, d]
    with the request key of each, and those [m, d] of the real samples that they are compared with."""

    items: list[Item] = field(default_factory=list)
    features: np.ndarray | None = None
    keys: list[str] = field(default_factory=list)
    reference: np.ndarray | None = None


class Benchmark(ABC):
    """One benchmark for one world. Its class says which metrics its item rows carry."""

    Config: ClassVar[type[Strict]] = Strict  # its own settings
    name: ClassVar[str]
    version: ClassVar[str] = "1"
    metrics: ClassVar[Mapping[str, Metric]] = {}

    def __init__(self, world: type[World], config: Strict | None = None, prompts: str = "evaluation") -> None:
        """prompts: "evaluation", or "validation" where settings are chosen."""
        self.world, self.config, self.prompts = world, config or self.Config(), prompts

    def requests(self, limit: int | None = None) -> Sequence[Request]:
        """What is drawn; `limit`: prompts a task and split. By default what the world asks, so benchmarks share
        images."""
        return self.world.requests(self.prompts, limit)

    @property
    @abstractmethod
    def judge_name(self) -> str:
        """Who judges, with a version or hash: results of different judges never share a table."""

    @abstractmethod
    def judge(self, samples: Tensor, requests: Sequence[Request]) -> Evidence:
        """samples [n, ...] as `World.pixels` gives them, one a request."""

    def summarize(self, evidence: Evidence) -> dict[str, float]:
        """The scores, a pure function of the evidence."""
        scores = {name: evaluate(metric, evidence.items) for name, metric in self.metrics.items()}
        return {name: value for name, value in scores.items() if not np.isnan(value)}
