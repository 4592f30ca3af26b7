"""CLIP: colours as GenEval names them, scores, and the activation that the weights were trained with."""

import numpy as np
import open_clip
import pytest
import torch
from judges_tiny import clip_file
from tiny import load

from twinbench.data.geneval import COLORS
from twinbench.errors import UserError, WorkError
from twinbench.judges import known
from twinbench.judges.base import Found
from twinbench.judges.clip import TEMPLATES, Clip, ClipColors, ClipSettings, ColorSettings, cutout

CROPS = load("geneval_crops")["cases"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return str(clip_file(tmp_path_factory.mktemp("clip")))


def clip(weights, **settings):
    return Clip(ClipSettings(model="tiny-clip-quickgelu", weights=weights, device="cpu", **settings))


def colors(weights, **settings):
    return ClipColors(ColorSettings(model="tiny-clip-quickgelu", weights=weights, device="cpu", **settings))


@pytest.mark.parametrize("case", CROPS, ids=range(len(CROPS)))
def test_the_classifier_is_shown_what_geneval_shows_it(case):
    mask = None if case["mask"] is None else np.array(case["mask"], bool)
    options = case["options"]
    found = Found("x", 1.0, tuple(case["box"]), mask)
    picture = np.array(case["image"], np.uint8)
    shown = cutout(picture, found, options.get("bgcolor", "#999"), options.get("crop", "1") == "1")
    assert np.array_equal(np.asarray(shown), np.array(case["expected_crop"], np.uint8))


def test_a_box_without_area_keeps_a_pixel(weights):
    picture, judge = np.full((8, 8, 3), 7, np.uint8), colors(weights)
    for box in ((3.2, 3.2, 3.4, 6.0), (2.0, 5.0, 2.0, 5.0), (5.0, 5.0, 3.0, 3.0)):
        found = Found("cup", 1.0, box, None)
        assert min(cutout(picture, found).size) == 1
        assert judge.color_of(picture, found, "cup") in COLORS


def test_colours_are_open_clips_zero_shot_classes(weights):
    judge = colors(weights, batch=4)
    pictures, found = zip(*(known.disc(color) for color in ("red", "blue", "white")), strict=True)
    network, _, transform = open_clip.create_model_and_transforms("tiny-clip-quickgelu", pretrained=weights)
    with torch.no_grad():
        head = open_clip.build_zero_shot_classifier(
            network.eval(),
            open_clip.get_tokenizer("tiny-clip-quickgelu"),
            COLORS,
            [lambda color, t=t: t.format(color=color, label="cup") for t in TEMPLATES],
        )
        shown = torch.stack([transform(cutout(p, f)) for p, f in zip(pictures, found, strict=True)])
        logits = network.encode_image(shown, normalize=True) @ head
    assert np.allclose(judge._classes("cup"), head.T, atol=1e-6)
    assert judge.colors_of(pictures, found, ["cup"] * 3) == [COLORS[i] for i in logits.argmax(1)]
    one = [judge.color_of(p, f, "cup") for p, f in zip(pictures, found, strict=True)]
    assert judge.colors_of(pictures, found, ["cup"] * 3) == one and judge.colors_of([], [], []) == []


def test_scores_are_the_cosines_of_pictures_and_their_texts(weights):
    judge = clip(weights, batch=2)
    pictures = [known.picture(name) for name in ("temple", "person", "red")]
    texts = ["a temple", "a person", "a red disc"]
    a, b = judge.images(pictures), judge.texts(texts)
    assert np.linalg.norm(a, axis=1) == pytest.approx(np.ones(3)) and b.shape == (3, 12)
    assert judge.scores(pictures, texts) == pytest.approx([a[i] @ b[i] for i in range(3)], abs=1e-6)
    single = clip(weights, batch=1)
    alone = np.concatenate([single.images([picture]) for picture in pictures])
    assert np.allclose(a, alone, atol=1e-6)
    with pytest.raises(ValueError, match="3 pictures and 1 texts"):
        judge.scores(pictures, texts[:1])


def test_the_activation_must_be_the_one_of_the_weights(weights):
    assert not np.allclose(
        clip(weights).texts(["a dog"]),
        Clip(ClipSettings(model="tiny-clip", weights=weights, quick_gelu=False, device="cpu")).texts(["a dog"]),
        atol=1e-5,
    )
    with pytest.raises(UserError, match=r"tiny-clip has GELU.*clip\.model=tiny-clip-quickgelu"):
        Clip(ClipSettings(model="tiny-clip", weights=weights)).texts(["a dog"])
    with pytest.raises(UserError, match="has QuickGELU"):
        clip(weights, quick_gelu=False).texts(["a dog"])
    with pytest.raises(UserError, match="knows no network"):
        Clip(ClipSettings(model="ViT-L-15", weights=weights)).texts(["a dog"])


def test_the_default_network_has_quickgelu():
    from open_clip.model import QuickGELU

    with torch.device("meta"):
        network = open_clip.create_model(ClipSettings().model, pretrained=None, device="meta")
    assert sum(isinstance(module, QuickGELU) for module in network.modules()) == 36


def test_weights_are_looked_for_in_a_folder(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="holds no open_clip_model"):
        _ = clip(str(tmp_path)).path
    (tmp_path / "open_clip_model.safetensors").touch()
    assert clip(str(tmp_path)).path.name == "open_clip_model.safetensors"


@pytest.mark.parametrize("content", [b"junk", b"\x80junk", b"\x80\x02.", b")R.", b""])
@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "weights.pt"])
def test_weights_that_are_none_are_damaged(weights, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} holds no tiny-clip-quickgelu or is damaged \(.+\)$"):
        clip(str(tmp_path / name)).texts(["a dog"])


def test_random_weights_fail_the_selftest(weights):
    with pytest.raises(WorkError, match="clip fails its self-test"):
        clip(weights).selftest()
    with pytest.raises(WorkError, match="clip-colors fails its self-test"):
        colors(weights).selftest()


def test_a_judge_that_knows_passes_the_selftest():
    """The checks themselves: one who answers right passes them, one who says the same always does not."""

    class Knows(ClipColors):
        def colors_of(self, pictures, found, labels):
            return [item.color for item in found]

    class Stubborn(ClipColors):
        def colors_of(self, pictures, found, labels):
            return ["red"] * len(found)

    Knows(ColorSettings(weights="x")).selftest()
    stubborn = Stubborn(ColorSettings(weights=__file__))
    with pytest.raises(WorkError, match="1 of 10 right"):
        stubborn.selftest()
