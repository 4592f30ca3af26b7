"""GenEval's detector: what mmdet finds, from the same weights, by transformers."""

import pickle

import numpy as np
import pytest
import torch
from judges_tiny import HEAD, SWIN, detector_folder, mmdet_state, scene
from tiny import load

from twinbench.data.geneval import CLASSES
from twinbench.errors import UserError, WorkError
from twinbench.judges import detectors, mask2former
from twinbench.judges.detectors import DetectorSettings, Mask2Former
from twinbench.judges.network import alike, each

RECORDED = load("mask2former_mmdet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(detector_folder(tmp_path_factory.mktemp("detector"), RECORDED["shapes"]))


def judge(folder, **settings):
    return Mask2Former(DetectorSettings(weights=folder, device="cpu", **settings))


@pytest.fixture(scope="module")
def found(folder):
    return judge(folder, floor=0, batch=2)([scene(*row["size"]) for row in RECORDED["pictures"]])


def test_it_finds_what_mmdet_finds(found):
    for told, row in zip(found, RECORDED["pictures"], strict=True):
        assert len(told) == 100
        for item, expected in zip(told, row["found"]):
            y, x = np.nonzero(item.mask)
            assert item.label == expected["label"] and item.mask.shape == tuple(row["size"])
            assert item.score == pytest.approx(expected["score"], abs=2e-5)
            assert item.box == tuple(expected["box"])
            assert len(x) == pytest.approx(expected["area"], abs=3)
            assert (x.mean(), y.mean()) == pytest.approx((expected["x"], expected["y"]), abs=0.05)


@pytest.mark.parametrize("batch", [1, 3])
def test_objects_do_not_depend_on_what_else_is_judged(folder, found, batch):
    pictures = [scene(*row["size"]) for row in RECORDED["pictures"]]
    order = [2, 0, 1, 0]
    told = judge(folder, floor=0, batch=batch)([pictures[i] for i in order])
    for i, items in zip(order, told, strict=True):
        for a, b in zip(items, found[i], strict=True):
            assert (a.label, a.box) == (b.label, b.box) and a.score == pytest.approx(b.score, abs=2e-5)
            assert (a.mask != b.mask).sum() <= 3
    for a, b in zip(told[1], told[3], strict=True):  # the same picture twice, at two places of a batch
        assert (a.label, a.score, a.box) == (b.label, b.score, b.box)


def test_the_floor_only_leaves_out(folder, found):
    told = judge(folder, floor=0.2)([scene(*RECORDED["pictures"][0]["size"])])[0]
    expected = [item for item in found[0] if item.score > 0.2]
    assert 0 < len(told) < 100
    assert [(a.label, a.box) for a in told] == [(b.label, b.box) for b in expected]
    assert judge(folder, floor=0.2).version != judge(folder).version


def test_scores_are_class_probability_times_mean_mask_probability():
    rng = torch.Generator().manual_seed(0)
    classes, masks = torch.randn(7, 81, generator=rng) * 3, torch.randn(7, 16, 24, generator=rng)
    told = detectors.objects(classes, masks, (60, 90), (64, 96), (30, 45), 0.0)
    share = classes.softmax(-1)[:, :80]
    big = torch.nn.functional.interpolate(masks[None], (64, 96), mode="bilinear")[..., :60, :90]
    big = torch.nn.functional.interpolate(big, (30, 45), mode="bilinear")[0]
    expected = []
    for query, kind in sorted(np.ndindex(7, 80), key=lambda pair: -float(share[pair]))[:100]:
        inside = big[query] > 0
        mean = big[query][inside].sigmoid().mean()
        expected.append((CLASSES[kind], float(share[query, kind] * mean), int(inside.sum())))
    expected.sort(key=lambda row: -row[1])
    assert [(f.label, int(f.mask.sum())) for f in told] == [(a, n) for a, _, n in expected]
    assert [f.score for f in told] == pytest.approx([s for _, s, _ in expected], rel=1e-4)


def test_a_picture_is_resized_to_fit_and_padded():
    assert detectors.sizes(360, 500) == ((800, 1111), (800, 1120))  # 500 * 800 / 360 = 1111.1
    assert detectors.sizes(512, 512) == ((800, 800), (800, 800))
    assert detectors.sizes(100, 1000) == ((133, 1333), (160, 1344))  # the long side is the limit
    x = torch.full((1, 3, 2, 4), 255.0)
    y = detectors.prepare(x, (4, 8), (5, 10))
    assert y[0, :, 0, 0].tolist() == pytest.approx([(255 - m) / s for m, s in zip(detectors.MEAN, detectors.STD)])
    assert not y[..., 4:, :].any() and not y[..., 8:].any() and y[..., :4, :8].all()


def test_bounds_hold_the_last_pixel():
    mask = np.zeros((6, 8), bool)
    assert detectors.bounds(mask) == (0, 0, 0, 0)
    mask[2:4, 5] = True
    assert detectors.bounds(mask) == (5, 2, 6, 4)


@pytest.mark.parametrize(
    "picture", [np.zeros((4, 4, 3)), np.zeros((4, 4, 4), np.uint8), np.zeros((3, 4), np.uint8)], ids=str
)
def test_what_is_no_picture_is_refused(folder, picture):
    with pytest.raises(ValueError, match="uint8"):
        judge(folder)([picture])


# ---- weights ----


def network():
    return mask2former.network(SWIN, **HEAD)


def test_every_tensor_of_mmdet_finds_its_place():
    state = mmdet_state(RECORDED["shapes"])
    made = network()
    mask2former.load(made, state, "tiny")
    here = made.state_dict()
    assert set(mask2former.convert(state)) == set(here) - mask2former.UNUSED
    for part in ("q", "k", "v"):  # one tensor there, three here
        name = f"model.transformer_module.decoder.layers.0.self_attn.{part}_proj.weight"
        rows = slice(*(32 * ("qkv".index(part) + i) for i in (0, 1)))
        there = state["panoptic_head.transformer_decoder.layers.0.self_attn.attn.in_proj_weight"]
        assert torch.equal(here[name], there[rows])


def test_a_checkpoint_that_lacks_a_tensor_or_has_another_is_refused():
    state = mmdet_state(RECORDED["shapes"])
    lacking = {k: v for k, v in state.items() if k != "panoptic_head.cls_embed.bias"}
    with pytest.raises(UserError, match=r"1 tensors are missing \(class_predictor.bias\)"):
        mask2former.load(network(), lacking, "x.pth")
    with pytest.raises(UserError, match="1 have no place"):
        mask2former.load(network(), {**state, "panoptic_head.pixel_decoder.extra.weight": torch.zeros(1)}, "x.pth")
    with pytest.raises(UserError, match=r"roi_head\.x is none of Mask2Former's"):
        mask2former.convert({"roi_head.x": torch.zeros(1)})


def test_a_checkpoint_holds_tensors_and_nothing_that_runs(tmp_path):
    good, bad = tmp_path / "good.pth", tmp_path / "bad.pth"
    torch.save({"state_dict": {"a": torch.ones(1)}, "meta": {"epoch": 50}}, good)
    assert mask2former.read(good) == {"a": torch.ones(1)}
    with bad.open("wb") as file:
        pickle.dump({"state_dict": Runs()}, file, 2)
    with pytest.raises(UserError, match="more than tensors"):
        mask2former.read(bad)
    assert not (tmp_path / "ran").exists()
    torch.save(torch.zeros(3), tmp_path / "nameless.pth")
    with pytest.raises(UserError, match="holds no tensors by name"):
        mask2former.read(tmp_path / "nameless.pth")


@pytest.mark.parametrize("content", [b"junk", b"\x80junk", b"\x80\x02.", b")R.", b""])
def test_a_checkpoint_that_is_none_is_damaged(tmp_path, content):
    (tmp_path / "junk.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"junk\.pth holds more than tensors or is damaged"):
        mask2former.read(tmp_path / "junk.pth")


class Runs:
    def __reduce__(self):
        return (open, ("ran", "w"))


def test_a_model_that_lacks_a_tensor_or_knows_other_classes_is_refused(tmp_path, folder):
    from safetensors.torch import load_file, save_file

    from twinbench.files import read_json, write_json

    for name in ("lacks", "other"):
        (tmp_path / name).mkdir()
        config = read_json(f"{folder}/config.json")
        tensors = load_file(f"{folder}/model.safetensors")
        if name == "lacks":
            del tensors["class_predictor.weight"]
        else:
            config["id2label"] = {str(i): f"thing {i}" for i in range(80)}
        save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
        write_json(tmp_path / name / "config.json", config)
    with pytest.raises(UserError, match="1 tensors are missing"):
        judge(str(tmp_path / "lacks"))([scene()])
    with pytest.raises(UserError, match="other classes"):
        judge(str(tmp_path / "other"))([scene()])


def test_the_version_tells_the_weights_and_the_packages(folder):
    import transformers

    told = judge(folder)
    assert told.identity["transformers"] == transformers.__version__ and len(told.identity["weights"]) == 64
    assert told.identity["weights"][:12] in told.version and transformers.__version__ in told.version


def test_the_weights_are_named_where_they_lack(monkeypatch, tmp_path):
    monkeypatch.setenv("TWINBENCH_ASSETS", str(tmp_path))
    with pytest.raises(UserError, match=r"c9d0c4f2.*twinbench fetch geneval-detector"):
        _ = Mask2Former().version
    with pytest.raises(UserError, match=r"x\.pth is no file"):
        _ = judge("x.pth").version


def test_a_detector_with_random_weights_fails_its_selftest(folder):
    with pytest.raises(WorkError, match="judge mask2former fails its self-test"):
        judge(folder).selftest()


# ---- batches ----


def test_batches_have_one_size_and_answers_keep_their_order():
    sizes = []

    def ask(rows):
        sizes.append(len(rows))
        return [row * 10 for row in rows]

    assert each(ask, [1, 2, 3, 4, 5], 2) == [10, 20, 30, 40, 50] and sizes == [2, 2, 2]
    kinds = []

    def of_a_kind(rows):
        kinds.append({row % 3 for row in rows})
        return [row * 10 for row in rows]

    assert alike(of_a_kind, list(range(8)), 2, lambda row: row % 3) == [row * 10 for row in range(8)]
    assert all(len(kind) == 1 for kind in kinds)
    assert each(ask, [], 2) == []
