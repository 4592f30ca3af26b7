"""Inception through torch-fidelity's network, as torchmetrics asks it (extra `fidelity`): a second path to the network
of `inception`, from the tensors that pytorch-fid and torch-fidelity share.

    tensorflow     bilinear as TensorFlow 1 does it: torch-fidelity's, and that of the first code
    torchmetrics   bilinear with antialiasing: torchmetrics' default

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
from twinbench.judges.inception import UNIFORM
from twinbench.judges.network import Network, Settings, alike, tensors
from twinbench.settings import Strict

if TYPE_CHECKING:
    from torch import Tensor


class TorchFidelitySettings(Settings):
    weights: str | None = Field(
        None, description="weights-inception-2015-12-05-6726825d.pth; the fetched one by default"
    )
    mode: Literal["tensorflow", "torchmetrics"] = Field("tensorflow", description="how it is resized")


class TorchFidelity(Network, Features):
    Config: ClassVar[type[Strict]] = TorchFidelitySettings
    name = "torch-fidelity"
    packages = ("torch", "torchmetrics", "torch-fidelity")
    install = "'twinbench[fidelity]'"

    @cached_property
    def path(self) -> Path:
        return weights.file(self.config.weights, "inception-tensors", self.name)

    @property
    def rules(self) -> str:
        return f"1, {self.config.mode}"

    @cached_property
    def network(self) -> Any:
        self.identity  # noqa: B018  says which package lacks
        import torch
        from torchmetrics.image.fid import NoTrainInceptionV3

        try:
            torch.load(self.path, map_location="cpu", weights_only=True)  # torch-fidelity itself would take anything
            made = NoTrainInceptionV3(self.name, ["2048"], str(self.path), antialias=self.config.mode == "torchmetrics")
        except Exception as error:  # what is no checkpoint breaks the reader in any way
            told = weights.told(error)
            raise UserError(f"judge {self.name}: {self.path} does not hold Inception's tensors ({told})") from None
        return made.to(self.device)

    def __call__(self, pictures: Pictures) -> np.ndarray:
        """float64 [n, 2048]."""
        if not pictures:
            return np.zeros((0, 2048))
        rows = [picture.byte() for picture in tensors(pictures)]
        return np.stack(alike(self._ask, rows, self.batch, lambda picture: tuple(picture.shape)))

    def selftest(self) -> None:
        """The photograph of a uniform is one, by the network's own classes."""
        import torch

        features = torch.from_numpy(self([known.photo("person")])).float().to(self.device)
        place = int(self.network.fc(features).argmax())
        self.expect(int(place == UNIFORM), 1, 1, "telling what a photograph shows")

    def _ask(self, pictures: list[Tensor]) -> np.ndarray:
        import torch

        with torch.inference_mode():
            return self.network(torch.stack(pictures).to(self.device)).double().cpu().numpy()
