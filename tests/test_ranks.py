"""Several processes at one evaluation: where one fails, all end with its error, and at once."""

import contextlib
import io
import json
import os
import time
from pathlib import Path

import numpy as np
import painted
import pytest
from PIL import Image
from processes import together
from small import sets, twinbench

from twinbench import plugins, ranks
from twinbench.errors import UserError, WorkError

LONG = 60  # seconds that nothing here may take


def fails(error):
    """The second process fails at the second of three stages, the first one has much to do meanwhile."""

    def work():
        said = []
        with ranks.together() as here:
            for stage in range(3):
                try:
                    with here.stage():
                        if stage == 1 and here.rank == 1:
                            raise error
                        end = time.monotonic() + (LONG if stage == 1 and here.rank == 0 else 0)
                        while time.monotonic() < end:
                            here.look()
                            time.sleep(0.01)
                    said.append("done")
                except Exception as told:
                    said.append((type(told).__name__, str(told)))
        return said

    return work


@pytest.mark.parametrize(
    "error, elsewhere",
    [
        (UserError("no file x"), ("UserError", "no file x")),
        (WorkError("x is broken"), ("WorkError", "x is broken")),
        (KeyError("x"), ("WorkError", "process 1 failed (KeyError: 'x')")),
    ],
)
def test_an_error_of_one_process_is_that_of_all_and_they_go_on_together(error, elsewhere):
    start = time.monotonic()
    first, second = together(fails(error))
    assert first == ["done", elsewhere, "done"]
    assert second == ["done", (type(error).__name__, str(error)), "done"]
    assert time.monotonic() - start < LONG


@pytest.fixture
def words(tmp_path, monkeypatch):
    """eval of twelve pictures, four at a time: the second process judges prompts 00002 and 00003 alone."""
    monkeypatch.syspath_prepend(painted.install(tmp_path / "site"))
    monkeypatch.chdir(tmp_path)
    plugins._group.cache_clear()
    Path("given").mkdir()
    rows = []
    for r in painted.Painted().requests():
        pixels = np.full((8, 8, 3), 20 * int(r.key), np.uint8)
        pixels[0, 0] = 255
        Image.fromarray(pixels).save(f"given/{r.key}-{r.copy}.png")
        rows.append(json.dumps({"file": f"{r.key}-{r.copy}.png", "key": r.key, "copy": r.copy}))
    Path("given/manifest.jsonl").write_text("\n".join(rows))
    yield ("eval", "--images", "given", "--bench", "painted")
    plugins._group.cache_clear()


def ended(*words):
    """Exit code and error of the command line."""
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(io.StringIO()):
        code = twinbench(*words)
    return code, [line for line in said.getvalue().splitlines() if line.startswith("error:")]


def test_a_picture_that_one_process_cannot_judge_ends_both_with_its_name(words):
    outcomes = together(lambda: ended(*words, *sets("eval.benchmarks.painted.fails_at='00003'")))
    assert outcomes[0] == outcomes[1]
    code, (line,) = outcomes[0]
    assert code == 1 and "the judge eye/1 fails on '00003', copy 0 (RuntimeError: too bright" in line


def test_what_lacks_in_one_process_ends_both_as_bad_input(words, monkeypatch):
    lost = property(lambda eye: _here() if os.environ["RANK"] == "1" else "1")
    monkeypatch.setattr(painted.Eye, "version", lost)
    assert together(lambda: ended(*words)) == 2 * [(2, ["error: no weights in this process"])]


def _here():
    raise UserError("no weights in this process")
