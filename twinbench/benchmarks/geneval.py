"""GenEval's geometry, verdicts and summary, as pure functions of what a detector found.

Ghosh, Hajishirzi and Schmidt 2023 (github.com/djghosh13/geneval at af4902f). The rules are those of its
`evaluation/evaluate_images.py` and `evaluation/summary_scores.py`; the prompts are in `twinbench.data.geneval`.
Scores and boxes are compared in float32, as there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from twinbench.data.geneval import COLORS, PROMPTS_SHA256, RELATIONS, TASKS, prompts
from twinbench.judges.base import Found

__all__ = ["PROMPTS_SHA256", "TASKS", "iou", "keep", "prompts", "relation", "summarize", "verdict"]

Metadata = Mapping[str, Any]


# ---- geometry ----


def relation(a: Sequence[float], b: Sequence[float], threshold: float = 0.1) -> set[str]:
    """How box a stands to box b: none, one or two of RELATIONS. Boxes (x0, y0, x1, y1), y down.

    The offset of the centres, less a dead zone of `threshold` times the summed sizes, must exceed half of the full
    offset's length along an axis; a diagonal pair therefore has two relations."""
    boxes = np.asarray([a, b], np.float32).reshape(2, 2, 2)
    (center_a, center_b), (size_a, size_b) = boxes.mean(1), np.abs(np.diff(boxes, axis=1))[:, 0]
    offset = center_a - center_b
    revised = np.maximum(np.abs(offset) - threshold * (size_a + size_b), 0) * np.sign(offset)
    if np.all(np.abs(revised) < 1e-3):
        return set()
    dx, dy = revised / np.linalg.norm(offset)
    holds = (dx < -0.5, dx > 0.5, dy < -0.5, dy > 0.5)
    return {name for name, yes in zip(RELATIONS, holds, strict=True) if yes}


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union with sizes that count one pixel more, as GenEval's suppression does; 0 if both are
    empty. In float32, whose last digit may decide."""
    first, second = np.asarray(a, np.float32), np.asarray(b, np.float32)

    def area(start: Any, end: Any) -> np.float32:
        width, height = np.maximum(end - start + np.float32(1), np.float32(0))
        return width * height

    shared = area(np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:]))
    union = area(first[:2], first[2:]) + area(second[:2], second[2:]) - shared
    return float(shared / union) if union else 0.0


# ---- verdict ----


def keep(
    found: Iterable[Found], threshold: float = 0.3, max_objects: int = 16, max_overlap: float = 1.0
) -> dict[str, list[Found]]:
    """The objects of each class that count, most confident first; of equals the later one. `max_overlap` = 1 keeps
    overlapping ones."""
    by_class: dict[str, list[Found]] = {}
    for item in found:
        if np.float32(item.score) > np.float32(threshold):
            by_class.setdefault(item.label, []).append(item)
    kept = {}
    for label, items in by_class.items():
        ranked = sorted(items, key=lambda item: np.float32(item.score))[::-1][:max_objects]
        if max_overlap < 1:
            ranked = _suppress(ranked, max_overlap)
        kept[label] = ranked
    return kept


def _suppress(ranked: list[Found], max_overlap: float) -> list[Found]:
    out: list[Found] = []
    for item in ranked:
        if all(iou(item.box, other.box) < max_overlap for other in out):
            out.append(item)
    return out


def verdict(
    metadata: Metadata,
    found: Iterable[Found],
    *,
    color_of: Callable[[Found, str], str | None] | None = None,
    threshold: float = 0.3,
    counting_threshold: float = 0.9,
    max_objects: int = 16,
    max_overlap: float = 1.0,
    position_threshold: float = 0.1,
) -> tuple[bool, str]:
    """Whether one picture shows what its prompt asks for, and the official reason if not ("" if so).

    `color_of(object, class)` is asked only where a clause names a colour; by default the object's own `color`. Reasons
    with two relations list them in the order of RELATIONS (the official order is that of a Python set)."""
    color_of = color_of or (lambda item, _: item.color)
    limit = counting_threshold if metadata["tag"] == "counting" else threshold
    objects = keep(found, limit, max_objects, max_overlap)
    reasons: list[str] = []
    groups: list[list[Found] | None] = []
    for clause in metadata.get("include", ()):
        name, chosen = clause["class"], objects.get(clause["class"], [])[: clause["count"]]
        reason = _clause_fails(clause, chosen, color_of) or _position_fails(clause, chosen, groups, position_threshold)
        groups.append(None if reason else chosen)
        reasons += [reason] if reason else []
    for clause in metadata.get("exclude", ()):
        name, count = clause["class"], len(objects.get(clause["class"], []))
        if count >= clause["count"]:
            reasons.append(f"expected {name}<{clause['count']}, found {count}")
    return not reasons, "\n".join(reasons)


def _clause_fails(clause: Metadata, chosen: list[Found], color_of: Callable[[Found, str], str | None]) -> str:
    name, count, color = clause["class"], clause["count"], clause.get("color")
    if len(chosen) < count:
        return f"expected {name}>={count}, found {len(chosen)}"
    if color is None:
        return ""
    seen = [color_of(item, name) for item in chosen]
    right = seen.count(color)
    if right >= count:
        return ""
    others = ", ".join(f"{seen.count(c)} {c}" for c in COLORS if c in seen)
    return f"expected {color} {name}>={count}, found {right} {color}; and {others}"


def _position_fails(clause: Metadata, chosen: list[Found], groups: list[list[Found] | None], threshold: float) -> str:
    if "position" not in clause:
        return ""
    name, (expected, index) = clause["class"], clause["position"]
    targets = groups[index]
    if targets is None:
        return f"no target for {name} to be {expected}"
    for item in chosen:
        for target in targets:
            relations = relation(item.box, target.box, threshold)
            if expected not in relations:
                stands = " and ".join(r for r in RELATIONS if r in relations)
                return f"expected {name} {expected} target, found {stands} target"
    return ""


# ---- summary ----


def summarize(items: Iterable[Metadata]) -> dict[str, float]:
    """Scores in [0, 1] of judged pictures {tag, correct, metadata | prompt}: `images` (mean over pictures), `prompts`
    (prompts with any right picture), one entry a task, and `overall`, the plain mean of the tasks."""
    items = list(items)
    if not items:
        raise ValueError("no judged pictures to summarize")
    tasks: dict[str, list[bool]] = {}
    groups: dict[str, bool] = {}
    for item in items:
        right = bool(item["correct"])
        tasks.setdefault(item["tag"], []).append(right)
        group = str(item.get("metadata") or item["prompt"])
        groups[group] = groups.get(group, False) or right
    means = {tag: float(np.mean(values)) for tag, values in tasks.items()}
    return {
        "overall": float(np.mean(list(means.values()))),
        "images": float(np.mean([bool(item["correct"]) for item in items])),
        "prompts": float(np.mean(list(groups.values()))),
        **means,
    }
