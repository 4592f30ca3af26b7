"""How long pictures take: of a whole drawing, from prompts to pixels, and of the network's evaluations within it.

Latency is the median of one picture drawn alone; throughput is the most pictures a second over batches of 1, 2, 4, ...
until memory ends or more rows bring nothing. A time belongs to a machine: hardware, precision, threads are its judge.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

Work = Callable[[int], Callable[[], Any]]  # n -> what draws n pictures, all made ready
WARMUP, REPEATS = 2, 5
WORSE = 0.9  # a batch at less than this share of the best throughput ends the search


@dataclass(frozen=True)
class Timing:
    """Drawing `batch` pictures at once: median seconds of the whole and of the network's calls within it, and the
    quickest and slowest whole."""

    batch: int
    seconds: float
    network: float
    quickest: float
    slowest: float

    @property
    def throughput(self) -> float:
        """Pictures a second."""
        return self.batch / self.seconds


def sweep(work: Work, network: nn.Module, most: int = 64, repeats: int = REPEATS) -> Iterator[Timing]:
    """Timings of 1, 2, 4, ... pictures at once, up to `most`; ends early where memory does or a batch is slower."""
    best, batch = 0.0, 1
    while batch <= most:
        try:
            timing = measure(work(batch), network, batch, repeats)
        except (torch.OutOfMemoryError, MemoryError):
            if batch == 1:
                raise
            torch.cuda.empty_cache()
            return
        yield timing
        best, batch = max(best, timing.throughput), 2 * batch
        if timing.throughput < WORSE * best:
            return


def measure(draw: Callable[[], Any], network: nn.Module, batch: int, repeats: int = REPEATS) -> Timing:
    """The median of `repeats` drawings after WARMUP that are not counted."""
    whole, inside = [], []
    for i in range(WARMUP + repeats):
        with watched(network) as calls:
            start = now()
            draw()
            seconds = now() - start
        if i >= WARMUP:
            whole.append(seconds)
            inside.append(sum(calls))
    return Timing(batch, float(np.median(whole)), float(np.median(inside)), min(whole), max(whole))


def now() -> float:
    """Seconds, after all that was asked of the accelerator is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def watched(network: nn.Module) -> Iterator[list[float]]:
    """The seconds of every call of a network meanwhile."""
    calls: list[float] = []
    begun: list[float] = []
    hooks = [
        network.register_forward_pre_hook(lambda *_: begun.append(now())),
        network.register_forward_hook(lambda *_: calls.append(now() - begun.pop())),
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def metrics(timings: Sequence[Timing], nfe: int) -> dict[str, float]:
    """latency and evaluation in milliseconds at batch 1 (the latter of one evaluation of the network); pictures a
    second at batch 1 (throughput_1) and at the best batch, and that batch."""
    one, best = timings[0], max(timings, key=lambda timing: timing.throughput)
    return {
        "latency": 1000 * one.seconds,
        "evaluation": 1000 * one.network / nfe,
        "throughput_1": one.throughput,
        "throughput": best.throughput,
        "best_batch": float(best.batch),
    }
