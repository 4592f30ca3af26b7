"""Drawing: the samples of a network for requests, stored as they come.

A drawing is {weights, schedule, prompts}: drawn once, judged as often as one likes. Noise belongs to the request, so
methods, numbers of evaluations and batch sizes all start from the same one; and the network always sees chunks of one
size, since kernels round differently for others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinbench.backbones.base import Backbone
from twinbench.data.base import Request
from twinbench.errors import UserError
from twinbench.flow import Counted, guided
from twinbench.randomness import request_noise
from twinbench.recipe import digest
from twinbench.sampler import Plan, sample
from twinbench.tensors import read_tensors, save_tensors

SCHEMA = "twinbench.drawing/1"
SHARD = 128  # samples a file
Name = tuple[str, int, str]  # key, copy, prompt


class Drawing:
    """Stored samples of one drawing: files of up to SHARD samples, each with its request keys; drawn ones are kept."""

    def __init__(self, folder: Path, backbone: Backbone, plan: Plan, prompts: str, chunk: int) -> None:
        self.folder, self.backbone, self.plan, self.prompts, self.chunk = folder, backbone, plan, prompts, chunk

    def draw(self, requests: Sequence[Request]) -> Iterator[int]:
        """Draw what is missing, shard by shard; yields how many samples are done."""
        held = self._held()
        todo = [r for r in requests if _name(r) not in held]
        done = len(requests) - len(todo)
        yield done
        for start in range(0, len(todo), SHARD):
            shard = todo[start : start + SHARD]
            samples = torch.cat([self._chunk(shard[i : i + self.chunk]) for i in range(0, len(shard), self.chunk)])
            names = [_name(r) for r in shard]
            save_tensors(self.folder / f"{digest(names)[:16]}.safetensors", {"samples": samples}, {"requests": names})
            done += len(shard)
            yield done

    def _chunk(self, requests: Sequence[Request]) -> Tensor:
        """Samples of up to `chunk` requests, drawn in a batch of exactly `chunk` rows."""
        padded = [*requests, *[requests[-1]] * (self.chunk - len(requests))]
        cond = self.backbone.encode([r.prompt for r in padded])

        def noise(name: str) -> Tensor:
            return torch.stack([request_noise(self.backbone.shape, self.prompts, r.key, r.copy, name) for r in padded])

        counted = Counted(self.backbone)
        velocity = guided(counted, self.backbone.null(self.chunk), self.plan.guidance)
        x = sample(velocity, noise("init"), cond, self.plan.schedule, lambda i: noise(str(i)))
        if counted.calls != self.plan.nfe:
            raise RuntimeError(f"asked for {self.plan.nfe} evaluations, counted {counted.calls}")
        return self.backbone.pixels(x)[: len(requests)]

    def _shards(self) -> Iterator[tuple[list[Name], Tensor]]:
        """The stored shards: whose samples they hold, and the samples."""
        for file in sorted(self.folder.glob("*.safetensors")):
            tensors, metadata = read_tensors(file)
            if "requests" not in metadata or "samples" not in tensors:
                raise UserError(f"{file} holds no drawn samples; delete it and give the same command again")
            yield [(key, copy, prompt) for key, copy, prompt in metadata["requests"]], tensors["samples"]

    def _held(self) -> set[Name]:
        return {name for names, _ in self._shards() for name in names}

    def read(self, requests: Sequence[Request]) -> Tensor:
        """The stored samples of the requests, in their order. Raises UserError naming one that is not there."""
        found = {name: row for names, rows in self._shards() for name, row in zip(names, rows, strict=True)}
        for r in requests:
            if _name(r) not in found:
                raise UserError(f"no sample of {r.key!r}, copy {r.copy} in {self.folder}; run twinbench eval again")
        return torch.stack([found[_name(r)] for r in requests])


def _name(request: Request) -> Name:
    """What a stored sample is for: should a key ever mean another prompt, its old sample is not taken."""
    return request.key, request.copy, request.prompt


def drawing_of(run: dict[str, Any], backbone: Backbone, plan: Plan, prompts: str, chunk: int, images: Path) -> Drawing:
    """The drawing of a run under a plan; its folder is named by all that the samples depend on."""
    key = {
        "schema": SCHEMA,
        "weights": run["weights_sha256"],
        "schedule": plan.as_dict(),
        "prompts": prompts,
        "chunk": chunk,
    }
    return Drawing(images / f"nfe{plan.nfe}-{digest(key)[:16]}", backbone, plan, prompts, chunk)
