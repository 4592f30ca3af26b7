"""Randomness without state: every number is a function of what it is for.

Training numbers belong to a sample: (seed, step, turn, index in the global batch, name). So a resumed run draws what an
uninterrupted one draws, and micro-batches or ranks only say which samples they hold. Drawing numbers belong to a
request: (benchmark, key, copy), equal for all methods and numbers of evaluations, so comparisons are paired.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor


def seed_of(*parts: object) -> int:
    """63 bits of sha256 over the parts, joined by a zero byte."""
    return _eight_bytes(*parts) >> 1


def _eight_bytes(*parts: object) -> int:
    return int.from_bytes(sha256("\0".join(map(str, parts)).encode()).digest()[:8], "big")


def normal(shape: Sequence[int], *parts: object) -> Tensor:
    """Standard normal float32 of one shape, on the CPU, from a generator seeded by the parts."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed_of(*parts)))


def permutation(n: int, *parts: object) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed_of(*parts)))


def request_noise(shape: Sequence[int], prompts: str, key: str, copy: int, name: str = "init") -> Tensor:
    """The noise of one request, float32 from a CPU generator seeded by the first 8 bytes of
    sha256("prompts\\0key\\0copy\\0name"); `name` is "init", or the number of a renoising."""
    generator = torch.Generator().manual_seed(_eight_bytes(prompts, key, copy, name))
    return torch.randn(*shape, generator=generator)


class Rng:
    """The random numbers of one turn, for the samples `indices` of a global batch of `total` samples.

    shape: of one sample. Every call names its draw; the same name gives the same numbers."""

    def __init__(
        self,
        seed: int,
        step: int,
        turn: str,
        indices: Sequence[int],
        total: int,
        shape: Sequence[int],
        dtype=torch.float32,
    ) -> None:
        self.key, self.indices, self.total = (seed, step, turn), list(indices), total
        self.shape, self.dtype = tuple(shape), dtype
        self.time_dtype = torch.float64 if dtype == torch.float64 else torch.float32

    def _held(self, where: Tensor | None) -> list[int]:
        if where is None:
            return self.indices
        return [i for i, yes in zip(self.indices, where.tolist(), strict=True) if yes]

    def normal(self, name: str, where: Tensor | None = None) -> Tensor:
        """Standard normal [n, *shape] for the samples held, or for those of a mask [n]."""
        held = self._held(where)
        if not held:
            return torch.empty(0, *self.shape, dtype=self.dtype)
        return torch.stack([normal(self.shape, *self.key, i, name) for i in held]).to(self.dtype)

    def uniform(self, name: str, where: Tensor | None = None) -> Tensor:
        """Uniform in [0, 1), float64 [n], for the samples held, or for those of a mask."""
        held = self._held(where)
        numbers = [seed_of(*self.key, i, name) >> 10 for i in held]  # 53 bits
        return torch.tensor(numbers, dtype=torch.float64) * 2.0**-53

    def beta(self, name: str, a: float, b: float, where: Tensor | None = None) -> Tensor:
        """Beta(a, b), float64 [n], by its inverse distribution function."""
        u = self.uniform(name, where)
        return u if a == b == 1 else torch.from_numpy(np.asarray(betaincinv(a, b, u.numpy()), np.float64))

    def deal(self, counts: Mapping[str, int]) -> Tensor:
        """Deal `counts` (they sum to `total`) over the global batch, shuffled: the index of each held sample's
        part [n]."""
        dealt = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(list(counts.values())))
        return dealt[permutation(self.total, *self.key, "deal")][self.indices]
