"""Pictures of the `shapes` world: a few coloured shapes on a 2x2 lattice.

A scene has at most four objects, one a cell; a cell is 8 px, an object 7 px, the background mid-gray. What a caption
leaves open is drawn at random, but never as a held-out composition (`twinbench.data.captions`).
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from twinbench.data.base import Request, World, WorldConfig, enlarge, to_bytes
from twinbench.data.captions import (
    COLORS,
    PHRASES,
    SHAPES,
    SLOTS,
    TASKS,
    VOCABULARY,
    Caption,
    caption_of,
    captions,
    heldout_color,
    heldout_relation,
    split,
    tokens,
    usual_color,
)

SIZE, CELL, OBJECT = 16, 8, 7  # pixels: picture, lattice cell, object
PALETTE = np.array(list(COLORS.values()), np.int8)  # [colours, 3]
USUAL = 0.5  # an object whose colour is not asked for has its usual one this often, and any other evenly
TRAINING_SHARES = (1, 2, 2, 1, 3, 3)  # captions a task in training; two-object tasks are the hard ones

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


def scenes(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """n training scenes: shapes and colours [n, 4 cells] (-1 = empty) and captions. Held-out compositions do not
    occur."""
    rng = np.random.default_rng(seed)
    pools = [[c for c in captions(task) if not c.heldout] for task in TASKS]
    shares = np.array(TRAINING_SHARES) / sum(TRAINING_SHARES)
    tasks = rng.choice(len(TASKS), n, p=shares)
    chosen = [pools[t][int(u * len(pools[t]))] for t, u in zip(tasks, rng.random(n), strict=True)]
    return *compose(chosen, rng), [c.metadata()["prompt"] for c in chosen]


def compose(asked: list[Caption], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Fill in what captions leave open: shapes and colours [n, 4 cells], -1 = empty. What is not asked for never is a
    held-out composition."""
    shape, color, count, relation, shape2, color2 = np.array(
        [(c.shape, c.color, c.count, c.relation, c.shape2, c.color2) for c in asked]
    ).T
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
    """The asked colour; else the usual or a random one: not the other object's, and not held out for this object."""
    color = np.where(rng.random(len(shape)) < USUAL, usual_color(shape), rng.integers(len(COLORS), size=len(shape)))
    color = np.where(asked >= 0, asked, color)
    while (wrong := (asked < 0) & (heldout_color(shape, color) | (color == taken))).any():
        color[wrong] = rng.integers(len(COLORS), size=int(wrong.sum()))
    return color


def render(kinds: np.ndarray, paints: np.ndarray) -> np.ndarray:
    """Shapes and colours [n, 4 cells] (-1 = empty) -> int8 pictures [n, 3, 16, 16] in {-1, 0, 1}; 0 is the
    background."""
    pictures = np.zeros((len(kinds), 3, SIZE, SIZE), np.int8)
    stencils = np.stack([template(s) for s in SHAPES]).astype(np.int8)
    for cell, (x, y) in enumerate(_XY):
        filled = kinds[:, cell] >= 0
        patch = stencils[kinds[filled, cell]][:, None] * PALETTE[paints[filled, cell]][:, :, None, None]
        pictures[filled, :, y * CELL : y * CELL + OBJECT, x * CELL : x * CELL + OBJECT] = patch
    return pictures


class ShapesConfig(WorldConfig):
    size: int = Field(60000, ge=1, description="training pictures")


class Shapes(World):
    """int8 pictures [n, 3, 16, 16]; a prompt is two object phrases of four tokens; labels: what stands in each cell."""

    Config = ShapesConfig
    name = "shapes"
    shape = (3, SIZE, SIZE)
    vocabulary, phrases, slots = len(VOCABULARY), PHRASES, PHRASES * len(SLOTS)
    classes = (len(SHAPES) + 1,) * 4 + (len(COLORS) + 1,) * 4

    def make(self, config: WorldConfig) -> tuple[Tensor, list[str], Tensor]:
        assert isinstance(config, ShapesConfig)
        kinds, paints, prompts = scenes(config.size, config.seed)
        labels = torch.from_numpy(np.concatenate([kinds, paints], 1) + 1)
        return torch.from_numpy(render(kinds, paints)), prompts, labels

    @classmethod
    def requests(cls, prompts: str, limit: int | None = None) -> list[Request]:
        """100 keys a task and split (validation: 40), 2 copies each; where a task has fewer captions they come
        again under another key, hence with other noise."""
        splits, keys = [("validation", "evaluation")], 40
        if prompts == "evaluation":
            splits, keys = [("evaluation", "evaluation"), ("heldout", "heldout")], 100
        return [
            Request(f"{name}/{task}/{i:03d}", pool[i % len(pool)].metadata()["prompt"], copy, task, seen)
            for name, seen in splits
            for task in TASKS
            if (pool := split(task, name))
            for i in range(min(keys, limit or keys))
            for copy in range(2)
        ]

    @classmethod
    def real(cls) -> Tensor:
        """One picture for each of 4 times the evaluation's seen requests."""
        asked = [caption_of(r.prompt) for r in cls.requests("evaluation") if r.split == "evaluation"] * 4
        return torch.from_numpy(render(*compose(asked, np.random.default_rng(7))))

    tokens = staticmethod(tokens)
    pixels = staticmethod(to_bytes)

    @staticmethod
    def preview(samples: Tensor) -> np.ndarray:
        return enlarge(samples, 4)
