"""What a run draws at the moment: one row of samples a number of evaluations, as a PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from twinbench.backbones.base import Backbone
from twinbench.data.base import Request, World
from twinbench.flow import guided
from twinbench.randomness import request_noise
from twinbench.sampler import Plan, sample

COLUMNS, GAP = 12, 4


def preview(network: torch.nn.Module, backbone: Backbone, world: World, plans: Sequence[Plan]) -> bytes:
    """A PNG: rows = plans, columns = evaluation prompts from all tasks, the same noise in every row."""
    training = network.training
    network.eval()
    every = world.requests("evaluation")
    requests = every[:: max(1, len(every) // COLUMNS)][:COLUMNS]
    rows = [np.concatenate(list(_padded(_row(network, backbone, world, plan, requests))), 1) for plan in plans]
    network.train(training)
    image = Image.fromarray(np.concatenate(rows, 0))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _row(
    network: torch.nn.Module, backbone: Backbone, world: World, plan: Plan, requests: Sequence[Request]
) -> np.ndarray:
    cond = backbone.encode([r.prompt for r in requests])
    velocity = guided(network, backbone.null(len(requests)), plan.guidance)

    def noise(name: str) -> torch.Tensor:
        return torch.stack([request_noise(backbone.shape, world.name, r.key, r.copy, name) for r in requests])

    x = sample(velocity, noise("init"), cond, plan.schedule, lambda i: noise(str(i)))
    return world.preview(backbone.pixels(x))


def _padded(tiles: np.ndarray) -> np.ndarray:
    return np.pad(tiles, ((0, 0), (GAP, 0), (GAP, 0), (0, 0)), constant_values=255)
