"""Two small networks for the embedded worlds: a transformer over patches and words, and an MLP for points.

Both take the second time r through a gate, e(t) + (t - r) e2(r), so v(x, t, t) is the plain multi-step network whatever
e2 holds, and keep the sign of t in e, so v(x, -t, -t) is a second field of the same network (methods: TwinFlow's source
for SD3.5 and SANA). Two options change how times enter, for comparison: `sign: embedding` shows the network |t| and |r|
and adds a learned vector where t < 0, zero at first (so at first the twin is the network itself); `times: half` is
TwinFlow's LoRA form, e(t - r/2) alone, which asks the pretrained network for v(x, t, t) at t/2. Attention is written
out: `torch.func.jvp` cannot pass the fused CPU kernel.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from twinbench.backbones.base import WorldBackbone, WorldConfig
from twinbench.flow import Cond, expand


class TimesConfig(WorldConfig):
    sign: Literal["embedding"] | None = Field(None, description="embedding: t < 0 by a learned vector; null: signed t")
    times: Literal["half"] | None = Field(None, description="half: e(t - r/2), no second embedder; null: the gate")


class TwoTimes(nn.Module):
    """(t, r) [B] -> embedding [B, width]; e2's last layer and the vector of t < 0 start at zero."""

    frequencies: Tensor

    def __init__(self, width: int, config: TimesConfig) -> None:
        super().__init__()
        self.halved = config.times == "half"
        half = width // 2
        frequencies = 100.0 * torch.exp(-math.log(1000.0) * torch.arange(half) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.first = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        # kept where it is not called, so that weights fit both forms
        self.second = nn.Sequential(nn.Linear(width, width), nn.SiLU(), last := nn.Linear(width, width))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.negative = nn.Parameter(torch.zeros(width)) if config.sign == "embedding" else None

    @property
    def additions(self) -> tuple[str, ...]:
        """Parameters that weights without the option lack."""
        return () if self.negative is None else ("negative",)

    @property
    def full(self) -> tuple[str, ...]:
        """What starts at zero, and so is trained whole beside adapters: a vector stands with the module it is in."""
        if self.negative is not None:
            return ("times",)
        return () if self.halved else ("times.second",)

    def _waves(self, t: Tensor) -> Tensor:
        angle = t[:, None] * self.frequencies.to(t.dtype)
        return torch.cat([angle.cos(), angle.sin()], 1)

    def _of(self, t: Tensor, r: Tensor) -> Tensor:
        if self.halved:
            return self.first(self._waves(t - r / 2))
        return self.first(self._waves(t)) + self.second(self._waves(r)) * (t - r)[:, None]

    def forward(self, t: Tensor, r: Tensor) -> Tensor:
        if self.negative is None:
            return self._of(t, r)
        return self._of(t.abs(), r.abs()) + (t < 0)[:, None] * self.negative


class ToyBackbone(WorldBackbone):
    times: TwoTimes
    own_time: bool  # whether r has to be hidden from the pretrained network, that it sees t

    def pretrained(self, x: Tensor, t: Tensor, r: Tensor, cond: Cond) -> Tensor:
        return self(x, t, torch.zeros_like(r) if self.own_time else r, cond)

    @property
    def additions(self) -> tuple[str, ...]:
        """Parameters that pretrained weights may lack."""
        return tuple(f"times.{name}" for name in self.times.additions)


class Block(nn.Module):
    """Attention and MLP, modulated by six vectors a sample (DiT, Peebles & Xie 2023)."""

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for layer in (self.out, self.down):
            nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * depth))

    def forward(self, h: Tensor, m: Tensor) -> Tensor:
        """h [B, n, width]; m [B, 6, width]."""
        scale, shift, gate, scale2, shift2, gate2 = (m[:, i, None] for i in range(6))
        a = F.layer_norm(h, h.shape[-1:]) * (1 + scale) + shift
        q, k, v = self.qkv(a).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        h = h + gate * self.out((weights @ v).transpose(1, 2).flatten(2))
        a = F.layer_norm(h, h.shape[-1:]) * (1 + scale2) + shift2
        return h + gate2 * self.down(F.gelu(self.up(a), approximate="tanh"))


class PatchConfig(TimesConfig):
    patch: int = Field(8, ge=1, description="pixels of a patch's side")
    width: int = Field(128, ge=8, multiple_of=2)
    depth: int = Field(6, ge=1)
    heads: int = Field(4, ge=1)

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> PatchConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be a multiple of heads {self.heads}")
        return self


class PatchTransformer(ToyBackbone):
    """Velocity of a picture [n, C, S, S], given object phrases as tokens [n, phrases * slots].

    The network predicts the clean picture D, and v = (x - D)/max(|t|, 0.05): pictures are far simpler than noise, so a
    width below the patch's dimension is enough (Li & He 2025, arXiv 2511.13720)."""

    Config = PatchConfig
    lora_targets = r"blocks\.\d+\.(qkv|out|up|down)|modulation|times\.first\.[02]"

    def __init__(self, config: PatchConfig) -> None:
        super().__init__(config.world)
        if len(self.shape) != 3 or self.shape[1] % config.patch:
            raise ValueError(f"patches of {config.patch} do not tile a sample of shape {self.shape}")
        channels, size, _ = self.shape
        width, self.patch, self.phrases = config.width, config.patch, self.world.phrases
        inner = channels * self.patch**2
        self.patches = nn.Linear(inner, width)
        self.places = nn.Parameter(torch.randn(1, (size // self.patch) ** 2, width) * 0.3)
        self.words = nn.Embedding(self.world.vocabulary, width)
        nn.init.normal_(self.words.weight, std=0.5)
        self.word_places = nn.Parameter(torch.randn(1, self.phrases, width) * 0.1)
        self.times = TwoTimes(width, config)
        self.full, self.own_time = self.times.full, self.times.halved
        self.caption = nn.Sequential(nn.Linear(self.phrases * width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.normal_(self.modulation.weight, std=0.02)
        nn.init.zeros_(self.modulation.bias)
        self.offsets = nn.Parameter(torch.tensor([0.0, 0, 1, 0, 0, 1])[None, :, None].repeat(config.depth, 1, width))
        self.blocks = nn.ModuleList([Block(width, config.heads, config.depth) for _ in range(config.depth)])
        self.last_modulation, self.last = nn.Linear(width, 2 * width), nn.Linear(width, inner)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, t: Tensor, r: Tensor, cond: Cond) -> Tensor:
        words = self.words(cond["tokens"]).unflatten(1, (self.phrases, -1)).sum(2) + self.word_places
        e = F.silu(self.times(t, r) + self.caption(words.flatten(1)))
        m = self.modulation(e).unflatten(1, (6, -1))
        level = expand(t.abs(), x)
        scale = (level**2 + (1 - level) ** 2 / 4).rsqrt()
        pieces = F.pixel_unshuffle(x * scale, self.patch).flatten(2).mT
        h = torch.cat([words, self.patches(pieces) + self.places], 1)
        for block, offset in zip(self.blocks, self.offsets, strict=True):
            h = block(h, m + offset)
        a, b = self.last_modulation(e)[:, None].chunk(2, -1)
        h = self.last(F.layer_norm(h[:, self.phrases :], h.shape[-1:]) * (1 + a) + b)
        side = x.shape[-1] // self.patch
        clean = F.pixel_shuffle(h.mT.unflatten(-1, (side, side)), self.patch)
        return (x - clean) / level.clamp(min=0.05)


class MLPConfig(TimesConfig):
    width: int = Field(128, ge=8, multiple_of=2)
    depth: int = Field(3, ge=1)


class MLP(ToyBackbone):
    """Velocity of a point [n, D], given one token: residual layers, scaled and shifted by the times and the token."""

    Config = MLPConfig
    lora_targets = r"(layers|modulations)\.\d+|times\.first\.[02]"

    def __init__(self, config: MLPConfig) -> None:
        super().__init__(config.world)
        if len(self.shape) != 1:
            raise ValueError(f"an mlp takes points, not samples of shape {self.shape}; use patch-transformer")
        (inputs,), width = self.shape, config.width
        self.times, self.words = TwoTimes(width, config), nn.Embedding(self.world.vocabulary, width)
        self.full, self.own_time = self.times.full, self.times.halved
        self.first, self.last = nn.Linear(inputs, width), nn.Linear(width, inputs)
        self.modulations = nn.ModuleList([nn.Linear(width, 2 * width) for _ in range(config.depth)])
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(config.depth)])
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        """What each layer adds; a GAN head may read it."""
        return self.layers

    def forward(self, x: Tensor, t: Tensor, r: Tensor, cond: Cond) -> Tensor:
        e = F.silu(self.times(t, r) + self.words(cond["tokens"][:, 0]))
        h = self.first(x)
        for modulation, layer in zip(self.modulations, self.layers, strict=True):
            scale, shift = modulation(e).chunk(2, -1)
            h = h + layer(F.silu(F.layer_norm(h, h.shape[-1:]) * (1 + scale) + shift))
        return self.last(h)
