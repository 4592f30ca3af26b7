"""CLIP through open_clip: one space for pictures and texts, and GenEval's colour classifier in it.

The OpenAI weights belong to networks with QuickGELU; built with GELU they answer otherwise and nobody says so. Hence
the setting `quick_gelu`, which the network must obey.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from twinbench.data.geneval import COLORS
from twinbench.errors import UserError
from twinbench.judges import known, weights
from twinbench.judges.base import Colors, Found, Pictures, Similarity
from twinbench.judges.network import Network, Settings, each
from twinbench.settings import Strict

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TEMPLATES = ("a photo of a {color} {label}", "a photo of a {color}-colored {label}", "a photo of a {color} object")


class ClipSettings(Settings):
    model: str = Field("ViT-L-14-quickgelu", description="open_clip's name of the network")
    weights: str = Field(
        "timm/vit_large_patch14_clip_224.openai", description="a file of weights, or a folder or hub id that holds one"
    )
    quick_gelu: bool = Field(True, description="whether the network must have QuickGELU, as OpenAI's weights need")


class Clip(Network, Similarity):
    """Pictures and texts as unit vectors; the CLIP score is 100 times their cosine."""

    Config: ClassVar[type[Strict]] = ClipSettings
    name = "clip"
    packages = ("torch", "open_clip_torch", "torchvision", "pillow")  # the last two resize

    @cached_property
    def path(self) -> Path:
        asked = Path(self.config.weights).expanduser()
        if asked.is_file():
            return asked
        folder = weights.model(self.config.weights, self.name)
        found = [folder / file for file in FILES if (folder / file).is_file()]
        if not found:
            raise UserError(f"judge {self.name}: {folder} holds no {FILES[0]}")
        return found[0]

    @property
    def rules(self) -> str:
        return f"1, {self.config.model}"

    @cached_property
    def _made(self) -> tuple[Any, Any, Any]:
        """Network, picture transform, tokenizer."""
        import open_clip
        from open_clip.model import QuickGELU

        name = self.config.model
        if name not in open_clip.list_models():
            raise UserError(f"judge {self.name}: open_clip knows no network {name!r} (open_clip.list_models())")
        try:
            network, _, transform = open_clip.create_model_and_transforms(name, pretrained=str(self.path))
        except Exception as error:  # what is no checkpoint breaks the reader in any way
            raise UserError(
                f"judge {self.name}: {self.path} holds no {name} or is damaged ({weights.told(error)})"
            ) from None
        quick = any(isinstance(module, QuickGELU) for module in network.modules())
        if quick != self.config.quick_gelu:
            other = name + "-quickgelu" if self.config.quick_gelu else name.removesuffix("-quickgelu")
            raise UserError(
                f"judge {self.name}: {name} has {'QuickGELU' if quick else 'GELU'}, which its weights were not trained "
                f"with; {self.name}.model={other}, or quick_gelu={str(quick).lower()} for other weights"
            )
        network = network.float().eval().requires_grad_(False).to(self.device)
        return network, transform, open_clip.get_tokenizer(name)

    def images(self, pictures: Pictures) -> np.ndarray:
        """float32 [n, d], rows of length 1. The short side is resized to the network's, the middle is cut out."""
        from PIL import Image

        return self._embed([Image.fromarray(picture) for picture in pictures])

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [n, d], rows of length 1; a text longer than 77 tokens is cut."""
        network, _, tokenizer = self._made
        return self._rows(lambda part: network.encode_text(tokenizer(part).to(self.device)), texts)

    def scores(self, pictures: Pictures, texts: Sequence[str]) -> np.ndarray:
        """The cosine of each picture with its text, float64 [n]."""
        a, b = self.images(pictures), self.texts(texts)
        if len(a) != len(b):
            raise ValueError(f"{len(a)} pictures and {len(b)} texts")
        return (a.astype(np.float64) * b).sum(1)

    def selftest(self) -> None:
        known.check_similarity(self)

    def _embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        import torch

        network, transform, _ = self._made
        return self._rows(
            lambda part: network.encode_image(torch.stack([transform(image) for image in part]).to(self.device)), images
        )

    def _rows(self, ask: Any, rows: Sequence[Any]) -> np.ndarray:
        import torch
        from torch.nn import functional as F

        def units(part: list[Any]) -> Tensor:
            with torch.inference_mode():
                return F.normalize(ask(part), dim=-1).cpu()

        if not rows:
            return np.zeros((0, 0), np.float32)
        return torch.stack(each(units, rows, self.batch)).numpy()


class ColorSettings(ClipSettings):
    background: str = Field("#999", description="what stands around the object: a colour, or `original`")
    crop: bool = Field(True, description="whether the object's box is cut out")


class ClipColors(Clip, Colors):
    """GenEval's colours: the object cut out on gray, against three sentences a colour; zero-shot, so one of ten."""

    Config: ClassVar[type[Strict]] = ColorSettings
    name = "clip-colors"

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._known: dict[str, np.ndarray] = {}

    @property
    def rules(self) -> str:
        return f"1, {self.config.model}, {self.config.background}{'' if self.config.crop else ', whole picture'}"

    def color_of(self, picture: np.ndarray, found: Found, label: str) -> str:
        return self.colors_of([picture], [found], [label])[0]

    def colors_of(self, pictures: Pictures, found: Sequence[Found], labels: Sequence[str]) -> list[str]:
        """One of COLORS for each object of its picture, taken for its label."""
        if not found:
            return []
        shown = [
            cutout(picture, item, self.config.background, self.config.crop)
            for picture, item in zip(pictures, found, strict=True)
        ]
        seen, told = self._embed(shown), np.stack([self._classes(label) for label in labels])
        return [COLORS[i] for i in np.einsum("nd,nkd->nk", seen, told).argmax(1)]

    def selftest(self) -> None:
        known.check_colors(self)

    def _classes(self, label: str) -> np.ndarray:
        """The ten colours of a class, [10, d]: the mean of their sentences, of length 1."""
        if label not in self._known:
            sentences = [t.format(color=color, label=label) for color in COLORS for t in TEMPLATES]
            mean = self.texts(sentences).reshape(len(COLORS), len(TEMPLATES), -1).mean(1)
            self._known[label] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        return self._known[label]


def cutout(picture: np.ndarray, found: Found, background: str = "#999", crop: bool = True) -> Image.Image:
    """What the classifier is shown: the object on `background` (where it has a mask), cut to its box.

    The box is rounded half to even; outside of the picture is black. A box without area keeps one pixel."""
    from PIL import Image

    image = Image.fromarray(picture)
    if found.mask is not None and background != "original":
        blank = Image.new("RGB", image.size, background)
        image = Image.composite(image, blank, Image.fromarray(np.asarray(found.mask, bool)))
    if not crop:
        return image
    x0, y0, x1, y1 = (round(float(side)) for side in found.box)
    return image.crop((x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)))
