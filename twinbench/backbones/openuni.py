"""OpenUni (arXiv 2505.23661): SANA with other words. InternVL3's language model reads the prompt with learned queries
behind it; a connector and a projector make SANA's words of their last hidden states. Transformer, time and VAE are
`sana`'s.

Facts and where they stand in github.com/wusize/OpenUni:
    queries behind the prompt, last hidden states, connector before projector, a mask of ones, time 1000 t:
        src/models/openuni/internvl3_sana_hf.py
    layers of the connector, which are those of SigLIP's encoder without a last norm:
        src/models/connector/modeling_connector.py, configuration_connector.py
    words around a prompt, words of the empty condition: configs/datasets/internvl3_2b_512/processors.py
TwinFlow (github.com/inclusionAI/TwinFlow, src/steerers/openuni/sft_ddp.py) trains SANA's transformer alone, so all else
is frozen and in the codec.

A model is a folder that `openuni_convert` writes:
    model_index.json, transformer, vae, scheduler    a stock SANA pipeline without text encoder and tokenizer
    language_model                                   InternVL3's language model and its tokenizer
    connector                                        queries, connector, projector; the words around a prompt
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from twinbench.backbones.codec import Codec, Words
from twinbench.backbones.pipeline import PipelineConfig
from twinbench.backbones.sana import Sana
from twinbench.errors import UserError
from twinbench.files import read_json, write_json
from twinbench.tensors import read_tensors, save_tensors

MODEL, CONNECTOR = "language_model", "connector"  # folders
TENSORS, CONFIG = "connector.safetensors", "config.json"
MARKS = ("<|im_start|>", "<|im_end|>", "<img>")  # one token each
ASKED = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<img>"
TEMPLATE = {"prompt": ASKED.format("Generate an image: {prompt}"), "empty": ASKED.format("Generate an image.")}


class Connector(nn.Module):
    """The learned queries, and what makes words of their hidden states: [n, queries, width] -> [n, queries, words].
    Parameters are called as in the authors' checkpoints."""

    def __init__(self, queries: int, width: int, inner: int, layers: int, heads: int, words: int) -> None:
        from transformers import SiglipVisionConfig
        from transformers.models.siglip.modeling_siglip import SiglipEncoder

        super().__init__()
        kind: Any = SiglipVisionConfig
        config = kind(
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            hidden_act="gelu_pytorch_tanh",
            layer_norm_eps=1e-6,
            attention_dropout=0.0,
            attn_implementation="sdpa",
        )
        self.heads = heads
        self.meta_queries = nn.Parameter(torch.randn(queries, width) / width**0.5)
        self.connector = SiglipEncoder(config)
        self.projector = nn.Linear(width, words)

    @classmethod
    def of(cls, tensors: dict[str, Tensor], heads: int) -> Connector:
        """The one with these weights, by their names. Raises UserError for a name or a size that does not fit."""
        try:
            queries, width = tensors["meta_queries"].shape
            inner, words = len(tensors["connector.layers.0.mlp.fc1.bias"]), len(tensors["projector.bias"])
            layers = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("connector.layers."))
            made = cls(queries, width, inner, layers, heads, words)
        except (KeyError, ValueError) as error:
            raise UserError(f"these are no connector of OpenUni: {error} is missing or of another shape") from None
        return loaded(made, tensors, "the connector")

    def forward(self, hidden: Tensor) -> Tensor:
        return self.projector(self.connector(hidden).last_hidden_state)


def loaded(module: Any, tensors: dict[str, Tensor], what: str) -> Any:
    """A module with these weights, all of its own and no others. Raises UserError that names one that does not fit."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"the weights of {what} do not fit: {' '.join(str(error).split())[:300]}") from None
    return module


class Reader(nn.Module):
    """The words of a prompt: text [queries, words]. config: `heads` of the connector, `prompt` and `empty`, what is
    read for a prompt (it stands at {prompt}) and for the empty condition."""

    def __init__(self, tokenizer: Any, language_model: Any, connector: Connector, config: dict[str, Any]) -> None:
        """Raises UserError for a tokenizer that does not know the marks of the template, or queries of other width."""
        super().__init__()
        width, own = connector.meta_queries.shape[1], language_model.config.hidden_size
        if width != own:
            raise UserError(f"the queries have {width} channels, the language model {own}; they are not of one model")
        for mark in MARKS:
            if len(tokenizer(mark).input_ids) != 1:
                raise UserError(f"the tokenizer of the language model does not know {mark!r}; it must be InternVL3's")
        self.tokenizer, self.config = tokenizer, config
        self.language_model, self.connector = language_model, connector
        self.requires_grad_(False).eval()

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype) -> Reader:
        """From a model's folder. Raises UserError where a part of it is missing or damaged."""
        from transformers import AutoModel, AutoTokenizer

        tensors, _ = read_tensors(folder / CONNECTOR / TENSORS)
        try:
            config = read_json(folder / CONNECTOR / CONFIG)
            model = AutoModel.from_pretrained(folder / MODEL, dtype=dtype, local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(folder / MODEL, local_files_only=True)
            connector = Connector.of(tensors, config["heads"])
            return cls(tokenizer, model, connector.to(dtype), config)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{folder} is no model of OpenUni ({' '.join(str(error).split())[:200]})") from None

    def save(self, folder: Path) -> None:
        self.language_model.save_pretrained(folder / MODEL)
        self.tokenizer.save_pretrained(folder / MODEL)
        save_tensors(folder / CONNECTOR / TENSORS, self.connector.state_dict(), {})
        write_json(folder / CONNECTOR / CONFIG, self.config)

    def forward(self, prompt: str | None) -> Tensor:
        """prompt: None for the empty condition."""
        text = self.config["empty"] if prompt is None else self.config["prompt"].replace("{prompt}", prompt.strip())
        queries = self.connector.meta_queries[None]
        tokens = self.tokenizer(text, return_tensors="pt").input_ids.to(queries.device)
        read = torch.cat([self.language_model.get_input_embeddings()(tokens), queries], 1)
        hidden = self.language_model(inputs_embeds=read, use_cache=False).last_hidden_state
        return self.connector(hidden[:, tokens.shape[1] :])[0]


@dataclass(frozen=True)
class Parts:
    """A whole model. pipeline: SANA's, without text encoder and tokenizer."""

    pipeline: Any
    reader: Reader

    def save_pretrained(self, folder: Path) -> None:
        self.pipeline.save_pretrained(folder)
        self.reader.save(folder)


class ReaderCodec(Codec):
    def pipeline(self, device: torch.device) -> Any:
        """The reader."""
        if "pipeline" not in self._held:
            self._held["pipeline"] = Reader.load(self.source.folder(), self.text_dtype)
        return self._held["pipeline"].to(device)


class OpenUni(Sana):
    own: ClassVar[tuple[str, ...]] = (MODEL, CONNECTOR)
    length: ClassVar[int | None] = 256

    def __init__(self, config: PipelineConfig) -> None:
        super().__init__(config)
        if config.tokens:
            raise ValueError("OpenUni reads whole prompts and gives one number of words for each; leave tokens out")
        self.codec = ReaderCodec(self.source, self.pipeline, self.vae, self.codec.text_dtype)

    def words(self, pipeline: Any, prompt: str) -> Words:
        return {"text": pipeline(prompt)}

    def nothing(self, pipeline: Any) -> Words:
        return {"text": pipeline(None)}
