"""How a pipeline is asked: by which scheduler and steps, in which size, by words or by classes; what it cannot do is
said before anything is drawn."""

import json
import sys
from pathlib import Path

import diffusers
import numpy as np
import painted
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from small import files, sets, twinbench

from twinbench import results
from twinbench.backbones import tiny_words
from twinbench.backbones.source import quiet
from twinbench.backbones.tiny import _kl, tiny
from twinbench.benchmarks import references
from twinbench.data.base import Request
from twinbench.errors import UserError
from twinbench.randomness import request_noise
from twinbench.sources.classes import opened
from twinbench.sources.pipeline import Pipeline, PipelineSource
from twinbench.sources.steps import StepOptions, Steps, plans

REQUESTS = painted.Painted().requests()[:2]
DRAWN = ("--bench", "painted", "--limit", "1", "--batch", "2")


pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """A folder of tiny pipelines, made when they are asked for."""
    folder = tmp_path_factory.mktemp("pipelines")
    own = {"sd": stable_diffusion, "ddim-dit": classes}

    def made(name):
        if name in own and not (folder / name).exists():
            quiet()
            torch.manual_seed(0)
            own[name]().save_pretrained(folder / name)
        return folder / name if name in own else tiny(name, folder / name)

    return made


def stable_diffusion():
    """A UNet that predicts noise, as the first latent diffusion did."""
    return diffusers.StableDiffusionPipeline(
        unet=diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        ),
        vae=_kl(shift=None),
        text_encoder=tiny_words.clip(projected=False),
        tokenizer=tiny_words.clip_tokenizer(),
        scheduler=diffusers.PNDMScheduler(beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
    )


def classes():
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=4,
        num_embeds_ada_norm=1000,
    )
    return diffusers.DiTPipeline(transformer=transformer, vae=_kl(shift=None), scheduler=diffusers.DDIMScheduler())


def source(pipeline, options, size=64):
    made = opened(str(pipeline), size, 2)
    (plan,) = made.plans(options)
    return PipelineSource(made, "weights", plan, "painted", Path("images"))


# ---- schedulers and steps ----


@pytest.mark.parametrize("text", ["LCMScheduler", "EulerDiscreteScheduler:timestep_spacing=trailing"])
def test_a_chosen_scheduler_draws_what_the_stock_pipeline_draws_with_it(pipelines, text, monkeypatch):
    drawn = source(pipelines("sd"), StepOptions(timesteps=[[999, 499]], guidance=1.0, scheduler=text))
    pictures = drawn.fresh(REQUESTS)
    pipe = diffusers.DiffusionPipeline.from_pretrained(str(pipelines("sd")))
    pipe.set_progress_bar_config(disable=True)
    name, _, setting = text.partition(":")
    more = {"timestep_spacing": "trailing"} if setting else {}
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **more)
    first, later = (
        torch.stack([request_noise((4, 8, 8), "painted", r.key, r.copy, n) for r in REQUESTS]) for n in ("init", "0")
    )
    monkeypatch.setattr(sys.modules[type(pipe.scheduler).__module__], "randn_tensor", lambda *_, **__: later)
    prompts = [r.prompt for r in REQUESTS]
    shape = {"height": 64, "width": 64, "output_type": "np", "guidance_scale": 1.0}
    want = pipe(prompts, latents=first, timesteps=[999, 499], **shape).images
    assert pictures.tolist() == (want * 255).round().astype(np.uint8).tolist()
    assert drawn.plan.as_dict() == {"steps": 2, "timesteps": (999, 499), "guidance": 1.0, "scheduler": text}


def test_own_guidance_takes_its_evaluations_of_those_asked_for(pipelines):
    assert plans(pipelines("sd3"), StepOptions([2, 4])) == [Steps(2, 1), Steps(4, 2)]
    assert [p.nfe for p in plans(pipelines("sd"), StepOptions())] == [2, 4, 8]
    assert [p.nfe for p in plans(pipelines("z-image"), StepOptions(sigmas=[[0.9]]))] == [2]
    assert [p.steps for p in plans(pipelines("flux"), StepOptions([1, 3]))] == [1, 3]  # an input of its network
    assert [p.steps for p in plans(pipelines("qwen-image"), StepOptions([1, 3]))] == [1, 3]  # off by itself
    with pytest.raises(
        UserError, match="1 evaluations cannot be had, ask for an even number; guidance takes two a step"
    ):
        plans(pipelines("sd3"), StepOptions([1]))
    with pytest.raises(
        UserError, match="for 2 evaluations, not for 1; guidance takes two a step, --guidance 1 turns it"
    ):
        plans(pipelines("sd3"), StepOptions([1], sigmas=[[0.9]]))
    for name, nfe in (("sd3", 2), ("z-image", 2), ("sana", 2), ("sd", 2)):
        source(pipelines(name), StepOptions([nfe], scheduler="DDIMScheduler" if name == "sd" else None)).fresh(REQUESTS)


def test_another_number_of_evaluations_is_told_by_its_cause(pipelines):
    asked = StepOptions([3], guidance=1.0, scheduler="HeunDiscreteScheduler")
    with pytest.raises(
        UserError, match=r"took 5 evaluations .* 3 were asked for \(HeunDiscreteScheduler was told 3 steps"
    ):
        source(pipelines("sd"), asked).fresh(REQUESTS)
    drawn = source(pipelines("sd"), StepOptions([1], guidance=1.0))
    drawn.pipeline.load()
    with pytest.raises(UserError, match=r"took 0 evaluations .*\(PNDMScheduler was told 1 steps; --scheduler"):
        drawn._counted(0)


CASES = [
    ("sd", ("--sigmas", "0.999,0.6"), "which PNDMScheduler does not take; give its steps by --timesteps, as in"),
    ("sd", ("--timesteps", "999,499"), "PNDMScheduler takes no timesteps; --scheduler chooses another"),
    ("sd", ("--scheduler", "LCMScheduler", "--timesteps", "1000,1"), "begins with 1000, and LCMScheduler ends at 999"),
    ("sd", ("--scheduler", "LCMSchedular"), "did you mean 'LCMScheduler'? (a class of diffusers"),
    ("sd", ("--scheduler", "LCMScheduler:spacing=1"), "setting 'spacing' not found"),
    ("sd", ("--scheduler", "LCMScheduler:timestep_spacing"), "settings are key=value, as in LCMScheduler:"),
    ("sd", ("--scheduler", "LCMScheduler:beta_schedule=odd"), "--scheduler LCMScheduler:beta_schedule=odd: odd"),
    ("sd", ("--timesteps", "499,999"), "--timesteps 499,999: timesteps are whole and fall"),
    ("sd", ("--timesteps", "999", "--sigmas", "0.9"), "--sigmas and --timesteps both say the steps"),
    ("sd", ("--scheduler-shift", "3"), "PNDMScheduler has no shift"),
    ("sd3", ("--scheduler-shift", "0"), "--scheduler-shift 0: a shift is above 0"),
    ("sd3", ("--timesteps", "999"), "StableDiffusion3Pipeline takes no timesteps; leave --timesteps out"),
    ("ddim-dit", (), "draws classes, numbers below 1000, and 'a photo of a cat' is asked for; --bench fidelity"),
    ("ddim-dit", ("--size", "64"), "pictures of one size alone; leave --size out"),
    ("sd", ("--bench", "fidelity"), "draws words, and classes are asked for"),
]


@pytest.mark.parametrize(
    "name, words, told", CASES, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_what_a_pipeline_cannot_do_is_said_before_its_weights_are_loaded(
    pipelines, name, words, told, monkeypatch, capsys
):
    monkeypatch.setattr(Pipeline, "load", lambda self: pytest.fail("its weights were loaded"))
    asked = ("eval", "--pipeline", pipelines(name), "--guidance", "1", *DRAWN, *words)
    assert (
        twinbench(
            *asked, *sets("eval.benchmarks.fidelity={reference: imagenet-256, clip: null}")[: 2 * ("fidelity" in words)]
        )
        == 2
    )
    said = capsys.readouterr().err
    assert told in said and said.count("error:") == 1 and len(said.strip().splitlines()) == 1
    assert not Path("results").exists()


def test_a_size_that_would_be_rounded_is_refused_with_the_nearest_right_ones(pipelines, capsys):
    for name, near in (("flux", "32 or 48"), ("sd3", "32 or 48"), ("z-image", "32 or 48"), ("sd", "32 or 40")):
        assert twinbench("eval", "--pipeline", pipelines(name), "--guidance", "1", "--size", "36", *DRAWN) == 2
        assert f"such as {near}" in capsys.readouterr().err and not [*Path("runs").rglob("*.png")]


@pytest.mark.parametrize("error", [EntryNotFoundError("no model_index.json\nat all"), OSError("404 Client Error.")])
def test_a_wrong_repository_is_one_sentence(monkeypatch, capsys, error):
    def download(*_, **__):
        raise error

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    assert twinbench("eval", "--pipeline", "no/such", *DRAWN) == 2
    said = capsys.readouterr().err.strip()
    assert "pipeline 'no/such' is neither a folder nor a repository that can be had" in said and "\n" not in said


# ---- scores of other settings ----


def test_a_score_says_how_its_pictures_were_drawn_and_is_not_replaced_by_one_of_other_settings(pipelines, capsys):
    words = ("eval", "--pipeline", pipelines("z-image"), "--guidance", "1", "--nfe", "1", *DRAWN)
    assert twinbench(*words, "--size", "32") == 0
    (path,) = Path("results").rglob("painted*.json")
    score, before = json.loads(path.read_text()), files("results")
    assert score["drawn"] == {"height": 32, "width": 32, "dtype": "float32", "batch": 2}
    assert twinbench(*words, "--size", "32") == 0 and files("results") == before  # it stands
    for other in (("--size", "48"), ("--size", "32", "--batch", "3"), ("--size", "32", "--scheduler-shift", "2")):
        assert twinbench(*words, *other) == 2
        said = capsys.readouterr().err
        assert (
            f"{path} is of other settings (batch 2, dtype float32, guidance 1.0, height 32, steps 1, width 32)" in said
        )
        assert "give another --label, or --again to replace it" in said and files("results") == before
    assert twinbench(*words, "--size", "48", "--label", "larger") == 0
    assert {s["drawn"]["height"] for s in map(read, Path("results").rglob("painted*.json"))} == {32, 48}
    assert twinbench(*words, "--size", "48", "--again") == 0 and read(path)["drawn"]["height"] == 48
    assert len(results.load("results").label.unique()) == 2


def read(path):
    return json.loads(path.read_text())


# ---- classes ----


def test_classes_are_drawn_from_the_noise_of_their_requests(pipelines):
    asked = [Request(f"{i:05d}", str(label), 0, "class") for i, label in enumerate((3, 7))]
    drawn = source(pipelines("ddim-dit"), StepOptions([2], guidance=1.0), None)
    two = drawn.fresh(asked)
    assert two.shape == (2, 32, 32, 3) and two[0].tolist() != two[1].tolist()
    assert drawn.fresh(asked[::-1]).tolist() == two[::-1].tolist()
    seen = []
    hook = drawn.pipeline.network.register_forward_pre_hook(
        lambda _, given, named: seen.append((given[0], named)), with_kwargs=True
    )
    drawn.fresh(asked)
    hook.remove()
    want = torch.stack([request_noise((4, 4, 4), "painted", r.key, r.copy) for r in asked])
    assert torch.equal(seen[0][0], want) and seen[0][1]["class_labels"].tolist() == [3, 7] and len(seen) == 2
    with pytest.raises(UserError, match="numbers below 1000, and '1000' is asked for"):
        drawn.pipeline.asked([Request("00000", "1000", 0, "class")])


def test_guidance_of_classes_keeps_the_noise_of_steps(pipelines):
    asked = [Request(f"{i:05d}", str(label), 0, "class") for i, label in enumerate((3, 7))]
    drawn = source(pipelines("ddim-dit"), StepOptions([4], scheduler="DDPMScheduler"), None)  # its own guidance is 4
    assert drawn.plan.steps == 2
    assert drawn.fresh(asked[::-1]).tolist() == drawn.fresh(asked)[::-1].tolist()


def test_fidelity_on_imagenets_statistics_is_drawn_by_class(pipelines, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TWINBENCH_ASSETS", str(tmp_path))
    monkeypatch.setattr(references, "FIRST", ("pixels/",))
    (tmp_path / "imagenet-256").mkdir()
    statistics = {"mu": np.full(3, 0.5), "sigma": np.eye(3)}
    np.savez(tmp_path / "imagenet-256" / "VIRTUAL_imagenet256_labeled.npz", **statistics)
    words = ("eval", "--pipeline", pipelines("ddim-dit"), "--nfe", "2", "--guidance", "1", "--bench", "fidelity")
    asked = "eval.benchmarks.fidelity={{reference: imagenet-256, images: 6, features: {{name: pixels, side: 1}}{}}}"
    assert twinbench(*words, *sets(asked.format(""))) == 2
    assert "is of classes, which have no words for CLIP: --set eval" in capsys.readouterr().err
    assert twinbench(*words, *sets(asked.format(", clip: null"))) == 0
    (path,) = Path("results").rglob("fidelity-nfe2.json")
    assert read(path)["n"] == 6 and read(path)["metrics"]["fid"]["value"] > 0
