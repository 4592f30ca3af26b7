"""DPG-Bench's score, a pure function of its table of questions and of the answers to them.

Hu et al. 2024 (arXiv 2403.05135; github.com/TencentQQGYLab/ELLA at 3c228f1, `dpg_bench/compute_dpg_bench.py`). A
picture's score is the share of its prompt's questions answered exactly "yes", where a question also counts as "no" once
a question that it depends on does, in the table's order: one that stands before its parent is judged by that one's own
answer, and not by what the parent depends on. The score is the mean over pictures, then over prompts, times 100.

The official program departs from that in three places, which `protocol="official"` reproduces and "corrected" mends:

1. The first row of the table is not read: the first prompt loses a question, and mostly fails by the next point.
2. A prompt that raises an error (a dependency on a question that is not there) is left out of every mean; corrected,
   none is: a dependency on nothing asks nothing. Rows of a prompt that stand apart replace one another in the official
   program and belong together in the corrected one.
3. The scores by category (l1, l2) read the last picture of each prompt alone, and its raw answers, without the rule of
   dependence; corrected, they read every picture, with the rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from twinbench.data.base import Request

Protocol = Literal["official", "corrected"]
Answers = Mapping[str, str]  # of one picture: question text -> what the judge said


@dataclass
class Asked:
    """The questions of one prompt, by proposition id, in the table's order; an id that comes again replaces its row."""

    question: dict[int, str] = field(default_factory=dict)
    category: dict[int, str] = field(default_factory=dict)
    parents: dict[int, list[int]] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any]) -> None:
        number = int(row["proposition_id"])
        self.question[number] = row["question_natural_language"]
        self.category[number] = str(row["tuple"]).split("(")[0].strip()
        self.parents[number] = [int(part) for part in str(row["dependency"]).split(",")]

    def right(self, answers: Answers) -> dict[int, float]:
        """1 where the answer is exactly "yes", else 0. Raises KeyError for a question without an answer."""
        return {number: float(answers[text] == "yes") for number, text in self.question.items()}

    def depending(self, right: Mapping[int, float]) -> dict[int, float]:
        """The same, 0 where a parent is 0 by then; parents are looked at in order, and only until one is 0.

        Raises KeyError for a parent that is no question of the prompt."""
        out = dict(right)
        for number, parents in self.parents.items():
            if any(out[parent] == 0 for parent in parents if parent != 0):
                out[number] = 0.0
        return out


def score(
    questions: Iterable[Mapping[str, Any]],
    answers: Mapping[str, Sequence[Answers]],
    *,
    protocol: Protocol = "official",
) -> dict[str, Any]:
    """DPG-Bench's numbers of judged pictures.

    questions: the table's rows as dicts, in order, the first one too (item_id, proposition_id, dependency, tuple,
    question_natural_language). answers: {item_id: one dict a picture, question text -> answer}. Returns dpg_score
    (0-100), l1 and l2 ({category: 0-100}), per_item ({item_id: 0-1}), failed_items (answered, but left out) and
    unanswered_items (of the table, without pictures; in no mean).

    ValueError without any scored item; under "corrected" also for an item, picture or question that is missing."""
    if protocol not in ("official", "corrected"):
        raise ValueError(f"unknown protocol {protocol!r}; one of official, corrected")
    official = protocol == "official"
    table = _official_table(questions) if official else whole_table(questions)
    per_item: dict[str, float] = {}
    failed: dict[str, str] = {}
    by_category: dict[str, list[float]] = {}
    for item, pictures in answers.items():
        try:
            value, judged = _item(table[item], pictures, official)
        except (KeyError, ZeroDivisionError) as error:
            failed[item] = f"{error} is missing" if isinstance(error, KeyError) else "it has no pictures"
            if not official:
                raise ValueError(f"item {item!r} cannot be scored: {failed[item]}") from None
            continue
        per_item[item] = value
        for category, values in judged:
            by_category.setdefault(category, []).extend(values)
    if not per_item:
        told = [f"of {item!r}, {why}" for item, why in failed.items()] or ["there are no answers"]
        raise ValueError(f"no item could be scored: {told[0]}")
    broad: dict[str, list[float]] = {}
    for category, values in by_category.items():
        broad.setdefault(category.split("-")[0].strip(), []).extend(values)
    return {
        "dpg_score": _mean(per_item.values()) * 100,
        "l1": {name: _mean(values) * 100 for name, values in broad.items()},
        "l2": {name: _mean(values) * 100 for name, values in by_category.items()},
        "per_item": per_item,
        "failed_items": list(failed),
        "unanswered_items": [item for item in table if item not in answers],
    }


def rows(
    questions: Iterable[Mapping[str, Any]], requests: Sequence[Request], answers: Sequence[Answers]
) -> list[dict[str, Any]]:
    """One item row a question and picture, whose metrics are the numbers of `score` under both protocols. answers: one
    dict a request. Raises ValueError for a question without an answer or a prompt with pictures missing."""
    questions = list(questions)
    official, whole = _official_table(questions), whole_table(questions)
    groups: dict[str, list[int]] = {}
    for i, request in enumerate(requests):
        groups.setdefault(request.key, []).append(i)
    if len({len(places) for places in groups.values()}) > 1:
        raise ValueError("some prompts have fewer pictures than others")
    out: list[dict[str, Any]] = []
    for key, places in groups.items():
        pictures = [answers[i] for i in places]
        right = [whole[key].right(answer) for answer in pictures]
        ruled = [whole[key].depending(picture) for picture in right]
        try:
            read = [official[key].depending(official[key].right(answer)) for answer in pictures]
        except KeyError:  # the official program leaves this prompt out
            read = [{} for _ in places]
        for copy, i in enumerate(places):
            shared = {name: value for name, value in vars(requests[i]).items() if name != "prompt"}
            for number, text in whole[key].question.items():
                category, counts = whole[key].category[number], number in read[copy]
                row = {**shared, "tag": category.split("-")[0].strip(), "category": category, "id": number}
                row |= {"question": text, "answer": pictures[copy][text], "raw": 100 * right[copy][number]}
                row |= {"corrected": 100 * ruled[copy][number], "read": "yes" if counts else "no"}
                row |= {"official": 100 * read[copy][number] if counts else None}
                out.append({**row, "told": "yes" if counts and i == places[-1] else "no"})
    return out


def _official_table(questions: Iterable[Mapping[str, Any]]) -> dict[str, Asked]:
    """As the official program reads it: without the first row; rows that stand apart start the item anew."""
    table: dict[str, Asked] = {}
    before = None
    for i, row in enumerate(questions):
        if i == 0:
            continue
        item = str(row["item_id"])
        if item != before:
            table[item] = Asked()
        table[item].add(row)
        before = item
    return table


def whole_table(questions: Iterable[Mapping[str, Any]]) -> dict[str, Asked]:
    """All rows; dependencies on what is not asked are none."""
    table: dict[str, Asked] = {}
    for row in questions:
        table.setdefault(str(row["item_id"]), Asked()).add(row)
    for asked in table.values():
        for number, parents in asked.parents.items():
            asked.parents[number] = [parent for parent in parents if parent in asked.question]
    return table


def _item(asked: Asked, pictures: Sequence[Answers], official: bool) -> tuple[float, list[tuple[str, list[float]]]]:
    """The mean score of an item's pictures, and what goes into each category, in the table's order."""
    raw = [asked.right(answers) for answers in pictures]
    ruled = [asked.depending(right) for right in raw]
    value = _mean([_mean(right.values()) for right in ruled])
    told = raw[-1:] if official else ruled
    return value, [(asked.category[number], [right[number] for right in told]) for number in asked.question]


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
