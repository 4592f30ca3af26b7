"""DPG-Bench on pictures of any model: its table's prompts, four pictures each, and a judge that answers its questions.

The published numbers were answered by mPLUG; another judge gives other numbers, and its name stands in every result.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from twinbench import assets
from twinbench.benchmarks.base import Benchmark, Chosen, Evidence, Judging, batches, identity, limited
from twinbench.benchmarks.dpg import rows, whole_table
from twinbench.data.base import Request
from twinbench.errors import UserError, WorkError
from twinbench.judges.base import VQA
from twinbench.settings import Strict, digest
from twinbench.statistics import Metric, evaluate

BROAD = ("entity", "attribute", "relation", "global", "other")
COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")


class DPGConfig(Strict):
    vqa: Chosen = Field(Judging(name="blip-vqa"), description="who answers the questions")
    csv: str | None = Field(None, description="the table of questions; the asset dpg by default")
    copies: int = Field(4, ge=1, description="pictures of a prompt")
    batch: int = Field(16, ge=1, description="pictures held at once")


def _check(row: Mapping[str, Any], where: str) -> None:
    """Raises UserError for a row that is cut off, or with anything but numbers where they belong."""
    if lacking := [name for name in COLUMNS if row[name] is None or (name != "text" and not row[name])]:
        raise UserError(f"{where} has no {lacking[0]}; twinbench fetch dpg gets the whole table")
    for name, numbers in (("proposition_id", [row["proposition_id"]]), ("dependency", row["dependency"].split(","))):
        if not all(re.fullmatch(r"\s*\d+\s*", number) for number in numbers):
            raise UserError(f"{where}: {name} is whole numbers, 0 for a dependency on nothing, not {row[name]!r}")


class DPG(Benchmark):
    """DPG-Bench on pictures of any model, in points of 100: `corrected` and `official`, and each by category.

    A row is one question of one picture: `raw` (the answer alone), `corrected` and `official` (with the rule of
    dependence, as the protocol reads the table), 0 or 100. `read` says whether the official program reads the row, and
    `told` whether its scores by category do."""

    name = "dpg"
    Config = DPGConfig
    metrics: ClassVar[Mapping[str, Metric]] = {
        "corrected": Metric("corrected", stratum="split", each="key"),
        "official": Metric("official", {"read": "yes"}, stratum="split", each="key"),
        **{name: Metric("corrected", {"tag": name}, stratum="split") for name in BROAD},
        **{f"official_{name}": Metric("raw", {"tag": name, "told": "yes"}, stratum="split") for name in BROAD},
    }

    @cached_property
    def questions(self) -> list[dict[str, str]]:
        """The table's rows. Raises UserError where it is missing or another table."""
        place = Path(self.config.csv) if self.config.csv else assets.path("dpg")
        if not place.is_file():
            raise UserError(f"DPG-Bench's questions {place} do not exist; twinbench fetch dpg gets them")
        try:
            with place.open(encoding="utf-8", newline="") as file:
                told = csv.DictReader(file)
                rows = [(told.line_num, row) for row in told]
        except (csv.Error, ValueError):
            rows = []
        if not rows or not set(COLUMNS) <= set(rows[0][1]):
            raise UserError(f"{place} is not DPG-Bench's table of questions: it needs the columns {', '.join(COLUMNS)}")
        for number, row in rows:
            _check(row, f"{place}, line {number}")
        return [row for _, row in rows]

    def requests(self, limit: int | None = None) -> list[Request]:
        if self.prompts != "evaluation":
            raise UserError(
                f"{self.name} has no {self.prompts} prompts; it is there to compare, not to choose settings"
            )
        prompts = {row["item_id"]: row["text"].strip() for row in reversed(self.questions)}
        copies = range(self.config.copies)
        return limited([Request(key, prompts[key], c, "dpg") for key in reversed(prompts) for c in copies], limit)

    @property
    def vqa(self) -> VQA:
        return self.config.vqa.made(VQA)

    @property
    def judge_name(self) -> str:
        told = digest([[row[name] for name in COLUMNS] for row in self.questions])[:12]
        return f"{identity(self.vqa)} + questions/{told}"

    def judge(self, samples: Any, requests: Sequence[Request]) -> Evidence:
        vqa, table = self.vqa, whole_table(self.questions)
        answers: list[dict[str, str]] = []
        for pictures, part in batches(samples, requests, self.config.batch):
            asked = [(i, text) for i, r in enumerate(part) for text in table[r.key].question.values()]
            said = vqa.answers([pictures[i] for i, _ in asked], [text for _, text in asked])
            if len(said) != len(asked):
                raise WorkError(f"{vqa.name} answered {len(said)} of {len(asked)} questions")
            told: list[dict[str, str]] = [{} for _ in part]
            for (i, text), answer in zip(asked, said):
                told[i][text] = answer
            answers += told
        return Evidence(rows(self.questions, requests, answers))

    def summarize(self, evidence: Evidence) -> dict[str, float]:
        whole = super().summarize(evidence)
        for name in sorted({row["category"] for row in evidence.items}):
            whole[name] = evaluate(Metric("corrected", {"category": name}, "split"), evidence.items)
        read = {row["key"] for row in evidence.items if row["read"] == "yes"}
        return {**whole, "official_left_out": len({row["key"] for row in evidence.items} - read)}
