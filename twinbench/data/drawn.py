"""A handful of pictures that are drawn on the spot: a shape in a colour, with its caption. For trying a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from twinbench.data.captioned import Captioned, CaptionedConfig

COLORS = {"red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220), "yellow": (235, 210, 40)}
SHAPES = ("circle", "square", "triangle")
SIDE = 96


class DrawnConfig(CaptionedConfig):
    size: int = Field(12, ge=1, description="samples; beyond 12 they repeat")
    captions: Literal["words", "classes"] = Field("words", description="what models of classes are asked: a number")


class Drawn(Captioned):
    Config: ClassVar[type[DrawnConfig]] = DrawnConfig
    config: DrawnConfig
    on_the_spot: ClassVar[bool] = True

    def captions(self) -> Sequence[str]:
        if self.config.captions == "classes":
            return [str(i % len(SHAPES)) for i in range(self.config.size)]
        return [f"a photo of a {color} {shape}" for color, shape in map(_drawn, range(self.config.size))]

    def picture(self, i: int) -> np.ndarray:
        from PIL import Image, ImageDraw

        color, shape = _drawn(i)
        image = Image.new("RGB", (SIDE + 16, SIDE), (200, 200, 195))
        box, draw = (20, 20, 76, 76), ImageDraw.Draw(image)
        if shape == "circle":
            draw.ellipse(box, COLORS[color])
        elif shape == "square":
            draw.rectangle(box, COLORS[color])
        else:
            draw.polygon([(20, 76), (76, 76), (48, 20)], COLORS[color])
        return np.asarray(image)

    def pieces(self) -> Iterable[str]:
        return ("drawn 1",)


def _drawn(i: int) -> tuple[str, str]:
    return list(COLORS)[i // len(SHAPES) % len(COLORS)], SHAPES[i % len(SHAPES)]
