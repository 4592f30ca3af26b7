"""A benchmark asks for images and judges them.

requests -> (drawn elsewhere) -> judge: evidence -> summarize: scores
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import BeforeValidator
from torch import Tensor

from twinbench.data.base import Request, World
from twinbench.errors import UserError, WorkError
from twinbench.judges.base import Pictures, asked_as, identity_of
from twinbench.judges.base import judge as judge_of
from twinbench.sections import Named
from twinbench.settings import Strict
from twinbench.statistics import Metric, evaluate

Item = dict[str, Any]


class Judging(Named):
    """A judge by name, with its own settings beside it; the name alone will do."""

    name: str

    def made(self, kind: Any = None) -> Any:
        """The judge itself; weights are loaded by its first question. kind: what it is asked as, such as Detector.

        Raises UserError for a wrong name or setting, or one of another kind."""
        judge = judge_of(self.name, self.options)
        return asked_as(kind, judge) if kind else judge


Chosen = Annotated[Judging, BeforeValidator(lambda given: {"name": given} if isinstance(given, str) else given)]


@dataclass(frozen=True)
class Evidence:
    """What a judge said: one row an image or question; or, where the score belongs to the whole set, features [n, d]
    with the request key of each, and those [m, d] of the real samples that they are compared with."""

    items: list[Item] = field(default_factory=list)
    features: np.ndarray | None = None
    keys: list[str] = field(default_factory=list)
    reference: np.ndarray | None = None

    @property
    def small(self) -> bool:
        """Whether the features are few enough to stand beside the scores: 8 MB in half precision."""
        return self.features is not None and self.features.size <= 4_000_000


def join(parts: Sequence[Evidence]) -> Evidence:
    """The evidence of several shares of the requests, in their order, as if they had been judged at once."""
    items = [item for part in parts for item in part.items]
    features = [part.features for part in parts if part.features is not None]
    keys = [key for part in parts for key in part.keys]
    reference = next((part.reference for part in parts if part.reference is not None), None)
    return Evidence(items, np.concatenate(features) if features else None, keys, reference)


class Benchmark(ABC):
    """One benchmark, for one embedded world or (world None) for pictures of any model. Its class says which metrics its
    item rows carry.

    A share of the requests may be judged alone and joined later, if it holds every copy of its keys."""

    Config: ClassVar[type[Strict]] = Strict  # its own settings
    name: ClassVar[str]
    version: ClassVar[str] = "1"
    metrics: ClassVar[Mapping[str, Metric]] = {}
    part: ClassVar[int] = 64  # pictures of any model that are judged before the evidence is stored

    def __init__(self, world: type[World] | None = None, config: Any = None, prompts: str = "evaluation") -> None:
        """prompts: "evaluation", or "validation" where settings are chosen."""
        self.world, self.prompts = world, prompts
        self.config: Any = config or self.Config()

    def beside(self, known: Mapping[str, Mapping[str, Any]]) -> None:
        """Told first: the settings {name: settings} of all benchmarks that stand beside it; by default of no
        consequence."""
        return

    def requests(self, limit: int | None = None) -> Sequence[Request]:
        """What is drawn; `limit`: prompts a task and split. By default what the world asks, so benchmarks share
        images. Raises UserError where it needs prompts or data that are not here."""
        if self.world is None:
            raise UserError(f"{self.name} has no prompts of its own; evaluate it with the prompts of another benchmark")
        return self.world.requests(self.prompts, limit)

    @property
    def prompt_set(self) -> str:
        """Whose prompts these are: noise and images belong to it, so benchmarks of one set share their images."""
        return self.world.name if self.world else self.name

    @property
    @abstractmethod
    def judge_name(self) -> str:
        """Who judges, with a version or hash: results of different judges never share a table."""

    @property
    def judges(self) -> list[dict[str, str]]:
        """The same, whole: the identity of each; by default of those that the settings name."""
        return [identity_of(setting.made()) for _, setting in self.config if isinstance(setting, Judging)]

    @abstractmethod
    def judge(self, samples: Any, requests: Sequence[Request]) -> Evidence:
        """samples: one a request, of a world as `World.pixels` gives them (Tensor [n, ...]), else Pictures.

        Raises WorkError where a picture is missing: nothing is left out."""

    def settle(self, evidence: Evidence) -> None:
        """Set what a row says of the other rows, once all are there; by default nothing."""
        return

    def summarize(self, evidence: Evidence) -> dict[str, float]:
        """The scores, a pure function of the evidence."""
        scores = {name: evaluate(metric, evidence.items) for name, metric in self.metrics.items()}
        return {name: value for name, value in scores.items() if not np.isnan(value)}


def limited(requests: Sequence[Request], limit: int | None) -> list[Request]:
    """The requests of the first `limit` keys of each task; all of them without a limit."""
    ranks: dict[str, dict[str, int]] = {}
    for r in requests:
        keys = ranks.setdefault(r.tag, {})
        keys.setdefault(r.key, len(keys))
    return [r for r in requests if limit is None or ranks[r.tag][r.key] < limit]


def batches(
    samples: Tensor | Pictures, requests: Sequence[Request], size: int
) -> Iterator[tuple[list[np.ndarray], Sequence[Request]]]:
    """Pictures with their requests, `size` at a time. Raises WorkError unless there is one picture a request."""
    if len(samples) != len(requests):
        raise WorkError(f"{len(requests)} pictures were asked for, {len(samples)} are there; none may be left out")
    for start in range(0, len(requests), size):
        part = requests[start : start + size]
        yield [picture(samples[start + i]) for i in range(len(part))], part


def picture(sample: Any) -> np.ndarray:
    """A picture uint8 [h, w, 3], of one that is that already or of a Tensor uint8 [3, h, w]."""
    return sample.permute(1, 2, 0).numpy() if isinstance(sample, Tensor) else sample


def row_of(request: Request) -> Item:
    """What every item row says of its picture."""
    names = ("key", "copy", "prompt", "tag", "split")
    return {name: getattr(request, name) for name in names}


def identity(*judges: Any) -> str:
    """Judges as one name, "name/version + name/version"."""
    return " + ".join(f"{judge.name}/{judge.version}" for judge in judges)
