"""Tiny pipelines of the large models, their backbones and their stock images."""

import os
import tempfile
from functools import cache
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import diffusers
import torch
from diffusers.utils import logging
from transformers.utils import logging as words_logging

from twinbench import plugins
from twinbench.backbones.pipeline import pack
from twinbench.backbones.tiny import tiny

logging.set_verbosity_error()
logging.disable_progress_bar()
words_logging.set_verbosity_error()
words_logging.disable_progress_bar()

WORDED = ["qwen-image", "sd3", "sana", "openuni", "z-image", "flux"]
FAMILIES = [*WORDED, "dit"]
PACKED = ("qwen-image", "flux")
OFFICIAL = ["qwen-image", "sd3", "sana", "openuni"]
SIDE = 64
T, R = torch.tensor([0.9, 0.37]), torch.tensor([0.0, 0.2])
_HOLD = tempfile.TemporaryDirectory()


@cache
def folder(name) -> Path:
    return tiny(name, Path(_HOLD.name) / name)


def backbone(name, seed=0, **options):
    kind = plugins.backbone(name)
    torch.manual_seed(seed)
    options = {"model": str(folder(name)), "resolution": SIDE} | options
    if name == "dit":
        options = {"pretrained": True} | options
    return kind(kind.Config(**options))


def prompts(name):
    return ["1", "ostrich"] if name == "dit" else ["a cat", "a red bench in the rain"]


def noise(network, seed=1, pixels=(SIDE, SIDE)):
    shape = network.shape[0], *(side // network.factor for side in pixels)
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))


def call(network, cond, z, t=T, r=R):
    with torch.no_grad():
        return network(z, t, r, cond)


def disturb(network, seed=3):
    """Give the second time something to say."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.target_time.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return network


def stock(folder, network, **options):
    """The unmodified pipeline of a folder; without a text encoder where the words are the family's own."""
    options |= dict.fromkeys(("text_encoder", "tokenizer")) if network.own else {}
    return diffusers.DiffusionPipeline.from_pretrained(folder, **options)


def stock_images(pipeline, network, name, z, **options):
    """What the unmodified pipeline draws from this noise: [n, 3, height, width] in [0, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    if name in ("sana", "openuni"):
        options["use_resolution_binning"] = False
    height, width = (side * network.factor for side in z.shape[2:])
    options |= {"height": height, "width": width, "output_type": "pt", **network.unguided}
    asked = {"prompt": prompts(name)}
    if network.own:
        cond = network.encode(prompts(name))
        asked = {"prompt_embeds": cond["text"], "prompt_attention_mask": cond["mask"]}
    return pipeline(**asked, latents=pack(z) if name in PACKED else z.clone(), **options).images


def decoded(network, x):
    with torch.no_grad():
        return (network.decoded(network.codec.vae(network.device), x) / 2 + 0.5).clamp(0, 1)
