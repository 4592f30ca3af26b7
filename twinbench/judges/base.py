"""What a judge says: the protocols that benchmarks ask, and what every judge tells of itself.

Pictures are uint8 [h, w, 3] arrays in RGB, y down; the pictures of one call may differ in size. The judges of the
embedded worlds take a world's own samples instead.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import Any, ClassVar, Protocol

import numpy as np

from twinbench import plugins
from twinbench.errors import UserError
from twinbench.settings import Strict, validate

Pictures = Sequence[np.ndarray]


@dataclass(frozen=True)
class Found:
    """One detected object. box: (x0, y0, x1, y1) in pixels, y down; score in [0, 1]; mask: bool [h, w]."""

    label: str
    score: float
    box: tuple[float, float, float, float]
    mask: np.ndarray | None = None
    color: str | None = None


class Named(Protocol):
    """`name` and `version` stand in every result that a judge gave; judges that differ in either share no column."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...


class Detector(Named, Protocol):
    """Finds objects, of every class and score: what counts is the benchmark's to say."""

    @property
    def floor(self) -> float:
        """Objects are told above this score."""
        return 0.0

    def __call__(self, pictures: Pictures) -> list[list[Found]]: ...


class Colors(Named, Protocol):
    """Names the colour of a found object, given what class it is taken for."""

    def color_of(self, picture: np.ndarray, found: Found, label: str) -> str: ...

    def colors_of(self, pictures: Pictures, found: Sequence[Found], labels: Sequence[str]) -> list[str]:
        """Of one object a picture; a picture may stand there more than once."""
        ...


class VQA(Named, Protocol):
    """Answers one question a picture. Whatever a model adds, a plain yes or no is told as exactly `yes` or `no`."""

    def answers(self, pictures: Pictures, questions: Sequence[str]) -> list[str]: ...


class Similarity(Named, Protocol):
    """Embeds pictures and texts into one space: float32 [n, d], rows of length 1."""

    def images(self, pictures: Pictures) -> np.ndarray: ...

    def texts(self, texts: Sequence[str]) -> np.ndarray: ...

    def scores(self, pictures: Pictures, texts: Sequence[str]) -> np.ndarray:
        """The cosine of each picture with its text, float64 [n] in [-1, 1]; a CLIP score is 100 times that."""
        ...


class Features(Named, Protocol):
    """An encoder for distances between sets: pictures -> float64 [n, d]."""

    def __call__(self, pictures: Pictures) -> np.ndarray: ...


class Distance(Named, Protocol):
    """How far each picture is from its partner: float64 [n]."""

    def __call__(self, pictures: Pictures, others: Pictures) -> np.ndarray: ...


class Judge(ABC):
    """A judge made from settings. Making one finds its weights and loads nothing; the first question loads them."""

    Config: ClassVar[type[Strict]] = Strict
    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()  # what computes the answer, apart from this package
    install: ClassVar[str] = "twinbench"  # what pip is told where one of them lacks

    def __init__(self, config: Any = None) -> None:
        self.config: Any = config or self.Config()

    @property
    @abstractmethod
    def weights(self) -> str:
        """The sha256 of what it answers with."""

    @property
    def rules(self) -> str:
        """What else the answers depend on: our own steps around the network, and the settings that change them."""
        return "1"

    @property
    def versions(self) -> dict[str, str]:
        """Of its packages. UserError where one lacks."""
        here = present(*self.packages)
        if lacking := [package for package in self.packages if package not in here]:
            raise UserError(f"judge {self.name} needs {lacking[0]}: pip install {self.install}")
        return here

    @cached_property
    def identity(self) -> dict[str, str]:
        """Name, rules, weights' full sha256 and package versions. UserError where a package or the weights lack."""
        versions = self.versions
        return {"judge": self.name, "rules": self.rules, "weights": self.weights, **versions}

    @cached_property
    def version(self) -> str:
        """The identity in one line, the sha256 by its first 12 digits."""
        rest = [f"{key} {value}" for key, value in self.versions.items()]
        return ", ".join([self.rules, f"weights {self.identity['weights'][:12]}", *rest])

    @abstractmethod
    def selftest(self) -> None:
        """Asks what is known. Raises WorkError, in one sentence, at a wrong answer."""


def present(*packages: str) -> dict[str, str]:
    """The versions of those that are installed."""
    here = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            here[package] = installed(package).split("+")[0]
    return here


def identity_of(judge: Any) -> dict[str, str]:
    """Who a judge is, whole; of one that tells no more, its name and version."""
    return dict(judge.identity) if hasattr(judge, "identity") else {"judge": judge.name, "rules": judge.version}


def asked_as(kind: Any, made: Any) -> Any:
    """A judge that inherits one of the protocols above, such as Detector. Raises UserError for one of another kind."""
    if kind in type(made).__mro__:
        return made
    these = [name for name in plugins.names("judges") if kind in plugins.judge(name).__mro__]
    raise UserError(f"judge {made.name} is no {kind.__name__}; these are: {', '.join(these)}")


def judge(name: str, settings: Mapping[str, Any] | None = None) -> Any:
    """The judge of this name; the same one for the same settings, so that weights are loaded once a process.

    Raises UserError for an unknown name or setting, and where weights are missing."""
    return _judge(name, json.dumps(dict(settings or {}), sort_keys=True))


@cache
def _judge(name: str, settings: str) -> Any:
    kind = plugins.judge(name)
    return kind(validate(kind.Config, json.loads(settings), f"judge {name}"))
