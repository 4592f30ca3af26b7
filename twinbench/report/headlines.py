"""The metrics that a report puts first, of each benchmark, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Headline:
    metric: str
    digits: int = 2
    higher: bool = True  # whether higher is better
    ranked: bool = True  # whether either is


HEADLINES = {
    "geneval": (Headline("overall"), Headline("strict"), Headline("heldout")),
    "geneval-rewritten": (Headline("overall"),),
    "dpg": (Headline("corrected"), Headline("official")),
    "fidelity": (
        Headline("fd", higher=False),
        Headline("fid", higher=False),
        Headline("kid", digits=5, higher=False),
        Headline("clip"),
    ),
    "diversity": (Headline("distance", digits=3),),
    "latency": (
        Headline("latency", higher=False),
        Headline("evaluation", higher=False),
        Headline("throughput_1"),
        Headline("throughput"),
        Headline("best_batch", digits=0, ranked=False),
    ),
}
