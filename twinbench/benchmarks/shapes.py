"""GenEval's rules on the shapes world: its six tasks, an exact detector, and two stricter readings beside the
official one.

`correct` is GenEval's verdict, which forgives extra objects (but in counting) and stains. `strict` asks besides that
nothing else be there: exactly the asked number of objects, and no painted pixels beyond them. `heldout` scores the
compositions that training never shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from torch import Tensor

from twinbench.benchmarks.base import Benchmark, Evidence, Item
from twinbench.benchmarks.geneval import TASKS, verdict
from twinbench.data.base import Request, from_bytes
from twinbench.data.captions import caption_of
from twinbench.judges.shapes import ShapesDetector, ghosts
from twinbench.statistics import Metric

GHOST_PIXELS = 3  # stained pixels beyond the objects that a strict reading still forgives


class ShapesGenEval(Benchmark):
    name = "geneval"
    metrics: ClassVar[Mapping[str, Metric]] = {
        "overall": Metric("correct", {"split": "evaluation"}),
        "strict": Metric("strict", {"split": "evaluation"}),
        "heldout": Metric("correct", {"split": "heldout"}),
        "heldout_strict": Metric("strict", {"split": "heldout"}),
        **{task: Metric("correct", {"split": "evaluation", "tag": task}) for task in TASKS},
        **{
            f"heldout_{task}": Metric("correct", {"split": "heldout", "tag": task})
            for task in ("counting", "colors", "position", "color_attr")
        },
    }

    @property
    def judge_name(self) -> str:
        return f"{ShapesDetector.name}/{ShapesDetector.version}"

    @property
    def judges(self) -> list[dict[str, str]]:
        return [ShapesDetector().identity]

    def judge(self, samples: Tensor, requests: Sequence[Request]) -> Evidence:
        pictures = from_bytes(samples).numpy()
        found = ShapesDetector()(pictures)
        return Evidence([_item(r, p, f) for r, p, f in zip(requests, pictures, found, strict=True)])


def _item(request: Request, picture: np.ndarray, found: list) -> Item:
    caption = caption_of(request.prompt)
    # The detector's score is an overlap, not a probability: what it keeps counts, in every task.
    correct, reason = verdict(caption.metadata(), found, threshold=0.0, counting_threshold=0.0)
    extra = len(found) - caption.objects
    stained = ghosts(picture, found)
    if correct and extra:
        reason = f"strict: {extra} objects too many"
    elif correct and stained > GHOST_PIXELS:
        reason = f"strict: {stained} stained pixels outside of objects"
    row = {
        "key": request.key,
        "copy": request.copy,
        "prompt": request.prompt,
        "tag": request.tag,
        "split": request.split,
    }
    return {**row, "correct": correct, "strict": correct and not reason, "reason": reason}
