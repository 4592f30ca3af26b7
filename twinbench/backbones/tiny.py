"""Tiny pipelines: the classes of the large ones in small sizes, with random weights, made on the spot.

`tiny("qwen-image", folder)` writes a whole pipeline folder in about a second; the same seed gives the same bytes. With
it every step from cache to export is tried on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from twinbench.backbones import tiny_words as words
from twinbench.backbones.source import quiet
from twinbench.errors import UserError
from twinbench.files import read_json, whole_folder, write_json

LABELS = {"0": "tench, Tinca tinca", "1": "goldfish, Carassius auratus", "9": "ostrich, Struthio camelus"}


def tiny(name: str, folder: Path, seed: int = 0) -> Path:
    """Write the tiny pipeline of a backbone into a folder, unless it is there already; returns the folder.

    Raises UserError for a backbone that has none."""
    if name not in MAKERS:
        raise UserError(f"backbone {name!r} has no tiny twin; these have one: {', '.join(sorted(MAKERS))}")
    if folder.exists():
        return folder
    import torch

    quiet()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = MAKERS[name]()
    with whole_folder(folder) as new:
        pipeline.save_pretrained(new)
        if name == "dit":  # diffusers reads this list, but does not write it
            index = read_json(new / "model_index.json")
            write_json(new / "model_index.json", {**index, "id2label": LABELS})
    return folder


def qwen_image() -> Any:
    import diffusers

    tokenizer = words.qwen_tokenizer()
    return diffusers.QwenImagePipeline(
        transformer=diffusers.QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=3,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
        ),
        vae=diffusers.AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 2, 2, 2],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.1, -0.2, 0.3, 0.0],
            latents_std=[2.0, 1.5, 2.5, 1.0],
        ),
        text_encoder=words.qwen_vl(len(tokenizer)),
        tokenizer=tokenizer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.5,
            max_shift=0.9,
            base_image_seq_len=256,
            max_image_seq_len=8192,
            shift_terminal=0.02,
            time_shift_type="exponential",
        ),
    )


def sd3() -> Any:
    import diffusers

    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=32,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=32,
            pooled_projection_dim=64,
            pos_embed_max_size=32,
            qk_norm="rms_norm",
            dual_attention_layers=(0,),
        ),
        vae=_kl(),
        text_encoder=words.clip(),
        tokenizer=words.clip_tokenizer(),
        text_encoder_2=words.clip(),
        tokenizer_2=words.clip_tokenizer(),
        text_encoder_3=words.t5(),
        tokenizer_3=words.t5_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def sana() -> Any:
    import diffusers

    tokenizer = words.gemma_tokenizer()
    return diffusers.SanaPipeline(
        transformer=diffusers.SanaTransformer2DModel(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            num_cross_attention_heads=2,
            cross_attention_head_dim=8,
            cross_attention_dim=16,
            caption_channels=8,
            sample_size=32,
        ),
        vae=diffusers.AutoencoderDC(
            in_channels=3,
            latent_channels=4,
            attention_head_dim=2,
            encoder_block_types=("ResBlock", "EfficientViTBlock"),
            decoder_block_types=("ResBlock", "EfficientViTBlock"),
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            encoder_qkv_multiscales=((), (5,)),
            decoder_qkv_multiscales=((), (5,)),
            encoder_layers_per_block=(1, 1),
            decoder_layers_per_block=(1, 1),
            downsample_block_type="conv",
            upsample_block_type="interpolate",
            decoder_norm_types="rms_norm",
            decoder_act_fns="silu",
            scaling_factor=0.41407,
        ),
        text_encoder=words.gemma(len(tokenizer)),
        tokenizer=tokenizer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def openuni() -> Any:
    from twinbench.backbones.openuni import TEMPLATE, Connector, Parts, Reader

    pipeline, tokenizer = sana(), words.qwen_tokenizer("<img>")
    pipeline.register_modules(text_encoder=None, tokenizer=None)
    connector = Connector(queries=8, width=16, inner=24, layers=2, heads=2, words=8)
    reader = Reader(tokenizer, words.qwen2(len(tokenizer)), connector, {"heads": 2, **TEMPLATE})
    return Parts(pipeline, reader)


def z_image() -> Any:
    import diffusers

    tokenizer = words.qwen_tokenizer()
    return diffusers.ZImagePipeline(
        transformer=diffusers.ZImageTransformer2DModel(
            all_patch_size=(2,),
            all_f_patch_size=(1,),
            in_channels=4,
            dim=32,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            qk_norm=True,
            cap_feat_dim=16,
            axes_dims=[8, 4, 4],
            axes_lens=[1024, 64, 64],
        ),
        vae=_kl(),
        text_encoder=words.qwen3(len(tokenizer)),
        tokenizer=tokenizer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def flux(guidance: bool = True) -> Any:
    import diffusers

    return diffusers.FluxPipeline(
        transformer=diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=guidance,
        ),
        vae=_kl(),
        text_encoder=words.clip(projected=False),
        tokenizer=words.clip_tokenizer(),
        text_encoder_2=words.t5(),
        tokenizer_2=words.t5_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


def dit() -> Any:
    import diffusers

    return diffusers.DiTPipeline(
        transformer=diffusers.DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            num_layers=2,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=10,
        ),
        vae=_kl(shift=None),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )


def _kl(shift: float | None = 0.0609) -> Any:
    import diffusers

    return diffusers.AutoencoderKL(
        sample_size=32,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        shift_factor=shift,
        scaling_factor=1.5035,
    )


MAKERS: dict[str, Callable[[], Any]] = {
    "qwen-image": qwen_image,
    "sd3": sd3,
    "sana": sana,
    "openuni": openuni,
    "z-image": z_image,
    "flux": flux,
    "dit": dit,
}
