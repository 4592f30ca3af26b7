"""OpenUni: its words as the authors make them, and its folder from their checkpoint. Names and forms that stand here
were read in github.com/wusize/OpenUni; real weights were never loaded."""

import shutil

import families
import pytest
import torch
import torch.nn.functional as F
from transformers import InternVLConfig, InternVLForConditionalGeneration

from twinbench.backbones import openuni_convert as converter
from twinbench.backbones import tiny_words
from twinbench.backbones.openuni import TEMPLATE, Connector, Reader
from twinbench.backbones.source import Source
from twinbench.data.cache import key
from twinbench.data.drawn import Drawn, DrawnConfig
from twinbench.errors import UserError
from twinbench.exporting import card, export
from twinbench.files import read_json, write_json
from twinbench.planning import meta
from twinbench.sections import BackboneSection

ASKED = "<|im_start|>user\nGenerate an image: {}<|im_end|>\n<|im_start|>assistant\n<img>"  # GENERATION in INSTRUCTION
EMPTY = "<|im_start|>user\nGenerate an image.<|im_end|>\n<|im_start|>assistant\n<img>"  # CFG in it, IMG_START_TOKEN


def words_tensors(queries=8, width=64, inner=96, layers=2, words=8):
    """src/models/openuni/internvl3_sana_hf.py: meta_queries, connector, projector (enc_proj);
    src/models/connector/modeling_connector.py: ConnectorEncoder, -Layer, -Attention, -MLP."""
    linear = {f"self_attn.{kind}_proj": (width, width) for kind in ("k", "v", "q", "out")}
    linear |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
    shapes = {"meta_queries": (queries, width), "projector.weight": (words, width), "projector.bias": (words,)}
    for at in (f"connector.layers.{i}." for i in range(layers)):
        shapes |= {f"{at}{name}.weight": shape for name, shape in linear.items()}
        shapes |= {f"{at}{name}.bias": shape[:1] for name, shape in linear.items()}
        shapes |= {f"{at}layer_norm{n}.{kind}": (width,) for n in (1, 2) for kind in ("weight", "bias")}
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}


def opened(folder):
    return families.backbone("openuni", model=str(folder))


# ---- the words ----


def reference(tensors, x, heads, layers):
    """The connector and the projector, as their formulas say: x [n, queries, width]."""

    def linear(name, x):
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    for i in range(layers):
        at = f"connector.layers.{i}"
        h = norm(f"{at}.layer_norm1", x)
        q, k, v = (linear(f"{at}.self_attn.{p}_proj", h).unflatten(-1, (heads, -1)).transpose(1, 2) for p in "qkv")
        seen = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1) @ v  # every query sees every other
        x = x + linear(f"{at}.self_attn.out_proj", seen.transpose(1, 2).flatten(2))
        h = linear(f"{at}.mlp.fc1", norm(f"{at}.layer_norm2", x))
        x = x + linear(f"{at}.mlp.fc2", F.gelu(h, approximate="tanh"))
    return linear("projector", x)


def test_the_connector_is_the_authors():
    tensors = words_tensors(width=32)
    x = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(2))
    connector = Connector.of(tensors, heads=4)
    assert connector.state_dict().keys() == tensors.keys()
    torch.testing.assert_close(connector(x), reference(tensors, x, 4, 2), rtol=1e-5, atol=1e-5)
    assert (connector(x) - reference(tensors, x, 2, 2)).abs().max() > 1e-3


def test_words_are_the_last_hidden_states_of_the_queries_in_the_authors_batch():
    """prepare_forward_input: prompts are padded on the right, queries stand behind the padding, a mask hides it, and
    positions count what is not hidden."""
    network = families.backbone("openuni")
    prompts = ["a cat", " a red bench {in} the rain\n"]
    reader = network.codec.pipeline(network.device)
    rows = [reader.tokenizer(ASKED.replace("{}", prompt.strip())).input_ids for prompt in prompts]
    rows.append(reader.tokenizer(EMPTY).input_ids)
    longest, queries = max(map(len, rows)), reader.connector.meta_queries
    tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    hides = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) + [True] * len(queries) for row in rows])
    model = reader.language_model
    with torch.no_grad():
        hidden = model(
            inputs_embeds=torch.cat([model.get_input_embeddings()(tokens), queries.expand(3, -1, -1)], 1),
            attention_mask=hides,
            position_ids=(hides.cumsum(1) - 1).clamp(min=0),
        ).last_hidden_state[:, -len(queries) :]
        theirs = reader.connector(hidden)
    cond, null = network.encode(prompts), network.null(1)
    torch.testing.assert_close(torch.cat([cond["text"], null["text"]]), theirs, rtol=1e-4, atol=1e-5)
    assert cond["mask"].all() and null["mask"].all() and cond["mask"].shape == (2, len(queries))
    assert (cond["text"][0] - cond["text"][1]).abs().max() > 1e-3
    assert (network.encode([""])["text"] - null["text"]).abs().max() > 1e-4


def test_what_makes_the_words_is_frozen_and_no_part_of_the_network():
    network = families.backbone("openuni")
    network.encode(["a cat"])
    reader = network.codec.pipeline(network.device)
    assert not any(p.requires_grad for p in reader.parameters())
    assert not {id(p) for p in network.parameters()} & {id(p) for p in reader.parameters()}
    with pytest.raises(ValueError, match="leave tokens out"):
        families.backbone("openuni", tokens=20)


def test_a_tokenizer_without_the_marks_is_refused():
    connector, model = Connector.of(words_tensors(width=16), 2), tiny_words.qwen2(300)
    with pytest.raises(UserError, match="does not know '<img>'"):
        Reader(tiny_words.qwen_tokenizer(), model, connector, {"heads": 2, **TEMPLATE})


def test_an_export_reads_the_same_words_and_its_card_says_that_the_stock_pipeline_cannot(tmp_path):
    network, sample = families.backbone("openuni"), {"1": {"sigmas": [0.999], "guidance": 1.0, "stochastic": False}}
    record = {
        "resolved": {"backbone": {"model": "openuni-l-512"}},
        "method": "twinflow",
        "recipe": "openuni",
        "seed": 0,
    }
    record |= {"steps": 1, "network_passes": 1}
    told = card.card(record, network, {"sample": sample}, licence=None, results=None, lora=False)
    assert "text_encoder=None, tokenizer=None" in told and "pipe(prompt_embeds=text, prompt_attention_mask=mask" in told
    assert "cannot read prompts" in told
    folder = export.write_pipeline(network, tmp_path / "out", {"sample": sample}, told, dtype=torch.float32)
    assert torch.equal(opened(folder).encode(["a cat"])["text"], network.encode(["a cat"])["text"])


def test_the_cache_follows_the_language_model_the_connector_and_the_template(tmp_path):
    def words(folder):
        kind = type(families.backbone("openuni"))
        return key(kind, kind.Config(model=str(folder), resolution=64), Drawn(DrawnConfig(size=2)))["words"]

    here = families.folder("openuni")
    assert words(here).keys() == {"language_model", "connector"}
    there = shutil.copytree(here, tmp_path / "there")
    config = read_json(there / "connector/config.json")
    write_json(there / "connector/config.json", {**config, "empty": "Draw."})
    assert words(there)["connector"] != words(here)["connector"]
    assert Source(str(there)).sha256("language_model") == Source(str(here)).sha256("language_model")


def test_a_plan_counts_as_many_words_for_every_prompt():
    section = BackboneSection(name="openuni", model="openuni-l-512", resolution=512, text_dtype="bfloat16")
    network = meta.empty(section)
    assert all(p.device.type == "meta" for p in network.parameters())
    assert meta.condition(network, 7)["text"].shape == (1, 256, 2304)


# ---- from the authors' checkpoint ----


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A tiny InternVL3 in transformers' form; the folders of a tiny SANA and of its VAE."""
    tokenizer, folder = tiny_words.qwen_tokenizer("<img>"), tmp_path_factory.mktemp("sources") / "internvl"
    text = {"model_type": "qwen2", "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": [28, 28], "patch_size": [14, 14]}
    torch.manual_seed(0)
    InternVLForConditionalGeneration(InternVLConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sana = families.folder("sana")
    return {"language": str(folder), "sana": str(sana), "vae": str(sana / "vae")}


def checkpoint(folder, tensors, **more):
    path = folder / "openuni.pth"
    torch.save({**tensors, **more}, path)
    return path


def drawing(seed=4):
    """SANA's own names behind `transformer.` (SanaTransformer2DModel is theirs and ours)."""
    generator = torch.Generator().manual_seed(seed)
    own = families.backbone("sana").transformer.state_dict()
    return {f"transformer.{name}": torch.randn(value.shape, generator=generator) for name, value in own.items()}


def test_a_finetuned_checkpoint_becomes_a_model_that_says_what_it_holds(tmp_path, sources):
    told = {**words_tensors(), **drawing()}
    network = opened(converter.convert(checkpoint(tmp_path, told), tmp_path / "out", **sources))
    for name, value in network.transformer.state_dict().items():
        assert torch.equal(value, told[f"transformer.{name}"]), name
    reader = network.codec.pipeline(network.device)
    for name, value in reader.connector.state_dict().items():
        assert torch.equal(value, told[name]), name
    source = InternVLForConditionalGeneration.from_pretrained(sources["language"]).model.language_model
    assert all(torch.equal(a, b) for a, b in zip(reader.language_model.parameters(), source.parameters(), strict=True))
    assert reader.config == {"heads": 1, "prompt": ASKED.replace("{}", "{prompt}"), "empty": EMPTY}
    assert network.encode(["a cat"])["text"].shape == (1, 8, 8)


def test_what_was_frozen_is_that_of_its_source_or_of_the_checkpoint(tmp_path, sources):
    plain = opened(converter.convert(checkpoint(tmp_path, words_tensors()), tmp_path / "plain", **sources))
    sana = families.backbone("sana").transformer.state_dict()
    assert all(torch.equal(value, sana[name]) for name, value in plain.transformer.state_dict().items())
    model = plain.codec.pipeline(plain.device).language_model
    whole = {f"lmm.language_model.model.{name}": value + 1 for name, value in model.state_dict().items()}
    others = {"lmm.language_model.lm_head.weight": torch.zeros(1), "lmm.mlp1.0.weight": torch.zeros(1)}
    others |= {
        "lmm.vision_model.embeddings.class_embedding": torch.zeros(1),
        "vae.decoder.conv_in.weight": torch.zeros(1),
    }
    nested = checkpoint(tmp_path, {}, state_dict={**words_tensors(), **whole, **others})
    own = opened(converter.convert(nested, tmp_path / "own", **sources))
    for name, value in own.codec.pipeline(own.device).language_model.state_dict().items():
        assert torch.equal(value, whole[f"lmm.language_model.model.{name}"]), name


def test_a_name_too_many_or_too_few_ends_the_conversion(tmp_path, sources):
    told = {**words_tensors(), **drawing()}
    lacking = ["meta_queries", "projector.bias", "connector.layers.1.mlp.fc2.weight", "transformer.proj_out.weight"]
    cases = [({k: v for k, v in told.items() if k != name}, name.removeprefix("transformer.")) for name in lacking]
    more = ["connector.norm.weight", "transformer.time_embed_2.linear.weight", "llm2dit.weight", "projector.0.weight"]
    cases += [({**told, name: torch.zeros(2)}, name.removeprefix("transformer.")) for name in more]
    cases += [({**told, "projector.weight": torch.zeros(3, 64)}, "projector.weight")]
    cases += [(words_tensors(width=128), "queries have 128 channels"), (words_tensors(words=9), "words of 8 channels")]
    cases += [({"epoch": 3}, "no tensors")]
    for tensors, said in cases:
        with pytest.raises(UserError, match=said.replace(".", r"\.")):
            converter.convert(checkpoint(tmp_path, tensors), tmp_path / "out", **sources)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["openuni.pth"]  # nothing is left behind


class Call:
    def __reduce__(self):
        return print, ("a checkpoint must not run anything",)


def test_a_pickle_that_runs_something_is_refused(tmp_path, sources, capsys, monkeypatch):
    path = checkpoint(tmp_path, words_tensors(), extra=Call())
    monkeypatch.setattr("sys.argv", ["convert", str(path), str(tmp_path / "out"), "--sana", sources["sana"]])
    with pytest.raises(SystemExit) as end:
        converter.main()
    told = capsys.readouterr()
    assert end.value.code == 2 and "cannot be read" in told.err and "must not run" not in told.out
    with pytest.raises(UserError, match="no InternVL3 in transformers' form"):
        converter.convert(
            checkpoint(tmp_path, words_tensors()), tmp_path / "out", **{**sources, "language": sources["sana"]}
        )
