"""Losses of one row: pred, target [n, ...] -> [n]. The target is a constant."""

from __future__ import annotations

from torch import Tensor


def l2(pred: Tensor, target: Tensor) -> Tensor:
    """Mean square error of each row."""
    return (pred - target).square().flatten(1).mean(1)


def barron(pred: Tensor, target: Tensor, alpha: float = 1.0, c: float = 1e-3) -> Tensor:
    """Barron's robust loss in TwinFlow's detached form: m/c times (m/(c^2 + 1e-8)/|alpha - 2| + 1)^((alpha -
    2)/2), m the mean square error. With alpha = 1 and m >> c^2 it is the RMS error, and every row's gradient, D
    numbers, has length 2/sqrt(D), however large its error.

    Sources: Barron 2019 (arXiv 1701.03077); TwinFlow `src/methodes/twinflow` for the constants."""
    m = l2(pred, target)
    k = abs(alpha - 2)
    if k < 1e-5:
        return m / c
    weight = (m.detach() / (c**2 + 1e-8) / k + 1) ** ((alpha - 2) / 2)
    return m * weight / c


def huber(pred: Tensor, target: Tensor, c: float = 0.1) -> Tensor:
    """Pseudo-Huber: sqrt(m + c^2) - c, m the mean square error; RMS error where it is far above c, half its square over
    c below. Barron's with alpha = 1 has, but for its 1e-8, twice the gradient of this with the same c.

    Source: Song & Dhariwal 2024 (arXiv 2310.14189), per dimension."""
    return (l2(pred, target) + c**2).sqrt() - c
