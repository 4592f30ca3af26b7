"""Encoders of the embedded worlds: the features of Fréchet distance and diversity.

A small convolutional network learns a world's labels from pictures blended with a second picture and with noise,
and also how much of both was blended in: so its features see what a picture shows and how clean it is (a
classifier alone looks past faint second objects, the typical flaw of few-step samples). Points are their own
features.

    python -m twinbench.judges.features shapes      trains the encoder anew and writes it where the package looks
"""

from __future__ import annotations

import json
import sys
import time
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from twinbench import files, plugins
from twinbench.data.base import World, from_bytes
from twinbench.errors import UserError
from twinbench.judges.base import present
from twinbench.weights import FOLDER

WIDTH = 64  # features
STEPS, BATCH, RATE = 3000, 128, 1e-3
GHOST, NOISE = 0.5, 0.3  # largest share of a second picture, and largest noise, in training


class Encoder(nn.Module):
    """Pictures [n, C, S, S] in [-1, 1] -> features [n, WIDTH]; `heads` reads labels and the two shares from them."""

    def __init__(self, channels: int, size: int, classes: tuple[int, ...]) -> None:
        super().__init__()
        self.classes = classes
        side = size // 4
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.GELU(),
            nn.Conv2d(64, 64, 3, 2, 1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(64 * side**2, 256),
            nn.GELU(),
            nn.Linear(256, WIDTH),
        )
        self.heads = nn.Sequential(nn.GELU(), nn.Linear(WIDTH, sum(classes) + 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    def read(self, features: Tensor) -> tuple[list[Tensor], Tensor]:
        """Logits of each label, and the estimated shares of second picture and noise [n, 2]."""
        out = self.heads(features)
        return list(out[:, :-2].split(self.classes, 1)), out[:, -2:]


class Features:
    """samples [n, ...] as stored -> float64 features [n, d] of unit variance on the world's own samples."""

    def __init__(self, world: type[World]) -> None:
        self.encoder: Encoder | None = None
        self.scale = np.ones(1)
        self.name, self.identity = "points", {"judge": "points", "weights": "none"}
        if len(world.shape) == 1:
            return
        path = FOLDER / f"{world.name}-encoder.safetensors"
        if not path.is_file():
            raise UserError(f"no encoder for {world.name!r}: python -m twinbench.judges.features {world.name}")
        tensors = load_file(path)
        self.scale = tensors.pop("scale").double().numpy()
        self.encoder = Encoder(world.shape[0], world.shape[1], world.classes).eval()
        self.encoder.load_state_dict(tensors)
        sha256, name = files.sha256(path), f"{world.name}-encoder"
        self.name = f"{name}/{sha256[:8]}"
        self.identity = {"judge": name, "weights": sha256, **present("torch")}

    @torch.no_grad()
    def __call__(self, samples: Tensor) -> np.ndarray:
        if self.encoder is None:
            return samples.double().flatten(1).numpy()
        chunks = [self.encoder(from_bytes(chunk)) for chunk in samples.split(256)]
        return torch.cat(chunks).double().numpy() / self.scale


@cache
def features_of(world: type[World]) -> Features:
    return Features(world)


# ---- training ----


def blend(x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pictures with a share of the next one and noise added, each in half of the rows; and both shares [n, 2]."""
    shares = torch.rand(len(x), 2, generator=generator) * torch.tensor([GHOST, NOISE])
    shares = shares * (torch.rand(len(x), 2, generator=generator) < 0.5)
    ghost, noise = shares.view(-1, 2, 1, 1, 1).unbind(1)
    mixed = (1 - ghost) * x + ghost * x.roll(1, 0) + noise * torch.randn(x.shape, generator=generator)
    return mixed.clamp(-1, 1), shares


def train(name: str, seed: int = 0) -> dict[str, Any]:
    """Train and write the encoder of one world; returns how well it reads the last tenth of the samples."""
    kind = plugins.dataset(name)
    world = kind(kind.Config())
    x, labels = world.x.float(), world.labels
    held = len(x) // 10
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    test, rest = order[:held], order[held:]
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder(world.shape[0], world.shape[1], world.classes)
    optimizer = torch.optim.AdamW(encoder.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS)
    start = time.process_time()
    for _ in range(STEPS):
        rows = rest[torch.randint(len(rest), (BATCH,), generator=generator)]
        mixed, shares = blend(x[rows], generator)
        logits, guess = encoder.read(encoder(mixed))
        loss = torch.stack([F.cross_entropy(a, b) for a, b in zip(logits, labels[rows].T, strict=True)]).sum()
        loss = loss + 10 * F.mse_loss(guess, shares)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    encoder.eval().requires_grad_(False)
    logits, guess = encoder.read(encoder(x[test]))
    right = torch.stack([a.argmax(1) == b for a, b in zip(logits, labels[test].T, strict=True)]).all(0)
    tensors = {**encoder.state_dict(), "scale": encoder(x[rest][:8192]).std(0)}
    path = FOLDER / f"{name}-encoder.safetensors"
    files.replace(path, lambda file: file.write(save({k: v.contiguous() for k, v in tensors.items()})))
    report = {
        "command": f"python -m twinbench.judges.features {name}",
        "seed": seed,
        "cpu_seconds": round(time.process_time() - start, 1),
        "steps": STEPS,
        "held_out_samples_read_entirely_right": right.double().mean().item(),
        "sha256": files.sha256(path),
    }
    files.write_json(path.with_suffix(".json"), report)
    return report


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(train(sys.argv[1]), indent=1))
