"""LPIPS (Zhang et al. 2018, AlexNet): how far two pictures are apart to the eye, through torchmetrics.

The linear heads come with torchmetrics; AlexNet is torchvision's. Diversity is the mean distance of the pictures that
one prompt was given.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from twinbench.errors import UserError, WorkError
from twinbench.judges import known, weights
from twinbench.judges.base import Distance, Pictures
from twinbench.judges.network import Network, Settings, alike, tensors
from twinbench.settings import Strict

if TYPE_CHECKING:
    from torch import Tensor

PUBLISHED = "7be5be79"  # the first digits of the sha256, which the file's name tells


class LPIPSSettings(Settings):
    weights: str | None = Field(None, description="alexnet-owt-7be5be79.pth; the fetched one by default")


class LPIPS(Network, Distance):
    Config: ClassVar[type[Strict]] = LPIPSSettings
    name = "lpips"
    packages = ("torch", "torchvision", "torchmetrics")

    @cached_property
    def path(self) -> Path:
        return weights.file(self.config.weights, "alexnet", self.name)

    @cached_property
    def network(self) -> Any:
        import torch
        from torchmetrics.functional.image.lpips import _LPIPS

        made = _LPIPS(net="alex", pnet_rand=True)  # its heads are there, its AlexNet is to be filled
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            for i in range(1, 6):
                for place, layer in getattr(made.net, f"slice{i}").named_children():
                    layer.load_state_dict({name: state[f"features.{place}.{name}"] for name in layer.state_dict()})
        except Exception as error:  # what is no checkpoint breaks the reader in any way
            raise UserError(f"judge {self.name}: {self.path} is no AlexNet ({weights.told(error)})") from None
        return made.eval().requires_grad_(False).to(self.device)

    def __call__(self, pictures: Pictures, others: Pictures) -> np.ndarray:
        """float64 [n], 0 for equal pictures. ValueError if two of a pair differ in size."""
        pairs = list(zip(tensors(pictures), tensors(others), strict=True))
        for a, b in pairs:
            if a.shape != b.shape:
                raise ValueError(f"a pair has two sizes: {list(a.shape[1:])} and {list(b.shape[1:])}")
        return np.array(alike(self._ask, pairs, self.batch, lambda pair: tuple(pair[0].shape)), np.float64)

    def selftest(self) -> None:
        """The network is the published one; equal pictures are 0 apart, a faded one is nearer than another one."""
        if not self.weights.startswith(PUBLISHED):
            raise WorkError(
                f"judge {self.name} fails its self-test: {self.path} has sha256 {self.weights[:8]}, not {PUBLISHED}; "
                "twinbench fetch alexnet gets the published one"
            )
        temple, flower = known.photo("temple"), known.photo("flower")
        faded = (temple // 2 + 64).astype(np.uint8)
        same, near, far = self([temple, temple, temple], [temple, faded, flower])
        self.expect(int(same == 0) + int(0 < near < far), 2, 2, "comparing photographs")

    def _ask(self, pairs: list[tuple[Tensor, Tensor]]) -> list[float]:
        import torch

        with torch.inference_mode():
            a, b = (torch.stack(side).to(self.device) / 127.5 - 1 for side in zip(*pairs, strict=True))
            return self.network(a, b).flatten().tolist()
