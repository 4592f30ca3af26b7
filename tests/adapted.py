"""Small networks and runs for tests of adapters, on a teacher of sixty steps in the moons world."""

import torch
from small import resolved

from twinbench.training import start as starting


def moons(*items, label="flow-matching", weights="none", seed=0):
    small = ("backbone.width=16", "backbone.depth=2", "data.size=128", "train.batch=16", "eval.nfe=[1]")
    steps = ("train.budget=6", "train.save_every=2", f"backbone.weights={weights}")
    return resolved("moons", label, *small, *steps, *items, seed=seed)


def network(*items, weights="none"):
    return starting.initial(moons(*items), None if weights == "none" else weights)


LORA = "train.lora={rank: 4}"


def begin(runs, *items, label="twinflow", weights="none", seed=0):
    return starting.start(moons(*items, label=label, weights=weights, seed=seed), runs)[1]


def teacher_weights(folder):
    """The weights of a small teacher."""
    _, trainer = starting.start(moons("train.budget=60"), folder)
    list(trainer)
    return trainer.folder / "weights.safetensors"


def points(n=5, seed=0):
    random = torch.Generator().manual_seed(seed)
    x, t = torch.randn(n, 2, generator=random), torch.rand(n, generator=random) * 0.9 + 0.05
    return x, t, t * torch.rand(n, generator=random), {"tokens": torch.arange(n)[:, None] % 2}


def scattered(network, seed=0):
    """An adapter far from where it began."""
    random = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=random)
    return network
