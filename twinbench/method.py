"""What a method is: random numbers drawn in one place, and a pure loss on one velocity."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from twinbench.flow import Batch, Cond, Hop, Velocity
from twinbench.randomness import Rng
from twinbench.settings import Lora, Strict

__all__ = ["Draws", "Method", "Networks", "Pairs", "Strict", "Term", "Terms", "Turn"]


Head = Callable[[Tensor, Tensor, Cond], Tensor]  # (x, t, cond) -> logits [n, k]: how much x_t looks like data


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
    head: Head | None = None


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
class Pairs:
    """A fixed set of noises and of the samples that the frozen teacher carries them to: count of them, made in `steps`
    Euler steps with guidance. They are what batches hold, in place of data (`Batch.z`)."""

    count: int
    steps: int
    guidance: float = 1.0

    @property
    def passes(self) -> int:
        """The network passes of making them."""
        return self.count * self.steps * (1 + (self.guidance != 1))


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

    @property
    def critic(self) -> Literal["network", "lora"]:
        """How the critic is held, if it is needed: a network of its own, or a low-rank adapter of the frozen one."""
        return "network"

    @property
    def critic_lora(self) -> Lora:
        """The size of that adapter."""
        return Lora()

    @property
    def taps(self) -> tuple[int, ...] | None:
        """The blocks of the frozen teacher that the head reads, if it is needed; None for some, evenly spaced."""
        return None

    @property
    def pairs(self) -> Pairs | None:
        """The teacher's pairs that it trains on, if it does not train on data; needs "teacher"."""
        return None

    def phase(self, progress: float) -> int:
        """Which part of the training this is, from 0 on. Where it rises, the student's average becomes the teacher."""
        return 0

    def turns(self, step: int) -> Sequence[str]:
        """The updates of one step, in order; the student's is among them."""
        return ("student",)

    def rate(self, turn: str) -> float:
        """What the recipe's learning rate is multiplied by in a turn."""
        return 1.0

    def course(self, progress: float) -> float:
        """How much of the learning rate's course is run, in [0, 1]: of the budget's, or of one that begins anew."""
        return progress

    @abstractmethod
    def draw(self, batch: Batch, rng: Rng, turn: Turn) -> Draws:
        """All random numbers of a turn."""

    @abstractmethod
    def loss(self, networks: Networks, batch: Batch, draws: Draws, turn: Turn) -> Terms:
        """The terms of a turn: pure, without random numbers and without change of its inputs. What a network says with
        a gradient belongs in a term: processes that share a batch do their backward passes together."""
