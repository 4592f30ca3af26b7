"""Qwen-Image (arXiv 2508.02324): a double-stream transformer over packed latents, prompts by Qwen2.5-VL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from twinbench.backbones.codec import Words
from twinbench.backbones.pipeline import PipelineBackbone, pack, unpack
from twinbench.flow import Cond


class QwenImage(PipelineBackbone):
    pipeline = "QwenImagePipeline"
    network = "QwenImageTransformer2DModel"
    vae = "AutoencoderKLQwenImage"
    official = "copy"
    masked = True
    unguided: ClassVar[Mapping[str, float]] = {"true_cfg_scale": 1.0}

    @property
    def _dropped(self) -> str:
        """What makes words of the last block's words: nobody reads them."""
        return rf"transformer_blocks\.{len(self.transformer.transformer_blocks) - 1}\.(attn\.to_add_out|txt_mlp)"

    @property
    def unused(self) -> str:  # type: ignore[override]
        return rf"{self._dropped}\..*"

    @property
    def lora_targets(self) -> str:  # type: ignore[override]
        return (
            rf"(?!.*{self._dropped}).*\btransformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v|to_out\.0"
            r"|add_q_proj|add_k_proj|add_v_proj|to_add_out)|(img|txt)_mlp\.net\.(0\.proj|2))"
        )

    @property
    def channels(self) -> int:
        return int(self.transformer.config.in_channels) // 4

    def compression(self, vae: dict[str, Any]) -> int:
        return 2 ** len(vae["temperal_downsample"])

    def scaled(self, t: Tensor) -> Tensor:
        return t

    def velocity(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        n, _, h, w = x.shape
        v = self.transformer(
            hidden_states=pack(x),
            timestep=t,
            encoder_hidden_states=cond["text"],
            encoder_hidden_states_mask=cond["mask"].bool(),
            img_shapes=[[(1, h // 2, w // 2)]] * n,
            return_dict=False,
        )[0]
        return unpack(v, x)

    def words(self, pipeline: Any, prompt: str) -> Words:
        text, _ = pipeline.encode_prompt([prompt], max_sequence_length=self.config.tokens or 512)
        return {"text": text[0]}

    def nothing(self, pipeline: Any) -> Words:
        return self.words(pipeline, " ")  # the authors' empty prompt

    def _moments(self, vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(m, device=like.device) for m in (vae.config.latents_mean, vae.config.latents_std))
        return mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)

    def encoded(self, vae: Any, pixels: Tensor) -> Tensor:
        x = vae.encode(pixels[:, :, None]).latent_dist.mode()[:, :, 0]  # a VAE of videos: one frame
        mean, std = self._moments(vae, x)
        return (x - mean) / std

    def decoded(self, vae: Any, x: Tensor) -> Tensor:
        mean, std = self._moments(vae, x)
        return vae.decode((x * std + mean)[:, :, None], return_dict=False)[0][:, :, 0]
