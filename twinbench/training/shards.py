"""Tensors that no process holds whole, on disk: torch's distributed checkpoints, as safetensors.

A folder with one file a process, each of which says where in a tensor its pieces belong, and meta.json. Any number of
processes reads it, one alone too. Nothing in it is pickled. It is written beside its place and renamed when all of it
is there, so a kill leaves the old one or the new one, never a part. It may be written aside, while training goes on:
from copies in the host's memory, over a channel of its own.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor, distribute_tensor

from twinbench.errors import UserError
from twinbench.files import read_json, write_json
from twinbench.training.parallel import Group

META = "meta.json"


def save_shards(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any], group: Group, named: Callable[[], None]
) -> None:
    """Write a folder; all processes must call it. The first one calls `named` when the folder has its name. Where the
    group writes aside that is later, and the tensors may change before."""
    unfinished = path.with_name(f".{path.name}")
    if group.first:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    group.wait()
    ready = {name: value.detach().reshape(value.shape or (1,)) for name, value in tensors.items()}
    scalars = [name for name, value in tensors.items() if not value.shape]
    writer = HuggingFaceStorageWriter(str(unfinished), save_distributed=True)

    def name() -> None:
        if group.first:
            write_json(unfinished / META, {"metadata": metadata, "scalars": scalars})
            shutil.rmtree(path, ignore_errors=True)
            unfinished.rename(path)
            named()

    if group.aside:  # the first process hears of the end when all have written
        writing: Any = dcp.async_save(ready, storage_writer=writer, process_group=group.aside.channel)
        group.aside.go_on(writing, name)
    else:
        dcp.save(ready, storage_writer=writer)
        name()
        group.wait()


class Shards:
    """A folder that `save_shards` wrote. Raises UserError where it is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            meta = read_json(path / META)
            self.metadata: dict[str, Any] = meta["metadata"]
            self.scalars = frozenset(meta["scalars"])
            self.stored = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise self._damaged(error) from None

    def empty(self, name: str) -> Tensor:
        """A tensor of the size of a stored one."""
        stored: Any = self.stored[name]
        return torch.empty(stored.size, dtype=stored.properties.dtype)

    def read(self, places: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fill tensors, sharded or whole, with what is stored under their names."""
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*no process group.*|.*torch.distributed.*")
                dcp.load(dict(places), storage_reader=HuggingFaceStorageReader(str(self.path)))
        except (dcp.CheckpointException, OSError, SafetensorError, ValueError, json.JSONDecodeError) as error:
            raise self._damaged(error) from None
        return {name: value.reshape(()) if name in self.scalars else value for name, value in places.items()}

    def _damaged(self, error: Any) -> UserError:
        return UserError(f"{self.path} is damaged ({error}); delete it and give the same command again")


def dealt(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, as the shards that another one consists of."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
