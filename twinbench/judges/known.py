"""Pictures whose content is known, and what each kind of judge must say of them.

Drawn here: discs of GenEval's colours. Photographs that packages ship: Grace Hopper, a person in uniform (matplotlib);
a Chinese temple and a flower (scikit-learn). Whoever answers by chance fails.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from twinbench.data.geneval import COLORS
from twinbench.judges.base import Found

RGB = {
    "red": (220, 20, 20),
    "orange": (255, 140, 0),
    "yellow": (255, 235, 0),
    "green": (20, 150, 40),
    "blue": (20, 60, 220),
    "purple": (128, 0, 160),
    "pink": (255, 140, 190),
    "brown": (120, 70, 20),
    "black": (10, 10, 10),
    "white": (250, 250, 250),
}
CAPTIONS = {
    "person": "a portrait of a woman in a military uniform",
    "temple": "a photo of a Chinese temple",
    "flower": "a close-up photo of a flower",
}
QUESTIONS = (  # picture, question, answer: as many of either, and every question has both
    ("flower", "Is there a flower in the picture?", "yes"),
    ("temple", "Is there a flower in the picture?", "no"),
    ("temple", "Is there a building in the picture?", "yes"),
    ("flower", "Is there a building in the picture?", "no"),
    ("person", "Is there a person in the picture?", "yes"),
    ("flower", "Is there a person in the picture?", "no"),
    ("red", "Is the circle red?", "yes"),
    ("blue", "Is the circle red?", "no"),
    ("green", "Is the circle green?", "yes"),
    ("red", "Is the circle green?", "no"),
)


@cache
def photo(name: str) -> np.ndarray:
    """person, temple or flower: uint8 [h, w, 3]."""
    import matplotlib
    import sklearn.datasets
    from PIL import Image

    if name == "person":
        path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    else:
        images = Path(sklearn.datasets.__file__).parent / "images"
        path = images / {"temple": "china.jpg", "flower": "flower.jpg"}[name]
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def disc(color: str, size: int = 256) -> tuple[np.ndarray, Found]:
    """A disc of one colour on mid-gray, and where it is."""
    from PIL import Image, ImageDraw

    box = (size // 4, size // 4, 3 * size // 4, 3 * size // 4)
    image, mask = Image.new("RGB", (size, size), (153, 153, 153)), Image.new("1", (size, size))
    ImageDraw.Draw(image).ellipse(box, fill=RGB[color])
    ImageDraw.Draw(mask).ellipse(box, fill=1)
    found = Found("sports ball", 1.0, (box[0], box[1], box[2] + 1, box[3] + 1), np.asarray(mask), color)
    return np.asarray(image), found


def picture(name: str) -> np.ndarray:
    return disc(name)[0] if name in RGB else photo(name)


def beside(left: np.ndarray | None, right: np.ndarray | None) -> np.ndarray:
    """Two pictures of one size on gray, each in its half; None leaves the half empty."""
    shape = next(half.shape for half in (left, right) if half is not None)
    halves = [np.full(shape, 153, np.uint8) if half is None else half for half in (left, right)]
    return np.concatenate(halves, 1)


# ---- the checks ----


def check_detector(judge: Any) -> None:
    """A person alone (above 0.9), at the right, at the left, two of them; none where there is a flower."""
    person = photo("person")
    half = person.shape[1]
    pictures = [person, beside(None, person), beside(person, None), beside(person, person), photo("flower")]
    found = [[f for f in objects if f.label == "person" and f.score > 0.5] for objects in judge(pictures)]
    at = [{"left" if f.box[0] + f.box[2] < 2 * half else "right" for f in objects} for objects in found]
    right = [
        bool(found[0]) and max(f.score for f in found[0]) > 0.9,
        at[1] == {"right"},
        at[2] == {"left"},
        at[3] == {"left", "right"},
        not found[4],
    ]
    judge.expect(sum(right), len(right), 5, "finding, placing and counting persons in photographs")


def check_colors(judge: Any) -> None:
    """The colours of drawn discs."""
    pictures, found = zip(*(disc(color) for color in COLORS), strict=True)
    told = judge.colors_of(pictures, found, ["sports ball"] * len(COLORS))
    judge.expect(sum(a == b for a, b in zip(told, COLORS, strict=True)), len(COLORS), 8, "naming colours of discs")


def check_vqa(judge: Any) -> None:
    """Yes and no to questions about photographs and discs."""
    names, questions, answers = zip(*QUESTIONS, strict=True)
    told = judge.answers([picture(name) for name in names], questions)
    right = sum(a == b for a, b in zip(told, answers, strict=True))
    judge.expect(right, len(answers), len(answers) - 1, "answering yes or no")


def check_similarity(judge: Any) -> None:
    """Every picture is nearest to its own text among all."""
    texts = [*CAPTIONS.values(), *(f"a {color} circle" for color in ("red", "green", "blue", "yellow", "black"))]
    pictures = [picture(name) for name in (*CAPTIONS, "red", "green", "blue", "yellow", "black")]
    nearest = (judge.images(pictures) @ judge.texts(texts).T).argmax(1)
    right = int((nearest == np.arange(len(texts))).sum())
    judge.expect(right, len(texts), len(texts) - 1, "matching pictures and texts")
