"""LoRA (Hu et al., arXiv 2106.09685): several networks on one frozen base, each of them an adapter.

An adapter adds (alpha / rank) B A to the layers that the backbone names in `lora_targets`, and owns a copy of every
module in `full`, which is trained whole. With all adapters off the base is the initial network, bit for bit: a teacher
that costs no memory.

Which adapter is on is a state of the base's layers, and this is the only room that changes it. A network turns its own
adapter on for the length of its call, and off again. Blocks that are recomputed in the backward pass run later; the
backbone's `recomputing` turns the adapter of the call on again. peft's own switches are of no use here: they decide who
takes gradients, too, and that is the turn's business.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twinbench.backbones.base import Backbone
from twinbench.errors import UserError
from twinbench.flow import Cond
from twinbench.randomness import seed_of
from twinbench.settings import Lora
from twinbench.tensors import save_tensors
from twinbench.training.parallel import ALONE, Group, gathered, whole


class Adapters:
    """The base and who is on. Freezes the base; raises UserError if it names no layers for adapters."""

    def __init__(self, base: Backbone) -> None:
        if not base.lora_targets:
            raise UserError(f"{type(base).__name__} names no layers for adapters; train it whole (train.lora: null)")
        self.base = base.requires_grad_(False)
        self.names = [*base.state_dict()]  # as they were without adapters
        self.layers: dict[str, Any] = {}  # peft's layers and copied modules, by their path
        self.on: str | None = None
        base.recomputing = lambda: (nullcontext(), Using(self, self.on, base.training))

    def add(self, name: str, lora: Lora, seed: int) -> Adapted:
        """A new adapter: equal to the base until it is trained. seed: of the Gaussian A; B is zero."""
        import peft
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper

        config = peft.LoraConfig(
            r=lora.rank,
            lora_alpha=lora.rank if lora.alpha is None else lora.alpha,  # type: ignore[arg-type]  # a float will do
            init_lora_weights="gaussian",
            target_modules=self.base.lora_targets,
            modules_to_save=list(self.base.full) or None,
        )
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are the point
            torch.manual_seed(seed_of(seed, f"adapter {name}"))
            peft.inject_adapter_in_model(config, self.base, name)
        kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
        self.layers = {path: layer for path, layer in self.base.named_modules() if isinstance(layer, kinds)}
        for _, parameter in self.parameters(name):  # small steps are lost in lower precision, whatever the base has
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
        self.switch(None, self.base.training)
        return Adapted(self, name)

    def dealt(self, group: Group) -> Adapted:
        """The base, as a network of its own, when all adapters are there: of several processes each holds a share of
        it, and all adapters whole."""
        own = [p for layer in self.layers.values() for p in _added(layer)]
        for p in own:
            p.data = p.data.to(group.device)
        group.shard(self.base, own)
        return self.off()

    def off(self) -> Adapted:
        """The base as a network of its own."""
        return Adapted(self, None).eval()

    def switch(self, name: str | None, training: bool) -> None:
        """Turn one adapter on and all others off; None: all off."""
        for layer in self.layers.values():
            layer._disable_adapters = name is None
            if name is not None:
                layer._active_adapter = [name]
        self.on = name
        if self.base.training != training:
            self.base.train(training)

    def parameters(self, name: str | None) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters of an adapter, or of the base, by the names that diffusers and peft give them in files."""
        if name is None:
            yield from ((key, p) for key, p in self.original(keep=True).items() if isinstance(p, nn.Parameter))
            return
        for path, layer in self.layers.items():
            if hasattr(layer, "modules_to_save"):
                yield from ((f"{path}.{key}", p) for key, p in layer.modules_to_save[name].named_parameters())
                continue
            for kind in ("lora_A", "lora_B"):
                yield from ((f"{path}.{kind}.{key}", p) for key, p in getattr(layer, kind)[name].named_parameters())

    def original(self, keep: bool = False) -> dict[str, Tensor]:
        """The base's weights under their own names, in the order of its state_dict. keep: as parameters."""
        held = self.base.state_dict(keep_vars=keep)
        plain = {k.replace(".base_layer.", ".").replace(".original_module.", "."): v for k, v in held.items()}
        return {name: plain[name] for name in self.names}

    @torch.no_grad()
    def merged(self, name: str) -> dict[str, Tensor]:
        """The weights of the backbone that is this adapter and its base in one, in the base's precision: on the host,
        a tensor at a time, since the accelerator has no room for a second model."""
        changed: dict[str, Any] = {}
        for path, layer in self.layers.items():
            if hasattr(layer, "modules_to_save"):
                changed |= {f"{path}.{key}": value for key, value in layer.modules_to_save[name].state_dict().items()}
            else:
                changed[f"{path}.weight"] = layer
        merged = {}
        for key, held in self.original().items():
            value, change = whole(held), changed.get(key)
            if isinstance(change, Tensor):
                value = change
            elif change is not None:
                value = value + change.get_delta_weight(name)
            merged[key] = value.to("cpu", held.dtype)
        return merged


@dataclass
class Using:
    """One adapter on within a block, and then again what was on before."""

    adapters: Adapters
    name: str | None
    training: bool

    def __enter__(self) -> None:
        self.before = self.adapters.on, self.adapters.base.training
        self.adapters.switch(self.name, self.training)

    def __exit__(self, *error: object) -> None:
        self.adapters.switch(*self.before)


class Adapted(nn.Module):
    """A network that is one adapter of a base, or the base itself (None): its velocity, and no parameters but its own.

    In a file they have the names of `Adapters.parameters`."""

    def __init__(self, adapters: Adapters, name: str | None) -> None:
        super().__init__()
        self._adapters, self._name = adapters, name
        for path, parameter in adapters.parameters(name):
            *parents, leaf = path.split(".")
            place: nn.Module = self
            for parent in parents:
                if parent not in place._modules:
                    place.add_module(parent, nn.Module())
                place = place.get_submodule(parent)
            place.register_parameter(leaf, parameter)
        self.requires_grad_(name is not None)

    def forward(self, x: Tensor, t: Tensor, r: Tensor, cond: Cond) -> Tensor:
        base = self._adapters.base
        with Using(self._adapters, self._name, self.training):
            return (base if self._name else base.pretrained)(x, t, r, cond)

    @property
    def backbone(self) -> Backbone:
        """The base; asked directly, it has all adapters off."""
        return self._adapters.base

    def merged(self) -> dict[str, Tensor]:
        """All weights of the backbone that this network is."""
        return self._adapters.merged(self._name) if self._name else self._adapters.original()


def _added(layer: Any) -> list[nn.Parameter]:
    """The parameters of all adapters of a layer."""
    if hasattr(layer, "modules_to_save"):
        return [*layer.modules_to_save.parameters()]
    return [*layer.lora_A.parameters(), *layer.lora_B.parameters()]


def save_weights(folder: Path, network: nn.Module, metadata: dict[str, Any], group: Group = ALONE) -> None:
    """Write weights.safetensors, from which images are drawn; for an adapter, merged into its base, and
    adapters.safetensors beside it. All processes of a group give their shards, and its first one writes."""
    tensors = gathered(network.state_dict(), group)
    merged = gathered(network.merged(), group) if isinstance(network, Adapted) else tensors
    if not group.first:
        return
    if isinstance(network, Adapted):
        save_tensors(folder / "adapters.safetensors", tensors, metadata)
    save_tensors(folder / "weights.safetensors", merged, metadata)
