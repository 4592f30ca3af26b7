"""How times and roles are dealt, and how a row is weighted by its times."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def split_roles(shares: dict[str, float], n: int) -> dict[str, int]:
    """n rows dealt in proportion to `shares` by the largest remainder; ties go to the earlier role. The counts sum
    to n.

    Raises ValueError if a share is negative or all are zero."""
    total = sum(shares.values())
    if total <= 0 or min(shares.values()) < 0:
        raise ValueError(f"shares must be >= 0 and not all zero, got {shares}")
    exact = {role: round(n * share / total, 9) for role, share in shares.items()}  # equal remainders are equal
    counts = {role: math.floor(value) for role, value in exact.items()}
    by_remainder = sorted(shares, key=lambda role: round(counts[role] - exact[role], 9))
    for role in by_remainder[: n - sum(counts.values())]:
        counts[role] += 1
    return counts


def tan_weight(t: Tensor, r: Tensor) -> Tensor:
    """tan((1 - (|t| - |r|)) pi / 2.5) + 1: 1 for the full jump (1, 0), 4.08 for r = t. t, r [n] -> [n].

    Source: TwinFlow, `src/methodes/twinflow`; knows no roles."""
    return torch.tan((1 - (t.abs() - r.abs())) * (math.pi / 2.5)) + 1
