"""Captioned pictures: each kind of storage gives the same samples, and says what is wrong with it."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from twinbench import plugins
from twinbench.data.buckets import covering
from twinbench.errors import UserError, WorkError

CAPTIONS = ["a red bench", "two cats, one of them asleep", "ein Fenster", "a wave"]


def picture(i):
    """Different sizes, wide and high."""
    return np.random.default_rng(i).integers(0, 256, (20 + 4 * i, 36 - 4 * i, 3), np.uint8)


def png(i):
    buffer = io.BytesIO()
    Image.fromarray(picture(i)).save(buffer, "PNG")
    return buffer.getvalue()


def opened(kind, **options):
    made = plugins.dataset(kind)
    return made(made.Config(**options))


def beside(folder):
    for i, caption in enumerate(CAPTIONS):
        (folder / f"{i}.png").write_bytes(png(i))
        (folder / f"{i}.txt").write_text(f"{caption}\n")
    return opened("images", path=str(folder))


def listed(folder, name):
    (folder / "sub").mkdir()
    for i in range(len(CAPTIONS)):
        (folder / "sub" / f"{i}.png").write_bytes(png(i))
    rows = [{"file_name": f"sub/{i}.png", "text": caption} for i, caption in enumerate(CAPTIONS)]
    if name.endswith(".jsonl"):
        text = "\n".join(json.dumps(row) for row in rows)
    else:
        text = "file_name,text\n" + "\n".join(f'{row["file_name"]},"{row["text"]}"' for row in rows)
    (folder / name).write_text(text)
    return opened("images", path=str(folder))


def tar(folder):
    with tarfile.open(folder / "a.tar", "w") as one, tarfile.open(folder / "b.tar", "w") as two:
        for i, caption in enumerate(CAPTIONS):
            described = (".txt", caption.encode()) if i % 2 else (".json", json.dumps({"caption": caption}).encode())
            for suffix, data in (described, (".png", png(i))):
                member = tarfile.TarInfo(f"part/{i:04d}{suffix}")
                member.size = len(data)
                (one if i < 3 else two).addfile(member, io.BytesIO(data))
    return opened("webdataset", path=str(folder))


def parquet(folder):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    rows = [{"image": {"bytes": png(i), "path": None}, "prompt": c, "n": i} for i, c in enumerate(CAPTIONS)]
    for name, part in (("a", rows[:3]), ("b", rows[3:])):
        table = pyarrow.Table.from_pylist(part)
        pyarrow.parquet.write_table(table, folder / f"{name}.parquet", row_group_size=2)
    return opened("parquet", path=str(folder))


def huggingface(folder):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [{"bytes": png(i), "path": None} for i in range(len(CAPTIONS))], "text": CAPTIONS}
    datasets.Dataset.from_dict(rows).save_to_disk(str(folder / "saved"))
    return opened("huggingface", path=str(folder / "saved"))


MADE = {
    "beside": beside,
    "jsonl": lambda folder: listed(folder, "metadata.jsonl"),
    "csv": lambda folder: listed(folder, "metadata.csv"),
    "tar": tar,
    "parquet": parquet,
    "huggingface": huggingface,
}


@pytest.mark.parametrize("name", MADE)
def test_every_storage_gives_the_same_samples(name, tmp_path):
    data = MADE[name](tmp_path)
    assert data.prompts == CAPTIONS and len(data) == 4
    for i in (3, 0, 2, 1):  # in any order
        assert np.array_equal(data.picture(i), picture(i))
    assert data.sha256() == type(data)(data.config).sha256()


def test_the_identity_follows_captions_and_pictures(tmp_path):
    first = beside(tmp_path).sha256()
    (tmp_path / "1.txt").write_text("two dogs")
    second = opened("images", path=str(tmp_path)).sha256()
    (tmp_path / "1.png").write_bytes(png(2))
    assert len({first, second, opened("images", path=str(tmp_path)).sha256()}) == 3
    assert opened("images", path=str(tmp_path), limit=2).sha256() != first


@pytest.mark.parametrize("name", MADE)
def test_other_bytes_of_a_picture_under_its_name_are_other_data(name, tmp_path, monkeypatch):
    first = png
    shas = []
    for where, longer in (("a", -1), ("b", -1), ("c", 2)):
        (tmp_path / where).mkdir()
        monkeypatch.setitem(globals(), "png", lambda i, longer=longer: first(i) + b"." * (i == longer))
        shas.append(MADE[name](tmp_path / where).sha256())
    assert shas[0] == shas[1] != shas[2]  # wherever they lie


def test_a_class_is_the_place_of_its_folder(tmp_path):
    for i, name in enumerate(("n02", "n01", "n02")):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / f"{i}.png").write_bytes(png(i))
    data = opened("images", path=str(tmp_path), captions="class")
    assert data.prompts == ["0", "1", "1"]
    assert np.array_equal(data.picture(0), picture(1))


def test_prompts_alone(tmp_path):
    (tmp_path / "p.txt").write_text("a cat\n\n a dog \n")
    (tmp_path / "p.jsonl").write_text('{"prompt": "a cat"}\n{"prompt": "a dog"}\n')
    for name in ("p.txt", "p.jsonl"):
        data = opened("prompts", path=str(tmp_path / name))
        assert data.prompts == ["a cat", "a dog"] and not data.pictures


def test_the_middle_square_is_kept():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    assert (covering(wide, (10, 10)) == 255).all()
    assert covering(wide, (5, 5)).shape == (5, 5, 3) and covering(wide, (5, 5))[:, 1:4].min() > 200
    assert covering(wide.transpose(1, 0, 2), (20, 20)).shape == (20, 20, 3)


@pytest.mark.parametrize(
    ("kind", "made", "words"),
    [
        ("images", {}, ("holds no samples",)),
        ("images", {"a.png": b"x"}, ("has no caption", "a.txt")),
        ("images", {"metadata.jsonl": b'{"text": "a"}'}, ("file_name",)),
        ("images", {"metadata.jsonl": b'{"file_name": "a.png", "x": 1}'}, ("data.field",)),
        ("webdataset", {}, ("no .tar file",)),
        ("webdataset", {"a.tar": b"not a tar"}, ("no plain tar",)),
        ("parquet", {}, ("no .parquet file",)),
    ],
)
def test_what_is_wrong_is_said(kind, made, words, tmp_path):
    for name, data in made.items():
        (tmp_path / name).write_bytes(data)
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    with pytest.raises(UserError) as error:
        opened(kind, path=str(tmp_path))
    assert all(word in str(error.value) for word in words)


def test_a_broken_or_missing_picture_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(png(0)[:100])
    (tmp_path / "a.txt").write_text("a")
    data = opened("images", path=str(tmp_path))
    with pytest.raises(WorkError, match=r"a\.png"):
        data.picture(0)
    (tmp_path / "a.png").unlink()
    with pytest.raises(WorkError, match="not there"):
        data.picture(0)
    with pytest.raises(UserError, match=r"data\.path"):
        opened("images")
