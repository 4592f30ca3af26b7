"""A backbone from a diffusers pipeline: its transformer, unmodified, as a velocity of two times; its words and VAE as
the codec. A family is a small file beside this one: how its transformer is called, where its time enters, what its
latents are.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from twinbench.backbones.base import Backbone
from twinbench.backbones.codec import Codec, Words, padded
from twinbench.backbones.source import Source
from twinbench.backbones.two_time import Form, Initial, TargetTime, Times, TwoTimed, second_module
from twinbench.data.base import from_bytes, to_bytes
from twinbench.files import sha256
from twinbench.flow import Cond, held
from twinbench.settings import Strict, digest
from twinbench.tensors import read_tensors

Dtype = Literal["float32", "bfloat16"]
TARGET_TIME = "target_time.safetensors"  # beside the parts of an exported any-step student


class PipelineConfig(Strict):
    model: str = Field(description="a diffusers pipeline: a folder or a hub id")
    revision: str | None = Field(None, description="commit or tag of the hub's repository")
    offline: bool = Field(False, description="read the hub's cache alone")
    pretrained: bool = Field(True, description="false: random weights of the same sizes")
    resolution: int = Field(512, ge=8, description="pixels of a picture's side")
    dtype: Dtype = Field("float32", description="of the transformer's weights; trained ones want float32")
    text_dtype: Dtype | None = Field(None, description="of the text encoders; null: dtype")
    tokens: int | None = Field(None, ge=1, description="longest prompt; null: what the stock pipeline takes")
    form: Form = Field("foldable", description="how the second time enters; official: TwinFlow's source")


class PipelineBackbone(TwoTimed, Backbone):
    """v(x, t, r, cond) of a pretrained transformer, v = z - x at r = t."""

    Config: ClassVar[type[PipelineConfig]] = PipelineConfig
    pipeline: ClassVar[str]  # the diffusers classes
    network: ClassVar[str]
    vae: ClassVar[str] = "AutoencoderKL"
    time: ClassVar[str] = "time_text_embed"  # the module whose first argument is the time
    last: ClassVar[str] = "time_text_embed.timestep_embedder.linear_2"  # the last layer of its MLP
    stacks: ClassVar[tuple[str, ...]] = ("transformer_blocks",)
    unused: ClassVar[str | None] = None  # a pattern of parameters that the output does not depend on
    official: ClassVar[Initial | None] = None  # how e2 starts in the official form; None: there is none for this family
    patch: ClassVar[int] = 2  # latents a token's side
    masked: ClassVar[bool] = False  # whether the transformer takes a mask of the words
    unguided: ClassVar[Mapping[str, float]] = {"guidance_scale": 1.0}  # what turns the stock pipeline's guidance off
    oblong: ClassVar[bool] = True  # whether latents may be of another shape than a square
    stock: ClassVar[bool] = True  # whether the stock pipeline can sample a flow at given times
    own: ClassVar[tuple[str, ...]] = ()  # folders of the model that make its words, which no stock pipeline knows
    length: ClassVar[int | None] = None  # words of a prompt, where all have as many
    full = ("target_time",)

    def __init__(self, config: PipelineConfig) -> None:
        super().__init__()
        self.config = config
        self.source = Source(config.model, config.revision, config.offline)
        self.codec = Codec(self.source, self.pipeline, self.vae, getattr(torch, config.text_dtype or config.dtype))
        self.transformer = self._transformer()
        self.shape = self._shape()
        self.time_modules, self.last_layers = self._paths(self.time), self._paths(self.last)
        modules, layers = (
            [self.transformer.get_submodule(path) for path in paths] for paths in (self.time_modules, self.last_layers)
        )
        self.target_time = self._target_time(modules, layers)
        self.hook(config.form, modules, layers)
        self.requires_grad_(True)

    @classmethod
    def origin(cls, config: PipelineConfig) -> str:
        """The sha256 of the weights that it begins with, wherever they lie; of random ones, that of the sizes."""
        source = Source(config.model, config.revision, config.offline)
        if not config.pretrained:
            sizes = source.sizes(cls.network, "transformer")
            return digest({name: value for name, value in sizes.items() if not name.startswith("_")})
        beside = source.beside(TARGET_TIME)
        return digest([source.sha256(), sha256(beside)]) if beside else source.sha256()

    # ---- how it is built ----

    def _transformer(self) -> Any:
        dtype = getattr(torch, self.config.dtype)
        if self.config.pretrained:
            return self.source.load(self.network, "transformer", dtype=dtype)
        import diffusers

        kind: Any = getattr(diffusers, self.network)
        return kind.from_config(self.source.sizes(self.network, "transformer")).to(dtype)

    def _shape(self) -> tuple[int, ...]:
        factor, side = self.compression(self.source.sizes(self.vae, "vae")), self.config.resolution
        if side % (factor * self.patch):
            raise ValueError(f"resolution {side} must be a multiple of {factor * self.patch}")
        return self.channels, side // factor, side // factor

    @property
    def factor(self) -> int:
        """Pixels of a latent's side."""
        return self.config.resolution // self.shape[-1]

    def _paths(self, pattern: str) -> list[str]:
        """A path with a * for each block."""
        depth = len(self.transformer.get_submodule(self.stacks[0]))
        return [pattern.replace("*", str(i)) for i in range(depth)] if "*" in pattern else [pattern]

    def _target_time(self, modules: Sequence[nn.Module], layers: Sequence[Any]) -> nn.Module:
        if self.config.form == "foldable":
            weight = layers[0].weight
            made = TargetTime(layers[0].out_features).to(device=weight.device, dtype=weight.dtype)
            if self.config.pretrained and (left := self.source.beside(TARGET_TIME)):
                made.load_state_dict(read_tensors(left)[0])
            return made
        if self.official is None:
            raise ValueError("this family has no official form that tells t from -t; set form: foldable")
        return second_module(modules[0], self.official)

    # ---- what a family says ----

    @property
    def channels(self) -> int:
        """Of a latent."""
        return int(self.transformer.config.in_channels)

    def compression(self, vae: dict[str, Any]) -> int:
        """Pixels of a latent's side, by the configuration of the VAE."""
        return 2 ** (len(vae["block_out_channels"]) - 1)

    @abstractmethod
    def scaled(self, t: Tensor) -> Tensor:
        """t as the time module takes it."""

    @abstractmethod
    def velocity(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """One call of the transformer: x [n, C, h, w] -> v, like x."""

    @abstractmethod
    def words(self, pipeline: Any, prompt: str) -> Words:
        """One prompt through the stock pipeline's text encoders."""

    def nothing(self, pipeline: Any) -> Words:
        """The empty condition."""
        return self.words(pipeline, "")

    def encoded(self, vae: Any, pixels: Tensor) -> Tensor:
        """pixels [n, 3, H, W] in [-1, 1] -> latents [n, C, h, w]; the mode, where the VAE gives a distribution."""
        x = vae.encode(pixels).latent_dist.mode()
        return (x - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor

    def decoded(self, vae: Any, x: Tensor) -> Tensor:
        """latents -> pixels in about [-1, 1]"""
        return vae.decode(x / vae.config.scaling_factor + (vae.config.shift_factor or 0.0), return_dict=False)[0]

    # ---- velocity ----

    def forward(self, x: Tensor, t: Tensor, r: Tensor, cond: Cond) -> Tensor:
        shown, shown_r = (t, r) if self.config.form == "official" else (t.abs(), r.abs())
        dtype = self.precision
        cond = {name: value.to(dtype) if value.is_floating_point() else value for name, value in cond.items()}
        with self.at(Times(t, r, self.scaled(shown), self.scaled(shown_r))):
            return self.velocity(x.to(dtype), shown, cond).to(x.dtype)

    def pretrained(self, x: Tensor, t: Tensor, r: Tensor, cond: Cond) -> Tensor:
        return self(x, t, t, cond)

    @property
    def precision(self) -> torch.dtype:
        """Of the weights as they are used now (sharding may show them in a lower one)."""
        return self.transformer.get_submodule(self.last_layers[0]).weight.dtype

    @property
    def taught_guidance(self) -> float | None:
        """The guidance that the transformer takes as an input; None where it takes none."""
        return None

    @property
    def device(self) -> torch.device:
        return next(self.transformer.parameters()).device

    # ---- codec ----

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Cond:
        """The embeddings of n prompts; each is encoded alone, so it does not depend on its neighbours."""
        pipeline = self.codec.pipeline(self.device)
        known = {prompt: self.words(pipeline, prompt) for prompt in dict.fromkeys(prompts)}
        return padded([known[prompt] for prompt in prompts], self.masked)

    @torch.no_grad()
    def null(self, n: int) -> Cond:
        if self.codec.null is None:
            self.codec.null = self.nothing(self.codec.pipeline(self.device))
        one = padded([self.codec.null], self.masked)
        return {name: value.expand(n, *value.shape[1:]) for name, value in one.items()}

    @torch.no_grad()
    def latents(self, pixels: Tensor) -> Tensor:
        return self.encoded(self.codec.vae(self.device), from_bytes(pixels).to(self.device))

    @torch.no_grad()
    def pixels(self, x: Tensor) -> Tensor:
        return to_bytes(self.decoded(self.codec.vae(self.device), x.float().to(self.device))).cpu()

    # ---- training ----

    @property
    def blocks(self) -> list[nn.Module]:  # type: ignore[override]
        return [block for path in self.stacks for block in self.transformer.get_submodule(path)]

    def requires_grad_(self, requires_grad: bool = True) -> PipelineBackbone:
        """As of any module, but parameters without effect stay frozen: they would never have a gradient, and an
        optimizer no state for them."""
        super().requires_grad_(requires_grad)
        for name, parameter in self.transformer.named_parameters():
            if self.unused and re.fullmatch(self.unused, name):
                parameter.requires_grad_(False)
        return self

    def recompute(self, on: bool = True) -> None:
        """Keep no activations within blocks, but compute them anew in the backward pass. A pass that carries tangents
        (a jvp) keeps them: in the backward pass there are none to compute anew."""
        if on:
            self.transformer.enable_gradient_checkpointing(self._recomputed)
        else:
            self.transformer.disable_gradient_checkpointing()

    def _recomputed(self, block: nn.Module, *args: Any) -> Any:
        if forward_ad._current_level >= 0:
            return block(*args)
        times, taking = self.times, [p.requires_grad for p in self._used(block)]

        def again(*args: Any) -> Any:  # by then the call is over, and other parameters may take gradients
            frozen = [p for p, took in zip(self._used(block), taking, strict=True) if not took]
            with self.at(times), held(frozen):
                return block(*args)

        return checkpoint(again, *args, use_reentrant=False, context_fn=self.recomputing)

    def _used(self, block: nn.Module) -> list[nn.Parameter]:
        """The parameters that a block asks, in an order that stays."""
        return [*block.parameters(), *self.target_time.parameters()]


def pack(x: Tensor) -> Tensor:
    """[n, C, h, w] -> tokens [n, (h/2)(w/2), 4C], two by two latents each."""
    n, channels, h, w = x.shape
    x = x.view(n, channels, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(n, (h // 2) * (w // 2), channels * 4)


def unpack(tokens: Tensor, like: Tensor) -> Tensor:
    """The inverse of `pack`."""
    n, channels, h, w = like.shape
    x = tokens.view(n, h // 2, w // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(n, channels, h, w)
