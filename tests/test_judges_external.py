"""A judge that is a program of another environment: what it answers, and what its failures cost."""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import sets, twinbench

from twinbench.errors import UserError, WorkError
from twinbench.judges import external, known
from twinbench.judges.external import ExternalSettings, ExternalVQA

SERVER = """
import base64, io, json, sys
from PIL import Image
mode = sys.argv[1]
if mode == "mute":
    import time; time.sleep(60)
hello = {"name": "colour", "version": "1.5", "weights": "ab" * 32}
print(json.dumps({"hi": 1} if mode == "rude" else hello), flush=True)
held = []
for line in sys.stdin:
    ask = json.loads(line)
    red, green, blue = Image.open(io.BytesIO(base64.b64decode(ask["png"]))).getpixel((128, 128))
    said = ["yes" if ("red" in q) == (red > blue) else "no" for q in ask["questions"]]
    if mode == "dies":
        sys.exit(3)
    if mode == "closes":
        import os, time
        os.close(1); time.sleep(60)
    if mode in ("stumbles", "breaks") and green == 9:
        if mode == "breaks":
            sys.exit(4)
        print(json.dumps({"id": ask["id"], "error": "too green"}), flush=True)
    elif mode == "fails":
        print(json.dumps({"id": ask["id"], "error": "out of memory"}), flush=True)
    elif mode == "short":
        print(json.dumps({"id": ask["id"] + 7, "answers": said}), flush=True)
    elif mode == "curt":
        print(json.dumps({"id": ask["id"], "answers": said[1:]}), flush=True)
    elif mode == "late":  # answers every second line, the newer one first
        held.append(json.dumps({"id": ask["id"], "answers": said}))
        if len(held) == 2:
            print(held.pop(), flush=True); print(held.pop(), flush=True)
    else:
        print(json.dumps({"id": ask["id"], "answers": said}), flush=True)
"""


@pytest.fixture
def program(tmp_path):
    (tmp_path / "serve.py").write_text(SERVER)
    started = []

    def start(mode, **settings):
        command = [sys.executable, str(tmp_path / "serve.py"), mode]
        started.append(ExternalVQA(ExternalSettings(command=command, **settings)))
        return started[-1]

    yield start
    for judge in started:
        judge.close()


def test_a_program_answers_over_its_standard_streams(program):
    red, blue = known.disc("red")[0], known.disc("blue")[0]
    questions = ["Is it red?", "Is it blue?", "Is it red?", "Is it blue?"]
    for mode, batch in (("good", 8), ("good", 1), ("late", 2)):
        judge = program(mode, batch=batch)
        assert judge.answers([red, red, blue, blue], questions) == ["yes", "no", "no", "yes"]
        assert judge.answers([blue, red], questions[:2]) == ["no", "no"]
    assert judge.version == "colour 1.5, weights abababababab" and judge.identity["name"] == "colour"


@pytest.mark.parametrize(
    "mode, message",
    [("dies", "ended with exit code 3"), ("fails", "failed: out of memory"), ("short", 'answered {"id": 7'),
     ("curt", 'answered {"id": 0, "answers": []}'), ("rude", "did not say its name, version and weights"),
     ("mute", "said nothing for 0.5 s"),
     ("closes", f"external-vqa: {sys.executable} closed its input or output, and did not end")],
)  # fmt: skip
def test_a_program_that_fails_stops_the_work(program, mode, message, monkeypatch):
    monkeypatch.setattr(external, "GRACE", 0.5)
    judge = program(mode, timeout=0.5 if mode == "mute" else 60)
    with pytest.raises(WorkError) as error:
        judge.answers([known.disc("red")[0]], ["Is it red?"])
    assert message in str(error.value)


def test_a_program_that_guesses_fails_the_selftest(program):
    with pytest.raises(WorkError, match=r"external-vqa .* fails its self-test"):
        program("good").selftest()


def test_a_program_that_is_not_there_is_named():
    with pytest.raises(UserError, match="cannot start /no/such/python"):
        _ = ExternalVQA(ExternalSettings(command=["/no/such/python"])).version


# ---- one picture of four fails ----


def picture(i):
    """A red one for an odd number, else a blue one; the second is the one that the program stumbles over."""
    red, blue = (200, 0) if i % 2 else (0, 200)
    return np.full((140, 140, 3), (red, 9 if i == 1 else i, blue), np.uint8)


@pytest.mark.parametrize("mode, told", [("stumbles", "too green"), ("breaks", "ended with exit code 4")])
def test_after_a_failure_the_next_questions_get_their_own_answers(program, mode, told):
    judge, asked = program(mode), ["Is it red?"] * 4
    with pytest.raises(WorkError, match=told):
        judge.answers([picture(i) for i in range(4)], asked)
    assert [judge.answers([picture(i)], asked[:1]) for i in (3, 0, 2)] == [["yes"], ["no"], ["no"]]


@pytest.mark.parametrize("mode, told", [("stumbles", "too green"), ("breaks", "ended with exit code 4")])
def test_a_failing_picture_is_named_and_no_other_is_marked(mode, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("serve.py").write_text(SERVER)
    Path("given").mkdir()
    head = "item_id,text,proposition_id,dependency,tuple,question_natural_language\n"
    Path("dpg.csv").write_text(head + "".join(f"p{i},a thing,1,0,entity - whole,Is it red?\n" for i in range(4)))
    for i in range(4):
        Image.fromarray(picture(i)).save(f"given/p{i}.png")
    words = ("eval", "--images", "given", "--bench", "dpg", "--dpg-csv", "dpg.csv", "--untested")
    command = f"[{sys.executable}, {Path('serve.py').absolute()}, {mode}]"
    vqa = f"eval.benchmarks.dpg={{copies: 1, vqa: {{name: external-vqa, command: {command}}}}}"
    assert twinbench(*words, *sets(vqa)) == 1
    said = capsys.readouterr().err
    assert "fails on 'p1', copy 0" in said and told in said
    assert twinbench(*words, *sets(vqa), "--keep-going") == 0
    (path,) = Path("results").rglob("dpg-nfe0.items.jsonl.gz")
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert [(row["key"], row["corrected"], "error" in row) for row in rows] == [
        ("p0", 0, False),
        ("p1", 0, True),
        ("p2", 0, False),
        ("p3", 100, False),
    ]
    assert told in rows[1]["error"]
