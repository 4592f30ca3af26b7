"""Visual question answering through transformers: BLIP-VQA (small) and Qwen2.5-VL (strong).

Neither is the mPLUG that DPG-Bench prescribes, which needs an environment of its own (`judges.external`); scores of
different judges stand apart. Pictures of one size and questions of one length are asked together, so nothing is padded
and an answer does not depend on what else is asked.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from twinbench.judges import known, weights
from twinbench.judges.base import VQA, Pictures
from twinbench.judges.network import Network, Settings, alike, pretrained
from twinbench.settings import Strict

WORDS = 10  # tokens of an answer


class BlipSettings(Settings):
    weights: str = Field("Salesforce/blip-vqa-base", description="a folder or hub id of a BlipForQuestionAnswering")


class QwenSettings(Settings):
    weights: str = Field("Qwen/Qwen2.5-VL-7B-Instruct", description="a folder or hub id of a Qwen2.5-VL")
    suffix: str = Field(" Answer in one word.", description="follows every question")
    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="precision of the network")


class _Answers(Network, VQA):
    """What both share: the inputs of each pair are made alone, those of one shape are asked together."""

    packages = ("torch", "transformers", "torchvision", "pillow")  # the last two resize

    @cached_property
    def path(self) -> Path:
        return weights.model(self.config.weights, self.name)

    @cached_property
    def processor(self) -> Any:
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(self.path)

    @property
    @abstractmethod
    def network(self) -> Any: ...

    @abstractmethod
    def inputs(self, picture: Any, question: str) -> dict[str, Any]:
        """Tensors of one pair, rows first."""

    def answers(self, pictures: Pictures, questions: Sequence[str]) -> list[str]:
        """One answer a pair: `yes` or `no` where the reply begins with that, else the reply without outer blanks."""
        from PIL import Image

        if len(pictures) != len(questions):
            raise ValueError(f"{len(pictures)} pictures and {len(questions)} questions")
        rows = [self.inputs(Image.fromarray(p), q) for p, q in zip(pictures, questions, strict=True)]
        return alike(self._ask, rows, self.batch, lambda row: tuple(tuple(v.shape) for v in row.values()))

    def selftest(self) -> None:
        known.check_vqa(self)

    def _ask(self, rows: list[dict[str, Any]]) -> list[str]:
        import torch

        joined = {key: torch.cat([row[key] for row in rows]).to(self.device) for key in rows[0]}
        with torch.inference_mode():
            told = self.network.generate(**joined, max_new_tokens=WORDS, do_sample=False, num_beams=1)
        return [plain(text) for text in self.processor.batch_decode(self.reply(told, joined), skip_special_tokens=True)]

    def reply(self, tokens: Any, inputs: dict[str, Any]) -> Any:
        """The tokens of the answer alone."""
        return tokens


class BlipVQA(_Answers):
    Config: ClassVar[type[Strict]] = BlipSettings
    name = "blip-vqa"

    @cached_property
    def network(self) -> Any:
        from transformers import BlipForQuestionAnswering

        return pretrained(BlipForQuestionAnswering, self.path, self.device)

    def inputs(self, picture: Any, question: str) -> dict[str, Any]:
        return dict(self.processor(images=picture, text=question, return_tensors="pt"))


class QwenVL(_Answers):
    Config: ClassVar[type[Strict]] = QwenSettings
    name = "qwen-vl"

    @property
    def rules(self) -> str:
        return f"1, {self.config.dtype}, question +{self.config.suffix!r}"

    @cached_property
    def network(self) -> Any:
        from transformers import Qwen2_5_VLForConditionalGeneration

        return pretrained(Qwen2_5_VLForConditionalGeneration, self.path, self.device, self.config.dtype)

    def inputs(self, picture: Any, question: str) -> dict[str, Any]:
        content = [{"type": "image"}, {"type": "text", "text": question + self.config.suffix}]
        text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return dict(self.processor(images=[picture], text=[text], return_tensors="pt"))

    def reply(self, tokens: Any, inputs: dict[str, Any]) -> Any:
        return tokens[:, inputs["input_ids"].shape[1] :]


def plain(reply: str) -> str:
    """`yes` or `no` if that is the reply's first word, in any case; else the reply without outer blanks."""
    first = re.match(r"\W*(yes|no)\b", reply, re.IGNORECASE)
    return first[1].lower() if first else reply.strip()
