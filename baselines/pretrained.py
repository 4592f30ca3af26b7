"""No training at all: the initial weights as they are, sampled in as many steps as one likes. The reference row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from twinbench.flow import Batch, Hop
from twinbench.method import Draws, Method, Networks, Terms, Turn
from twinbench.randomness import Rng


class Pretrained(Method):
    hop: ClassVar[Hop] = "same"

    def turns(self, step: int) -> Sequence[str]:
        return ()

    def draw(self, batch: Batch, rng: Rng, turn: Turn) -> Draws:
        return Draws(rng.total)

    def loss(self, networks: Networks, batch: Batch, draws: Draws, turn: Turn) -> Terms:
        raise RuntimeError("pretrained has no turns; set train.budget: 0 in its block")
