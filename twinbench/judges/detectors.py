"""GenEval's detector: Mask2Former (Swin-S, COCO instances; Cheng et al. 2022) through transformers.

The network is transformers'; the steps around it are mmdet's, which GenEval's numbers were made with: resize to fit
1333 x 800, zeros at the right and the bottom up to a multiple of 32; mask logits resized to the padded picture,
cropped, resized to the picture; the 100 best (query, class) pairs; score = class probability x mean mask probability
inside the mask; the box is the mask's bounds. No suppression: one query may be found under several classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from twinbench.data.geneval import CLASSES
from twinbench.errors import UserError
from twinbench.judges import known, mask2former, weights
from twinbench.judges.base import Detector, Found, Pictures
from twinbench.judges.network import Network, Settings, alike, pretrained, tensors
from twinbench.settings import Strict

if TYPE_CHECKING:
    from torch import Tensor

LONG, SHORT, MULTIPLE = 1333, 800, 32  # what a picture is resized to fit, and padded to
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
TOP = 100  # (query, class) pairs a picture
RENAMED = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}  # GenEval's, COCO's


class DetectorSettings(Settings):
    weights: str | None = Field(
        None,
        description="OpenMMLab's .pth (the official one by default), or a folder or hub id of a transformers model; "
        "another checkpoint gives other scores",
    )
    floor: float = Field(0.05, ge=0, lt=1, description="objects are told above this score; GenEval asks above 0.3")


class Mask2Former(Network, Detector):
    Config: ClassVar[type[Strict]] = DetectorSettings
    name = "mask2former"
    packages = ("torch", "transformers")

    @cached_property
    def path(self) -> Path:
        asked = self.config.weights
        if asked is None or asked.endswith(".pth"):
            return weights.file(asked, "geneval-detector", self.name)
        return weights.model(asked, self.name)

    @property
    def rules(self) -> str:
        return f"2, floor {self.config.floor:g}"

    @property
    def floor(self) -> float:
        return float(self.config.floor)

    @cached_property
    def network(self) -> Any:
        from transformers import Mask2FormerForUniversalSegmentation as Model

        if self.path.is_file():
            made = mask2former.network()
            mask2former.load(made, mask2former.read(self.path), self.path)
        else:
            made = pretrained(Model, self.path, self.device, unused=mask2former.UNUSED)
        check_classes(made.config.id2label, self.path)
        return made.eval().requires_grad_(False).to(self.device)

    def __call__(self, pictures: Pictures) -> list[list[Found]]:
        """Objects above the floor, most confident first. ValueError for a picture that is not uint8 [h, w, 3]."""
        return alike(self._ask, list(tensors(pictures)), self.batch, lambda picture: tuple(picture.shape))

    def _ask(self, pictures: list[Tensor]) -> list[list[Found]]:
        import torch

        size = tuple(pictures[0].shape[-2:])
        inner, outer = sizes(*size)
        with torch.inference_mode():
            pixels = prepare(torch.stack(pictures).to(self.device), inner, outer)
            told = self.network(pixel_values=pixels, pixel_mask=torch.ones_like(pixels[:, 0], dtype=torch.long))
            answers = zip(told.class_queries_logits, told.masks_queries_logits, strict=True)
            return [objects(c.float(), m.float(), inner, outer, size, self.config.floor) for c, m in answers]

    def selftest(self) -> None:
        known.check_detector(self)


def check_classes(labels: dict[int, str], path: Any) -> None:
    """UserError unless the model names COCO's 80 classes in their order, or none."""
    names = [labels[i] for i in range(len(labels))]
    coco = [RENAMED.get(name, name) for name in CLASSES]
    if len(names) != len(coco) or (names != coco and names[0] != "LABEL_0"):
        raise UserError(f"{path} detects other classes than COCO's 80 in their order, which GenEval asks about")


def sizes(h: int, w: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(height, width) of a picture resized to fit, and padded."""
    factor = min(LONG / max(h, w), SHORT / min(h, w))
    inner = int(h * factor + 0.5), int(w * factor + 0.5)
    return inner, (-(-inner[0] // MULTIPLE) * MULTIPLE, -(-inner[1] // MULTIPLE) * MULTIPLE)


def prepare(pictures: Tensor, inner: tuple[int, int], outer: tuple[int, int]) -> Tensor:
    """float [n, 3, h, w] in [0, 255] -> normalised [n, 3, *outer], zero beyond `inner`."""
    import torch
    from torch.nn import functional as F

    x = F.interpolate(pictures, inner, mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(value, device=x.device).view(3, 1, 1) for value in (MEAN, STD))
    return F.pad((x - mean) / std, (0, outer[1] - inner[1], 0, outer[0] - inner[0]))


def objects(
    classes: Tensor, masks: Tensor, inner: tuple[int, int], outer: tuple[int, int], size: Sequence[int], floor: float
) -> list[Found]:
    """What one picture shows. classes: logits [queries, 80 + none]; masks: logits [queries, h / 4, w / 4]."""
    import torch
    from torch.nn import functional as F

    share = classes.softmax(-1)[:, :-1]
    value, place = share.flatten().topk(min(TOP, share.numel()))
    place = place[value > floor]  # a score is never above its class probability: the other masks need no resizing
    query, kind = place // share.shape[1], place % share.shape[1]
    asked, which = query.unique(return_inverse=True)
    if not len(asked):
        return []
    m = F.interpolate(masks[asked][None], outer, mode="bilinear", align_corners=False)
    m = F.interpolate(m[..., : inner[0], : inner[1]], tuple(size), mode="bilinear", align_corners=False)[0]
    inside = m > 0
    mean = (m.sigmoid() * inside).flatten(1).sum(1) / (inside.flatten(1).sum(1) + 1e-6)
    scores = (share.flatten()[place] * mean[which]).tolist()
    flat, boxes = inside.cpu().numpy(), [bounds(mask) for mask in inside.cpu().numpy()]
    order = torch.tensor(scores).argsort(descending=True, stable=True).tolist()
    found = zip(kind.tolist(), scores, which.tolist(), strict=True)
    rows = [Found(CLASSES[k], score, boxes[i], flat[i]) for k, score, i in found]
    return [rows[i] for i in order if rows[i].score > floor]


def bounds(mask: np.ndarray) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1) around the true pixels, the last ones included; zeros if there are none."""
    x, y = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(x):
        return (0.0, 0.0, 0.0, 0.0)
    return (float(x[0]), float(y[0]), float(x[-1] + 1), float(y[-1] + 1))
