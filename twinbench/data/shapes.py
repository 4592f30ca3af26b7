"""The `shapes` world: pictures of a few coloured shapes on a 2x2 lattice, with captions in GenEval's words.

A scene has at most four objects, one a cell; a cell is 8 px, an object 7 px, the background mid-gray. Captions follow
GenEval's six tasks and grammar (github.com/djghosh13/geneval, prompts/create_prompts.py), and every caption carries
GenEval's own metadata, so that its rules (`twinbench.benchmarks.geneval`) judge the pictures unchanged.

Compositions are held out: some (object, colour), (object, count) and (object, relation, object) combinations never
occur in training, neither in a caption nor in a picture, though each of their parts does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from twinbench.benchmarks.geneval import article, number, plural

SIZE, CELL, OBJECT = 16, 8, 7  # pixels: picture, lattice cell, object
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
PALETTE = np.array(list(COLORS.values()), np.int8)  # [colours, 3]
RELATIONS = ("left of", "right of", "above", "below")
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
TRAINING_SHARES = (1, 2, 2, 1, 3, 3)  # captions a task in training; two-object tasks are the hard ones
COUNTS = (2, 3, 4)

# Cells are numbered row by row. PLACEMENTS[r] lists the (cell of A, cell of B) for which GenEval's rule says "A r B":
# on this lattice a diagonal pair stands in two relations at once.
_XY = [(c % 2, c // 2) for c in range(4)]
PLACEMENTS = tuple(
    tuple((a, b) for a in range(4) for b in range(4) if a != b and holds(_XY[a], _XY[b]))
    for holds in (
        lambda a, b: a[0] < b[0],
        lambda a, b: a[0] > b[0],
        lambda a, b: a[1] < b[1],
        lambda a, b: a[1] > b[1],
    )
)
_IN_RELATION = np.array([[[(a, b) in rows for b in range(4)] for a in range(4)] for rows in PLACEMENTS])  # [4, 4, 4]


def heldout_color(shape: Any, color: Any) -> Any:
    """True where this object never has this colour in training (1 colour of 7 for each object)."""
    return (shape + color) % len(COLORS) == 0


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
        return tuple(Caption(task, a, c, shape2=b, color2=d) for a, b in pairs for c in colors for d in colors if c != d)
    raise ValueError(f"unknown task {task!r}; one of {', '.join(TASKS)}")


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


@cache
def template(shape: str, size: int = OBJECT) -> np.ndarray:
    """The shape as a boolean mask [size, size], without anti-aliasing."""
    y, x = np.mgrid[:size, :size].astype(np.float64)
    c = (size - 1) / 2
    dx, dy = np.abs(x - c), np.abs(y - c)
    radius = np.hypot(dx, dy)
    if shape == "circle":
        return radius <= size / 2 - 0.02
    if shape == "square":
        return np.ones((size, size), bool)
    if shape == "triangle":
        return dx <= (y + 1) / 2
    if shape == "cross":
        return np.abs(dx - dy) <= 1.1  # a saltire: an upright cross of this size is nearly a circle
    if shape == "ring":
        return (radius <= size / 2 - 0.02) & (radius >= size / 2 - max(1.6, size / 4.2))
    if shape == "diamond":
        return dx + dy <= c + 0.1
    raise ValueError(f"unknown shape {shape!r}; one of {', '.join(SHAPES)}")


def scenes(n: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """n training pictures, int8 [n, 3, 16, 16] in {-1, 0, 1}, and their captions. Held-out compositions do not occur."""
    rng = np.random.default_rng(seed)
    pools = [[c for c in captions(task) if not c.heldout] for task in TASKS]
    shares = np.array(TRAINING_SHARES) / sum(TRAINING_SHARES)
    tasks = rng.choice(len(TASKS), n, p=shares)
    chosen = [pools[t][int(u * len(pools[t]))] for t, u in zip(tasks, rng.random(n), strict=True)]
    asked = np.array([(c.shape, c.color, c.count, c.relation, c.shape2, c.color2) for c in chosen])
    return render(*_compose(asked, rng)), [c.metadata()["prompt"] for c in chosen]


def draw(caption: Caption, n: int, seed: int) -> np.ndarray:
    """n pictures of one caption, held out or not: int8 [n, 3, 16, 16]."""
    asked = np.array([(caption.shape, caption.color, caption.count, caption.relation, caption.shape2, caption.color2)])
    return render(*_compose(np.repeat(asked, n, 0), np.random.default_rng(seed)))


def _compose(asked: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Fill in what a caption leaves open: shapes and colours [n, 4 cells], -1 = empty. What is not asked for never is
    a held-out composition."""
    shape, color, count, relation, shape2, color2 = asked.T
    n, two = len(asked), shape2 >= 0
    first = _free_colors(shape, color, np.full(n, -1), rng)
    second = np.where(two, _free_colors(shape2, color2, first, rng), -1)
    cells = np.argsort(rng.random((n, 4)), 1)
    for _ in range(1000):  # redraw the placements that break the asked relation or show a held-out one
        a, b = cells[:, 0], cells[:, 1]
        shown = _IN_RELATION[:, a, b]  # [relations, n]
        wrong = (relation >= 0) & ~shown[np.maximum(relation, 0), np.arange(n)]
        for r in range(4):
            wrong |= shown[r] & two & (r != relation) & heldout_relation(shape, np.full(n, r), shape2)
        if not wrong.any():
            break
        cells[wrong] = np.argsort(rng.random((int(wrong.sum()), 4)), 1)
    else:
        raise RuntimeError("no placement satisfies a caption; the held-out rule leaves it none")
    rows = np.arange(n)
    kinds, paints = np.full((n, 4), -1), np.full((n, 4), -1)
    for i in range(4):
        here = i < count
        kinds[rows[here], cells[here, i]] = shape[here]
        paints[rows[here], cells[here, i]] = first[here]
    kinds[rows[two], cells[two, 1]] = shape2[two]
    paints[rows[two], cells[two, 1]] = second[two]
    return kinds, paints


def _free_colors(shape: np.ndarray, asked: np.ndarray, taken: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The asked colour, or a random one: not the other object's, and not held out for this object."""
    color = np.where(asked >= 0, asked, rng.integers(len(COLORS), size=len(shape)))
    while (wrong := (asked < 0) & (heldout_color(shape, color) | (color == taken))).any():
        color[wrong] = rng.integers(len(COLORS), size=int(wrong.sum()))
    return color


def render(kinds: np.ndarray, paints: np.ndarray) -> np.ndarray:
    """Shapes and colours [n, 4 cells] (-1 = empty) -> int8 pictures [n, 3, 16, 16] in {-1, 0, 1}; 0 is the background."""
    pictures = np.zeros((len(kinds), 3, SIZE, SIZE), np.int8)
    stencils = np.stack([template(s) for s in SHAPES]).astype(np.int8)
    for cell, (x, y) in enumerate(_XY):
        filled = kinds[:, cell] >= 0
        patch = stencils[kinds[filled, cell]][:, None] * PALETTE[paints[filled, cell]][:, :, None, None]
        pictures[filled, :, y * CELL : y * CELL + OBJECT, x * CELL : x * CELL + OBJECT] = patch
    return pictures


VOCABULARY = ("", "one", "two", "three", "four", *COLOR_NAMES, *SHAPES, "and", *RELATIONS)
SLOTS = ("count", "color", "shape", "relation", "color2", "shape2")


def tokens(prompt: str) -> list[int]:
    """A caption as six token ids, one a slot (count, colour, shape, relation, colour, shape); 0 = not said.

    Raises ValueError for a word outside the world."""
    if not prompt:
        return [0] * len(SLOTS)
    words = prompt.removeprefix("a photo of ").replace("left of", "left_of").replace("right of", "right_of").split()
    slots, second = dict.fromkeys(SLOTS, ""), ""
    slots["count"] = "one"
    for raw in words:
        word = raw.replace("_", " ")
        singular = next((s for s in SHAPES if word in (s, plural(s))), None)
        if word in ("a", "an"):
            continue
        if word in VOCABULARY[1:5]:
            slots["count"] = word
        elif word == "and" or word in RELATIONS:
            slots["relation"], second = word, "2"
        elif word in COLORS:
            slots[f"color{second}"] = word
        elif singular:
            slots[f"shape{second}"] = singular
        else:
            raise ValueError(f"the shapes world has no word {word!r} (in {prompt!r})")
    return [VOCABULARY.index(slots[s]) for s in SLOTS]
