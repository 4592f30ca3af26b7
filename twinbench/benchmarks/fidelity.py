"""Fidelity: Fréchet distance (FD) and kernel distance (KID) between drawn and real samples, in the features of an
encoder.

The encoder is the world's own, small and well trained (`judges.features`); for points it is the identity. Both
distances depend on the encoder and on the number of samples, which stand beside every value; they compare only
within one table.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from twinbench.benchmarks.base import Benchmark, Evidence
from twinbench.data.base import Request
from twinbench.judges.distances import frechet, kernel_distance
from twinbench.judges.features import features_of


class Fidelity(Benchmark):
    name = "fidelity"

    @property
    def judge_name(self) -> str:
        return features_of(self.world).name

    def judge(self, samples: Tensor, requests: Sequence[Request]) -> Evidence:
        seen = torch.tensor([request.split == "evaluation" for request in requests])
        return Evidence(features=features_of(self.world)(samples[seen]))

    def reference(self) -> np.ndarray:
        """The features [m, d] of real samples of the world's evaluation prompts."""
        return features_of(self.world)(self.world.pixels(self.world.real()))

    def summarize(self, evidence: Evidence) -> dict[str, float]:
        assert evidence.features is not None
        reference = self.reference()
        return {"fd": frechet(evidence.features, reference), "kid": kernel_distance(evidence.features, reference)}
