"""The reference path of the detector gives what the default path gives (needs the extra `mmdet`)."""

import importlib.util
import os

import numpy as np
import pytest
import torch
from judges_tiny import HEAD, SWIN, detector_folder, mmdet_state, scene
from tiny import load

from twinbench.errors import UserError
from twinbench.judges import mmdetection
from twinbench.judges.detectors import DetectorSettings, Mask2Former
from twinbench.judges.mmdetection import MMDetection, MMDetectionSettings

ABSENT = importlib.util.find_spec("mmdet") is None
needed = pytest.mark.skipif(ABSENT, reason="mmdet is not installed (pip install 'twinbench[mmdet]')")
RECORDED = load("mask2former_mmdet")


def tiny_config(path):
    """mmdet's file of GenEval's network, with the sizes of the tiny one."""
    import mmdet
    from mmengine.config import Config

    config = Config.fromfile(os.path.join(os.path.dirname(mmdet.__file__), ".mim/configs", mmdetection.CONFIG))
    width = HEAD["hidden_dim"]
    config.model.backbone.update(
        embed_dims=SWIN["embed_dim"], depths=SWIN["depths"], num_heads=SWIN["num_heads"], init_cfg=None
    )
    head = config.model.panoptic_head
    head.update(
        in_channels=[SWIN["embed_dim"] * 2**i for i in range(4)],
        feat_channels=width,
        out_channels=width,
        num_queries=HEAD["num_queries"],
    )
    head.positional_encoding.num_feats = head.pixel_decoder.positional_encoding.num_feats = width // 2
    encoder, decoder = head.pixel_decoder.encoder, head.transformer_decoder
    encoder.num_layers, decoder.num_layers = HEAD["encoder_layers"], HEAD["decoder_layers"] - 1
    for layer, inner in (
        (encoder.layer_cfg, HEAD["encoder_feedforward_dim"]),
        (decoder.layer_cfg, HEAD["dim_feedforward"]),
    ):
        layer.ffn_cfg.update(embed_dims=width, feedforward_channels=inner)
        for name in {"self_attn_cfg", "cross_attn_cfg"} & set(layer):
            layer[name].update(embed_dims=width, num_heads=HEAD["num_attention_heads"])
    config.dump(path)
    return str(path)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    mmdetection.stand_in()
    folder = tmp_path_factory.mktemp("mmdet")
    config = tiny_config(folder / "tiny.py")
    state = mmdet_state(RECORDED["shapes"])
    from mmdet.apis import init_detector

    own = init_detector(config, None, palette="coco", device="cpu").state_dict()
    assert {name: list(value.shape) for name, value in own.items()} == RECORDED["shapes"]
    state |= {name: own[name] for name in own if name.endswith("index") or "class_weight" in name}
    torch.save({"state_dict": state, "meta": {}}, folder / "tiny.pth")
    settings = {"weights": str(folder / "tiny.pth"), "config": config, "device": "cpu"}
    return lambda **more: MMDetection(MMDetectionSettings(**settings, **more))


@needed
def test_both_paths_find_the_same(reference, tmp_path):
    folder = str(detector_folder(tmp_path / "folder", RECORDED["shapes"]))
    ours = Mask2Former(DetectorSettings(weights=folder, device="cpu", floor=0.0, batch=2))
    rng = np.random.default_rng(0)
    pictures = [scene(40, 200), rng.integers(0, 256, (20, 160, 3), np.uint8), scene(200, 40)]
    for a, b in zip(ours(pictures), reference(floor=0.0)(pictures), strict=True):
        assert len(a) == len(b) == 100
        for x, y in zip(a[:30], b[:30], strict=True):
            assert x.label == y.label and x.box == y.box and x.score == pytest.approx(y.score, abs=2e-5)
            assert (x.mask != y.mask).mean() < 1e-3


@needed
def test_a_checkpoint_that_does_not_fit_is_refused(reference, tmp_path):
    torch.save({"state_dict": {"backbone.x": torch.zeros(1)}}, tmp_path / "other.pth")
    judge = MMDetection(reference().config.model_copy(update={"weights": str(tmp_path / "other.pth")}))
    with pytest.raises(UserError, match="does not fit"):
        judge([scene()])


@pytest.mark.skipif(not ABSENT, reason="mmdet is installed")
def test_its_absence_is_said():
    with pytest.raises(UserError, match=r"mmdet needs mmdet: pip install 'twinbench\[mmdet\]'"):
        _ = MMDetection().version
