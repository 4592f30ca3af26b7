"""Adversarial losses of one row: logits [n, k] of samples -> [n], the mean over the k logits.

real: of noised data; fake: of the student's noised samples; the larger, the more a head takes them for data."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def softplus_generator(fake: Tensor) -> Tensor:
    """softplus(-fake): the student's part of the logistic GAN. Source: DMD2, FastGen's `common_loss.py`."""
    return F.softplus(-fake).flatten(1).mean(1)


def softplus_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """softplus(-real) + softplus(fake): the head's part of it."""
    return (F.softplus(-real) + F.softplus(fake)).flatten(1).mean(1)


def hinge_generator(fake: Tensor) -> Tensor:
    """-fake: the student's part of the hinge GAN. Source: LADD as in SANA-Sprint, arXiv 2503.09641."""
    return -fake.flatten(1).mean(1)


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """(relu(1 - real) + relu(1 + fake)) / 2: the head's part of it."""
    return (F.relu(1 - real) + F.relu(1 + fake)).flatten(1).mean(1) / 2
