"""DiT (Peebles & Xie, arXiv 2212.09748) for classes in place of words, as SiT trains it: a velocity, not a noise.

Every block has its own time module here, inside what is recomputed: `recompute` remembers its times, other ways do
not. With `pretrained: false`, the default, the sizes and the VAE are the folder's, the weights new.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from twinbench.backbones.codec import Words
from twinbench.backbones.pipeline import PipelineBackbone, PipelineConfig
from twinbench.flow import Cond


class DiTConfig(PipelineConfig):
    pretrained: bool = Field(False, description="true: the folder's weights, which must be those of a flow")
    resolution: int = Field(256, ge=8, description="pixels of a picture's side")


class DiT(PipelineBackbone):
    """A prompt is the number of a class, or one of its names in the folder's list; the empty one is no class."""

    Config: ClassVar[type[DiTConfig]] = DiTConfig
    pipeline = "DiTPipeline"
    network = "DiTTransformer2DModel"
    time = "transformer_blocks.*.norm1.emb"
    last = "transformer_blocks.*.norm1.emb.timestep_embedder.linear_2"
    oblong = False  # diffusers' class puts the tokens together to a square
    stock = False
    lora_targets = r".*\btransformer_blocks\.\d+\.(attn1\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2))"

    def __init__(self, config: DiTConfig) -> None:
        super().__init__(config)
        index = self.source.sizes(self.pipeline)
        if config.pretrained and not index["scheduler"][1].startswith("FlowMatch"):
            raise ValueError(f"{config.model!r} predicts noise, not a velocity; set backbone.pretrained: false")
        self.classes = int(self.transformer.config.num_embeds_ada_norm)
        self.labels = {
            name.strip(): int(number)
            for number, names in index.get("id2label", {}).items()
            for name in names.split(",")
        }
        for module in self.transformer.modules():
            if hasattr(module, "dropout_prob"):
                module.dropout_prob = 0.0  # which conditions are dropped is the data's to say

    def scaled(self, t: Tensor) -> Tensor:
        return 1000 * t

    def velocity(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        out = self.transformer(x, timestep=self.scaled(t), class_labels=cond["label"], return_dict=False)[0]
        return out[:, : x.shape[1]]  # a second half, where there is one, is the spread that DDPM learns

    def encode(self, prompts: Sequence[str]) -> Cond:
        return {"label": torch.tensor([self._label(p) for p in prompts], device=self.device)}

    def null(self, n: int) -> Cond:
        return self.encode([""] * n)

    def words(self, pipeline: Any, prompt: str) -> Words:
        return {"label": torch.tensor(self._label(prompt))}

    def _label(self, prompt: str) -> int:
        if not prompt:
            return self.classes
        label = int(prompt) if prompt.isdigit() else self.labels.get(prompt, -1)
        if not 0 <= label < self.classes:
            raise ValueError(f"{prompt!r} is no class; give a number below {self.classes} or a name of the list")
        return label
