"""Fidelity: Fréchet distance (FD) and kernel distance (KID) between drawn and real samples, in the features of an
encoder.

The encoder is the world's own, small and well trained (`judges.features`); for points it is the identity. Both
distances depend on the encoder and on the number of samples, which stand beside every value; they compare only
within one table.
"""

from __future__ import annotations

from collections.abc import Sequence

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

    @property
    def judges(self) -> list[dict[str, str]]:
        return [features_of(self.world).identity]

    def judge(self, samples: Tensor, requests: Sequence[Request]) -> Evidence:
        assert self.world is not None  # of pictures of any model, it is benchmarks.fidelity_pictures
        features = features_of(self.world)
        seen = [i for i, request in enumerate(requests) if request.split == "evaluation"]
        keys = [requests[i].key for i in seen]
        reference = features(self.world.pixels(self.world.real()))
        return Evidence(features=features(samples[seen]), keys=keys, reference=reference)

    def summarize(self, evidence: Evidence) -> dict[str, float]:
        a, b = evidence.features, evidence.reference
        assert a is not None and b is not None
        return {"fd": frechet(a, b), "kid": kernel_distance(a, b)}
