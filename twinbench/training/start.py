"""From settings to a trainer: the run's folder, its data, its networks and their initial weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from twinbench import files, plugins
from twinbench.backbones.base import Backbone, WorldBackbone
from twinbench.backbones.pipeline import PipelineBackbone
from twinbench.data.base import World
from twinbench.data.cache import Cache
from twinbench.data.captioned import Captioned
from twinbench.data.samples import Samples
from twinbench.errors import UserError
from twinbench.recipe import Resolved
from twinbench.run import Run
from twinbench.sampler import plan
from twinbench.sections import BackboneSection
from twinbench.tensors import read_tensors
from twinbench.training import caching
from twinbench.training.checkpoint import fill
from twinbench.training.loop import Trainer
from twinbench.training.networks import make_backbone, make_data, weights_file
from twinbench.training.pairs import affordable
from twinbench.training.parallel import ALONE, Group

SHOWN = 8  # numbers of evaluations up to this have a row in the sample pictures


def start(resolved: Resolved, runs: Path, *, fresh: bool = False, group: Group = ALONE) -> tuple[Run, Trainer]:
    """The run and its trainer, at its newest checkpoint; `fresh` deletes the run's folder first. group: the processes
    that train together; all of them start.

    Raises UserError for a wrong setting, missing or damaged weights, or a folder that cannot be written."""
    kind = plugins.method(resolved.method)
    data = make_data(resolved.data)
    weights = weights_file(resolved.backbone, resolved.data, runs)
    if group.first:  # it makes what is made on the spot
        cached(resolved, data, runs)
    group.wait()
    cache = cached(resolved, data, runs)
    run = Run(runs, resolved, origin(resolved.backbone, weights), cache.sha256 if cache else data.sha256())
    backbone = initial(resolved, weights)
    samples = fitting(backbone, data, cache)
    if resolved.train.lora and not weights and isinstance(backbone, WorldBackbone):
        raise UserError("train.lora trains adapters of pretrained weights: set backbone.weights, shipped or a file")
    method = kind(kind.Config.model_validate(resolved.config))
    affordable(method.pairs, resolved.train, resolved.label)
    plans = [plan(resolved, nfe) for nfe in sorted({*resolved.eval.nfe, *resolved.sample})]
    shown = [p for p in plans if p.nfe <= SHOWN] or plans[:1]
    group.wait()
    if fresh and group.first and run.folder.exists():  # only now: bad input deletes nothing
        shutil.rmtree(run.folder)
    if group.first:
        run.open()
    group.wait()
    return run, Trainer(run.folder, method, backbone, samples, resolved.train, resolved.seed, shown, group)


def large(resolved: Resolved) -> bool:
    """Whether it trains a model that wants a GPU: any but the toys, which are no faster there."""
    return issubclass(plugins.backbone(resolved.backbone.name), PipelineBackbone)


def cached(resolved: Resolved, data: World | Captioned, runs: Path) -> Cache | None:
    """The cache of captioned pictures; None for an embedded world, which needs none. What is drawn on the spot is
    encoded on the spot. Raises UserError, with the command that makes it, where it is not whole."""
    if not isinstance(data, Captioned):
        if issubclass(plugins.backbone(resolved.backbone.name), PipelineBackbone):
            raise UserError(f"data {data.name!r} is an embedded world; a large model needs captioned pictures")
        return None
    cache = caching.cache_of(resolved.backbone, data, runs)
    if not cache.complete and data.on_the_spot:
        for _ in caching.make(cache, resolved.backbone, data):
            pass
    if not cache.complete:
        done, name = len(cache) - len(cache.missing), resolved.source or resolved.recipe
        raise UserError(
            f"{done} of {len(cache)} shards of latents and embeddings are in {cache.folder}; make the others first: "
            f"twinbench cache --recipe {name} (with the same --set and --runs)"
        )
    return cache


def origin(section: BackboneSection, weights: Path | None) -> str:
    """What the initial weights are: the sha256 of the file that is loaded, or of the model's own; "none" for random
    ones, which the seed makes."""
    if weights:
        return files.sha256(weights)
    if not issubclass(plugins.backbone(section.name), PipelineBackbone):
        return "none"
    kind, config = caching.pipeline_of(section)
    return kind.origin(config)


def fitting(backbone: Backbone, data: World | Captioned, cache: Cache | None) -> World | Samples:
    """What the backbone trains on. Raises UserError for a world of other sizes than its."""
    if cache:
        assert isinstance(backbone, PipelineBackbone)
        samples = cache.open(backbone.masked)
        backbone.codec.null = samples.nothing()  # so nobody loads the text encoders for it
        return samples
    assert isinstance(data, World)
    if backbone.shape != data.shape:
        raise UserError(f"the backbone makes samples of shape {backbone.shape}, data {data.name!r} {data.shape}")
    return data


def initial(resolved: Resolved, weights: Path | None) -> Backbone:
    """The backbone with its initial weights."""
    if not weights:
        return make_backbone(resolved.backbone, resolved.seed)
    backbone = empty(resolved) if large(resolved) else make_backbone(resolved.backbone, resolved.seed)
    fill(backbone, read_tensors(weights)[0], weights)
    return backbone


def empty(resolved: Resolved) -> Backbone:
    """A large model without content: neither its pretrained weights are read, nor random ones made."""
    from accelerate import init_empty_weights

    section = resolved.backbone.model_copy(update={"pretrained": False})
    with init_empty_weights(include_buffers=False):  # they are computed, and not all of them saved
        return make_backbone(section, resolved.seed)


def trained(resolved: Resolved, weights: Path) -> Backbone:
    """The backbone with the weights of a finished run, ready to be drawn from."""
    return initial(resolved, weights).requires_grad_(False).eval()


def placed(resolved: Resolved, backbone: Backbone) -> Backbone:
    """A backbone where it draws: a large one on the GPU if there is one, in the precision of its training."""
    if isinstance(backbone, PipelineBackbone):
        if resolved.train.precision == "bfloat16":
            backbone.transformer.to(torch.bfloat16)
        backbone.to("cuda" if torch.cuda.is_available() else "cpu")
    return backbone


def keep_record(run: Run, trainer: Trainer) -> None:
    """Write what the run has cost so far, unless it is finished."""
    if trainer.group.first and not run.finished:
        run.write(**measured(trainer))


def release(backbone: Backbone) -> None:
    """Give the GPU's memory back: judges come next."""
    if isinstance(backbone, PipelineBackbone):
        backbone.codec.drop()
        backbone.to("cpu")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


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
        **({"processes": trainer.group.size} if trainer.group.size > 1 else {}),
    }
