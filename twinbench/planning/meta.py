"""A backbone without its weights: its parameters counted, and what one pass of it costs, on PyTorch's meta device: its
tensors have shapes and no content. Nothing is downloaded, and 20 B parameters take no memory.

A pass is run once, for one row. Its FLOPs are those of its matrix products, convolutions and attention (2 for a
multiplication and an addition); its activations are the tensors that autograd saves of it. Attention is fused, as on a
GPU: it saves queries, keys, values and output, and no scores.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from twinbench import plugins
from twinbench.backbones.base import Backbone
from twinbench.backbones.pipeline import PipelineBackbone
from twinbench.backbones.sizes import sized
from twinbench.errors import UserError
from twinbench.flow import Cond
from twinbench.planning.plan import Model
from twinbench.sections import BackboneSection
from twinbench.settings import validate

LONGEST = 256  # tokens of the longest prompt of a micro-batch, where a family leaves the padding out
MEAN = 120  # tokens of a prompt in the cache, likewise
FIXED = {"StableDiffusion3Pipeline": (77, 256), "FluxPipeline": (0, 512)}  # tokens of CLIP, and of T5, always padded
WIDTHS = ("joint_attention_dim", "caption_channels", "cap_feat_dim")  # what families call the width of their words


def model(section: BackboneSection, precision: str) -> Model:
    """What a plan has to know of a backbone. precision: of the products, "float32" or "bfloat16".

    Raises UserError for a wrong setting, or a model whose sizes are not known."""
    network = empty(section)
    return counted(network, torch.bfloat16 if precision == "bfloat16" else None)


def empty(section: BackboneSection) -> Backbone:
    """The backbone on the meta device."""
    kind = plugins.backbone(section.name)
    where = f"backbone {section.name!r}"
    config = validate(kind.Config, section.options, where)
    try:
        if not issubclass(kind, PipelineBackbone):
            with torch.device("meta"):
                return kind(config)
        with sized(config.model) as folder, torch.device("meta"):
            return kind(config.model_copy(update={"model": folder, "revision": None, "pretrained": False}))
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def counted(network: Backbone, precision: torch.dtype | None = None) -> Model:
    """Of a backbone on any device, whose parameters are left as they are, but for their precision.

    precision: of the products; None: of the weights. It is that of the activations of a large model."""
    parameters = dict(network.named_parameters())
    size = next(iter(parameters.values())).element_size()
    blocks = list(getattr(network, "blocks", None) or ())
    sizes = [count(block.parameters()) for block in blocks]
    numbers: dict[str, Any] = {
        "parameters": count(parameters.values()),
        "trained": count(p for p in parameters.values() if p.requires_grad),
        "matrices": count(p for n, p in parameters.items() if p.requires_grad and p.ndim == 2 and "blocks" in n),
        "block": max(sizes, default=0),
        "root": count(parameters.values()) - sum(sizes),
        "depth": len(blocks),
        "adapter": _adapter(network),
        "full": sum(count(network.get_submodule(path).parameters()) for path in network.full),
        "size": size,
    }
    latent = count([torch.empty(network.shape, device="meta")])
    cond = condition(network, MEAN)
    words = sum(v[0].numel() * _word_size(network) for name, v in cond.items() if name in ("text", "pooled"))
    if precision and isinstance(network, PipelineBackbone):  # a small network takes numbers of its own precision alone
        network.to(precision)
    cost = passed(network, condition(network, LONGEST))
    products = (precision or next(iter(parameters.values())).dtype).itemsize
    return Model(**numbers, **cost, products=products, latent=4 * latent, words=words)


def count(parameters: Any) -> int:
    return sum(p.numel() for p in parameters)


def _adapter(network: Backbone) -> int:
    """Parameters of an adapter, for each of its ranks: inputs and outputs of the layers that it sits on."""
    if not network.lora_targets:
        return 0
    layers = [m for name, m in network.named_modules() if re.fullmatch(network.lora_targets, name)]
    return sum(layer.in_features + layer.out_features for layer in layers)  # type: ignore[operator,misc]


# ---- one pass ----


def condition(network: Backbone, tokens: int) -> Cond:
    """One row of a condition. tokens: of a prompt, where the family does not say."""
    device = next(network.parameters()).device
    sizes = dict(network.transformer.config) if isinstance(network, PipelineBackbone) else {}
    width = next((sizes[name] for name in WIDTHS if sizes.get(name)), None)
    if width is None:
        with device:
            return network.null(1)
    assert isinstance(network, PipelineBackbone)
    longest = network.config.tokens
    if network.pipeline in FIXED:
        before, default = FIXED[network.pipeline]
        tokens = before + (longest or default)
    elif network.length:
        tokens = network.length
    elif longest:
        tokens = min(tokens, longest)
    cond = {"text": torch.zeros(1, tokens, width, device=device)}
    if network.masked:
        cond["mask"] = torch.ones(1, tokens, dtype=torch.bool, device=device)
    if sizes.get("pooled_projection_dim"):
        cond["pooled"] = torch.zeros(1, sizes["pooled_projection_dim"], device=device)
    return cond


def _word_size(network: Backbone) -> int:
    """Bytes of a number of the cached words."""
    if not isinstance(network, PipelineBackbone):
        return 0
    return getattr(torch, network.config.text_dtype or network.config.dtype).itemsize


def passed(network: Backbone, cond: Cond) -> dict[str, Any]:
    """flops, saved and kept (bytes of activations without and with recomputation within blocks, and of the largest
    block's own), and the widths of what the blocks give: of one row's pass with a gradient."""
    device = next(network.parameters()).device
    row = torch.zeros(1, *network.shape, device=device), torch.ones(1, device=device), torch.zeros(1, device=device)
    watch, flops = Watch(network), Flops()
    with watch.on(), Fused(), flops:
        try:
            network(*row, cond)
        except NotImplementedError:  # a family that asks the mask itself how long the words are
            watch.clear()
            flops.clear()
            network(*row, {**cond, "mask": torch.ones(cond["mask"].shape, dtype=torch.bool, device="cpu")})
    return {"flops": flops.total, **watch.bytes(), "widths": tuple(watch.widths)}


class Flops(TorchDispatchMode):
    """Adds up the FLOPs of what PyTorch has a formula for."""

    total = 0

    def clear(self) -> None:
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


class Fused(TorchFunctionMode):
    """Attention by the fused kernel, whichever the device would choose; a mask changes neither cost nor memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            q, k, v = (named[name] for name in ("query", "key", "value"))
            if q.device.type == "meta":
                return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
        return func(*args, **(kwargs or {}))


class Watch:
    """What autograd saves of a pass: by block, each storage once, weights left out."""

    def __init__(self, network: Backbone) -> None:
        self.blocks: Sequence[nn.Module] = list(getattr(network, "blocks", None) or ())
        self.recomputes = hasattr(network, "recompute")
        self.weights = {p.untyped_storage()._cdata for p in network.parameters()}
        self.clear()

    def clear(self) -> None:
        self.block = -1  # the one that is running; -1: none
        self.saved: dict[int, tuple[int, Any]] = {}  # storage -> block, and the storage itself, which keeps its number
        self.inputs: dict[int, Any] = {}  # of all blocks: what recomputation keeps
        self.widths: list[int] = []

    @contextmanager
    def on(self) -> Iterator[None]:
        hooks = []
        for i, block in enumerate(self.blocks):
            hooks.append(block.register_forward_pre_hook(lambda m, a, k, i=i: self._enter(i, a, k), with_kwargs=True))
            hooks.append(block.register_forward_hook(lambda m, a, out: self._leave(out)))
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda x: x):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, i: int, args: Any, options: Any) -> None:
        self.block = i
        for value in tree_leaves((args, options)):
            if isinstance(value, Tensor) and value.untyped_storage()._cdata not in self.weights:
                self.inputs[value.untyped_storage()._cdata] = value.untyped_storage()

    def _leave(self, out: Any) -> None:
        self.block = -1
        self.widths.append((out[-1] if isinstance(out, tuple) else out).shape[-1])

    def _pack(self, value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage._cdata not in self.weights:
            self.saved.setdefault(storage._cdata, (self.block, storage))
        return value

    def bytes(self) -> dict[str, int]:
        within = [0] * len(self.blocks)
        for block, storage in self.saved.values():
            if block >= 0:
                within[block] += storage.nbytes()
        outside = {k: s.nbytes() for k, (block, s) in self.saved.items() if block < 0}
        kept = outside | {k: s.nbytes() for k, s in self.inputs.items()}
        return {
            "saved": sum(within) + sum(outside.values()),
            "kept": sum(kept.values()) if self.recomputes else sum(within) + sum(outside.values()),
            "largest": max(within, default=0),
        }
