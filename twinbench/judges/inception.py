"""Inception's features (2015-12-05, pool3, 2048), as FID and KID measure pictures by, with clean-fid's resizing.

    clean              each channel in float, bicubic with antialiasing, to 299 x 299 (Parmar et al. 2022)
    legacy_pytorch     bilinear without antialiasing, as pytorch-fid does
    legacy_tensorflow  inside of the network, as the first code did

Numbers of different resizings are of different metrics.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from twinbench.errors import UserError
from twinbench.judges import known, weights
from twinbench.judges.base import Features, Pictures
from twinbench.judges.network import Network, Settings, alike, tensors
from twinbench.settings import Strict

if TYPE_CHECKING:
    from torch import Tensor

UNIFORM = 866  # "military uniform" among the network's 1008 classes


class InceptionSettings(Settings):
    weights: str | None = Field(None, description="inception-2015-12-05.pt; the fetched one by default")
    mode: Literal["clean", "legacy_pytorch", "legacy_tensorflow"] = Field("clean", description="how it is resized")


class Inception(Network, Features):
    Config: ClassVar[type[Strict]] = InceptionSettings
    name = "inception"
    packages = ("torch", "clean-fid", "pillow")

    @cached_property
    def path(self) -> Path:
        return weights.file(self.config.weights, "inception", self.name)

    @property
    def rules(self) -> str:
        return f"1, {self.config.mode}"

    @cached_property
    def network(self) -> Any:
        import warnings

        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TorchScript is old; the published network is no other
            try:
                return torch.jit.load(str(self.path), map_location=self.device).eval()
            except RuntimeError as error:
                raise UserError(
                    f"judge {self.name}: {self.path} is no TorchScript network ({weights.told(error)})"
                ) from None

    def __call__(self, pictures: Pictures) -> np.ndarray:
        """float64 [n, 2048]."""
        if not pictures:
            return np.zeros((0, 2048))
        return np.stack(alike(self._ask, self._resized(pictures), self.batch, lambda picture: tuple(picture.shape)))

    def selftest(self) -> None:
        """The photograph of a uniform is one, by the network's own classes."""
        import torch

        with torch.inference_mode():
            x = torch.stack(self._resized([known.photo("person")])).to(self.device)
            try:
                place = int(self.network(x).argmax())
            except RuntimeError as error:
                raise UserError(f"judge {self.name}: {self.path} is another network ({weights.told(error)})") from None
        self.expect(int(place == UNIFORM), 1, 1, "telling what a photograph shows")

    def _resized(self, pictures: Pictures) -> list[Tensor]:
        import torch
        from cleanfid.resize import build_resizer

        resize = build_resizer(self.config.mode)
        if self.config.mode == "legacy_tensorflow":
            return list(tensors(pictures))
        list(tensors(pictures))  # refuses what is no picture
        return [torch.from_numpy(resize(picture).copy()).permute(2, 0, 1).float() for picture in pictures]

    def _ask(self, pictures: list[Tensor]) -> np.ndarray:
        import torch

        with torch.inference_mode():
            x = torch.stack(pictures).to(self.device)
            if self.config.mode == "legacy_tensorflow":
                told = self.network(x, return_features=True)
            else:
                told = self.network.layers.forward((x - 128) / 128)  # as clean-fid asks: no second resizing
            return told.reshape(len(pictures), -1).double().cpu().numpy()
