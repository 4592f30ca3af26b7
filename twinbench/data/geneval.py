"""GenEval's words: its tasks, classes, colours, relations, and its 553 prompts, generated rather than downloaded.

Ghosh, Hajishirzi and Schmidt 2023; github.com/djghosh13/geneval at af4902f, `prompts/create_prompts.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
CLASSES = tuple(  # COCO's 80 in detector order, three of them renamed by GenEval
    [
        "person",
        "bicycle",
        "car",
        "motorcycle",
        "airplane",
        "bus",
        "train",
        "truck",
        "boat",
        "traffic light",
        "fire hydrant",
        "stop sign",
        "parking meter",
        "bench",
        "bird",
        "cat",
        "dog",
        "horse",
        "sheep",
        "cow",
        "elephant",
        "bear",
        "zebra",
        "giraffe",
        "backpack",
        "umbrella",
        "handbag",
        "tie",
        "suitcase",
        "frisbee",
        "skis",
        "snowboard",
        "sports ball",
        "kite",
        "baseball bat",
        "baseball glove",
        "skateboard",
        "surfboard",
        "tennis racket",
        "bottle",
        "wine glass",
        "cup",
        "fork",
        "knife",
        "spoon",
        "bowl",
        "banana",
        "apple",
        "sandwich",
        "orange",
        "broccoli",
        "carrot",
        "hot dog",
        "pizza",
        "donut",
        "cake",
        "chair",
        "couch",
        "potted plant",
        "bed",
        "dining table",
        "toilet",
        "tv",
        "laptop",
        "computer mouse",
        "tv remote",
        "computer keyboard",
        "cell phone",
        "microwave",
        "oven",
        "toaster",
        "sink",
        "refrigerator",
        "book",
        "clock",
        "vase",
        "scissors",
        "teddy bear",
        "hair drier",
        "toothbrush",
    ]
)
PROMPTS_SHA256 = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"


def article(name: str) -> str:
    """The noun phrase with "a" or "an", by its first letter."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def plural(name: str) -> str:
    return name + ("es" if name.endswith("s") else "s")


def number(n: int) -> str:
    return ("zero", "one", "two", "three", "four")[n]


def prompts() -> list[dict[str, Any]]:
    """The 553 official prompts with their metadata, generated; one `json.dumps` a line has sha256 PROMPTS_SHA256."""
    rng = np.random.default_rng(43)
    n, person = len(CLASSES), CLASSES.index("person")

    def colorable(i: int) -> str:
        return CLASSES[(i + 1 + person) % n]

    rows = [_prompt("single_object", [_clause(CLASSES[i])]) for i in rng.choice(n, size=n, replace=False)]
    for _ in range(100):
        a, b = rng.choice(n, size=2, replace=False)
        rows.append(_prompt("two_object", [_clause(CLASSES[a]), _clause(CLASSES[b])]))
    for _ in range(100):
        name, count = CLASSES[rng.choice(n)], int(rng.integers(2, 4, endpoint=True))
        rows.append(_prompt("counting", [_clause(name, count)]))
    for _ in range(100):
        name, color = colorable(rng.choice(n - 1)), COLORS[rng.choice(len(COLORS))]
        rows.append(_prompt("colors", [{**_clause(name), "color": color}]))
    for _ in range(100):
        a, b = rng.choice(n, size=2, replace=False)
        where = RELATIONS[rng.choice(4)]
        rows.append(_prompt("position", [_clause(CLASSES[b]), {**_clause(CLASSES[a]), "position": [where, 0]}]))
    for _ in range(100):
        names = [colorable(i) for i in rng.choice(n - 1, size=2, replace=False)]
        colors = rng.choice(len(COLORS), size=2, replace=False)
        clauses = [{**_clause(name), "color": COLORS[c]} for name, c in zip(names, colors, strict=True)]
        rows.append(_prompt("color_attr", clauses))
    return [row for i, row in enumerate(rows) if row not in rows[:i]]


def _clause(name: str, count: int = 1) -> dict[str, Any]:
    return {"class": name, "count": count}


def _prompt(tag: str, include: list[dict[str, Any]]) -> dict[str, Any]:
    """The record of one prompt, its keys in the official order."""
    phrases = [article(f"{c['color']} {c['class']}" if "color" in c else c["class"]) for c in include]
    if tag == "counting":
        name, count = include[0]["class"], include[0]["count"]
        prompt = f"a photo of {number(count)} {plural(name)}"
        return {"tag": tag, "include": include, "exclude": [_clause(name, count + 1)], "prompt": prompt}
    if tag == "position":
        prompt = f"a photo of {phrases[1]} {include[1]['position'][0]} {phrases[0]}"
    else:
        prompt = f"a photo of {' and '.join(phrases)}"
    return {"tag": tag, "include": include, "prompt": prompt}
