"""The plan of one method under a recipe: what it holds, whether it fits, what it will cost, and what was assumed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ValidationError

from twinbench import plugins
from twinbench.backbones.sizes import SIZES
from twinbench.errors import UserError
from twinbench.planning import meta
from twinbench.planning.plan import RESERVE, Plan, Setup, cheapest
from twinbench.planning.tally import Tally, method_of, needs, tally
from twinbench.recipe import Resolved
from twinbench.training.networks import averaged

PEAKS = {"a100": 312e12, "h100": 989e12, "h200": 989e12}  # FLOPs a second: dense bfloat16, by the makers' data sheets


@dataclass(frozen=True)
class Machine:
    """GPUs, bytes of memory of each, FLOPs a second of each, and the share of them that training uses."""

    gpus: int
    memory: float
    flops: float
    utilisation: float


def peak(text: str) -> float:
    """The FLOPs a second of a GPU, by its name or as a number. Raises UserError."""
    if text.lower() in PEAKS:
        return PEAKS[text.lower()]
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"--flops {text}: one of {', '.join(PEAKS)}, or FLOPs a second, as in --flops 989e12")
    return value


def plan(resolved: Resolved, machine: Machine, samples: int) -> dict[str, Any]:
    """The plan as a record; bytes, FLOPs and hours. samples: of the cache.

    Raises UserError for a wrong setting, or a model whose sizes are not known."""
    train, precision = resolved.train, resolved.train.precision
    if not train.budget:
        raise UserError(f"{resolved.label!r} trains nothing (train.budget: 0); plan a method that does")
    if train.batch % machine.gpus:
        raise UserError(f"train.batch {train.batch} cannot be dealt to {machine.gpus} GPUs; make it a multiple of it")
    if train.offload and machine.gpus == 1:
        raise UserError("train.offload goes with sharding; plan it for 2 GPUs or more")
    kind = plugins.dataset(resolved.data.kind)
    pictures = getattr(kind, "pictures", True)
    model = meta.model(resolved.backbone, precision)
    counted = tally(resolved, model.depth, pictures)
    setup = setup_of(resolved, machine)
    drawn = Plan(model, needs(method_of(resolved)), setup, counted.alive, bare(resolved))
    change = None if drawn.fits else cheapest(drawn)
    name = str(resolved.backbone.options.get("model", resolved.backbone.name))
    return {
        "method": resolved.label,
        "recipe": resolved.recipe,
        "backbone": name,
        "sizes": SIZES[name].source if name in SIZES else "its own configuration",
        "gpus": machine.gpus,
        "gpu_memory": machine.memory,
        "networks": [
            {**asdict(part), "total": part.total, "per_gpu": part.per_gpu(setup.gpus)} for part in drawn.parts
        ],
        "memory": _memory(drawn),
        "fits": drawn.fits,
        "change": None if change is None else {"set": change[0], **_memory(change[1])},
        "cost": _cost(resolved, counted, model.flops, machine),
        "cache": _cache(model.latent * pictures, model.words, samples) if hasattr(kind, "pictures") else None,
        "assumptions": _assumptions(drawn, machine),
    }


def setup_of(resolved: Resolved, machine: Machine) -> Setup:
    """How a recipe trains a method on a machine."""
    train = resolved.train
    return Setup(
        machine.gpus,
        machine.memory,
        train.batch,
        train.micro_batch,
        recompute=bool(train.recompute),
        offload=bool(train.offload),
        lora=train.lora.rank if train.lora else None,
        optimizer=train.optimizer,
        average=averaged(method_of(resolved), train),
    )


def bare(resolved: Resolved) -> tuple[str, ...]:
    """The settings under which a method holds no average; none where it has one and cannot do without."""
    alone, student = "--set train.evaluate=student", resolved.train.model_copy(update={"evaluate": "student"})
    if not averaged(method_of(resolved), student):
        return (alone,)
    itself = resolved.model_copy(update={"config": {**resolved.config, "target": "self"}})
    try:
        needed = averaged(method_of(itself), student)
    except ValidationError:  # it has no such setting, or cannot be its own target
        return ()
    block = f"presets.{resolved.preset}" if resolved.preset else "methods"
    return () if needed else (alone, f"--set {block}.{resolved.label}.target=self")


def _memory(plan: Plan) -> dict[str, Any]:
    """Of one GPU."""
    m, rows = plan.model, plan.setup.rows
    return {
        "networks": plan.states,
        "working": plan.working,
        "rows": rows,
        "recompute": plan.setup.recompute,
        "activations": plan.activations,
        "activations_without_recomputation": rows * plan.alive * m.saved,
        "activations_with_recomputation": rows * (plan.alive * m.kept + m.largest),
        "reserve": RESERVE,
        "total": plan.total,
        "host": plan.host,
    }


def _cost(resolved: Resolved, counted: Tally, flops: float, machine: Machine) -> dict[str, Any]:
    """Of a step and of the whole budget; passes before the first step (a teacher's pairs) are part of it."""
    train, step = resolved.train, counted.passes * resolved.train.batch
    steps = train.budget / {"steps": 1, "images": train.batch, "passes": step or 1}[train.unit]
    if train.unit == "passes":
        steps = max(train.budget - counted.before, 0) / step if step else 0.0
    passes = (counted.before + steps * step) if step else 0.0
    hours = passes * flops / (machine.flops * machine.utilisation) / 3600
    return {
        "passes_per_step": step,
        "flops_per_pass": flops,
        "flops_per_step": step * flops,
        "steps": steps if step else 0.0,
        "passes": passes,
        "flops": passes * flops,
        "gpu_hours": hours,
        "hours": hours / machine.gpus,
    }


def _cache(latent: int, words: int, samples: int) -> dict[str, Any]:
    return {"samples": samples, "latent": latent, "words": words, "total": samples * (latent + words)}


def _assumptions(plan: Plan, machine: Machine) -> list[str]:
    alive, best = f"{plan.alive:.3g}", f"{machine.flops / 1e12:.0f}"
    return [
        f"a GPU makes {best} TFLOP a second at its best, and training uses {machine.utilisation:.0%} of that",
        f"{RESERVE / 1e9:.0f} GB of a GPU go to CUDA, NCCL and what the allocator cannot use",
        "a pass is one forward of one row; its backward is 2; recomputation is not counted",
        f"activations are what autograd saves of a pass; passes a row that wait for one backward: {alive}",
        "attention is fused: no scores are saved",
        "gradients of every trained network are held at once",
        f"the longest prompt of a micro-batch has {meta.LONGEST} tokens, one in the cache {meta.MEAN} "
        "(a family that pads: all of its tokens)",
        "neither VAE nor text encoders are in memory: training reads the cache",
    ]
