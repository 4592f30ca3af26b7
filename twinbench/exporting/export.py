"""Export: a trained network as files that an unmodified diffusers loads.

At a fixed target time r the second time adds a constant to the time MLP's last bias:

    W2 silu(W1 s(t) + b1) + b2 + e2(r)   =   W2 silu(W1 s(t) + b1) + (b2 + e2(r))      for every t

so a few-step student, r = 0, is a stock transformer. Adapters carry the same constant as the bias of that layer's own
adapter. What is asked for other r needs `target_time.safetensors` beside it, which then says e2(r) - e2(0).
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twinbench import plugins
from twinbench import run as run_files
from twinbench.backbones.pipeline import TARGET_TIME, PipelineBackbone
from twinbench.backbones.two_time import TargetTime
from twinbench.errors import UserError
from twinbench.exporting.card import card, licence_of, settings_of
from twinbench.files import read_json, whole_folder, write_json, write_text
from twinbench.recipe import Resolved
from twinbench.tensors import read_tensors, save_tensors
from twinbench.training.start import trained

LORA = "pytorch_lora_weights.safetensors"
TRANSFORMER = "transformer."  # before the names of the transformer's parameters in a backbone


# ---- the second time ----


def folded(network: PipelineBackbone, r: float = 0.0) -> dict[str, Tensor]:
    """The transformer's biases with e2(r) within, by their names: float32. Raises UserError for the official form,
    which has no such constant."""
    constant = _target_time(network).constant(r)
    layers = {path: network.transformer.get_submodule(path) for path in network.last_layers}
    return {f"{path}.bias": layer.bias.detach().float() + constant for path, layer in layers.items()}


@torch.no_grad()
def rest(network: PipelineBackbone, r: float = 0.0) -> dict[str, Tensor]:
    """The weights of the target time that is left once e2(r) is folded: it says e2(r') - e2(r)."""
    left = copy.deepcopy(_target_time(network))
    left.linear_2.bias.sub_(left.constant(r))
    return left.state_dict()


def _target_time(network: PipelineBackbone) -> TargetTime:
    if not isinstance(network.target_time, TargetTime):
        raise UserError(
            "the official form cannot be folded into a stock checkpoint; train with backbone.form: foldable"
        )
    return network.target_time


def lora_layers(network: PipelineBackbone, tensors: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Adapters as diffusers names them, with r = 0 within. tensors: `<path>.lora_A.weight` and `.lora_B.weight` by the
    backbone's names; scale: alpha / rank. All layers have a bias then, the time MLP's last layer e2(0)."""
    constant = _target_time(network).constant(0.0)
    layers = {k.removeprefix(TRANSFORMER): v.float() for k, v in tensors.items() if k.startswith(TRANSFORMER)}
    rank = min(len(v) for k, v in layers.items() if k.endswith("lora_A.weight"))
    for path in network.last_layers:
        if f"{path}.lora_A.weight" not in layers:
            layer = network.transformer.get_submodule(path)
            layers[f"{path}.lora_A.weight"] = torch.zeros(rank, layer.in_features)
            layers[f"{path}.lora_B.weight"] = torch.zeros(layer.out_features, rank)
    for name in [name for name in layers if name.endswith("lora_B.weight")]:
        path = name.removesuffix(".lora_B.weight")
        layers[name] = layers[name] * scale
        layers[f"{path}.lora_B.bias"] = constant if path in network.last_layers else torch.zeros(len(layers[name]))
    return layers


# ---- files ----


def write_pipeline(
    network: PipelineBackbone, folder: Path, settings: dict[str, Any], card: str, *, dtype: torch.dtype
) -> Path:
    """A whole stock pipeline: the network as it is at r = 0, and its source's other parts as they are.

    settings: what `twinbench.json` says; where it has `any_step`, the target time is kept beside. The network is
    used up: its weights are folded and cast. Raises UserError if the folder is there already."""
    biases, left = folded(network), rest(network)
    with whole_folder(folder) as new:
        index = _copy_parts(network.source.folder(), new, network.own)
        network.transformer.load_state_dict(biases, strict=False)
        network.transformer.to(dtype).save_pretrained(new / "transformer")
        _finish(network, new, settings, card, left)
        write_json(new / "model_index.json", {**index, "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]})
    return folder


def write_lora(
    network: PipelineBackbone,
    folder: Path,
    tensors: dict[str, Tensor],
    scale: float,
    settings: dict[str, Any],
    card: str,
) -> Path:
    """The adapters of a pipeline, for `load_lora_weights`. network: of which they are. Raises UserError where the stock
    pipeline takes none, or the folder is there already."""
    import diffusers

    kind = getattr(diffusers, network.pipeline)
    if not hasattr(kind, "save_lora_weights"):
        raise UserError(f"{network.pipeline} takes no adapters; export the merged weights (--merged)")
    layers = lora_layers(network, tensors, scale)
    with whole_folder(folder) as new:
        kind.save_lora_weights(new, transformer_lora_layers=layers, weight_name=LORA)
        _finish(network, new, settings, card, rest(network))
    return folder


def _finish(network: PipelineBackbone, new: Path, settings: dict[str, Any], card: str, left: dict[str, Tensor]) -> None:
    """What both kinds of folders hold: the scheduler that leaves sigmas alone, settings, card and the target time."""
    import diffusers

    scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False)
    scheduler.save_pretrained(new / "scheduler")
    if "any_step" in settings:
        save_tensors(new / TARGET_TIME, left, {})
    write_json(new / "twinbench.json", settings)
    write_text(new / "README.md", card)


def _copy_parts(source: Path, target: Path, own: tuple[str, ...]) -> dict[str, Any]:
    """Copy every part of a pipeline but its transformer and scheduler, and the family's own; returns its index."""
    index = read_json(source / "model_index.json")
    named = [part for part, kind in index.items() if isinstance(kind, list) and kind[0] is not None]
    for part in (*named, *own):
        if part not in ("transformer", "scheduler") and (source / part).is_dir():
            shutil.copytree(source / part, target / part)
    return index


# ---- a run ----


def export_run(run: Path, folder: Path, results: Path, *, merged: bool = False, dtype: str = "float32") -> Path:
    """Write a finished run as a stock pipeline, or, where it trained adapters and `merged` is not asked for, as LoRA
    weights. Raises UserError for a run that no stock pipeline can hold."""
    record = run_files.read(run)
    if not record["finished"]:
        raise UserError(f"run {run.name} is not finished; twinbench train {record['label']} goes on with it")
    resolved = Resolved.model_validate(record["resolved"])
    if not issubclass(plugins.backbone(resolved.backbone.name), PipelineBackbone):
        raise UserError(
            f"run {run.name} trained the small network {resolved.backbone.name!r}, which no diffusers pipeline holds; "
            f"its weights are {run / 'weights.safetensors'}"
        )
    if folder.exists():  # before anything is loaded
        raise UserError(f"{folder} is there already; give another folder, or delete it")
    network = trained(resolved, run / "weights.safetensors")
    assert isinstance(network, PipelineBackbone)
    lora = resolved.train.lora if not merged else None
    settings = settings_of(resolved, network)
    scores = results / record["recipe"] / run_files.name_of(record)
    licence = licence_of(network.source.folder()) if Path(network.source.model).is_dir() or not lora else None
    text = card(record, network, settings, licence=licence, results=scores, lora=lora is not None)
    if lora is None:
        return write_pipeline(network, folder, settings, text, dtype=getattr(torch, dtype))
    tensors = read_tensors(run / "adapters.safetensors")[0]
    exact = {k.removeprefix("target_time."): v for k, v in tensors.items() if k.startswith("target_time.")}
    network.target_time.float().load_state_dict(exact)  # the merged weights have it in the base's precision
    scale = 1.0 if lora.alpha is None else lora.alpha / lora.rank
    return write_lora(network, folder, tensors, scale, settings, text)
