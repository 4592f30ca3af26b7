"""The codecs of the large families: words, latents, what is held and where it comes from."""

import families
import pytest
import torch
from families import FAMILIES, WORDED, R, T, call
from small import files

from twinbench.backbones.source import Source
from twinbench.backbones.tiny import tiny
from twinbench.errors import UserError
from twinbench.flow import guided, join

each = pytest.mark.parametrize("name", FAMILIES)


@pytest.mark.parametrize("name", WORDED)
def test_embeddings_do_not_depend_on_their_neighbours(name):
    network = families.backbone(name)
    short, long = families.prompts(name)
    both, alone = network.encode([short, long]), network.encode([short])
    tokens = alone["text"].shape[1]
    assert torch.equal(both["text"][:1, :tokens], alone["text"])
    if network.masked:
        assert both["mask"].sum(1).tolist() == [tokens, both["text"].shape[1]]
        assert not both["text"][0, tokens:].any()


@each
def test_conditions_of_other_lengths_join_and_guide(name):
    network = families.backbone(name)
    cond, null, z = network.encode(families.prompts(name)), network.null(2), families.noise(network)
    joined = call(network, join(cond, null), torch.cat([z, z]), torch.cat([T, T]), torch.cat([R, R]))
    apart = torch.cat([call(network, cond, z), call(network, null, z)])
    assert (apart[:2] - apart[2:]).abs().max() > 1e-4
    torch.testing.assert_close(joined, apart, rtol=0, atol=2e-6)
    with torch.no_grad():
        mixed = guided(network, null, 2.0)(z, T, R, cond)
    torch.testing.assert_close(mixed, 2 * apart[:2] - apart[2:], rtol=0, atol=1e-6)


@each
def test_latents_and_pixels_have_the_scale_of_the_stock_vae(name):
    network = families.backbone(name)
    pixels = torch.randint(0, 256, (2, 3, families.SIDE, families.SIDE), dtype=torch.uint8)
    x = network.latents(pixels)
    assert x.shape == (2, *network.shape)
    vae = network.codec.vae(network.device)
    frames = pixels.float() / 127.5 - 1
    with torch.no_grad():
        if name == "qwen-image":
            raw, c = vae.encode(frames[:, :, None]).latent_dist.mode()[:, :, 0], vae.config
            expected = torch.stack([(raw[:, i] - c.latents_mean[i]) / c.latents_std[i] for i in range(4)], 1)
        elif name in ("sana", "openuni"):
            expected = vae.encode(frames).latent * vae.config.scaling_factor
        else:
            shift = vae.config.shift_factor or 0
            expected = (vae.encode(frames).latent_dist.mode() - shift) * vae.config.scaling_factor
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-6)
    assert network.pixels(x).shape == pixels.shape and network.pixels(x).dtype == torch.uint8


def test_the_codec_goes_when_told_and_the_empty_condition_stays():
    network = families.backbone("sana")
    null = network.null(1)
    network.codec.drop()
    network.codec.source = None  # whoever loads again, fails
    assert torch.equal(network.null(1)["text"], null["text"])
    with pytest.raises(AttributeError):
        network.encode(["a cat"])


def test_classes_are_numbers_or_names_and_dropping_them_is_left_to_the_data():
    network = families.backbone("dit").train()
    assert network.encode(["9", "ostrich", "Struthio camelus", ""])["label"].tolist() == [9, 9, 9, 10]
    with pytest.raises(ValueError, match="no class"):
        network.encode(["a unicorn"])
    z = families.noise(network)
    cond = network.encode(families.prompts("dit"))
    assert all(torch.equal(call(network, cond, z), call(network, cond, z)) for _ in range(8))


def test_random_weights_of_the_same_sizes_follow_the_seed():
    a, b, c = (families.backbone("sd3", seed=seed, pretrained=False) for seed in (1, 1, 2))
    same = [torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(a.transformer.proj_out.weight, c.transformer.proj_out.weight)


def test_what_is_not_there_or_does_not_fit_is_said():
    with pytest.raises(UserError, match=r"give backbone\.model a diffusers folder or a hub id"):
        families.backbone("sd3", model="/nowhere/at/all")
    with pytest.raises(ValueError, match="multiple of 16"):
        families.backbone("sd3", resolution=72)


@each
def test_a_tiny_pipeline_has_the_same_bytes_whenever_it_is_made(name, tmp_path):
    assert files(tiny(name, tmp_path / name)) == files(families.folder(name))


def test_the_weights_of_a_pipeline_have_one_identity_wherever_they_lie(tmp_path):
    here = families.folder("sd3")
    there = tiny("sd3", tmp_path / "there")
    assert Source(str(here)).sha256() == Source(str(there)).sha256()
    assert Source(str(tiny("sd3", tmp_path / "other", seed=1))).sha256() != Source(str(here)).sha256()
    blob = tmp_path / ("ab" * 32)
    weights = there / "transformer/diffusion_pytorch_model.safetensors"
    weights.rename(blob)
    weights.symlink_to(blob)  # as the hub's cache holds it: the name is the hash
    assert Source(str(there)).sha256() != Source(str(here)).sha256()
    with pytest.raises(UserError, match="no tiny twin"):
        tiny("mlp", tmp_path / "mlp")
