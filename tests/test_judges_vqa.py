"""Questions about pictures: BLIP, Qwen2.5-VL, and a program in another environment."""

import sys

import numpy as np
import pytest
import torch
from judges_tiny import scene

from twinbench.errors import UserError, WorkError
from twinbench.judges import external, known
from twinbench.judges.external import ExternalSettings, ExternalVQA
from twinbench.judges.vqa import BlipSettings, BlipVQA, QwenSettings, QwenVL, plain

WORDS = sorted({word for _, question, _ in known.QUESTIONS for word in question.strip("?").lower().split()})
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "yes", "no", "?", *WORDS]
PICTURES = [scene(40, 40), scene(60, 40), scene(40, 40), np.ascontiguousarray(scene(40, 40)[::-1])]
QUESTIONS = ["Is the circle red?", "Is there a flower in the picture?", "Is there a person?", "Is the circle red?"]


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForQuestionAnswering,
        BlipImageProcessor,
        BlipProcessor,
    )

    folder = tmp_path_factory.mktemp("blip")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "sep_token_id": 3}
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BlipConfig(
        text_config={**sizes, **ids, "vocab_size": len(VOCABULARY), "encoder_hidden_size": 16},
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
    )
    torch.manual_seed(0)
    BlipForQuestionAnswering(config).save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return str(folder)


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


@pytest.mark.parametrize(
    "reply, told",
    [("yes", "yes"), ("Yes.", "yes"), (" No, there is none", "no"), ("none", "none"), ("yesterday", "yesterday"),
     ("two dogs ", "two dogs"), ("**No**", "no"), ("", "")],
)  # fmt: skip
def test_a_plain_yes_or_no_is_told_as_such(reply, told):
    assert plain(reply) == told


# ---- another environment ----

SERVER = """
import base64, io, json, sys
from PIL import Image
mode = sys.argv[1]
if mode == "mute":
    import time; time.sleep(60)
hello = {"name": "colour", "version": "1.5", "weights": "ab" * 32}
print(json.dumps({"hi": 1} if mode == "rude" else hello), flush=True)
held = []
for line in sys.stdin:
    ask = json.loads(line)
    red, _, blue = Image.open(io.BytesIO(base64.b64decode(ask["png"]))).getpixel((128, 128))
    said = ["yes" if ("red" in q) == (red > blue) else "no" for q in ask["questions"]]
    if mode == "dies":
        sys.exit(3)
    if mode == "closes":
        import os, time
        os.close(1); time.sleep(60)
    if mode == "fails":
        print(json.dumps({"id": ask["id"], "error": "out of memory"}), flush=True)
    elif mode == "short":
        print(json.dumps({"id": ask["id"] + 7, "answers": said}), flush=True)
    elif mode == "late":  # answers every second line, the newer one first
        held.append(json.dumps({"id": ask["id"], "answers": said}))
        if len(held) == 2:
            print(held.pop(), flush=True); print(held.pop(), flush=True)
    else:
        print(json.dumps({"id": ask["id"], "answers": said}), flush=True)
"""


@pytest.fixture
def program(tmp_path):
    (tmp_path / "serve.py").write_text(SERVER)
    started = []

    def start(mode, **settings):
        command = [sys.executable, str(tmp_path / "serve.py"), mode]
        started.append(ExternalVQA(ExternalSettings(command=command, **settings)))
        return started[-1]

    yield start
    for judge in started:
        judge.close()


def test_a_program_answers_over_its_standard_streams(program):
    red, blue = known.disc("red")[0], known.disc("blue")[0]
    questions = ["Is it red?", "Is it blue?", "Is it red?", "Is it blue?"]
    for mode, batch in (("good", 8), ("good", 1), ("late", 2)):
        judge = program(mode, batch=batch)
        assert judge.answers([red, red, blue, blue], questions) == ["yes", "no", "no", "yes"]
        assert judge.answers([blue, red], questions[:2]) == ["no", "no"]
    assert judge.version == "colour 1.5, weights abababababab" and judge.identity["name"] == "colour"


@pytest.mark.parametrize(
    "mode, message",
    [("dies", "ended with exit code 3"), ("fails", "failed: out of memory"), ("short", 'answered {"id": 7'),
     ("rude", "did not say its name, version and weights"), ("mute", "said nothing for 0.5 s"),
     ("closes", f"external-vqa: {sys.executable} closed its input or output, and did not end")],
)  # fmt: skip
def test_a_program_that_fails_stops_the_work(program, mode, message, monkeypatch):
    monkeypatch.setattr(external, "GRACE", 0.5)
    judge = program(mode, timeout=0.5 if mode == "mute" else 60)
    with pytest.raises(WorkError) as error:
        judge.answers([known.disc("red")[0]], ["Is it red?"])
    assert message in str(error.value)


def test_a_program_that_guesses_fails_the_selftest(program):
    with pytest.raises(WorkError, match=r"external-vqa .* fails its self-test"):
        program("good").selftest()


def test_a_program_that_is_not_there_is_named():
    with pytest.raises(UserError, match="cannot start /no/such/python"):
        _ = ExternalVQA(ExternalSettings(command=["/no/such/python"])).version
