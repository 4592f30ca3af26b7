"""The sizes of public models: enough to build each network without a weight, and so to count it; nothing is downloaded.

They are what `transformer/config.json` and `vae/config.json` of a model say; `source` names where in diffusers the same
values stand. A number of parameters is that of the transformer alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinbench.errors import UserError
from twinbench.files import write_json

KL = {"block_out_channels": [128, 256, 512, 512]}  # 8 pixels a latent's side


@dataclass(frozen=True)
class Sizes:
    """vae: as far as the shape of a latent depends on it."""

    transformer: dict[str, Any]
    vae: dict[str, Any]
    source: str


QWEN_IMAGE = Sizes(  # 20.430 B
    {
        "patch_size": 2,
        "in_channels": 64,
        "out_channels": 16,
        "num_layers": 60,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 3584,
        "guidance_embeds": False,
        "axes_dims_rope": [16, 56, 56],
    },
    {"temperal_downsample": [False, True, True]},
    "defaults of QwenImageTransformer2DModel",
)
FLUX = Sizes(  # 11.901 B
    {
        "patch_size": 1,
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": True,
        "axes_dims_rope": [16, 56, 56],
    },
    KL,
    "defaults of FluxTransformer2DModel; with the guidance that -dev takes as an input",
)
Z_IMAGE = Sizes(  # 6.155 B
    {
        "all_patch_size": [2],
        "all_f_patch_size": [1],
        "in_channels": 16,
        "dim": 3840,
        "n_layers": 30,
        "n_refiner_layers": 2,
        "n_heads": 30,
        "n_kv_heads": 30,
        "qk_norm": True,
        "cap_feat_dim": 2560,
        "axes_dims": [32, 48, 48],
        "axes_lens": [1024, 512, 512],
    },
    KL,
    "defaults of ZImageTransformer2DModel",
)
SD35_MEDIUM = Sizes(  # 2.243 B
    {
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 24,
        "attention_head_dim": 64,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 384,
        "dual_attention_layers": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
        "qk_norm": "rms_norm",
    },
    KL,
    "scripts/convert_sd3_to_diffusers.py, its comments on 3.5 of 2B; as many heads as layers, 64 channels each",
)
DEEP = {"encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024]}  # 32 pixels a latent's side
SANA_SHARED = {
    "in_channels": 32,
    "out_channels": 32,
    "attention_head_dim": 32,
    "caption_channels": 2304,
    "mlp_ratio": 2.5,
    "patch_size": 1,
}
SANA_SOURCE = "scripts/convert_sana_to_diffusers.py"
SANA_1600M = Sizes(  # 1.604 B
    {
        **SANA_SHARED,
        "num_layers": 20,
        "num_attention_heads": 70,
        "num_cross_attention_heads": 20,
        "cross_attention_head_dim": 112,
        "cross_attention_dim": 2240,
        "sample_size": 16,
    },
    DEEP,
    SANA_SOURCE,
)
SANA_600M = Sizes(  # 0.592 B
    {
        **SANA_SHARED,
        "num_layers": 28,
        "num_attention_heads": 36,
        "num_cross_attention_heads": 16,
        "cross_attention_head_dim": 72,
        "cross_attention_dim": 1152,
        "sample_size": 16,
    },
    DEEP,
    SANA_SOURCE,
)
DIT_XL_2 = Sizes(  # 0.675 B
    {
        "num_attention_heads": 16,
        "attention_head_dim": 72,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 28,
        "sample_size": 32,
        "patch_size": 2,
        "num_embeds_ada_norm": 1000,
    },
    KL,
    "defaults of DiTTransformer2DModel; twice the channels out: the second half is the spread of DDPM",
)
SIZES = {
    "Qwen/Qwen-Image": QWEN_IMAGE,
    "Qwen/Qwen-Image-2512": QWEN_IMAGE,
    "black-forest-labs/FLUX.1-dev": FLUX,
    "Tongyi-MAI/Z-Image": Z_IMAGE,
    "Tongyi-MAI/Z-Image-Turbo": Z_IMAGE,
    "stabilityai/stable-diffusion-3.5-medium": SD35_MEDIUM,
    "Efficient-Large-Model/Sana_1600M_512px_diffusers": SANA_1600M,
    "Efficient-Large-Model/Sana_1600M_1024px_diffusers": SANA_1600M,
    "Efficient-Large-Model/Sana_600M_512px_diffusers": SANA_600M,
    "Efficient-Large-Model/Sana_600M_1024px_diffusers": SANA_600M,
    "openuni-l-512": SANA_1600M,  # what openuni_convert writes: the names are the recipes'
    "openuni-b-512": SANA_600M,
    "facebook/DiT-XL-2-256": DIT_XL_2,
}


@contextmanager
def sized(model: str) -> Iterator[str]:
    """A folder with the configurations of a model, for the length of the block: its own, where it is a folder.

    Raises UserError for a model of the hub whose sizes are not known."""
    if Path(model).is_dir():
        yield model
        return
    if model not in SIZES:
        known = ", ".join(SIZES)
        raise UserError(
            f"the sizes of {model!r} are not known; set backbone.model to a diffusers folder or one of {known}"
        )
    with tempfile.TemporaryDirectory() as folder:
        write_json(Path(folder) / "model_index.json", {})
        write_json(Path(folder) / "transformer" / "config.json", SIZES[model].transformer)
        write_json(Path(folder) / "vae" / "config.json", SIZES[model].vae)
        yield folder
