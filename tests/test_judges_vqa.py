"""Questions about pictures: BLIP and Qwen2.5-VL; a program in another environment is `test_judges_external`."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from judges_tiny import VOCABULARY, blip_folder, scene

from twinbench.errors import UserError, WorkError
from twinbench.judges.vqa import BlipSettings, BlipVQA, QwenSettings, QwenVL, plain

PICTURES = [scene(40, 40), scene(60, 40), scene(40, 40), np.ascontiguousarray(scene(40, 40)[::-1])]
QUESTIONS = ["Is the circle red?", "Is there a flower in the picture?", "Is there a person?", "Is the circle red?"]


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    return str(blip_folder(tmp_path_factory.mktemp("blip")))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    folder = tmp_path_factory.mktemp("qwen")
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
    special += ["<|image_pad|>", "<|video_pad|>"]
    table = {
        word: i for i, word in enumerate([*special, *VOCABULARY[1:], "user", "assistant", "answer", "one", "word"])
    }
    inner = Tokenizer(models.WordLevel(table, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="[UNK]",
        pad_token=special[0],
        eos_token=special[2],
        additional_special_tokens=special[1:],
    )
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }} {% for c in m['content'] %}{% if c['type'] == 'image' %}"
        "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
    )
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 16}
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(size=size), tokenizer, Qwen2VLVideoProcessor(size=size), chat_template=template
    )
    processor.save_pretrained(folder)
    heads = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 40}
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 40, "out_hidden_size": 32}
    config = Qwen2_5_VLConfig(
        text_config={
            **heads,
            "num_hidden_layers": 1,
            "num_key_value_heads": 1,
            "vocab_size": len(table),
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
            "bos_token_id": None,
            "eos_token_id": table[special[2]],
            "pad_token_id": table[special[0]],
        },
        vision_config={**vision, "fullatt_block_indexes": [0]},
        image_token_id=table["<|image_pad|>"],
        video_token_id=table["<|video_pad|>"],
        vision_start_token_id=table["<|vision_start|>"],
        vision_end_token_id=table["<|vision_end|>"],
    )
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def made(blip, qwen):
    def make(name, **settings):
        if name == "blip-vqa":
            return BlipVQA(BlipSettings(weights=blip, device="cpu", **settings))
        return QwenVL(QwenSettings(weights=qwen, device="cpu", dtype="float32", **settings))

    return make


@pytest.mark.parametrize("name", ["blip-vqa", "qwen-vl"])
def test_answers_do_not_depend_on_what_else_is_asked(made, name):
    together = made(name, batch=3).answers(PICTURES, QUESTIONS)
    judge = made(name, batch=1)
    assert together == [judge.answers([p], [q])[0] for p, q in zip(PICTURES, QUESTIONS, strict=True)]
    assert made(name, batch=3).answers(PICTURES[::-1], QUESTIONS[::-1]) == together[::-1]
    assert all(together) and judge.answers([], []) == []
    with pytest.raises(ValueError, match="4 pictures and 1 questions"):
        judge.answers(PICTURES, QUESTIONS[:1])


def test_blip_answers_as_its_own_generate_does(made):
    judge = made("blip-vqa")
    inputs = judge.inputs(known_image(), QUESTIONS[0])
    with torch.no_grad():
        tokens = judge.network.generate(**inputs, max_new_tokens=10)
    assert judge.answers([PICTURES[0]], QUESTIONS[:1]) == [
        plain(judge.processor.tokenizer.decode(tokens[0], skip_special_tokens=True))
    ]


def test_qwen_answers_with_the_words_it_adds(made):
    judge = made("qwen-vl")
    inputs = judge.inputs(known_image(), QUESTIONS[0])
    asked = judge.processor.tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True)
    assert "circle" in asked and "one word" in asked
    with torch.no_grad():
        tokens = judge.network.generate(**inputs, max_new_tokens=10, do_sample=False)
    expected = judge.processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert judge.answers([PICTURES[0]], QUESTIONS[:1]) == [plain(expected)]
    assert made("qwen-vl", suffix="").version != judge.version


def known_image():
    from PIL import Image

    return Image.fromarray(PICTURES[0])


@pytest.mark.parametrize("name", ["blip-vqa", "qwen-vl"])
def test_random_weights_fail_the_selftest(made, name):
    with pytest.raises(WorkError, match=f"judge {name} fails its self-test"):
        made(name).selftest()


def test_a_folder_without_a_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is no BlipForQuestionAnswering"):
        BlipVQA(BlipSettings(weights=str(tmp_path))).network  # noqa: B018


@pytest.mark.parametrize("share", [0, 0.5])
def test_a_model_that_is_cut_off_is_damaged(blip, tmp_path, share):
    folder = Path(shutil.copytree(blip, tmp_path / "cut"))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"cut is no BlipForQuestionAnswering or is damaged \(.+\)$"):
        BlipVQA(BlipSettings(weights=str(folder))).network  # noqa: B018


@pytest.mark.parametrize(
    "reply, told",
    [("yes", "yes"), ("Yes.", "yes"), (" No, there is none", "no"), ("none", "none"), ("yesterday", "yesterday"),
     ("two dogs ", "two dogs"), ("**No**", "no"), ("", "")],
)  # fmt: skip
def test_a_plain_yes_or_no_is_told_as_such(reply, told):
    assert plain(reply) == told
