"""Checkpoints of several processes that are written while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch.distributed as dist


class Aside:
    """Writes while training goes on, one thing at a time; its processes speak over a channel of their own."""

    def __init__(self) -> None:
        self.channel: Any = dist.new_group(backend="gloo")
        self.thread = ThreadPoolExecutor(1)
        self.work: Future[Any] | None = None

    def go_on(self, writing: Future[Any], then: Callable[[], None]) -> None:
        """Do something once what is being written is there."""

        def work() -> None:
            writing.result()
            then()

        self.work = self.thread.submit(work)

    def settle(self) -> None:
        """Wait for what is being written. Raises what went wrong with it."""
        work, self.work = self.work, None
        if work:
            work.result()
