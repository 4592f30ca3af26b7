"""SANA (arXiv 2410.10629): a linear-attention transformer over latents of a deep-compression VAE; prompts by Gemma."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from twinbench.backbones.codec import Words
from twinbench.backbones.pipeline import PipelineBackbone, PipelineConfig
from twinbench.flow import Cond


class Sana(PipelineBackbone):
    pipeline = "SanaPipeline"
    network = "SanaTransformer2DModel"
    vae = "AutoencoderDC"
    time = "time_embed"
    last = "time_embed.emb.timestep_embedder.linear_2"
    official = "normal"
    patch = 1
    masked = True
    lora_targets = r".*\btransformer_blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"

    def __init__(self, config: PipelineConfig) -> None:
        super().__init__(config)
        if self.transformer.config.guidance_embeds:
            raise ValueError(f"{config.model!r} is a distilled SANA that takes guidance as an input; give a plain one")

    def compression(self, vae: dict[str, Any]) -> int:
        return 2 ** (len(vae["encoder_block_out_channels"]) - 1)

    def scaled(self, t: Tensor) -> Tensor:
        return 1000 * self.transformer.config.timestep_scale * t

    def velocity(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self.transformer(
            hidden_states=x,
            timestep=self.scaled(t),
            encoder_hidden_states=cond["text"],
            encoder_attention_mask=cond["mask"].to(x.dtype),
            return_dict=False,
        )[0]

    def words(self, pipeline: Any, prompt: str) -> Words:
        """Behind the instruction that the stock pipeline puts before every prompt."""
        instruction = inspect.signature(pipeline.__call__).parameters["complex_human_instruction"].default
        return self._words(pipeline, prompt, instruction)

    def nothing(self, pipeline: Any) -> Words:
        return self._words(pipeline, "", None)

    def _words(self, pipeline: Any, prompt: str, instruction: list[str] | None) -> Words:
        text, mask, _, _ = pipeline.encode_prompt(
            [prompt],
            do_classifier_free_guidance=False,
            max_sequence_length=self.config.tokens or 300,
            complex_human_instruction=instruction,
        )
        return {"text": text[0, : int(mask.sum())]}

    def encoded(self, vae: Any, pixels: Tensor) -> Tensor:
        return vae.encode(pixels, return_dict=False)[0] * vae.config.scaling_factor

    def decoded(self, vae: Any, x: Tensor) -> Tensor:
        return vae.decode(x / vae.config.scaling_factor, return_dict=False)[0]
