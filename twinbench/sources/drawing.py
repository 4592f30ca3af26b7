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
from twinbench.flow import Counted, guided
from twinbench.randomness import request_noise
from twinbench.sampler import Plan, sample
from twinbench.settings import digest
from twinbench.sources.pictures import PictureFiles
from twinbench.sources.stored import SHARD, Store, is_large

SCHEMA = "twinbench.drawing/1"


class Drawing:
    """The samples of one network under one plan; what is drawn is kept."""

    block = SHARD  # requests that are drawn by one process

    def __init__(self, folder: Path, backbone: Backbone, plan: Plan, prompts: str, chunk: int) -> None:
        self.folder, self.backbone, self.plan, self.prompts, self.chunk = folder, backbone, plan, prompts, chunk
        self.store = Store(folder)

    def draw(self, requests: Sequence[Request]) -> Iterator[int]:
        """Draw what is missing, shard by shard, large pictures chunk by chunk; yields how many samples are done."""
        todo = self.store.missing(requests)
        done = len(requests) - len(todo)
        yield done
        for start in range(0, len(todo), SHARD):
            shard, small = todo[start : start + SHARD], []
            for first in range(0, len(shard), self.chunk):
                chunk = shard[first : first + self.chunk]
                samples = self.fresh(chunk).cpu()
                if is_large(samples):
                    self.store.save(chunk, samples)
                    done += len(chunk)
                    yield done
                else:
                    small.append(samples)
            if small:
                self.store.save(shard, torch.cat(small))
                done += len(shard)
                yield done

    def fresh(self, requests: Sequence[Request]) -> Tensor:
        """Samples of up to `chunk` requests, drawn in a batch of exactly `chunk` rows."""
        padded = [*requests, *[requests[-1]] * (self.chunk - len(requests))]
        cond, device = self.backbone.encode([r.prompt for r in padded]), next(self.backbone.parameters()).device

        def noise(name: str) -> Tensor:
            rows = [request_noise(self.backbone.shape, self.prompts, r.key, r.copy, name) for r in padded]
            return torch.stack(rows).to(device)

        counted = Counted(self.backbone)
        velocity = guided(counted, self.backbone.null(self.chunk), self.plan.guidance)
        x = sample(velocity, noise("init"), cond, self.plan.schedule, lambda i: noise(str(i)))
        if counted.calls != self.plan.nfe:
            raise RuntimeError(f"asked for {self.plan.nfe} evaluations, counted {counted.calls}")
        return self.backbone.pixels(x)[: len(requests)]

    def read(self, requests: Sequence[Request]) -> Tensor | PictureFiles:
        """The stored samples of the requests, in their order. Raises UserError naming one that is not there."""
        return self.store.read(requests)


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
