"""Distances between two sets of features: Frechet and kernel (FID and KID when the features are Inception's).

    frechet = |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))              Heusel et al. 2017, covariances with n - 1
    kernel  = mean k(a, a') + mean k(b, b') - 2 mean k(a, b),  k(x, y) = (x.y / D + 1)^3         Binkowski et al. 2018

All in float64. The trace of the root comes from the eigenvalues of the symmetric C1^(1/2) C2 C1^(1/2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from twinbench import statistics

DRAWN = 100  # draws at once

if TYPE_CHECKING:
    from torch import Tensor


def frechet(a: Any, b: Any) -> float:
    """Frechet distance of the normal fits to features a [n, d] and b [m, d], >= 0."""
    a, b = _features(a, b)
    mean, cov = _moments(b)
    return float(_distance(*_moments(a), mean, cov, _root(cov)))


def frechet_rows(a: Any, mean: Any, covariance: Any) -> np.ndarray:
    """The distance to the mean [d] and covariance [d, d] of features that are not at hand, told row by row, float64
    [n]: their mean is the distance, and a row leaves it by how much its own weight moves the distance, to first order.

    So a Frechet distance can be resampled as any mean: its spread over other rows of the kind is that of these."""
    import torch

    mean, covariance = (torch.as_tensor(x).to(torch.float64) for x in (mean, covariance))
    a, _ = _features(a, a)
    if covariance.shape != (a.shape[1], a.shape[1]) or mean.shape != (a.shape[1],):
        raise ValueError(f"features of {a.shape[1]} numbers, a reference of {tuple(covariance.shape)}")
    center, spread = _moments(a)
    root = _root(covariance)
    values, vectors = torch.linalg.eigh(root @ spread @ root)
    inverse = torch.where(values > 1e-12 * values.max(), values.clamp(min=1e-300).rsqrt(), 0.0)
    away, gap = a - center, center - mean
    bent = (away @ (root @ vectors * inverse.sqrt())).square().sum(1)  # what a row adds to the trace of the root, twice
    moved = 2 * (away @ gap) + (away.square().sum(1) - bent) * len(a) / (len(a) - 1)
    traces = spread.trace() + covariance.trace() - 2 * values.clamp(min=0).sqrt().sum()
    return ((gap.square().sum() + traces).clamp(min=0) + moved - moved.mean()).numpy()


def kernel_distance(a: Any, b: Any) -> float:
    """The unbiased U-statistic of the squared kernel distance on the full sets a [n, d], b [m, d]; may be negative."""
    a, b = _features(a, b)
    n, m = len(a), len(b)
    within = _kernel_sum(a, a) / (n * (n - 1)) + _kernel_sum(b, b) / (m * (m - 1))
    return within - 2 * _kernel_sum(a, b) / (n * m)


def kernel_rows(a: Any, b: Any) -> np.ndarray:
    """The kernel distance told row by row of a, float64 [n], as in `frechet_rows`."""
    import torch

    a, b = _features(a, b)
    n, m = len(a), len(b)
    within, across = (torch.cat([part.sum(1) for part in _kernels(a, other)]) for other in (a, b))
    moved = 2 * (within - _own(a)) / (n - 1) - 2 * across / m
    value = (within - _own(a)).sum() / (n * (n - 1)) + _kernel_sum(b, b) / (m * (m - 1)) - 2 * across.sum() / (n * m)
    return (value + moved - moved.mean()).numpy()


def energy_distance(a: Any, b: Any) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| of a [n, d] and b [m, d], unbiased (Szekely & Rizzo 2013); may be negative."""
    import torch

    a, b = _features(a, b)
    within_a, within_b = (torch.cdist(x, x).sum() / (len(x) * (len(x) - 1)) for x in (a, b))
    return float(2 * torch.cdist(a, b).mean() - within_a - within_b)


def frechet_draws(x: Any, keys: Sequence[str], reference: Any, draws: int = 1000, seed: int = 0) -> np.ndarray:
    """Frechet distances to the reference [m, d] of x [n, d] with its keys resampled with replacement, float64 [draws].

    The features of a key go together; the indices depend on the set of keys alone, so two methods are paired.
    Resampling raises the distance itself (repeated rows, lower rank): use differences of two methods only."""
    import torch

    x, reference = _features(x, reference)
    unique, where = np.unique(np.asarray(keys), return_inverse=True)
    if len(where) != len(x):
        raise ValueError(f"{len(x)} features have {len(where)} keys")
    mean, cov = _moments(reference)
    root, center, rng, d = _root(cov), x.mean(0), np.random.default_rng(seed), x.shape[1]
    x, place = x - center, torch.as_tensor(where)
    counts = torch.bincount(place).to(x)
    sums = x.new_zeros(len(unique), d).index_add(0, place, x)  # of every key: of its rows, and of their squares
    squares = x.new_zeros(len(unique), d * d).index_add(0, place, (x[:, :, None] * x[:, None]).flatten(1))
    out = []
    for start in range(0, draws, DRAWN):
        weight = torch.as_tensor(statistics.resample(rng, len(unique), min(DRAWN, draws - start)))
        total = (weight @ counts)[:, None]
        shift = weight @ sums / total
        spread = (weight @ squares - total * (shift[:, :, None] * shift[:, None]).flatten(1)) / (total - 1)
        out.append(_distance(shift + center, spread.unflatten(1, (d, d)), mean, cov, root))
    return torch.cat(out).numpy()


# ---- parts ----


def _features(a: Any, b: Any) -> tuple[Tensor, Tensor]:
    import torch

    a, b = (torch.as_tensor(x).to(torch.float64) for x in (a, b))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"features must be [n >= 2, d] with one d, not {tuple(a.shape)} and {tuple(b.shape)}")
    return a, b


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [d] and covariance [d, d] with n - 1."""
    mean = x.mean(0)
    return mean, (x - mean).T @ (x - mean) / (len(x) - 1)


def _root(cov: Tensor) -> Tensor:
    """The symmetric square root of a covariance."""
    import torch

    values, vectors = torch.linalg.eigh(cov)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor, root_b: Tensor) -> Tensor:
    """[..., d], [..., d, d] against one mean, covariance and its root -> [...]."""
    import torch

    product = root_b @ cov_a @ root_b
    values = torch.linalg.eigvalsh((product + product.mT) / 2).clamp(min=0)
    gap = (mean_a - mean_b).square().sum(-1)
    traces = cov_a.diagonal(dim1=-2, dim2=-1).sum(-1) + cov_b.trace()
    return (gap + traces - 2 * values.sqrt().sum(-1)).clamp(min=0)


def _kernel_sum(a: Tensor, b: Tensor) -> float:
    """The sum of k(x, y) over all pairs, without the diagonal if a is b."""
    total = sum(float(part.sum()) for part in _kernels(a, b))
    return total - float(_own(a).sum()) if a is b else total


def _kernels(a: Tensor, b: Tensor, rows: int = 2048) -> Iterator[Tensor]:
    """k(x, y) of all pairs, some rows of a at a time."""
    return ((part @ b.T / a.shape[1] + 1).pow(3) for part in a.split(rows))


def _own(a: Tensor) -> Tensor:
    """k(x, x) of every row."""
    return (a.square().sum(1) / a.shape[1] + 1).pow(3)
