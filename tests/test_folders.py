"""Whose picture a file is, in the layouts of folders that somebody else drew."""

import json

import numpy as np
import pytest
from PIL import Image

from twinbench.data.base import Request
from twinbench.errors import UserError
from twinbench.sources.folder import places

COPIES = 4
REQUESTS = [Request(f"{i:05d}", f"a photo of {i} cups", copy, "t") for i in (80, 81) for copy in range(COPIES)]


def sample(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)


def prompt(folder, names, number=80):
    """A folder of GenEval's layout with these samples."""
    for name in names:
        sample(folder / "samples" / name)
    (folder / "metadata.jsonl").write_text(json.dumps({"tag": "t", "prompt": f"a photo of {number} cups"}))


def told(images):
    """The file names by key and copy."""
    return {name: place.path.name for name, place in places(images, REQUESTS).items()}


def numbered(*numbers):
    return [f"{number:04d}.png" for number in numbers]


@pytest.mark.parametrize(
    "numbers, copies",
    [
        ((0, 1, 2, 3), (0, 1, 2, 3)),
        ((1, 2, 3), (1, 2, 3)),  # the first lacks: the others stay what they are
        ((0, 3), (0, 3)),
        ((1, 2, 3, 4), (0, 1, 2, 3)),  # counted from 1
        ((10, 20, 30), (0, 1, 2)),
    ],
)
def test_digits_below_the_number_of_copies_are_the_copy(tmp_path, numbers, copies):
    prompt(tmp_path / "00080", numbered(*numbers))
    names = zip(copies, numbered(*numbers), strict=True)
    assert told(tmp_path) == {("00080", copy): name for copy, name in names}


def test_two_folders_of_one_prompt_are_refused(tmp_path):
    prompt(tmp_path / "00080", numbered(0))
    prompt(tmp_path / "80", numbered(1))
    with pytest.raises(UserError, match="00080 and 80 are both prompt 00080; take one of them away"):
        places(tmp_path, REQUESTS)


@pytest.mark.parametrize("names", [["0000.jpg"], ["0000.png", "0001.JPG"]])
def test_samples_of_another_format_are_named_where_some_lack(tmp_path, names):
    prompt(tmp_path / "00080", names)
    with pytest.raises(UserError, match=rf"samples/{names[-1]} does not count, in GenEval's layout only \.png does"):
        places(tmp_path, REQUESTS)


def test_pictures_beside_all_samples_are_not_looked_at(tmp_path):
    prompt(tmp_path / "00080", [*numbered(0, 1, 2, 3), "0000.jpg", "grid.jpg"])
    assert sorted(told(tmp_path)) == [("00080", copy) for copy in range(COPIES)]


def test_a_folder_of_digits_among_grids_is_no_prompt(tmp_path):
    sample(tmp_path / "00080.png")
    sample(tmp_path / "512" / "00080.png")
    assert told(tmp_path) == {("00080", copy): "00080.png" for copy in range(COPIES)}
