"""GenEval on pictures of any model, by its own prompts and rules (`twinbench.benchmarks.geneval`).

553 prompts, four pictures each. `geneval` asks the official prompts; `geneval-rewritten` asks the longer ones that a
language model made of them, with the same metadata and the same rules: the two share no column.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from twinbench import assets
from twinbench.benchmarks.base import (
    Benchmark,
    Chosen,
    Evidence,
    Item,
    Judging,
    batches,
    identity,
    limited,
    row_of,
)
from twinbench.benchmarks.geneval import TASKS, keep, verdict
from twinbench.data.base import Request
from twinbench.data.geneval import prompts
from twinbench.errors import UserError, WorkError
from twinbench.judges.base import Colors, Detector, Found
from twinbench.settings import Strict
from twinbench.statistics import Metric


class GenEvalConfig(Strict):
    detector: Chosen = Field(Judging(name="mask2former"), description="who finds the objects")
    colors: Chosen = Field(Judging(name="clip-colors"), description="who names their colours")
    copies: int = Field(4, ge=1, description="pictures of a prompt")
    threshold: float = Field(0.3, ge=0, le=1, description="detections above this count")
    counting_threshold: float = Field(0.9, ge=0, le=1, description="the same where the task is counting")
    max_objects: int = Field(16, ge=1)
    max_overlap: float = Field(1.0, ge=0, le=1, description="of one class; 1 keeps overlapping objects")
    position_threshold: float = Field(0.1, ge=0)
    batch: int = Field(8, ge=1, description="pictures judged at once")


class GenEval(Benchmark):
    """`overall`: the plain mean of the six tasks' means. `images`: of all pictures, the share that is right; `prompts`:
    of all prompts, the share with any right picture."""

    name = "geneval"
    Config = GenEvalConfig
    metrics: ClassVar[Mapping[str, Metric]] = {
        "overall": Metric("correct"),
        "images": Metric("correct", stratum="split"),
        "prompts": Metric("any", stratum="split"),
        **{task: Metric("correct", {"tag": task}) for task in TASKS},
    }

    def records(self) -> list[dict[str, Any]]:
        """The metadata of every prompt, with its prompt."""
        return prompts()

    @cached_property
    def metadata(self) -> dict[str, dict[str, Any]]:
        """By key: the folder's name in the official layout, 00000 to 00552."""
        return {f"{i:05d}": record for i, record in enumerate(self.records())}

    def requests(self, limit: int | None = None) -> list[Request]:
        if self.prompts != "evaluation":
            raise UserError(
                f"{self.name} has no {self.prompts} prompts; it is there to compare, not to choose settings"
            )
        copies = range(self.config.copies)
        every = [Request(key, r["prompt"], copy, r["tag"]) for key, r in self.metadata.items() for copy in copies]
        return limited(every, limit)

    @property
    def rules(self) -> dict[str, Any]:
        """What `verdict` is told."""
        names = ("threshold", "counting_threshold", "max_objects", "max_overlap", "position_threshold")
        return {name: getattr(self.config, name) for name in names}

    @property
    def detector(self) -> Detector:
        """Raises UserError where it does not tell all that counts."""
        made: Detector = self.config.detector.made(Detector)
        for name in ("threshold", "counting_threshold"):
            if self.rules[name] < made.floor:
                setting = f"eval.benchmarks.{self.name}"
                raise UserError(
                    f"{setting}.{name} {self.rules[name]:g} is below {made.floor:g}, under which {made.name} tells no "
                    f"objects; --set '{setting}.detector={{name: {made.name}, floor: {self.rules[name]:g}}}' lowers it"
                )
        return made

    @property
    def colors(self) -> Colors:
        return self.config.colors.made(Colors)

    @property
    def judge_name(self) -> str:
        changed = {k: v for k, v in self.rules.items() if v != GenEvalConfig.model_fields[k].default}
        told = "".join(f" + {name} {value}" for name, value in changed.items())
        return identity(self.detector, self.colors) + told

    def judge(self, samples: Any, requests: Sequence[Request]) -> Evidence:
        detector, items = self.detector, []
        for pictures, part in batches(samples, requests, self.config.batch):
            found = detector(pictures)
            if len(found) != len(pictures):
                raise WorkError(f"{detector.name} judged {len(found)} of {len(pictures)} pictures")
            items += self._judged(pictures, part, found)
        evidence = Evidence(items)
        self.settle(evidence)
        return evidence

    def _judged(
        self, pictures: Sequence[np.ndarray], requests: Sequence[Request], found: Sequence[list[Found]]
    ) -> list[Item]:
        """One row a picture; the colours of all pictures are asked for at once."""
        asked: list[tuple[int, Found, str]] = []

        def note(i: int) -> Callable[[Found, str], str]:
            return lambda item, label: asked.append((i, item, label)) or ""  # type: ignore[func-returns-value]

        for i, request in enumerate(requests):  # which colours count does not depend on the answers
            verdict(self.metadata[request.key], found[i], color_of=note(i), **self.rules)
        named: dict[tuple[int, int, str], str] = {}
        if asked:
            said = self.colors.colors_of(
                [pictures[i] for i, _, _ in asked], [f for _, f, _ in asked], [c for *_, c in asked]
            )
            named = {(i, id(item), label): color for (i, item, label), color in zip(asked, said, strict=True)}
        rows = []
        for i, request in enumerate(requests):
            metadata = self.metadata[request.key]
            color_of = lambda item, label, i=i: named[i, id(item), label]  # noqa: E731
            correct, reason = verdict(metadata, found[i], color_of=color_of, **self.rules)
            rows.append(
                {**row_of(request), "correct": correct, "reason": reason, "found": self._told(metadata, found[i])}
            )
        return rows

    def _told(self, metadata: Mapping[str, Any], found: Sequence[Found]) -> dict[str, list[list[float]]]:
        """What counted, as the official files say it: {class: [[x0, y0, x1, y1, score], ...]}."""
        counting = metadata["tag"] == "counting"
        limit = self.config.counting_threshold if counting else self.config.threshold
        kept = keep(found, limit, self.config.max_objects, self.config.max_overlap)
        return {name: [[round(float(x), 4) for x in (*f.box, f.score)] for f in items] for name, items in kept.items()}

    def settle(self, evidence: Evidence) -> None:
        """`any`: whether a prompt has any right picture, in every row of it."""
        right: dict[str, bool] = {}
        for row in evidence.items:
            right[row["key"]] = right.get(row["key"], False) or row["correct"]
        for row in evidence.items:
            row["any"] = right[row["key"]]

    def summarize(self, evidence: Evidence) -> dict[str, float]:
        copies: dict[str, int] = {}
        for row in evidence.items:
            copies[row["key"]] = copies.get(row["key"], 0) + 1
        if odd := [key for key, n in copies.items() if n != self.config.copies]:
            raise WorkError(f"prompt {odd[0]} has {copies[odd[0]]} judged pictures, not {self.config.copies}")
        return super().summarize(evidence)


class GenEvalRewritten(GenEval):
    name = "geneval-rewritten"

    def records(self) -> list[dict[str, Any]]:
        path = assets.path("geneval-rewritten")
        rewritten = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        mended = [{**theirs, "prompt": ours["prompt"]} for ours, theirs in zip(prompts(), rewritten)]
        if len(rewritten) != len(mended) or mended != prompts():
            raise UserError(f"{path} does not hold GenEval's 553 records; twinbench fetch geneval-rewritten gets them")
        return rewritten
