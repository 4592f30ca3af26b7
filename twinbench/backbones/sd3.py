"""Stable Diffusion 3.5 (arXiv 2403.03206): a double-stream transformer; prompts by two CLIPs and T5."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from twinbench.backbones.codec import Words
from twinbench.backbones.pipeline import PipelineBackbone
from twinbench.flow import Cond


class SD3(PipelineBackbone):
    pipeline = "StableDiffusion3Pipeline"
    network = "SD3Transformer2DModel"
    official = "normal"
    lora_targets = (
        r".*\btransformer_blocks\.\d+\.(attn2?\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
        r"|ff(_context)?\.net\.(0\.proj|2))"
    )

    def scaled(self, t: Tensor) -> Tensor:
        return 1000 * t

    def velocity(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        return self.transformer(
            hidden_states=x,
            timestep=self.scaled(t),
            encoder_hidden_states=cond["text"],
            pooled_projections=cond["pooled"],
            return_dict=False,
        )[0]

    def words(self, pipeline: Any, prompt: str) -> Words:
        text, _, pooled, _ = pipeline.encode_prompt(
            [prompt],
            None,
            None,
            do_classifier_free_guidance=False,
            max_sequence_length=self.config.tokens or 256,
        )
        return {"text": text[0], "pooled": pooled[0]}  # the padding is attended to, so it is kept
