"""From settings to a trainer: the run's folder, its data, its networks and their initial weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from twinbench import files, plugins
from twinbench.backbones.base import Backbone, WorldBackbone
from twinbench.errors import UserError
from twinbench.recipe import Resolved
from twinbench.run import Run
from twinbench.sampler import plan
from twinbench.tensors import read_tensors
from twinbench.training.checkpoint import fill
from twinbench.training.loop import Trainer
from twinbench.training.networks import make_backbone, make_data, weights_file
from twinbench.training.pairs import affordable

SHOWN = 8  # numbers of evaluations up to this have a row in the sample pictures


def start(resolved: Resolved, runs: Path, *, fresh: bool = False) -> tuple[Run, Trainer]:
    """The run and its trainer, at its newest checkpoint; `fresh` deletes the run's folder first.

    Raises UserError for a wrong setting, missing or damaged weights, or a folder that cannot be written."""
    kind = plugins.method(resolved.method)
    world = make_data(resolved.data)
    weights = weights_file(resolved.backbone, resolved.data, runs)
    run = Run(runs, resolved, files.sha256(weights) if weights else "none", world.sha256())
    backbone = initial(resolved, weights)
    if backbone.shape != world.shape:
        raise UserError(f"the backbone makes samples of shape {backbone.shape}, data {world.name!r} {world.shape}")
    if resolved.train.lora and not weights and isinstance(backbone, WorldBackbone):
        raise UserError("train.lora trains adapters of pretrained weights: set backbone.weights, shipped or a file")
    method = kind(kind.Config.model_validate(resolved.config))
    affordable(method.pairs, resolved.train, resolved.label)
    plans = [plan(resolved, nfe) for nfe in sorted({*resolved.eval.nfe, *resolved.sample})]
    shown = [p for p in plans if p.nfe <= SHOWN] or plans[:1]
    if fresh and run.folder.exists():  # only now: bad input deletes nothing
        shutil.rmtree(run.folder)
    folder = run.open()
    return run, Trainer(folder, method, backbone, world, resolved.train, resolved.seed, shown)


def initial(resolved: Resolved, weights: Path | None) -> Backbone:
    """The backbone with its initial weights."""
    backbone = make_backbone(resolved.backbone, resolved.seed)
    if weights:
        fill(backbone, read_tensors(weights)[0], weights)
    return backbone


def trained(resolved: Resolved, weights: Path) -> Backbone:
    """The backbone with the weights of a finished run, ready to be drawn from."""
    return initial(resolved, weights).requires_grad_(False).eval()


def measured(trainer: Trainer) -> dict[str, Any]:
    """What a run cost, for its run.json."""
    state = trainer.state
    weights = trainer.folder / "weights.safetensors"
    return {
        "steps": state.step,
        "images": state.images,
        "network_passes": state.passes,
        "seconds": round(state.seconds, 3),
        "cpu_seconds": round(state.cpu_seconds, 3),
        "peak_bytes": state.peak_bytes,
        "networks": trainer.owned.held(),
        "weights_sha256": files.sha256(weights) if weights.exists() else None,
        "finished": trainer.progress >= 1,
    }
