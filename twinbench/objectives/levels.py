"""Noise levels as other papers write and draw them: time t of the straight path is the EDM level sigma = t/(1 - t)."""

from __future__ import annotations

import torch
from torch import Tensor


def logit_normal(u: Tensor, mean: float, deviation: float) -> Tensor:
    """Times t [n] whose logit, the log of the EDM level, is normal; u [n] uniform in [0, 1)."""
    return torch.sigmoid(mean + deviation * torch.special.ndtri(u))


def edm_level(t: Tensor) -> Tensor:
    """sigma = t / (1 - t) of the straight path's time; x_edm = x_t / (1 - t) has that much noise on its data."""
    return t / (1 - t)


def flow_time(sigma: Tensor) -> Tensor:
    """The time t = sigma / (1 + sigma) of an EDM level; 1 where it is infinite."""
    return 1 / (1 + 1 / sigma)
