"""Anything can be evaluated: pipelines and folders of images, stopped at any moment, by one process or two."""

import gzip
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import families
import numpy as np
import painted
import pytest
import torch
from PIL import Image
from small import QUICK, scores, sets, trained, twinbench

from twinbench import plugins, results
from twinbench.backbones.tiny import tiny
from twinbench.benchmarks.base import Evidence
from twinbench.errors import UserError, WorkError
from twinbench.evaluating.judging import complete
from twinbench.randomness import request_noise
from twinbench.sampler import Plan, Schedule
from twinbench.sources.drawing import Drawing
from twinbench.sources.pipeline import Pipeline, PipelineSource
from twinbench.sources.steps import StepOptions, Steps, plans
from twinbench.sources.stored import Store, file_of

HERE = Path(__file__).parent
BENCH = ("--bench", "painted,measured", "--size", "32", "--batch", "2", "--guidance", "1")
REQUESTS = painted.Painted().requests()


pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """A folder of tiny pipelines, made when they are asked for."""
    folder = tmp_path_factory.mktemp("pipelines")
    return lambda name: tiny(name, folder / name)


def items(folder, stem="painted-nfe1"):
    (path,) = Path(folder).rglob(f"{stem}.items.jsonl.gz")
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


# ---- what a pipeline draws ----


def draw(pipeline, plan, requests=REQUESTS[:2], batch=2):
    source = PipelineSource(Pipeline(str(pipeline), 32, batch), "weights", plan, "painted", Path("images"))
    assert [*source.draw(requests)][-1] == len(requests)
    return source


@pytest.mark.parametrize("name", ["sd3", "qwen-image"])
def test_a_picture_is_what_the_stock_pipeline_makes_of_the_noise_of_the_request(pipelines, name):
    """With sigmas as the network sees them: the shifts of these pipelines' own schedulers are off."""
    import diffusers

    pipe = diffusers.DiffusionPipeline.from_pretrained(str(pipelines(name)))
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    pipe.set_progress_bar_config(disable=True)
    side = 32 // pipe.vae_scale_factor
    noise = torch.stack([request_noise((4, side, side), "painted", r.key, r.copy) for r in REQUESTS[:2]])
    off = {"guidance_scale": 1.0}
    if name == "qwen-image":  # a token is two by two latents
        noise = noise.view(2, 4, side // 2, 2, side // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(2, -1, 16)
        off = {"true_cfg_scale": 1.0}
    want = pipe(
        [r.prompt for r in REQUESTS[:2]],
        latents=noise,
        height=32,
        width=32,
        num_inference_steps=2,
        sigmas=[0.999, 0.6],
        output_type="np",
        **off,
    ).images
    drawn = draw(pipelines(name), Steps(2, 2, (0.999, 0.6), 1.0)).read(REQUESTS[:2])
    assert [p.tolist() for p in drawn] == (want * 255).round().astype(np.uint8).tolist()
    assert drawn[0].tolist() != drawn[1].tolist()


@pytest.mark.parametrize("name", [*families.PACKED, "sd3", "sana", "z-image"])
def test_a_pipeline_and_a_run_draw_the_same_pictures_from_the_noise_of_requests_and_steps(pipelines, name):
    """The run's sampler on latents [C, h, w], the stock scheduler on what the pipeline makes of them."""
    network = families.backbone(name, model=str(pipelines(name)), resolution=32).requires_grad_(False)
    plan = Plan(3, Schedule((0.9, 0.6, 0.3), "same", renoise=1.0))
    ours = Drawing(Path("ours"), network, plan, "painted", 2).fresh(REQUESTS[:2]).permute(0, 2, 3, 1)
    steps = Steps(3, 3, (0.9, 0.6, 0.3), network.unguided.get("guidance_scale", 1.0) or 1.0, True)
    source = PipelineSource(Pipeline(str(pipelines(name)), 32, 2), "w", steps, "painted", Path("images"))
    theirs = source.fresh(REQUESTS[:2])
    assert np.abs(ours.numpy().astype(int) - theirs).max() <= 1 and theirs.std() > 4
    assert np.abs(theirs[0].astype(int) - theirs[1]).max() > 4


def test_evaluations_are_counted_at_the_network(pipelines):
    with pytest.raises(UserError, match="took 2 evaluations of its network where 1 were asked for"):
        draw(pipelines("sd3"), Steps(1, 1))  # its own guidance is on
    (plan,) = plans(pipelines("sd3"), StepOptions([4], guidance=3.0))
    assert plan.steps == 2
    draw(pipelines("sd3"), plan)  # would raise
    (plan,) = plans(pipelines("flux"), StepOptions([4], guidance=3.0))
    assert plan.steps == 4  # guidance is an input of this network
    with pytest.raises(UserError, match="3 evaluations cannot be had"):
        plans(pipelines("sd3"), StepOptions([3], guidance=3.0))


def test_steps_come_from_the_options_or_from_the_export(tmp_path):
    entry = {"sigmas": [0.999, 0.6], "guidance": 1.0, "stochastic": True}
    (tmp_path / "twinbench.json").write_text(json.dumps({"sample": {"2": entry, "1": {"sigmas": [0.999]}}}))
    one, two = plans(tmp_path, StepOptions())
    assert (one, two) == (Steps(1, 1, (0.999,), 1.0, False), Steps(2, 2, (0.999, 0.6), 1.0, True))
    assert plans(tmp_path, StepOptions([2])) == [two]
    with pytest.raises(UserError, match=r"for 1, 2 evaluations, not for 4; --sigmas"):
        plans(tmp_path, StepOptions([4]))
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusion3Pipeline"}')
    assert plans(tmp_path, StepOptions(sigmas=[[0.9], [0.9, 0.5]], guidance=2.0)) == [
        Steps(2, 1, (0.9,), 2.0),
        Steps(4, 2, (0.9, 0.5), 2.0),
    ]
    for wrong in ({"sigmas": [0.6, 0.999]}, {"sigmas": []}, {"sigmas": [0.9], "guidence": 1}):
        (tmp_path / "twinbench.json").write_text(json.dumps({"sample": {"1": wrong}}))
        with pytest.raises(UserError):
            plans(tmp_path, StepOptions())


# ---- stopped, shared ----


def test_a_killed_evaluation_goes_on_and_ends_with_the_same_bytes(pipelines, monkeypatch, tmp_path):
    words = ("eval", "--pipeline", pipelines("z-image"), "--nfe", "1,2", *BENCH)
    assert twinbench(*words, "--results", "once", "--runs", "once-runs") == 0
    log = tmp_path / "log"
    monkeypatch.setenv("PAINTED_LOG", str(log))
    again = (*words, "--results", "often", "--runs", "often-runs")
    runs = Path("often-runs")
    killed(again, lambda: len([*runs.rglob("*.png")]) >= 5)
    drawn = {path: path.stat().st_mtime_ns for path in runs.rglob("*.png")}
    assert 5 <= len(drawn) < 2 * len(REQUESTS)
    killed(again, lambda: len([*runs.rglob("judged/*.safetensors")]) >= 2)
    judged = {path.name for path in runs.rglob("judged/*.safetensors")}
    seen = len(log.read_text().splitlines())
    assert 2 <= len(judged) < 6 and seen < 2 * len(REQUESTS)
    assert twinbench(*again) == 0
    assert all(path.stat().st_mtime_ns == when for path, when in drawn.items())
    lines = log.read_text().splitlines()[seen:]
    assert len(lines) == 2 * len(REQUESTS) - 4 * len(judged)  # what was stored is not judged again
    assert scores("often") == scores("once") and len(scores("once")) == 10
    assert not [*runs.rglob("judged/*.safetensors")]
    assert twinbench(*again) == 0 and log.read_text().splitlines()[seen:] == lines  # all stands


def killed(words, when):
    """Run the command line in a child process, and kill it when something is there."""
    child = multiprocessing.get_context("fork").Process(target=twinbench, args=words)
    child.start()
    for _ in range(3000):
        if when() or not child.is_alive():
            break
        time.sleep(0.01)
    assert child.is_alive(), "it ended before it could be killed"
    os.kill(child.pid, signal.SIGKILL)
    child.join()


def test_two_processes_give_the_bytes_of_one(pipelines, site, tmp_path):
    words = ["eval", "--pipeline", str(pipelines("z-image")), "--nfe", "1,2", *BENCH]
    assert twinbench(*words, "--results", "one", "--runs", "one-runs") == 0
    log = tmp_path / "log"
    paths = [site, str(HERE), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PAINTED_LOG": str(log), "PYTHONPATH": os.pathsep.join(paths)}
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "twinbench"]
    done = subprocess.run(
        [*run, *words, "--results", "two", "--runs", "two-runs"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert scores("two") == scores("one")
    pictures = [{p.name: p.read_bytes() for p in Path(runs).rglob("*.png")} for runs in ("one-runs", "two-runs")]
    assert pictures[0] == pictures[1] and len(pictures[0]) == len(REQUESTS)  # by name; two numbers of evaluations
    assert sorted(log.read_text().splitlines()) == sorted(2 * [f"{r.key} {r.copy}" for r in REQUESTS])
    assert done.stdout.count("painted") == 0 and len(done.stdout.splitlines()) == 1  # one of them speaks


# ---- folders of images ----


def picture(value, size=8):
    """Plain but for one pixel."""
    out = np.full((size, size, 3), value, np.uint8)
    out[0, 0] = 255 - value
    return out


def geneval_layout(folder, copies=2):
    """Prompt i, copy k has light (20 i + 10 k) / 255."""
    for r in painted.Painted(config=painted.Config(copies=copies)).requests():
        where = folder / r.key
        (where / "samples").mkdir(parents=True, exist_ok=True)
        (where / "metadata.jsonl").write_text(json.dumps({"tag": r.tag, "prompt": r.prompt}))
        Image.fromarray(picture(20 * int(r.key) + 10 * r.copy)).save(where / "samples" / f"{r.copy:04d}.png")
    return folder


def light(value):
    return float(picture(value).mean() / 255)


def test_genevals_own_layout(capsys):
    geneval_layout(Path("given"))
    (Path("given") / "00000" / "grid.png").write_bytes(b"not looked at")
    assert twinbench("eval", "--images", "given", "--bench", "painted", "--label", "theirs") == 0
    (folder,) = Path("results/models").glob("theirs-*")
    assert capsys.readouterr().out.strip() == str(folder)
    rows = items(folder, "painted-nfe0")
    assert [row["light"] for row in rows] == [light(20 * int(r.key) + 10 * r.copy) for r in REQUESTS]
    loaded = results.load("results")
    assert set(loaded.method) == {"images"} and set(loaded.nfe) == {0} and set(loaded.n) == {12}
    assert twinbench("eval", "--images", "given", "--bench", "painted", *sets("eval.benchmarks.painted.copies=1")) == 2
    assert "00000 holds 2 samples, asked for are 1; --set" in capsys.readouterr().err
    (Path("given") / "00003" / "metadata.jsonl").write_text(json.dumps({"prompt": "a photo of a cow"}))
    assert twinbench("eval", "--images", "given", "--bench", "painted") == 2
    assert "'a photo of a cow', prompt 00003 is 'a photo of a bench in the rain'" in capsys.readouterr().err


def test_dpgs_own_grids(capsys):
    Path("grids").mkdir()
    for i in range(len(painted.THINGS)):
        rows = [[picture(10 * i + 2 * row + column) for column in range(2)] for row in range(2)]
        Image.fromarray(grid(rows)).save(f"grids/{i:05d}.png")
    four = sets("eval.benchmarks.painted.copies=4")
    assert twinbench("eval", "--images", "grids", "--bench", "painted", "--nfe", "4", *four) == 0
    rows = items("results", "painted-nfe4")
    assert [row["light"] for row in rows] == [light(10 * i + k) for i in range(6) for k in range(4)]
    Image.fromarray(picture(0, 9)).save("grids/00002.png")
    assert twinbench("eval", "--images", "grids", "--bench", "painted", *four) == 1
    assert "'00002', copy 0 cannot be read: grids/00002.png (a grid of two by two" in capsys.readouterr().err


def grid(rows):
    return np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0)


def test_a_manifest_of_a_runs_own_samples_gives_the_runs_own_scores(capsys):
    run = trained(Path("runs"), "shapes", "teacher", "data.size=256")
    words = ("--recipe", "shapes", "--nfe", "8", "--limit", "1", "--bench", "geneval,diversity")
    assert twinbench("eval", run, *words) == 0
    asked = plugins.dataset("shapes").requests("evaluation", 1)
    (drawing,) = (run / "images").glob("nfe8-*")
    Path("given").mkdir()
    lines = []
    for i, (r, sample) in enumerate(zip(asked, Store(drawing).read(asked))):
        Image.fromarray(sample.permute(1, 2, 0).numpy()).save(f"given/{i}.png")
        lines.append(json.dumps({"file": f"{i}.png", "key": r.key, "copy": r.copy}))
    Path("given/manifest.jsonl").write_text("\n".join(lines))
    assert twinbench("eval", "--images", "given", *words) == 0
    own, theirs = (results.load(next(Path("results/shapes").glob(f"{name}-*"))) for name in ("teacher", "given"))
    shared = ["benchmark", "judge", "nfe", "metric", "value", "se", "n", "copies"]
    assert own[shared].equals(theirs[shared]) and own.set_index("metric").value["overall"] > 0
    capsys.readouterr()
    assert twinbench("report", "--format", "md") == 0
    assert re.search(r"^\| given +\|", capsys.readouterr().out, re.M)  # in one table with the run


# ---- what fails is named ----


def broken(kind):
    """A folder in which the picture of prompt 00002, copy 1 is missing or broken."""
    path = geneval_layout(Path("given")) / "00002" / "samples" / "0001.png"
    content = path.read_bytes()
    path.unlink()
    if kind != "missing":
        path.write_bytes(content[: len(content) // 2] if kind == "cut" else b"no picture")
    return ("eval", "--images", "given")


@pytest.mark.parametrize("kind", ["missing", "cut", "other"])
def test_a_missing_or_broken_picture_stops_the_work_or_counts_as_wrong(kind, capsys):
    words = broken(kind)
    assert twinbench(*words, "--bench", "painted") == 1
    said = capsys.readouterr().err
    assert "'00002', copy 1" in said and "--keep-going" in said and not [*Path("results").rglob("painted*")]
    bright = ("--bench", "painted", "--keep-going", "--results", "kept")
    assert twinbench(*words, *bright) == 0
    rows = items("kept", "painted-nfe0")
    assert [(row["key"], row["copy"]) for row in rows] == [(r.key, r.copy) for r in REQUESTS]
    (wrong,) = [row for row in rows if "error" in row]
    assert (wrong["key"], wrong["copy"], wrong["light"], wrong["correct"]) == ("00002", 1, 0, False)
    assert "'00002', copy 1" in wrong["error"]
    assert all(row["light"] == light(20 * int(row["key"]) + 10 * row["copy"]) for row in rows if row is not wrong)
    (score,) = [json.loads(p.read_text()) for p in Path("kept").rglob("painted-nfe0.json")]
    assert score["errors"] == 1 and score["metrics"]["light"]["n"] == len(REQUESTS)
    assert twinbench(*words, "--bench", "measured", "--keep-going") == 1
    assert "measured needs every picture" in capsys.readouterr().err and not [*Path("results").rglob("measured*")]


def test_a_judge_that_raises_is_named_with_the_picture(capsys):
    words = ("eval", "--images", geneval_layout(Path("given")), "--bench", "painted")
    fails = sets("eval.benchmarks.painted.fails_at='00003'")
    assert twinbench(*words, *fails) == 1
    said = capsys.readouterr().err
    assert "the judge eye/1 fails on '00003', copy 0 (RuntimeError: too bright to look at)" in said
    assert not [*Path("results").rglob("painted*")]
    assert twinbench(*words, *fails, "--keep-going") == 0
    wrong = [(row["key"], row["copy"]) for row in items("results", "painted-nfe0") if "error" in row]
    assert wrong == [("00003", 0), ("00003", 1)]
    assert twinbench(*words, "--keep-going") == 0 and len(errors()) == 1  # it stands
    assert twinbench(*words) == 0 and errors() == []  # and is made anew without the option


def errors():
    return [p for p in Path("results").rglob("painted-nfe0.json") if "errors" in json.loads(p.read_text())]


def test_a_judge_that_fails_its_own_test_judges_nothing_unless_asked_to(capsys):
    words = ("eval", "--images", geneval_layout(Path("given")), "--bench", "painted")
    words += (*sets("eval.benchmarks.painted.eye={name: eye, blind: true}"),)
    assert twinbench(*words) == 1
    said = capsys.readouterr().err
    assert "eye fails its own test (a white picture looks black to it" in said and "twinbench doctor" in said
    assert not [*Path("results").rglob("painted*")]
    assert twinbench(*words, "--untested") == 0
    (score,) = [json.loads(p.read_text()) for p in Path("results").rglob("painted-nfe0.json")]
    assert score["untested"] is True
    assert twinbench("report", "--format", "md") == 0
    assert "given at NFE 0: its judge failed its own test or was not asked" in capsys.readouterr().out
    assert twinbench(*words) == 1  # without the option the score does not stand


def test_a_judge_that_breaks_in_its_own_test_is_one_line(capsys):
    words = ("eval", "--images", geneval_layout(Path("given")), "--bench", "painted")
    assert twinbench(*words, *sets("eval.benchmarks.painted.eye={name: eye, damaged: true}")) == 1
    said = capsys.readouterr().err
    assert "eye fails its own test (KeyError: 'no weights" in said and "Traceback" not in said


def test_no_evidence_at_all_is_no_score():
    with pytest.raises(WorkError, match="12 pictures were not judged, '00000', copy 0 among them"):
        complete(Evidence(), REQUESTS)
    rows = [{"key": r.key, "copy": r.copy} for r in REQUESTS]
    complete(Evidence(rows), REQUESTS)
    with pytest.raises(WorkError, match="1 pictures were not judged, '00005', copy 1 among them"):
        complete(Evidence(rows[:-1]), REQUESTS)


def test_bad_input_is_one_line(pipelines, capsys, tmp_path):
    for name in ("empty", "hollow", "twice", "copies"):
        (tmp_path / name).mkdir()
    (tmp_path / "hollow" / "model_index.json").write_text("{}")
    for suffix in ("jpg", "png"):
        Image.fromarray(picture(1)).save(tmp_path / "twice" / f"00000.{suffix}")
    (tmp_path / "copies" / "manifest.jsonl").write_text('{"file": "a.png", "key": "00000", "copy": "first"}')
    reference = sets("eval.benchmarks.fidelity.reference=mjhg-30k")
    cases = {
        ("--pipeline", "hollow", "--bench", "painted"): "hollow is not a whole diffusers pipeline",
        ("--images", "twice", "--bench", "painted"): "two pictures of '00000': 00000.jpg and 00000.png",
        ("--images", "copies", "--bench", "painted"): "line 1: a copy is a whole number, not 'first'",
        ("--pipeline", "empty", "--bench", "painted"): "model_index.json",
        ("--pipeline", pipelines("z-image")): "--bench geneval,dpg",
        ("--pipeline", pipelines("z-image"), "--bench", "paint"): "did you mean 'painted'",
        ("--pipeline", pipelines("z-image"), "--bench", "painted", "--sigmas", "0.5,0.9"): "--sigmas 0.5,0.9",
        ("--images", "empty", "--bench", "painted"): "manifest.jsonl",
        ("--images", "nowhere", "--bench", "painted"): "nowhere is not a folder",
        ("--images", "empty", "--pipeline", "empty"): "or --images",
        ("rcgm", "--sigmas", "0.9"): "--sigmas needs --pipeline; a run has its recipe's",
        ("--images", "empty", "--bench", "latency"): "by twinbench latency RUN, or --pipeline",
        (
            "--images",
            "empty",
            "--bench",
            "fidelity",
            *reference,
        ): "'mjhg-30k' not found; did you mean 'mjhq-30k'? (mjhq",
        ("--images", "empty", "--batch", "2"): "--batch needs --pipeline; a folder of images is drawn already",
    }
    for words, told in cases.items():
        assert twinbench("eval", *words) == 2, words
        said = capsys.readouterr().err
        assert told in said.strip().splitlines()[-1] and said.count("error:") == 1, said


def test_questions_that_no_benchmark_of_a_run_asks_are_refused(capsys):
    run = trained(Path("runs"), "moons", "rcgm", *QUICK)
    Path("dpg.csv").write_text("none")
    for words in ((), ("--bench", "fidelity")):
        assert twinbench("eval", run, "--nfe", "1", "--dpg-csv", "dpg.csv", *words) == 2
        said = capsys.readouterr().err
        assert "--dpg-csv dpg.csv: none of fidelity" in said and "asks DPG-Bench's questions; --bench dpg does" in said
    assert not Path("results").exists()


def test_pictures_are_stored_by_a_name_that_changes_with_the_prompt():
    a, b = REQUESTS[0], REQUESTS[0].__class__(REQUESTS[0].key, "a photo of a cow", 0, "things")
    assert file_of(a) != file_of(b) and file_of(a).startswith("00000-0-") and file_of(a).endswith(".png")
