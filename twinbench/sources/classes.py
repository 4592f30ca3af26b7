"""A pipeline that draws classes in place of words, such as DiT: a request's prompt is the number of a class.

Its call takes no latents, but draws them; here it is given those of the requests. Pictures have one size.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from twinbench.data.base import Request
from twinbench.errors import UserError
from twinbench.sources.index import Index, located
from twinbench.sources.pipeline import Pipeline


class ClassPipeline(Pipeline):
    usual = "0"

    def __init__(self, name: str, size: int | None, batch: int) -> None:
        super().__init__(name, size, batch)
        if size:
            raise UserError(f"--size {size}: {name} draws classes, and pictures of one size alone; leave --size out")

    def asked(self, requests: Sequence[Request]) -> None:
        for r in requests:
            self._label(r)

    def call(self, requests: Sequence[Request], prompts: str, settings: Mapping[str, Any]) -> np.ndarray:
        module: Any = sys.modules[type(self.made).__module__]
        like = next(self.network.parameters())
        latents, draw = self.noise(requests, prompts).to(like.device, like.dtype), module.randn_tensor
        module.randn_tensor = lambda *_, **__: latents
        try:
            labels = [self._label(r) for r in requests]
            return np.asarray(self.made(class_labels=labels, **settings, output_type="np").images)
        finally:
            module.randn_tensor = draw

    def pixels(self) -> tuple[int, int]:
        vae: Any = self.made.vae.config
        return (self._shape[-1] * 2 ** (len(vae.block_out_channels) - 1),) * 2

    @property
    def _shape(self) -> tuple[int, ...]:
        config: Any = self.network.config
        return int(config.in_channels), int(config.sample_size), int(config.sample_size)

    def _label(self, r: Request) -> int:
        """The class that a request asks for. Raises UserError for words."""
        if not r.prompt.isdigit() or int(r.prompt) >= self.index.classes:
            raise UserError(
                f"{self.name} draws classes, numbers below {self.index.classes}, and {r.prompt!r} is asked for; "
                "--bench fidelity with a reference of classes, as imagenet-256, asks for them"
            )
        return int(r.prompt)


def opened(name: str, size: int | None, batch: int) -> Pipeline:
    """The pipeline of a folder or repository, of words or of classes."""
    kind = ClassPipeline if Index(located(name), name).classes else Pipeline
    return kind(name, size, batch)
