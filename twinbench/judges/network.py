"""What the neural judges share: a device, batches of one size, pictures as tensors."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from pydantic import Field

from twinbench.errors import UserError, WorkError
from twinbench.judges import weights
from twinbench.judges.base import Judge
from twinbench.settings import Strict

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")


class Settings(Strict):
    """Where a network runs, and how many pictures at once. Neither changes an answer but in the last bits."""

    device: str | None = Field(None, description="cuda, cuda:1, cpu; this process's accelerator if there is one")
    batch: int | None = Field(None, ge=1, description="pictures at once; 8 on an accelerator, 1 on a processor")


class Network(Judge):
    """A judge that asks a network. `path` is its file or folder of weights."""

    Config: ClassVar[type[Strict]] = Settings

    @property
    def path(self) -> Path:
        raise NotImplementedError

    @property
    def weights(self) -> str:
        return weights.fingerprint(self.path)

    @cached_property
    def device(self) -> Any:
        import torch

        here = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
        return torch.device(self.config.device or here)

    @property
    def batch(self) -> int:
        return self.config.batch or (1 if self.device.type == "cpu" else 8)

    def expect(self, right: int, of: int, least: int, what: str) -> None:
        """WorkError unless enough answers of a self-test were right."""
        if right < least:
            raise WorkError(
                f"judge {self.name} fails its self-test: {right} of {of} right in {what}, at least {least} expected; "
                f"its weights are {self.path}"
            )


def each(ask: Callable[[list[T]], Iterable[R]], rows: Sequence[T], batch: int) -> list[R]:
    """The answers to all rows, asked exactly `batch` at a time, the last few filled up by repetition: float32 kernels
    round differently for other sizes, so an answer does not depend on how many are asked."""
    out: list[R] = []
    for start in range(0, len(rows), batch):
        part = list(rows[start : start + batch])
        full = part + part[-1:] * (batch - len(part))
        out += list(ask(full))[: len(part)]
    return out


def alike(
    ask: Callable[[list[T]], Iterable[R]], rows: Sequence[T], batch: int, kind: Callable[[T], Hashable]
) -> list[R]:
    """As `each`, with rows of one kind (such as one size) together; answers come in the order of the rows."""
    groups: dict[Hashable, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(kind(row), []).append(i)
    found: dict[int, R] = {}
    for places in groups.values():
        found |= zip(places, each(ask, [rows[i] for i in places], batch), strict=True)
    return [found[i] for i in range(len(rows))]


def tensors(pictures: Iterable[np.ndarray]) -> Iterator[Tensor]:
    """uint8 [h, w, 3] -> float32 [3, h, w] in [0, 255]. ValueError for anything else."""
    import torch

    for picture in pictures:
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or not picture.size:
            raise ValueError(f"a picture is uint8 [h, w, 3], not {picture.dtype} {list(picture.shape)}")
        yield torch.from_numpy(picture.copy()).permute(2, 0, 1).float()


def pretrained(kind: Any, folder: Path, device: Any, dtype: str = "float32", unused: Iterable[str] = ()) -> Any:
    """A transformers model from safetensors, for answering. UserError if any of its tensors lacks but the unused."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # the work has a bar of its own
    try:
        network, told = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True, dtype=dtype)
    except Exception as error:  # what is no checkpoint breaks the reader in any way
        raise UserError(f"{folder} is no {kind.__name__} or is damaged ({weights.told(error)})") from None
    lacking = sorted(set(told["missing_keys"]) - set(unused))
    if lacking or told["mismatched_keys"]:
        raise UserError(f"{folder} is no whole {kind.__name__}: {len(lacking)} tensors are missing, as {lacking[:1]}")
    return network.eval().requires_grad_(False).to(device)
