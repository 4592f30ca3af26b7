"""Z-Image (arXiv 2511.22699): a single-stream transformer; prompts by Qwen3. Its time is 1 at the data, and it points
from noise to data: both are turned round here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from twinbench.backbones.codec import Words
from twinbench.backbones.pipeline import PipelineBackbone
from twinbench.flow import Cond


class ZImage(PipelineBackbone):
    pipeline = "ZImagePipeline"
    network = "ZImageTransformer2DModel"
    time = "t_embedder"
    last = "t_embedder.mlp.2"
    stacks = ("layers", "noise_refiner", "context_refiner")
    masked = True
    unguided: ClassVar[Mapping[str, float]] = {"guidance_scale": 0.0}
    lora_targets = (
        r".*\b(layers|noise_refiner|context_refiner)\.\d+\.(attention\.(to_q|to_k|to_v|to_out\.0)|feed_forward\.w[123])"
    )

    def scaled(self, t: Tensor) -> Tensor:
        return (1 - t) * self.transformer.config.t_scale

    def velocity(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        text = [row[:count] for row, count in zip(cond["text"], cond["mask"].sum(1).tolist(), strict=True)]
        v = self.transformer(list(x.unsqueeze(2).unbind(0)), 1 - t, text, return_dict=False)[0]
        return -torch.stack(v).squeeze(2)

    def words(self, pipeline: Any, prompt: str) -> Words:
        text, _ = pipeline.encode_prompt(
            [prompt], do_classifier_free_guidance=False, max_sequence_length=self.config.tokens or 512
        )
        return {"text": text[0]}
