"""The metrics that a report puts first, of each benchmark, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Headline:
    metric: str
    digits: int = 2
    higher: bool = True  # whether higher is better


HEADLINES = {
    "geneval": (Headline("overall"), Headline("strict"), Headline("heldout")),
    "fidelity": (Headline("fd", higher=False), Headline("kid", digits=5, higher=False)),
    "diversity": (Headline("distance", digits=3),),
}
