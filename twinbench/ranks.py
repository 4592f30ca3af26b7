"""Several processes at one evaluation, as torchrun starts them; without it, this process is all of them.

Work is dealt in blocks of consecutive rows, and what comes out of a block depends on nothing but the block: so any
number of processes gives the same bytes. They share the file system, and wait for one another between stages.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from twinbench.errors import WorkError

T = TypeVar("T")
PATIENCE = timedelta(days=7)  # one process may have much more left to draw than another


@dataclass(frozen=True)
class Ranks:
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes results and speaks."""
        return self.rank == 0

    def share(self, rows: Sequence[T], block: int) -> list[T]:
        """This process's part of the rows: every size-th block."""
        return [row for i, row in enumerate(rows) if i // block % self.size == self.rank]

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            import torch.distributed as dist

            try:
                dist.barrier()
            except RuntimeError:
                raise WorkError("another process of this evaluation failed; its own message says why") from None


ALONE = Ranks()


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
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
