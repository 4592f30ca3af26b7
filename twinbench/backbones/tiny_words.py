"""Tokenizers and text encoders for tiny pipelines: the real classes, with vocabularies made here."""

from __future__ import annotations

import json
from typing import Any

CORPUS = [
    "a photo of a cat and a dog",
    "a red bench in the rain",
    # the instruction of Qwen-Image's template, so that it takes as many tokens here as there
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships of the "
    "objects and background:",
    "system",
    "user",
    "assistant",
]
CHAT = (
    "{% for m in messages %}<|im_start|>{{m['role']}}\n{{m['content']}}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN: dict[str, Any] = {  # sizes of all its kinds
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def _bytes() -> list[str]:
    """Every byte, as byte pairs spell it."""
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _pairs(special: list[str]) -> dict[str, Any]:
    """Vocabulary and merges of byte pairs in the corpus."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=special, initial_alphabet=_bytes(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(merge) for merge in model["merges"]]}


def _numbered(names: list[str]) -> dict[str, int]:
    return {name: i for i, name in enumerate(names)}


def qwen_tokenizer(*more: str) -> Any:
    """more: marks that are one token each."""
    from transformers import Qwen2Tokenizer

    marks = ["<|im_start|>", "<|im_end|>", *more]
    made = Qwen2Tokenizer(**_pairs(["<|endoftext|>"]), extra_special_tokens=marks, model_max_length=4096)
    made.chat_template = CHAT
    return made


def clip_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    names = ["<|startoftext|>", "<|endoftext|>", *_bytes(), *(byte + "</w>" for byte in _bytes())]
    return CLIPTokenizer(vocab=_numbered(names), merges=[], model_max_length=77)


def _letters() -> list[str]:
    return sorted(set("".join(CORPUS)) - {" "})


def t5_tokenizer() -> Any:
    from transformers import T5TokenizerFast  # type: ignore[attr-defined]

    whole = sorted({word for text in CORPUS for word in text.split() if len(word) > 1})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in _letters()] + [("▁" + word, -1.0) for word in whole]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=512)


def gemma_tokenizer() -> Any:
    from transformers import GemmaTokenizer

    names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *[f"<0x{i:02X}>" for i in range(256)], "▁", *_letters()]
    return GemmaTokenizer(vocab=_numbered(names), merges=[], model_max_length=8192, add_bos_token=True)


def qwen_vl(vocabulary: int) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}
    text = {**QWEN, "vocab_size": vocabulary, "rope_parameters": rope}
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision))


def qwen3(vocabulary: int) -> Any:
    from transformers import Qwen3Config, Qwen3Model

    return Qwen3Model(Qwen3Config(**QWEN, head_dim=8, vocab_size=vocabulary, max_position_embeddings=1024))


def clip(projected: bool = True) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=1000,
        hidden_act="gelu",
        projection_dim=32,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(vocab_size=400, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4))


def gemma(vocabulary: int) -> Any:
    from transformers import Gemma2Config, Gemma2Model

    return Gemma2Model(
        Gemma2Config(
            head_dim=16,
            hidden_size=8,
            intermediate_size=8,
            num_attention_heads=2,
            num_hidden_layers=1,
            num_key_value_heads=2,
            vocab_size=vocabulary,
        )
    )


def qwen2(vocabulary: int) -> Any:
    from transformers import Qwen2Config, Qwen2Model

    return Qwen2Model(Qwen2Config(**QWEN, vocab_size=vocabulary, max_position_embeddings=1024))
