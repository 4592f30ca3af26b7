"""The tiny twin of a recipe for a large model: the same classes in small sizes with random weights, a few drawn
pictures, a few steps. With it a whole path, from cache to export, is tried on a CPU in a minute; its numbers mean
nothing.

It is the recipe `<name>-tiny`: the recipe's own settings, with what makes it large laid over. No torch here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from twinbench.errors import UserError

if TYPE_CHECKING:
    from twinbench.sections import BackboneSection

RUNS = Path("runs")  # where runs live, and tiny pipelines, if nothing else is said
SUFFIX = "-tiny"
SIDE = 64  # pixels
LIMIT = 1  # prompts a task that are drawn and judged where no number is given
FEW = 8  # larger numbers of evaluations are left out
TRAIN = {"budget": 4, "unit": "steps", "batch": 4, "micro_batch": 2, "save_every": 2, "precision": "float32"}
BENCHMARKS = {"diversity": {"distance": None, "features": "pixels"}}
WORLDS = ("patch-transformer", "mlp")


def tiny(tree: dict[str, Any], runs: Path) -> dict[str, Any]:
    """A recipe's tree as that of its twin. Raises UserError for a recipe of an embedded world, which is small."""
    backbone = tree.get("backbone") or {}
    name = str(backbone.get("name"))
    if name in WORLDS:
        raise UserError(f"recipe {tree['name']!r} is small already; --tiny is for recipes of large models")
    classes = name == "dit"
    own = {key: value for key, value in backbone.items() if key not in ("revision", "offline", "text_dtype", "tokens")}
    train = {key: value for key, value in (tree.get("train") or {}).items() if key not in ("warmup", "decay")}
    if train.get("lora"):
        train["lora"] = {**train["lora"], "rank": 4, "alpha": 4}
    return {
        **tree,
        "name": tree["name"] + SUFFIX,
        "source": tree["source"] + SUFFIX if tree.get("source") else "",
        "backbone": own | {"model": str(folder(runs, name)), "resolution": SIDE, "dtype": "float32"},
        "data": {"kind": "drawn", "captions": "classes" if classes else "words"},
        "train": train | TRAIN,
        "sample": _few(tree.get("sample")),
        "eval": {"nfe": [1, 2, 4], "chunk": 4, "benchmarks": {} if classes else BENCHMARKS},
        "methods": _blocks(tree.get("methods")),
        "presets": {name: _blocks(blocks) for name, blocks in (tree.get("presets") or {}).items()},
    }


def _blocks(blocks: Any) -> dict[str, Any]:
    """Blocks without what makes them long; a budget of nothing stays."""
    out = {}
    for label, block in (blocks or {}).items():
        train = {k: v for k, v in (block.get("train") or {}).items() if k not in TRAIN or (k, v) == ("budget", 0)}
        out[label] = {**block, **({"train": train} if train else {}), "sample": _few(block.get("sample"))}
        if not train:
            out[label].pop("train", None)
    return out


def _few(sample: Any) -> dict[int, Any]:
    return {nfe: settings for nfe, settings in (sample or {}).items() if nfe <= FEW}


def folder(runs: Path, name: str) -> Path:
    """Where the tiny pipeline of a backbone lies."""
    return runs / "tiny" / name


def ready(section: BackboneSection) -> None:
    """Make the tiny pipeline that a backbone names, if it names one that is not there yet."""
    place = Path(str(section.options.get("model", "")))
    if place.parts[-2:] == ("tiny", section.name) and not place.exists():
        from twinbench.backbones.tiny import tiny as made

        made(section.name, place)


def named(recipe: str, tiny: bool) -> str:
    """The name of a recipe, or of its twin."""
    return recipe + SUFFIX if tiny else recipe


def few(recipe: str | None, limit: int | None) -> int | None:
    """The prompts a task that are asked for, of a twin by default the fewest."""
    return LIMIT if limit is None and recipe and recipe.endswith(SUFFIX) else limit
