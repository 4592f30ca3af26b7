"""The reference path of GenEval's detector: mmdet itself, one picture at a time (extra `mmdet`).

It gives what `mask2former` gives, from the same file of weights, by OpenMMLab's own code. mmcv-lite has no compiled
operators and Mask2Former needs none; a stand-in for them lets mmdet be imported.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from functools import cached_property
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from pydantic import Field

from twinbench import sums
from twinbench.data.geneval import CLASSES
from twinbench.errors import UserError
from twinbench.judges import known, mask2former, weights
from twinbench.judges.base import Detector, Found, Pictures, present
from twinbench.judges.network import Network, Settings
from twinbench.settings import Strict

CONFIG = "mask2former/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco.py"


class MMDetectionSettings(Settings):
    weights: str | None = Field(None, description="OpenMMLab's .pth; the fetched one by default")
    config: str | None = Field(None, description="mmdet's file of the network; that of GenEval's weights by default")
    floor: float = Field(0.05, ge=0, lt=1, description="objects are told above this score; GenEval asks above 0.3")


class MMDetection(Network, Detector):
    Config: ClassVar[type[Strict]] = MMDetectionSettings
    name = "mmdet"
    packages = ("torch", "mmdet", "mmengine")
    beside = ("mmcv-lite", "mmcv", "opencv-python", "opencv-python-headless")  # one of either resizes
    install = "'twinbench[mmdet]'"

    @cached_property
    def path(self) -> Path:
        return weights.file(self.config.weights, "geneval-detector", self.name)

    @property
    def rules(self) -> str:
        return f"1, floor {self.config.floor:g}" + (f", config {self._own[:12]}" if self.config.config else "")

    @property
    def versions(self) -> dict[str, str]:
        return {**super().versions, **present(*self.beside)}

    @cached_property
    def identity(self) -> dict[str, str]:
        return {**super().identity, "config": f"{self.config.config} {self._own}" if self.config.config else CONFIG}

    @cached_property
    def _own(self) -> str:
        """The sha256 of the given config."""
        place = Path(self.config.config)
        if not place.is_file():
            raise UserError(f"judge {self.name}: its config {place} is no file")
        return sums.sha256(place)

    @property
    def floor(self) -> float:
        return float(self.config.floor)

    @cached_property
    def network(self) -> Any:
        self.identity  # noqa: B018  says which package lacks
        stand_in()
        import mmdet
        from mmdet.apis import init_detector

        config = self.config.config or Path(mmdet.__file__).parent / ".mim" / "configs" / CONFIG
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that no checkpoint is given: it is read here, tensors only
            made = init_detector(str(config), None, palette="coco", device=str(self.device))
        try:
            made.load_state_dict(mask2former.read(self.path))
        except RuntimeError as error:
            raise UserError(
                f"judge {self.name}: {self.path} does not fit {config} ({str(error).splitlines()[1]})"
            ) from None
        return made.eval().requires_grad_(False)

    def __call__(self, pictures: Pictures) -> list[list[Found]]:
        """Objects above the floor, most confident first."""
        network = self.network
        from mmdet.apis import inference_detector

        return [self._found(inference_detector(network, p[..., ::-1].copy()).pred_instances) for p in pictures]

    def selftest(self) -> None:
        known.check_detector(self)

    def _found(self, told: Any) -> list[Found]:
        order = told.scores.argsort(descending=True, stable=True)
        return [
            Found(CLASSES[int(told.labels[i])], float(told.scores[i]), tuple(told.bboxes[i].tolist()), mask)
            for i, mask in zip(order, told.masks[order].cpu().numpy(), strict=True)
            if told.scores[i] > self.config.floor
        ]


def stand_in() -> None:
    """Put a module in the place of mmcv's compiled operators where they lack: each refuses when it is called."""
    if importlib.util.find_spec("mmcv._ext") is not None:
        return

    class Lacking(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)

            def refuse(*arguments: Any, **settings: Any) -> None:
                raise NotImplementedError(f"mmcv's operator {name} needs mmcv itself, not mmcv-lite")

            return refuse

    module = Lacking("mmcv._ext")
    module.__spec__ = ModuleSpec("mmcv._ext", None)  # mmengine reads it to know that there are no operators
    sys.modules["mmcv._ext"] = module
    import mmcv.ops.multi_scale_deform_attn as attention

    attention.IS_CUDA_AVAILABLE = False  # the attention in plain torch, on an accelerator too
