"""FLUX.1: double and single streams over packed latents; prompts by T5 and CLIP. The -dev weights were distilled with
guidance as an input, which is held fixed here."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from twinbench.backbones.codec import Words
from twinbench.backbones.pipeline import PipelineBackbone, PipelineConfig, pack, unpack
from twinbench.flow import Cond


class FluxConfig(PipelineConfig):
    guidance: float = Field(3.5, ge=0, description="the guidance that distilled weights take as an input")


class Flux(PipelineBackbone):
    Config: ClassVar[type[FluxConfig]] = FluxConfig
    pipeline = "FluxPipeline"
    network = "FluxTransformer2DModel"
    stacks = ("transformer_blocks", "single_transformer_blocks")
    lora_targets = (
        r".*transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
        r"|ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out)"
    )
    config: FluxConfig

    @property
    def unguided(self) -> dict[str, float]:  # type: ignore[override]
        return {"guidance_scale": self.config.guidance}

    @property
    def taught_guidance(self) -> float | None:
        return self.config.guidance if self.transformer.config.guidance_embeds else None

    @property
    def channels(self) -> int:
        return int(self.transformer.config.in_channels) // 4

    def scaled(self, t: Tensor) -> Tensor:
        return 1000 * t

    def velocity(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        n, _, h, w = x.shape
        rows, columns = torch.meshgrid(torch.arange(h // 2), torch.arange(w // 2), indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1).to(x)
        guidance = self.taught_guidance
        v = self.transformer(
            hidden_states=pack(x),
            timestep=t,
            guidance=None if guidance is None else torch.full((n,), guidance, device=x.device),
            encoder_hidden_states=cond["text"],
            pooled_projections=cond["pooled"],
            txt_ids=torch.zeros(cond["text"].shape[1], 3).to(x),
            img_ids=places,
            return_dict=False,
        )[0]
        return unpack(v, x)

    def words(self, pipeline: Any, prompt: str) -> Words:
        text, pooled, _ = pipeline.encode_prompt([prompt], None, max_sequence_length=self.config.tokens or 512)
        return {"text": text[0], "pooled": pooled[0]}  # the padding is attended to, so it is kept
