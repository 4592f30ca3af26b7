"""What a person sees while work goes on: a bar with a rate and an ETA, or plain lines where the output is no
terminal."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Bar(Protocol):
    def __call__(self, share: float, note: str = "") -> None:
        """Show that a share in [0, 1] is done."""


@contextmanager
def bar(title: str, shown: bool = True) -> Iterator[Bar]:
    """A bar for one piece of work; of several processes at it, one has it shown."""
    if not shown:
        yield lambda share, note="": None
    elif sys.stderr.isatty():
        with _rich_bar(title) as lively:
            yield lively
    else:
        yield _Lines(title)


@contextmanager
def _rich_bar(title: str) -> Iterator[Bar]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()]
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=1.0, note="")

        def show(share: float, note: str = "") -> None:
            progress.update(task, completed=share, note=note)

        yield show


class _Lines:
    """A line for every tenth of the work, and at the end."""

    def __init__(self, title: str) -> None:
        self.title, self.start, self.first, self.next = title, time.monotonic(), -1.0, 0.0

    def __call__(self, share: float, note: str = "") -> None:
        if self.first < 0:
            self.first = share
        if share < self.next and share < 1:
            return
        self.next = (int(share * 10) + 1) / 10
        done = share - self.first
        left = (time.monotonic() - self.start) * (1 - share) / done if done > 0 else 0.0
        print(f"{self.title}  {share:4.0%}  eta {left:.0f} s  {note}".rstrip(), file=sys.stderr, flush=True)


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """Collect the first Ctrl-C or termination instead of obeying it at once, so that work can save between two steps;
    the second one ends the process as ever."""
    caught: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def note(number: int, frame: object) -> None:
        caught.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    for number in signals:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        restore()
