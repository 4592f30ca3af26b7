"""Captions of the `shapes` world: GenEval's six tasks in GenEval's words, and what training never shows.

The grammar is GenEval's (github.com/djghosh13/geneval, prompts/create_prompts.py), and every caption carries GenEval's
own metadata, so that its rules (`twinbench.benchmarks.geneval`) judge the pictures unchanged.

Compositions are held out: some (object, colour), (object, count) and (object, relation, object) combinations never
occur in training, neither in a caption nor in a picture, though each of their parts does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from twinbench.data.geneval import article, number, plural

SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
COLORS = {  # RGB in [-1, 1]: corners of the cube, so that nearest-colour is unambiguous
    "red": (1, -1, -1),
    "green": (-1, 1, -1),
    "blue": (-1, -1, 1),
    "yellow": (1, 1, -1),
    "purple": (1, -1, 1),
    "white": (1, 1, 1),
    "black": (-1, -1, -1),
}
COLOR_NAMES = tuple(COLORS)
RELATIONS = ("left of", "right of", "above", "below")
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
COUNTS = (2, 3, 4)


def heldout_color(shape: Any, color: Any) -> Any:
    """True where this object never has this colour in training (1 colour of 7 for each object)."""
    return (shape + color) % len(COLORS) == 0


def usual_color(shape: Any) -> Any:
    """Every object's own colour, as bananas have theirs; never a held-out one."""
    return (shape + 2) % len(COLORS)


def heldout_count(shape: Any, count: Any) -> Any:
    """True where this object never comes in this number in training (1 count of 3 for each object)."""
    return count == 2 + shape % 3


def heldout_relation(a: Any, relation: Any, b: Any) -> Any:
    """True where A never stands so to B in training; "A left of B" and "B right of A" are one fact."""
    swap = relation % 2 == 1
    first, second = np.where(swap, b, a), np.where(swap, a, b)
    return (first + 2 * second + 2 * (relation // 2)) % 6 == 5


@dataclass(frozen=True)
class Caption:
    """What is asked for. Indices into SHAPES, COLOR_NAMES, RELATIONS; -1 where nothing is said."""

    task: str
    shape: int
    color: int = -1
    count: int = 1
    relation: int = -1
    shape2: int = -1
    color2: int = -1

    @property
    def objects(self) -> int:
        """How many objects a picture of it has."""
        return self.count + (self.shape2 >= 0)

    @property
    def heldout(self) -> bool:
        """Whether the caption asks for a composition that training never shows."""
        colors = [(self.shape, self.color), (self.shape2, self.color2)]
        return bool(
            any(c >= 0 and heldout_color(s, c) for s, c in colors)
            or (self.count > 1 and heldout_count(self.shape, self.count))
            or (self.relation >= 0 and heldout_relation(self.shape, self.relation, self.shape2))
        )

    def metadata(self) -> dict[str, Any]:
        """GenEval's record: {tag, include, [exclude], prompt}; of a relation the target comes first."""
        first = _clause(self.shape, self.color, self.count)
        if self.task == "counting":
            name = f"{number(self.count)} {plural(SHAPES[self.shape])}"
            exclude = [{"class": SHAPES[self.shape], "count": self.count + 1}]
            return {"tag": self.task, "include": [first], "exclude": exclude, "prompt": f"a photo of {name}"}
        text = _phrase(self.shape, self.color)
        if self.shape2 < 0:
            return {"tag": self.task, "include": [first], "prompt": f"a photo of {text}"}
        second = _clause(self.shape2, self.color2, 1)
        if self.relation < 0:
            include, link = [first, second], "and"
        else:
            link = RELATIONS[self.relation]
            include = [second, {**first, "position": [link, 0]}]
        prompt = f"a photo of {text} {link} {_phrase(self.shape2, self.color2)}"
        return {"tag": self.task, "include": include, "prompt": prompt}


def _clause(shape: int, color: int, count: int) -> dict[str, Any]:
    clause: dict[str, Any] = {"class": SHAPES[shape], "count": count}
    return clause if color < 0 else {**clause, "color": COLOR_NAMES[color]}


def _phrase(shape: int, color: int) -> str:
    return article(SHAPES[shape] if color < 0 else f"{COLOR_NAMES[color]} {SHAPES[shape]}")


@cache
def captions(task: str) -> tuple[Caption, ...]:
    """Every caption of one task, in a fixed order."""
    kinds, colors = range(len(SHAPES)), range(len(COLORS))
    pairs = [(a, b) for a in kinds for b in kinds if a != b]
    if task == "single_object":
        return tuple(Caption(task, s) for s in kinds)
    if task == "two_object":
        return tuple(Caption(task, a, shape2=b) for a, b in pairs)
    if task == "counting":
        return tuple(Caption(task, s, count=n) for s in kinds for n in COUNTS)
    if task == "colors":
        return tuple(Caption(task, s, color=c) for s in kinds for c in colors)
    if task == "position":
        return tuple(Caption(task, a, relation=r, shape2=b) for a, b in pairs for r in range(4))
    if task == "color_attr":
        return tuple(
            Caption(task, a, c, shape2=b, color2=d) for a, b in pairs for c in colors for d in colors if c != d
        )
    raise ValueError(f"unknown task {task!r}; one of {', '.join(TASKS)}")


@cache
def _by_prompt() -> dict[str, Caption]:
    return {caption.metadata()["prompt"]: caption for task in TASKS for caption in captions(task)}


def caption_of(prompt: str) -> Caption:
    """The caption of a prompt. Raises KeyError for a prompt outside the world."""
    return _by_prompt()[prompt]


@cache
def split(task: str, name: str) -> tuple[Caption, ...]:
    """The captions of a split, shuffled by a fixed seed: `evaluation` and `validation` (a fifth, at least one) share no
    caption and were seen in training; `heldout` was not."""
    every = captions(task)
    order = np.random.default_rng(43).permutation(len(every))
    shuffled = [every[i] for i in order]
    seen = [c for c in shuffled if not c.heldout]
    cut = max(1, len(seen) // 5)
    parts = {"validation": seen[:cut], "evaluation": seen[cut:], "heldout": [c for c in shuffled if c.heldout]}
    if name not in parts:
        raise ValueError(f"unknown split {name!r}; one of {', '.join(parts)}")
    return tuple(parts[name])


VOCABULARY = ("", "one", "two", "three", "four", *COLOR_NAMES, *SHAPES, *RELATIONS)
CONVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
PHRASES, SLOTS = 2, ("count", "color", "shape", "place")


def tokens(prompt: str) -> list[int]:
    """A caption as two object phrases of four ids (count, colour, shape, place); 0 = not said.

    "A left of B" places A left and B right. Raises ValueError for a word outside the world."""
    phrases = [dict.fromkeys(SLOTS, "") for _ in range(PHRASES)]
    here = phrases[0]
    words = prompt.removeprefix("a photo of ").replace("left of", "left_of").replace("right of", "right_of").split()
    for word in (raw.replace("_", " ") for raw in words):
        singular = next((s for s in SHAPES if word in (s, plural(s))), None)
        if word in ("a", "an"):
            here["count"] = "one"
        elif word in VOCABULARY[1:5]:
            here["count"] = word
        elif word == "and" or word in RELATIONS:
            first, here = phrases
            if word != "and":
                first["place"], here["place"] = word, CONVERSE[word]
        elif word in COLORS:
            here["color"] = word
        elif singular:
            here["shape"] = singular
        else:
            raise ValueError(f"the shapes world has no word {word!r} (in {prompt!r})")
    return [VOCABULARY.index(phrase[slot]) for phrase in phrases for slot in SLOTS]
