"""What an exported folder says of itself: how to sample it, how it was made, how it scored."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from twinbench.backbones.pipeline import PipelineBackbone
from twinbench.errors import UserError
from twinbench.recipe import Resolved
from twinbench.sampler import Plan, plan

FEW = (1, 2, 4)  # numbers of evaluations that every card names
STEPS = """Its stock pipeline takes no sigmas. The transformer gives the velocity v = z - x at `timestep=1000 * t`, so a
step from t to the next of these times s is `x = x + (s - t) * v`, the last one to s = 0."""
NOTE = """Always give `sigmas`: the pipelines' own are others, and some of them leave the last step unused. Guidance is
in the weights; with the pipeline's own on top every step costs two evaluations. Where fresh noise is asked for, make
the scheduler with `stochastic_sampling=True`."""
FUSE = """The adapters carry a bias, and some of the layers below have none, so `fuse_lora` refuses them; `twinbench
export --merged` writes the whole model with them in it."""
OWN = """The stock pipeline cannot read prompts for this model: `text` and `mask` are what twinbench's backbone of the
settings below says of one, `network.encode(["a cat"])`."""


def settings_of(resolved: Resolved, network: PipelineBackbone) -> dict[str, Any]:
    """twinbench.json. `size`: the side of its pictures; `sample`: how a stock pipeline spends a number of evaluations;
    `any_step`: the schedules that ask for other r than 0, for which the target time lies beside the weights."""
    plans = [plan(resolved, nfe) for nfe in sorted({*FEW, *resolved.sample})]
    guidance = 1.0 if network.taught_guidance is None else network.taught_guidance
    stock = {
        str(p.nfe): {"sigmas": list(p.schedule.times), "guidance": guidance, "stochastic": p.schedule.renoise == 1}
        for p in plans
        if _stock(p)
    }
    others = {str(p.nfe): p.as_dict() for p in plans if not _stock(p) and p.schedule.hop == "next"}
    return {"size": network.config.resolution, "sample": stock, **({"any_step": others} if others else {})}


def _stock(p: Plan) -> bool:
    """Whether steps of an Euler scheduler on the network at r = 0 are this schedule."""
    s = p.schedule
    ends = s.hop == "end" or (s.hop == "next" and len(s.times) == 1)
    last_alone = len(s.times) == 1
    return ends and p.guidance == 1 and not s.extrapolation and (s.renoise in (0, 1) or last_alone)


def licence_of(source: Path) -> str | None:
    """The licence in the front matter of a folder's model card."""
    path = source / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if not text.startswith("---"):
        return None
    try:
        matter = yaml.safe_load(text.split("---")[1])
    except yaml.YAMLError:
        return None
    return str(matter["license"]) if isinstance(matter, dict) and matter.get("license") else None


def card(
    record: dict[str, Any],
    network: PipelineBackbone,
    settings: dict[str, Any],
    *,
    licence: str | None,
    results: Path | None,
    lora: bool,
) -> str:
    """The model card, as Markdown. record: run.json; results: the run's folder of scores."""
    base = record["resolved"]["backbone"]["model"]
    matter = {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "base_model": base,
        "tags": ["few-step", record["method"], *(["lora"] if lora else [])],
        **({"license": licence} if licence else {}),
    }
    title = f"{base.rstrip('/').split('/')[-1]}, {record['method']}"
    parts = [
        f"---\n{yaml.safe_dump(matter, sort_keys=False)}---\n\n# {title}\n",
        f"A few-step student of `{base}`, trained by the method `{record['method']}` in {record['steps']:,} steps "
        f"({record['network_passes']:,} network passes, recipe `{record['recipe']}`, seed {record['seed']}).",
        _usage(network, settings, base, lora),
        _scores(results),
        f"## Settings\n\n```yaml\n{yaml.safe_dump(_said(record['resolved']), sort_keys=False)}```",
        f"## Licence\n\nThese weights derive from `{base}`"
        + (f" (licence: {licence})" if licence else "")
        + "; its licence and terms of use hold for them.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _said(resolved: dict[str, Any]) -> dict[str, Any]:
    return {
        key: resolved[key] for key in ("method", "backbone", "data", "train", "sample", "config") if key in resolved
    }


def _usage(network: PipelineBackbone, settings: dict[str, Any], base: str, lora: bool) -> str:
    rows = "\n".join(
        f"| {nfe} | `{entry['sigmas']}` | {'yes' if entry['stochastic'] else 'no'} |"
        for nfe, entry in settings["sample"].items()
    )
    first = next(iter(settings["sample"].values()), None)
    text = "## Sampling\n\n"
    if first:
        text += f"```python\n{_code(network, first, base, lora)}\n```\n\n" if network.stock else f"{STEPS}\n\n"
    text += f"| evaluations | sigmas | fresh noise between steps |\n|--:|:--|:--|\n{rows}\n\n"
    if network.stock:
        text += NOTE
    if network.own:
        text += f"\n\n{OWN}"
    if lora and not fusible(network):
        text += f"\n\n{FUSE}"
    if "any_step" in settings:
        names = ", ".join(settings["any_step"])
        text += (
            f"\n\nAt {names} evaluations it is asked for other target times than 0, which a stock pipeline cannot do. "
            "`target_time.safetensors` holds what knows them: twinbench reads it where `backbone.model` is "
            + ("the folder that `twinbench export --merged` writes." if lora else "this folder.")
        )
    return text


def fusible(network: PipelineBackbone) -> bool:
    """Whether every layer that takes an adapter has a bias."""
    modules: Any = network.transformer.named_modules()
    return all(m.bias is not None for name, m in modules if re.fullmatch(network.lora_targets, name))


def _code(network: PipelineBackbone, entry: dict[str, Any], base: str, lora: bool) -> str:
    folder = base if lora else "this folder"
    lines = ["import torch", "from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler", ""]
    without, prompt = "", '"a cat"'
    if network.own:
        without, prompt = "text_encoder=None, tokenizer=None, ", "prompt_embeds=text, prompt_attention_mask=mask"
    lines += [f'pipe = DiffusionPipeline.from_pretrained("{folder}", {without}dtype=torch.bfloat16).to("cuda")']
    if lora:
        lines += ['pipe.load_lora_weights("this folder")']
        lines += [
            'pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained("this folder", subfolder="scheduler")'
        ]
    off = ", ".join(f"{key}={value}" for key, value in network.unguided.items())
    side, steps = network.config.resolution, len(entry["sigmas"])
    call = f"num_inference_steps={steps}, sigmas={entry['sigmas']}, {off}"
    return "\n".join([*lines, f"image = pipe({prompt}, height={side}, width={side}, {call}).images[0]"])


def _scores(results: Path | None) -> str:
    if results is None or not results.is_dir():
        return ""
    from twinbench.results import records

    try:
        found = list(records(results))
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error)) from None
    rows = [
        f"| {r.score['benchmark']} ({r.score['judge']}) | {r.score['nfe']} | {name} | {entry['value']:.4g} |"
        for r in found
        for name, entry in r.score["metrics"].items()
        if entry["value"] is not None
    ]
    head = "## Results\n\n| benchmark (judge) | evaluations | metric | value |\n|:--|--:|:--|--:|\n"
    return head + "\n".join(rows) if rows else ""
