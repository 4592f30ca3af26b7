"""What a method is: random numbers drawn in one place, and a pure loss on one velocity."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from twinbench.flow import Batch, Hop, Velocity
from twinbench.randomness import Rng
from twinbench.settings import Strict

__all__ = ["Draws", "Method", "Networks", "Strict", "Term", "Terms", "Turn"]


@dataclass(frozen=True)
class Draws:
    """Every random number of one turn. rows: size of the global batch, the denominator of a mean over all rows."""

    rows: int


@dataclass(frozen=True)
class Networks:
    """The velocities that a turn may ask; None where the method did not say that it needs them."""

    student: Velocity
    target: Velocity | None = None
    teacher: Velocity | None = None
    critic: Velocity | None = None
    head: torch.nn.Module | None = None


@dataclass(frozen=True)
class Turn:
    """Whose update this is. step counts student updates; progress in [0, 1] is the share of the budget used. repeat:
    how many turns of this name the step has had before."""

    name: str = "student"
    step: int = 0
    progress: float = 0.0
    repeat: int = 0

    @property
    def key(self) -> str:
        """The turn's part in the key of its random numbers: repeated turns draw their own."""
        return f"{self.name}.{self.repeat}" if self.repeat else self.name


@dataclass(frozen=True)
class Term:
    """A mean, as its parts: rows [n] of this micro-batch and the count of such rows in the global batch. Adding up
    sum(rows) / denominator over micro-batches gives the loss of the whole batch."""

    rows: Tensor
    denominator: int

    def value(self) -> Tensor:
        return self.rows.sum() / self.denominator if self.denominator else self.rows.sum() * 0


@dataclass(frozen=True)
class Terms:
    """losses are minimised, their sum with weight 1; logs are means over the rows held, for the eye."""

    losses: dict[str, Term]
    logs: dict[str, Tensor] = field(default_factory=dict)

    def total(self) -> Tensor:
        return torch.stack([term.value() for term in self.losses.values()]).sum()


class Method(ABC):
    """A training objective. It knows nothing of devices, precision, sharding or checkpoints."""

    Config: ClassVar[type[Strict]] = Strict  # its own settings; a recipe's block is checked against them
    hop: ClassVar[Hop] = "end"  # how its student is sampled where the recipe is silent

    config: Any  # an instance of Config

    def __init__(self, config: Strict | None = None) -> None:
        self.config = config or self.Config()

    @property
    def needs(self) -> frozenset[str]:
        """Networks beside the student: a subset of {"target", "teacher", "critic", "head"}."""
        return frozenset()

    def turns(self, step: int) -> Sequence[str]:
        """The updates of one step, in order; the student's is among them."""
        return ("student",)

    def rate(self, turn: str) -> float:
        """What the recipe's learning rate is multiplied by in a turn."""
        return 1.0

    @abstractmethod
    def draw(self, batch: Batch, rng: Rng, turn: Turn) -> Draws:
        """All random numbers of a turn."""

    @abstractmethod
    def loss(self, networks: Networks, batch: Batch, draws: Draws, turn: Turn) -> Terms:
        """The terms of a turn: pure, without random numbers and without change of its inputs."""
