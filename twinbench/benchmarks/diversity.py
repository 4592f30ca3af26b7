"""Diversity: how far the copies of one prompt lie apart, in the encoder's features.

Mean L2 distance over the pairs of copies of a prompt, then over prompts, as TwinFlow measures LPIPS over the four
GenEval pictures of a prompt. One-step generators collapse: no score should be read without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import ClassVar

import numpy as np
from torch import Tensor

from twinbench.benchmarks.base import Benchmark, Evidence
from twinbench.data.base import Request
from twinbench.judges.features import features_of
from twinbench.statistics import Metric


class Diversity(Benchmark):
    name = "diversity"
    metrics: ClassVar[Mapping[str, Metric]] = {"distance": Metric("distance", {"split": "evaluation"})}

    @property
    def judge_name(self) -> str:
        return features_of(self.world).name

    @property
    def judges(self) -> list[dict[str, str]]:
        return [features_of(self.world).identity]

    def judge(self, samples: Tensor, requests: Sequence[Request]) -> Evidence:
        features = features_of(self.world)(samples)
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(request.key, []).append(i)
        items = []
        for key, rows in groups.items():
            first = requests[rows[0]]
            pairs = [np.linalg.norm(features[a] - features[b]) for a, b in combinations(rows, 2)]
            if pairs:
                row = {"key": key, "prompt": first.prompt, "tag": first.tag, "split": first.split}
                items.append({**row, "distance": float(np.mean(pairs))})
        return Evidence(items)
