"""OpenMMLab's names for Mask2Former's tensors, told in transformers' names.

GenEval's detector was trained with mmdet (Swin-S, COCO instances). The network is the same in both libraries; names
differ, queries, keys and values are one tensor there and three here, and a patch merging takes the four pixels of a
patch in another order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from twinbench.errors import UserError
from twinbench.judges import weights

if TYPE_CHECKING:
    from torch import Tensor

SWIN_S: dict[str, Any] = {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24], "window_size": 7}
UNUSED = {  # of transformers' model, and of no consequence
    "model.pixel_level_module.encoder.swin.layernorm.weight",
    "model.pixel_level_module.encoder.swin.layernorm.bias",
    "criterion.empty_weight",
}
SWIN, PIXELS, QUERIES = (
    "model.pixel_level_module.encoder.",
    "model.pixel_level_module.decoder.",
    "model.transformer_module.",
)

# (part of the name there, part of the name here), applied in order; a regular expression each
_BACKBONE = [
    (r"^norm(\d)\.", lambda m: f"hidden_states_norms.stage{int(m[1]) + 1}."),
    (r"^patch_embed\.projection", "swin.embeddings.patch_embeddings.projection"),
    (r"^patch_embed\.norm", "swin.embeddings.norm"),
    (r"^stages\.", "swin.encoder.layers."),
    (r"attn\.w_msa\.proj", "attention.o_proj"),
    (r"attn\.w_msa\.relative_position_bias_table", "attention.relative_position_bias.relative_position_bias_table"),
    (r"attn\.w_msa\.qkv", "attention.qkv"),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"ffn\.layers\.0\.0", "mlp.fc1"),
    (r"ffn\.layers\.1", "mlp.fc2"),
]
_PIXEL_DECODER = [
    (r"input_convs\.(\d)\.conv", r"input_projections.\1.0"),
    (r"input_convs\.(\d)\.gn", r"input_projections.\1.1"),
    (r"ffn\.layers\.0\.0", "fc1"),
    (r"ffn\.layers\.1", "fc2"),
    (r"norms\.0", "self_attn_layer_norm"),
    (r"norms\.1", "final_layer_norm"),
    (r"level_encoding\.weight", "level_embed"),
    (r"lateral_convs\.0\.conv", "adapter_1.0"),
    (r"lateral_convs\.0\.gn", "adapter_1.1"),
    (r"output_convs\.0\.conv", "layer_1.0"),
    (r"output_convs\.0\.gn", "layer_1.1"),
    (r"mask_feature\.", "mask_projection."),
]
_DECODER = [
    (r"self_attn\.attn\.in_proj_", "self_attn.qkv."),
    (r"self_attn\.attn\.", "self_attn."),
    (r"cross_attn\.attn\.", "cross_attn."),
    (r"ffn\.layers\.0\.0", "fc1"),
    (r"ffn\.layers\.1", "fc2"),
    (r"norms\.0", "cross_attn_layer_norm"),
    (r"norms\.1", "self_attn_layer_norm"),
    (r"norms\.2", "final_layer_norm"),
    (r"post_norm", "layernorm"),
]
_HEAD = [
    (r"^cls_embed", "class_predictor"),
    (r"^mask_embed\.(\d)\.", lambda m: f"{QUERIES}decoder.mask_predictor.mask_embedder.{int(m[1]) // 2}.0."),
    (r"^query_embed", f"{QUERIES}queries_embedder"),
    (r"^query_feat", f"{QUERIES}queries_features"),
    (r"^level_embed", f"{QUERIES}level_embed"),
]
_PARTS: list[tuple[str, str, list[Any]]] = [
    ("backbone.", SWIN, _BACKBONE),
    ("panoptic_head.pixel_decoder.", PIXELS, _PIXEL_DECODER),
    ("panoptic_head.transformer_decoder.", QUERIES + "decoder.", _DECODER),
    ("panoptic_head.", "", _HEAD),
]


def network(swin: Mapping[str, Any] = SWIN_S, **head: Any) -> Any:
    """transformers' model with weights at random: the official size, or another for tests."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    stages = [f"stage{i}" for i in (1, 2, 3, 4)]
    backbone = SwinConfig.from_dict({"image_size": 224, "patch_size": 4, "out_features": stages, **swin})
    config: Any = Mask2FormerConfig.from_dict({"num_labels": 80, "backbone_config": backbone.to_dict(), **head})
    return Mask2FormerForUniversalSegmentation(config)


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """mmdet's tensors of Mask2Former with a Swin backbone -> those of transformers' model. UserError for a strange
    name."""
    out: dict[str, Any] = {}
    for name, value in state.items():
        if name.endswith("relative_position_index") or name == "panoptic_head.loss_cls.class_weight":
            continue  # follow from the settings
        here = _name(name)
        if name.endswith("downsample.reduction.weight"):
            value = value.view(len(value), -1, 2, 2).transpose(1, 3).reshape(value.shape)
        elif ".downsample.norm." in name:
            value = value.view(-1, 2, 2).transpose(0, 2).reshape(-1)
        if ".qkv." in here:
            out |= {here.replace("qkv", f"{part}_proj"): rows for part, rows in zip("qkv", value.chunk(3), strict=True)}
        else:
            out[here] = value
    return out


def _name(name: str) -> str:
    for prefix, here, rules in _PARTS:
        if name.startswith(prefix):
            new = name.removeprefix(prefix)
            for pattern, other in rules:
                new = re.sub(pattern, other, new)
            return here + new
    raise UserError(f"tensor {name} is none of Mask2Former's: this is not a checkpoint of mmdet's Mask2Former")


def load(network: Any, state: Mapping[str, Tensor], path: Any) -> None:
    """Put mmdet's tensors into transformers' model. Raises UserError unless each finds its place and none lacks."""
    told = network.load_state_dict(convert(state), strict=False)
    lacking = sorted(set(told.missing_keys) - UNUSED)
    if lacking or told.unexpected_keys:
        raise UserError(
            f"{path} does not fit: {len(lacking)} tensors are missing ({', '.join(lacking[:2])}), "
            f"{len(told.unexpected_keys)} have no place ({', '.join(told.unexpected_keys[:2])}); "
            "GenEval's weights are those named ..._c9d0c4f2.pth, of mmdet 3"
        )


def read(path: Any) -> dict[str, Tensor]:
    """The tensors of OpenMMLab's checkpoint: nothing else in the file is made. Raises UserError if it holds more than
    tensors and plain values."""
    import torch

    try:
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no checkpoint breaks the reader in any way
        raise UserError(
            f"{path} holds more than tensors or is damaged ({weights.told(error)}); convert it once where you "
            "trust it: torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW)"
        ) from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no tensors by name: this is not a checkpoint of mmdet's Mask2Former")
    return tree.get("state_dict", tree)
