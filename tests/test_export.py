"""Exported folders: stock diffusers classes draw what the trained network draws."""

import json

import diffusers
import families
import pytest
import torch
from families import FAMILIES, WORDED, R, T
from safetensors.torch import load_file
from small import twinbench

from twinbench.errors import UserError
from twinbench.exporting import card, export
from twinbench.recipe import Resolved
from twinbench.run import Run
from twinbench.sampler import Schedule, sample
from twinbench.settings import Lora
from twinbench.sources.pipeline import Pipeline
from twinbench.sources.steps import StepOptions, exported
from twinbench.tensors import read_tensors, save_tensors
from twinbench.training.adapters import Adapters, save_weights

TIMES = {1: (0.999,), 2: (0.999, 0.6), 4: (0.999, 0.8327, 0.6663, 0.5)}
SAMPLE = {nfe: {"times": times, "hop": "end"} for nfe, times in TIMES.items()}
ANY = {**SAMPLE, 8: {"steps": 8}}


def resolved(name, sample=SAMPLE, train=None, **options):
    backbone = {"name": name, "model": str(families.folder(name)), "resolution": families.SIDE, **options}
    tree = {"recipe": f"{name}-tiny", "label": "twinflow", "method": "twinflow", "seed": 0, "backbone": backbone}
    tree |= {
        "data": {"kind": "shapes"},
        "train": {"budget": 1, **(train or {})},
        "sample": sample,
        "config": {},
        "eval": {},
    }
    return Resolved.model_validate(tree)


def finished(root, settings, network):
    """A run's folder that holds this network."""
    run = Run(root / "runs", settings, "none", "data")
    run.open()
    save_weights(run.folder, network, {})
    run.write(steps=3, network_passes=100, seconds=1.0, peak_bytes=1, weights_sha256="0", finished=True)
    return run.folder


def write(network, target, settings=None, dtype=torch.float32):
    return export.write_pipeline(network, target, settings or {"sample": {}}, "# card\n", dtype=dtype)


def drawn(network, name, z, times, renoise=0.0, noise=None):
    schedule = Schedule(times, "end", renoise)
    return families.decoded(network, sample(network, z, network.encode(families.prompts(name)), schedule, noise))


def test_an_export_is_evaluated_as_it_says(tmp_path):
    """At its own size and sigmas, when the command line says nothing of them."""
    network = families.backbone("qwen-image")
    folder = write(network, tmp_path / "out", card.settings_of(resolved("qwen-image"), network))
    silent = StepOptions([1, 2, 4], [], None, None, [], None)
    made = Pipeline(str(folder), None, 2)
    assert made.size == families.SIDE and Pipeline(str(folder), 2 * families.SIDE, 2).size == 2 * families.SIDE
    assert {p.nfe: p.sigmas for p in made.plans(silent)} == TIMES
    assert Pipeline(str(families.folder("qwen-image")), None, 2).size is None


@pytest.mark.parametrize("name", WORDED)
def test_the_stock_pipeline_draws_the_students_images(name, tmp_path):
    network = families.disturb(families.backbone(name))
    z = families.noise(network)
    ours = {nfe: drawn(network, name, z, times) for nfe, times in TIMES.items()}
    folder = write(network, tmp_path / "out", card.settings_of(resolved(name), network))
    entries = exported(folder)
    pipeline = families.stock(folder, network)
    untrained = families.stock(families.folder(name), network, scheduler=pipeline.scheduler)
    for nfe, image in ours.items():
        options = {"sigmas": list(entries[nfe].sigmas), "num_inference_steps": nfe}
        stock = families.stock_images(pipeline, network, name, z, **options)
        assert (stock - image).abs().max() < 2e-5
        assert (families.stock_images(untrained, network, name, z, **options) - image).abs().max() > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_the_transformer_loads_in_the_vanilla_class_without_a_key_too_many_or_too_few(name, tmp_path):
    network = families.disturb(families.backbone(name))
    z, cond = families.noise(network), network.encode(families.prompts(name))
    with torch.no_grad():
        student = network(z, T, torch.zeros(2), cond)
    kind = getattr(diffusers, network.network)
    loaded, info = kind.from_pretrained(write(network, tmp_path / "out") / "transformer", output_loading_info=True)
    assert not any(info.values()), info
    network.transformer = loaded
    with torch.no_grad():
        assert (network.velocity(z, T, cond) - student).abs().max() < 1e-5 * student.abs().max()
    source = json.loads((families.folder(name) / "transformer/config.json").read_text())
    made = json.loads((tmp_path / "out/transformer/config.json").read_text())
    assert {k: v for k, v in made.items() if not k.startswith("_")} == {
        k: v for k, v in source.items() if not k.startswith("_")
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_an_any_step_folder_is_the_same_network_at_all_times(name, tmp_path):
    network = families.disturb(families.backbone(name))
    z, cond = families.noise(network), network.encode(families.prompts(name))
    times = [(T, R), (T, T), (T, torch.zeros(2)), (-T, -T)]
    with torch.no_grad():
        before = [network(z, t, r, cond) for t, r in times]
        folder = write(network, tmp_path / "out", card.settings_of(resolved(name, ANY), network))
        again = families.backbone(name, model=str(folder))
        for (t, r), v in zip(times, before, strict=True):
            assert (again(z, t, r, cond) - v).abs().max() < 1e-5 * v.abs().max()


def test_fresh_noise_between_steps_is_the_stochastic_scheduler(tmp_path):
    network = families.disturb(families.backbone("sd3"))
    z = families.noise(network)
    sampled = {2: {**SAMPLE[2], "renoise": 1.0}}
    settings = card.settings_of(resolved("sd3", {**SAMPLE, **sampled}), network)
    generator = torch.Generator().manual_seed(5)
    ours = drawn(network, "sd3", z, TIMES[2], 1.0, lambda i: torch.randn(z.shape, generator=generator))
    pipeline = diffusers.DiffusionPipeline.from_pretrained(write(network, tmp_path / "out", settings))
    entry = exported(tmp_path / "out")[2]
    assert entry.stochastic and not exported(tmp_path / "out")[4].stochastic
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, stochastic_sampling=True)
    torch.manual_seed(5)  # the pipeline leaves its generator out of the scheduler's noise
    stock = families.stock_images(pipeline, network, "sd3", z, sigmas=list(entry.sigmas), num_inference_steps=2)
    assert (stock - ours).abs().max() < 2e-5


def test_weights_are_folded_in_float32_and_cast_once(tmp_path):
    network = families.disturb(families.backbone("flux"))
    path = f"{network.last_layers[0]}.bias"
    bias = network.transformer.get_parameter(path).detach().clone()
    with torch.no_grad():
        expected = (bias + network.target_time.embedded(torch.zeros(1))[0]).bfloat16()
    write(network, tmp_path / "out", dtype=torch.bfloat16)
    loaded = diffusers.FluxTransformer2DModel.from_pretrained(tmp_path / "out/transformer", dtype=torch.bfloat16)
    assert torch.equal(loaded.get_parameter(path), expected)


# ---- adapters ----


def adapted(name, alpha=2.0):
    """A base with one adapter after three steps; the adapter and the merged backbone."""
    base = families.backbone(name)
    lora = Lora(rank=4, alpha=alpha)
    student = Adapters(base).add("student", lora, 0)
    cond, z = base.encode(families.prompts(name)), families.noise(base)
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-2)
    for _ in range(3):
        optimizer.zero_grad()
        (student(z, T, R, cond) - z).square().mean().backward()
        optimizer.step()
    merged = families.backbone(name)
    merged.load_state_dict(student.merged())
    return student, merged, lora


@pytest.mark.parametrize("name", WORDED)
def test_lora_weights_carry_the_adapters_and_the_target_time_into_the_stock_pipeline(name, tmp_path):
    student, merged, lora = adapted(name)
    z = families.noise(merged)
    image = drawn(merged, name, z, TIMES[2])
    settings = resolved(name, train={"lora": lora.model_dump()})
    folder = finished(tmp_path, settings, student)
    assert twinbench("export", folder, tmp_path / "out", "--results", tmp_path) == 0
    pipeline = families.stock(
        families.folder(name),
        merged,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "out", subfolder="scheduler"),
    )
    options = {"sigmas": list(TIMES[2]), "num_inference_steps": 2}
    assert (families.stock_images(pipeline, merged, name, z, **options) - image).abs().max() > 1e-3
    pipeline.load_lora_weights(tmp_path / "out")
    assert (families.stock_images(pipeline, merged, name, z, **options) - image).abs().max() < 2e-5
    if not card.fusible(merged):
        assert "fuse_lora" in (tmp_path / "out/README.md").read_text()
        return
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    assert (families.stock_images(pipeline, merged, name, z, **options) - image).abs().max() < 2e-5


def test_the_constant_in_lora_weights_is_not_rounded_with_the_base(tmp_path):
    student, merged, lora = adapted("qwen-image")
    folder = finished(tmp_path, resolved("qwen-image", train={"lora": lora.model_dump()}), student)
    held, told = read_tensors(folder / "weights.safetensors")  # as of a base in half precision
    save_tensors(folder / "weights.safetensors", {k: v.bfloat16().float() for k, v in held.items()}, told)
    assert twinbench("export", folder, tmp_path / "out", "--results", tmp_path) == 0
    biases = {k: v for k, v in load_file(tmp_path / "out" / export.LORA).items() if k.endswith("lora_B.bias")}
    (path,) = merged.last_layers
    constant = biases[f"transformer.{path}.lora_B.bias"]
    assert torch.equal(constant, merged.target_time.constant(0.0)) and constant.abs().max() > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_the_teacher_under_an_adapter_is_the_pretrained_network(name):
    student, merged, _ = adapted(name)
    base, original = student.backbone, families.backbone(name)
    cond, z = original.encode(families.prompts(name)), families.noise(original)
    with torch.no_grad():
        assert torch.equal(student._adapters.off()(z, T, R, cond), original(z, T, T, cond))
        v = student(z, T, R, cond)
        torch.testing.assert_close(merged(z, T, R, cond), v, rtol=0, atol=1e-5)
        assert (v - original(z, T, R, cond)).abs().max() > 1e-3
    student.zero_grad()
    base.recompute()
    student(z, T, R, cond).square().mean().backward()
    again = [p.grad.clone() for p in student.parameters()]
    base.recompute(False)
    student.zero_grad()
    student(z, T, R, cond).square().mean().backward()
    assert all(torch.equal(p.grad, q) for p, q in zip(student.parameters(), again, strict=True))


def test_merged_adapters_are_a_whole_pipeline(tmp_path):
    student, merged, lora = adapted("sana")
    z = families.noise(merged)
    image = drawn(merged, "sana", z, TIMES[1])
    folder = finished(tmp_path, resolved("sana", train={"lora": lora.model_dump()}), student)
    assert twinbench("export", folder, tmp_path / "out", "--merged", "--results", tmp_path) == 0
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    stock = families.stock_images(pipeline, merged, "sana", z, sigmas=list(TIMES[1]), num_inference_steps=1)
    assert (stock - image).abs().max() < 2e-5


# ---- the command ----


def test_the_card_says_how_to_sample_what_was_set_and_whose_licence_holds(tmp_path):
    network = families.backbone("qwen-image")
    folder = finished(tmp_path, resolved("qwen-image", ANY), network)
    score = {"schema": "twinbench.score/1", "benchmark": "geneval", "version": "1", "judge": "exact", "nfe": 1}
    score |= {"nfe_counted": 1, "schedule": {}, "n": 1, "copies": 1, "metrics": {"overall": {"value": 0.8125}}}
    scores = tmp_path / "results/qwen-image-tiny" / folder.name
    scores.mkdir(parents=True)
    (scores / "geneval-nfe1.json").write_text(json.dumps(score))
    (scores / "run.json").write_text((folder / "run.json").read_text())
    assert twinbench("export", folder, tmp_path / "out", "--results", tmp_path / "results") == 0
    text = (tmp_path / "out/README.md").read_text()
    for said in ("true_cfg_scale=1.0", "[0.999, 0.6]", "0.8125", "geneval (exact)", "licence", "resolution: 64"):
        assert said in text
    assert "target_time.safetensors" in text and (tmp_path / "out/target_time.safetensors").is_file()
    assert not list(tmp_path.glob(".out*"))


def test_what_cannot_be_exported_is_refused_in_a_sentence(tmp_path, capsys):
    toy = {**resolved("sd3").model_dump(), "backbone": {"name": "patch-transformer", "world": "shapes"}}
    run = Run(tmp_path, Resolved.model_validate(toy), "none", "data")
    run.open()
    save_tensors(run.folder / "weights.safetensors", {}, {})
    run.write(steps=1, network_passes=1, weights_sha256="0", finished=False)
    assert twinbench("export", run.folder, tmp_path / "out") == 2
    assert "is not finished" in capsys.readouterr().err
    run.write(steps=1, network_passes=1, weights_sha256="0", finished=True)
    assert twinbench("export", run.folder, tmp_path / "out") == 2
    assert "trained the small network 'patch-transformer'" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="there already"):
        write(families.backbone("sd3"), tmp_path / "out")
    with pytest.raises(UserError, match="cannot be folded"):
        write(families.backbone("sd3", form="official"), tmp_path / "new")
    student, merged, _ = adapted("dit")
    with pytest.raises(UserError, match="takes no adapters"):
        export.write_lora(merged, tmp_path / "new", dict(student.state_dict()), 1.0, {"sample": {}}, "")
    assert not (tmp_path / "new").exists()
