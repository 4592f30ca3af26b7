"""Tiny judges made on the spot: networks of the real classes, with weights from a formula."""

import json
import zlib

import numpy as np
import torch

from twinbench.judges import known, mask2former

SWIN = {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": 7, "drop_path_rate": 0.0}
HEAD = {
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 24,
    "encoder_layers": 2,
    "decoder_layers": 4,
    "num_attention_heads": 8,
    "dim_feedforward": 40,
    "num_queries": 6,
}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
VISION = {"image_size": 224, "layers": 1, "width": 16, "patch_size": 56, "head_width": 8}
WORDS = sorted({word for _, question, _ in known.QUESTIONS for word in question.strip("?").lower().split()})
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "yes", "no", "?", *WORDS]


def values(name, shape):
    """Numbers that look random and depend on the name alone: of unit fan-in for matrices, near 1 for norms' weights."""
    n = int(np.prod(shape))
    u = np.sin(np.arange(n) * 12.9898 + zlib.crc32(name.encode()) % 1000) * 43758.5453
    u = (u - np.floor(u)).reshape(shape) - 0.5
    if len(shape) > 1:
        u = u * 3.46 / np.sqrt(np.prod(shape[1:]))
    elif name.endswith("weight"):
        u = 1 + 0.2 * u
    if any(part in name for part in ("cls_embed", "query_feat", "query_embed", "mask_embed")):
        u = u * 4  # so that queries find different classes
    if "mask_feature" in name:
        u = 8 * (u - u.mean(1, keepdims=True)) if len(shape) > 1 else 0 * u  # and not the whole picture
    return torch.tensor(u, dtype=torch.float32)


def mmdet_state(shapes):
    """mmdet's tensors of the tiny detector, from their recorded names and shapes."""
    return {
        name: torch.zeros(shape) if name.endswith("index") or "class_weight" in name else values(name, shape)
        for name, shape in shapes.items()
    }


def detector_folder(folder, shapes):
    """A tiny Mask2Former as transformers stores it."""
    network = mask2former.network(SWIN, **HEAD)
    mask2former.load(network, mmdet_state(shapes), "tiny")
    network.save_pretrained(folder)
    return folder


def clip_file(folder):
    """A tiny CLIP known to open_clip with and without QuickGELU, and a file of random weights."""
    import open_clip

    for name, quick in (("tiny-clip-quickgelu", True), ("tiny-clip", False)):
        config = {"embed_dim": 12, "vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": quick}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    path = folder / "weights.pt"
    torch.save(open_clip.create_model("tiny-clip", pretrained=None).state_dict(), path)
    return path


def blip_folder(folder):
    """A tiny BLIP that knows the words of the self-test."""
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForQuestionAnswering,
        BlipImageProcessor,
        BlipProcessor,
    )

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
    return folder


def scene(h=20, w=200):
    """A smooth coloured picture, uint8 [h, w, 3], from a formula."""
    y, x = np.mgrid[:h, :w]
    waves = [127 + 100 * np.sin(x / 17 + y / 23), 127 + 100 * np.cos(y / 11), x * 255 / w]
    return np.stack(waves, -1).clip(0, 255).astype(np.uint8)
