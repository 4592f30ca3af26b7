"""Several processes at one evaluation, as torchrun starts them; without it, this process is all of them.

Work is dealt in blocks of consecutive rows, and what comes out of a block depends on nothing but the block: so any
number of processes gives the same bytes. They share the file system, and wait for one another between stages; where one
fails, all end with its error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from twinbench.errors import UserError, WorkError

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # one process may have much more left to draw than another
FAILED = "failed"  # is in the store once a process failed at the stage that all are at


class Stopped(Exception):
    """Another process failed."""


@dataclass(frozen=True)
class Ranks:
    """store: what the processes tell one another while they work (torch.distributed.Store)."""

    rank: int = 0
    size: int = 1
    store: Any = field(default=None, kw_only=True)

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes results and speaks."""
        return self.rank == 0

    def share(self, rows: Sequence[T], block: int) -> list[T]:
        """This process's part of the rows: every size-th block."""
        return [row for i, row in enumerate(rows) if i // block % self.size == self.rank]

    def every(self, value: T) -> list[T]:
        """What every process has, in their order. Raises WorkError if one is lost."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(values, value)
        except RuntimeError:
            raise WorkError("another process of this evaluation is gone; its own message says why") from None
        return values

    def wait(self) -> None:
        """Until every process is here. Raises WorkError if one is lost."""
        self.every(None)

    @contextmanager
    def stage(self) -> Iterator[None]:
        """Work that every process does before any goes on. Where it fails in one, it fails in all: there with the
        error, elsewhere with the same UserError or WorkError."""
        mine: Exception | None = None
        try:
            yield
        except Exception as error:
            if self.size == 1:
                raise
            mine = error
            self.store.set(FAILED, "")
        failed = [told for told in self.every(_told(mine, self.rank)) if told]
        if not failed:
            return
        if self.first:
            self.store.delete_key(FAILED)
        self.wait()
        if mine and not isinstance(mine, Stopped):
            raise mine
        kind, message = failed[0]
        raise kind(message)

    def look(self) -> None:
        """Within a long stage: raises Stopped once another process has failed at it."""
        if self.size > 1 and self.store.check([FAILED]):
            raise Stopped


def _told(error: Exception | None, rank: int) -> tuple[type[Exception], str] | None:
    """An error as the other processes raise it."""
    if error is None or isinstance(error, Stopped):
        return None
    if isinstance(error, UserError | WorkError):
        return type(error), str(error)
    return WorkError, f"process {rank} failed ({type(error).__name__}: {error})"


ALONE = Ranks()


def meeting(patience: timedelta) -> tuple[Any, int, int]:
    """Where the processes that torchrun started meet: a store, this one's rank, and how many they are. torchrun keeps
    its store when it starts them again (--max-restarts), with the addresses of those that are gone: so every attempt
    has names of its own."""
    from torch.distributed import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://", timeout=patience))
    return PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store), rank, size


@contextmanager
def together() -> Iterator[Ranks]:
    """The processes that torchrun started (by RANK and WORLD_SIZE), each on its own GPU if there are any; or this one
    alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    store, rank, size = meeting(PATIENCE)
    store.set_timeout(PATIENCE)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        yield Ranks(rank, size, store=store)
    finally:
        dist.destroy_process_group()
