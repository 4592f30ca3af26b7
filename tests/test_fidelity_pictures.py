"""Fidelity and diversity of pictures: against references on disk, with judges that are plain arithmetic."""

import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from small import sets, twinbench

from twinbench import assets
from twinbench.benchmarks import base, references
from twinbench.benchmarks.base import Evidence, join
from twinbench.benchmarks.diversity_pictures import DiversityConfig, PictureDiversity
from twinbench.benchmarks.fidelity_pictures import FidelityConfig, PictureFidelity
from twinbench.data.base import Request
from twinbench.errors import UserError, WorkError
from twinbench.judges.base import Distance, Features, Similarity
from twinbench.judges.distances import frechet, kernel_distance
from twinbench.results import read_items


class Corners(Features):
    """Three corner pixels as features."""

    name, version = "corners", "1"

    def __call__(self, pictures):
        return np.array([p[[0, 0, -1], [0, -1, 0], 0] for p in pictures], np.float64) / 255


class Words(Similarity):
    name, version = "words", "1"

    def scores(self, pictures, texts):
        return np.array([p[0, 0, 0] / 255 if "bright" in t else 0.0 for p, t in zip(pictures, texts, strict=True)])


class Apart(Distance):
    name, version = "lpips", "1"

    def __call__(self, pictures, others):
        return np.array([np.abs(a.astype(float) - b).mean() for a, b in zip(pictures, others, strict=True)])


@pytest.fixture
def judges(monkeypatch):
    made = {"corners": Corners(), "clip": Words(), "lpips": Apart(), "inception": Corners()}
    monkeypatch.setattr(base, "judge_of", lambda name, settings: made[name])


def pictures(n, seed, size=(8, 8)):
    return list(np.random.default_rng(seed).integers(0, 256, (n, *size, 3), dtype=np.uint8))


@pytest.fixture
def real(tmp_path, judges):
    """A reference of 40 pictures, as the command makes it."""
    folder = tmp_path / "mine"
    (folder / "pictures").mkdir(parents=True)
    rows = []
    for i, p in enumerate(pictures(40, 0)):
        Image.fromarray(p).save(folder / "pictures" / f"{i}.png")
        rows.append(
            {
                "key": f"k{i}",
                "prompt": "a bright day" if i % 2 else "a night",
                "tag": "all",
                "file": f"pictures/{i}.png",
            }
        )
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    list(references.make(str(folder), Corners()))
    return folder


def bench(folder, **settings):
    return PictureFidelity(None, FidelityConfig(reference=str(folder), features="corners", **settings))


def scored(b, evidence):
    b.settle(evidence)
    return b.summarize(evidence)


def test_distances_to_a_reference_are_those_to_its_features(real):
    b, drawn = bench(real), pictures(40, 1)
    evidence = b.judge(drawn, b.requests())
    values, mine, theirs = scored(b, evidence), Corners()(drawn), Corners()(pictures(40, 0))
    assert values["fid"] == pytest.approx(frechet(mine, theirs), rel=1e-9)
    assert values["kid"] == pytest.approx(kernel_distance(mine, theirs), abs=1e-4)  # kept in half precision
    cosines = [p[0, 0, 0] / 255 if i % 2 else 0 for i, p in enumerate(drawn)]
    assert values["clip"] == pytest.approx(100 * np.mean(cosines))
    sha = b.statistics.sha256[:12]
    assert b.judge_name == f"corners/1 + words/1 + mine/{sha}" and b.prompt_set == "mine"
    assert b.judges[-1] == {"reference": "mine", "sha256": b.statistics.sha256}
    assert values.keys() == {"fid", "kid", "clip"} and {"key", "prompt", *values} <= evidence.items[0].keys()


def test_parts_joined_are_the_whole(real):
    b, drawn = bench(real, clip=None), pictures(40, 1)
    requests = b.requests()
    whole = b.judge(drawn, requests)
    parts = join([b.judge(drawn[i : i + 16], requests[i : i + 16]) for i in range(0, 40, 16)])
    assert parts.keys == whole.keys and np.array_equal(parts.features, whole.features) and whole.items == []
    assert scored(b, parts) == scored(b, whole)
    assert [row["key"] for row in whole.items] == whole.keys and parts.items == whole.items


def test_the_reference_compared_with_itself_is_at_no_distance(real):
    b = bench(real, clip=None)
    assert scored(b, b.judge(pictures(40, 0), b.requests()))["fid"] == pytest.approx(0, abs=1e-7)


def test_requests_are_the_references_prompts(real):
    requests = bench(real).requests()
    assert len(requests) == 40 and requests[1] == Request("k1", "a bright day", 0, "all")
    assert len(bench(real, images=7).requests()) == 7 and len(bench(real).requests(limit=3)) == 3


def test_a_prompt_may_hold_any_character_and_a_line_that_is_none_is_named(real):
    place = real / "prompts.jsonl"
    rows = [json.loads(line) for line in place.read_text().split("\n") if line]
    rows[0]["prompt"] = "a line\u2028of two"
    place.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert [r.prompt for r in bench(real).requests()[:2]] == ["a line\u2028of two", "a bright day"]
    place.write_text('{"key": "a"}\n')
    with pytest.raises(UserError, match="line 1 is no JSON object with key, prompt, tag"):
        bench(real).requests()
    place.write_text(json.dumps(rows[0]) + "\nno row\n")
    with pytest.raises(UserError, match="line 2 is no JSON object with key, prompt, tag, file"):
        list(references.make(str(real), Corners()))


def test_a_broken_picture_of_a_reference_is_named(real):
    (real / "pictures" / "3.png").write_bytes(b"no picture")
    with pytest.raises(WorkError, match=r"pictures/3\.png in .* cannot be read"):
        list(references.make(str(real), Corners()))


def test_other_features_or_none_are_refused(real, monkeypatch, tmp_path):
    monkeypatch.setattr(Corners, "version", "2")
    with pytest.raises(UserError, match="features of 'corners/1', not of 'corners/2'"):
        _ = bench(real).judge_name
    monkeypatch.setenv("TWINBENCH_ASSETS", str(tmp_path))
    with pytest.raises(UserError, match="twinbench fetch mjhq-30k"):
        bench("mjhq-30k").requests()
    with pytest.raises(UserError, match="needs a reference"):
        PictureFidelity().requests()
    (real / "corners.npz").write_bytes(b"PK no")
    with pytest.raises(UserError, match="holds no statistics"):
        _ = bench(real).statistics
    (real / "corners.npz").unlink()
    with pytest.raises(UserError, match="--features corners makes it"):
        _ = bench(real).statistics
    with pytest.raises(WorkError, match="none may be left out"):
        bench(real, clip=None).judge(pictures(3, 0), bench(real).requests())


def test_published_statistics_are_those_of_one_resizing(tmp_path, monkeypatch, judges):
    monkeypatch.setenv("TWINBENCH_ASSETS", str(tmp_path))
    x = np.random.default_rng(0).normal(size=(100, 3))
    (tmp_path / "imagenet-256").mkdir()
    place = tmp_path / "imagenet-256" / "VIRTUAL_imagenet256_labeled.npz"
    np.savez(place, mu=x.mean(0), sigma=np.cov(x, rowvar=False), arr_0=np.zeros((2, 4, 4, 3), np.uint8))
    b = PictureFidelity(None, FidelityConfig(reference="imagenet-256", clip=None, images=2000))
    with pytest.raises(UserError, match="legacy_tensorflow' or 'torch-fidelity/1, tensorflow', not of 'corners/1'"):
        _ = b.judge_name
    for name, rules in (("torch-fidelity", "1, tensorflow"), ("inception", "1, legacy_tensorflow")):
        monkeypatch.setattr(Corners, "version", f"{rules}, weights 0")
        monkeypatch.setattr(Corners, "name", name)
        b.__dict__.pop("statistics", None)
        assert b.judge_name.startswith(f"{name}/{rules}, weights 0 + imagenet-256/")
    y = np.random.default_rng(1).normal(size=(50, 3))
    values = scored(b, Evidence(features=y, keys=[str(i) for i in range(50)]))
    assert values == {"fid": pytest.approx(frechet(y, x), rel=1e-9)}  # no kernel distance without features
    assert [r.prompt for r in b.requests()[998:1002]] == ["998", "999", "0", "1"]


def test_mjhqs_archive_becomes_a_reference(tmp_path, monkeypatch, judges):
    monkeypatch.setenv("TWINBENCH_ASSETS", str(tmp_path))
    (tmp_path / "mjhq-30k").mkdir()
    told = {f"id{i}": {"category": ("food", "art")[i % 2], "prompt": f"dish {i}"} for i in range(5)}
    (tmp_path / "mjhq-30k" / "meta_data.json").write_text(json.dumps(told))
    with zipfile.ZipFile(tmp_path / "mjhq-30k" / "mjhq30k_imgs.zip", "w") as archive:
        for i, p in enumerate(pictures(5, 0, (8, 12))):
            Image.fromarray(p).save(tmp_path / "x.png")
            archive.write(tmp_path / "x.png", f"mjhq30k_imgs/{told[f'id{i}']['category']}/id{i}.jpg")
    assert [share for share, _ in references.make("mjhq-30k", Corners())][-1] == 1.0
    assert [r.prompt for r in references.requests("mjhq-30k", None)] == [f"dish {i}" for i in range(5)]
    middle = Corners()([p[:, 2:10] for p in pictures(5, 0, (8, 12))])
    assert references.statistics("mjhq-30k", "corners").mean == pytest.approx(middle.mean(0))
    assert references.statistics("mjhq-30k", "corners").n == 5
    told["lost"] = {"category": "art", "prompt": "none"}
    (tmp_path / "mjhq-30k" / "meta_data.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"lacks 1 pictures, art/lost\.jpg"):
        list(references.make("mjhq-30k", Corners()))


def test_coco_takes_the_first_caption_of_each_picture(tmp_path):
    told = {
        "images": [{"id": 7, "file_name": "COCO_7.jpg"}, {"id": 3, "file_name": "COCO_3.jpg"}],
        "annotations": [
            {"id": 9, "image_id": 7, "caption": "late"},
            {"id": 2, "image_id": 7, "caption": " first \n"},
            {"id": 5, "image_id": 3, "caption": "only"},
        ],
    }
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("annotations/captions_val2014.json", json.dumps(told))
    rows = references._coco(tmp_path / "a.zip")
    assert [(r["key"], r["prompt"], f) for r, f in rows] == [
        ("000000000003", "only", "COCO_3.jpg"),
        ("000000000007", "first", "COCO_7.jpg"),
    ]
    assert len(references._coco(tmp_path / "a.zip", 1)) == 1


def test_the_command_keeps_the_share_of_each_picture(real, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given").mkdir()
    for i, p in enumerate(pictures(40, 1)):
        Image.fromarray(p).save(tmp_path / "given" / f"{i}.png")
    rows = [{"file": f"{i}.png", "key": f"k{i}"} for i in range(40)]
    (tmp_path / "given" / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = f"eval.benchmarks.fidelity={{reference: {real}, features: corners, clip: null}}"
    assert twinbench("eval", "--images", "given", "--bench", "fidelity", *sets(settings)) == 0
    (score,) = [json.loads(path.read_text()) for path in tmp_path.rglob("fidelity-nfe0.json")]
    (items,) = [read_items(path) for path in tmp_path.rglob("fidelity-nfe0.items.jsonl.gz")]
    for name in ("fid", "kid"):
        told = score["metrics"][name]
        assert told["n"] == 40 and told["value"] == pytest.approx(np.mean([row[name] for row in items]), rel=1e-12)
        assert 0 < told["se"] < abs(np.std([row[name] for row in items]))
    assert score["judges"][0] == {"judge": "corners", "rules": "1"}


# ---- diversity ----


def test_diversity_is_the_mean_over_pairs_then_over_prompts(judges):
    b = PictureDiversity()
    requests = b.requests(limit=1)
    assert len(requests) == 24 and b.prompt_set == "geneval" and b.judge_name == "lpips/1"
    drawn = pictures(24, 3)
    rows = b.judge(drawn, requests).items
    for k, row in enumerate(rows):
        four = [p.astype(float) for p in drawn[4 * k : 4 * k + 4]]
        pairs = [np.abs(four[i] - four[j]).mean() for i in range(4) for j in range(i)]
        assert row["distance"] == pytest.approx(np.mean(pairs)) and row["key"] == requests[4 * k].key
    values = b.summarize(Evidence(rows))
    assert values == {"distance": pytest.approx(np.mean([row["distance"] for row in rows]))}
    assert b.summarize(b.judge([drawn[0]] * 24, requests)) == {"distance": 0.0}  # a collapsed generator


def test_diversity_by_an_encoder(judges):
    b = PictureDiversity(None, DiversityConfig(distance=None, features="corners", asks="geneval"))
    drawn = pictures(4, 3)
    x = Corners()(drawn)
    (row,) = b.judge(drawn, b.requests(limit=1)[:4]).items
    pairs = [np.linalg.norm(x[i] - x[j]) for i in range(4) for j in range(i)]
    assert row["distance"] == pytest.approx(np.mean(pairs)) and b.judge_name == "corners/1"
    with pytest.raises(ValueError, match="distance or features"):
        DiversityConfig(features="corners")


def test_diversity_asks_what_the_other_benchmark_asks_under_its_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table = (
        "item_id,text,proposition_id,dependency,tuple,question_natural_language\na1,two cats,1,0,entity - whole,Cats?\n"
    )
    (tmp_path / "dpg.csv").write_text(table)
    rows = [{"file": f"{copy}.png", "key": "a1", "copy": copy} for copy in range(3)]
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn = [np.full((8, 8, 3), 60 * copy, np.uint8) for copy in range(3)]
    for copy, p in enumerate(drawn):
        Image.fromarray(p).save(tmp_path / "given" / f"{copy}.png")
    words = ("eval", "--images", "given", "--bench", "diversity", "--dpg-csv", "dpg.csv")
    words += (*sets("eval.benchmarks.diversity={distance: null, features: {name: pixels, side: 1}, asks: dpg}"),)
    assert twinbench(*words, *sets("eval.benchmarks.dpg.copies=3")) == 0
    (score,) = [json.loads(path.read_text()) for path in tmp_path.rglob("diversity-nfe0.json")]
    assert score["copies"] == 3 and score["prompts"].startswith("dpg#")
    assert score["metrics"]["distance"]["value"] == pytest.approx((60 + 60 + 120) / 3 / 255 * 3**0.5)
    assert twinbench(*words, *sets("eval.benchmarks.dpg.copies=1")) == 2
    assert "compares the pictures of a prompt, and dpg asks for one" in capsys.readouterr().err
    assert twinbench("eval", "--images", "given", "--bench", "geneval", "--dpg-csv", "dpg.csv") == 2
    assert "--dpg-csv dpg.csv: none of geneval asks DPG-Bench's questions" in capsys.readouterr().err


def test_large_features_do_not_go_into_the_results():
    assert Evidence(features=np.zeros((1200, 64))).small and not Evidence(features=np.zeros((30_000, 2048), bool)).small
    assert not Evidence().small and assets.ASSETS["mjhq-30k"].files[1].path.endswith(".zip")
