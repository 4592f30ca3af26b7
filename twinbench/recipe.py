"""A recipe says under which conditions methods are compared: YAML in, checked settings out. No torch here.

`load` checks the shared sections and the names of methods without importing any of them; `resolve` imports one
method and checks its block. Everything above `methods` is shared; what differs stands below it, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, model_validator

from twinbench import miniature, plugins
from twinbench.errors import UserError, unknown
from twinbench.miniature import RUNS
from twinbench.sections import BackboneSection, Count, DataSection, Evaluation, Sample, Train
from twinbench.settings import Strict, validate

PLACES = ("model", "revision", "offline")  # of a backbone: where its weights lie; what they are has a hash
MEANS = (
    "save_every",
    "save_aside",
    "keep",
    "micro_batch",
    "recompute",
    "offload",
)  # of training: its values are the same by any
Name = Annotated[str, Field(pattern=r"^\w[^/\\]*$")]  # of a folder


class Recipe(Strict):
    name: Name
    source: str = Field("", description="the file it was read from; empty for a shipped one")
    description: str = ""
    backbone: BackboneSection
    data: DataSection
    train: Train
    sample: dict[Count, Sample] = Field(default_factory=dict)
    eval: Evaluation = Evaluation()
    methods: dict[Name, dict[str, Any]]
    presets: dict[Name, dict[Name, dict[str, Any]]] = Field(default_factory=dict, description="methods asked for apart")

    @model_validator(mode="after")
    def _labels_are_unique(self) -> Recipe:
        labels = [*self.methods, *(label for blocks in self.presets.values() for label in blocks)]
        if twice := {label for label in labels if labels.count(label) > 1}:
            raise ValueError(f"label {min(twice)!r} stands twice among methods and presets")
        return self

    def preset_of(self, label: str) -> str:
        """The preset that a label belongs to; empty for one of the methods."""
        return next((name for name, blocks in self.presets.items() if label in blocks), "")

    def labels(self) -> dict[str, dict[str, Any]]:
        """Every block by its label, of the methods and of all presets."""
        return {**self.methods, **{label: block for blocks in self.presets.values() for label, block in blocks.items()}}


class Resolved(Strict):
    """One method under a recipe: the shared sections with the block's own laid over them."""

    recipe: str
    source: str = ""
    label: str
    preset: str = ""
    like: str = ""
    method: str
    seed: int
    backbone: BackboneSection
    data: DataSection
    train: Train
    sample: dict[Count, Sample]
    own_nfe: tuple[int, ...] = ()  # the budgets of the block's own `sample`
    eval: Evaluation
    config: dict[str, Any]

    def identity(self, weights_sha256: str, data_sha256: str) -> dict[str, Any]:
        """What a run is: everything that its weights depend on, and nothing else. A setting that is None says
        nothing: so an option that is added later, with None for its absence, makes no old run another one."""
        backbone = {**self.backbone.model_dump(exclude=set(PLACES)), "weights": weights_sha256}
        train = self.train.model_dump(exclude=set(MEANS))
        method = {"name": self.method, **self.config}
        tree = {"backbone": backbone, "data": data_sha256, "train": train, "method": method, "seed": self.seed}
        return _said(tree)


def _said(value: Any) -> Any:
    """A tree without what is None."""
    if isinstance(value, dict):
        return {key: _said(item) for key, item in value.items() if item is not None}
    return value


# ---- reading ----


def shipped() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(p.name.removesuffix(".yaml") for p in _folder().iterdir() if p.name.endswith(".yaml"))


def _folder() -> Any:
    return resources.files("twinbench.recipes")


def load(name: str, overrides: list[str] | None = None, runs: Path = RUNS) -> Recipe:
    """A shipped recipe by name, or a YAML file by path, with `a.b=c` overrides; `<name>-tiny` is the tiny twin of one,
    whose pipeline lies under `runs`. Raises UserError for bad input."""
    recipe = validate(Recipe, overridden(_tree(name, runs), overrides or []), f"recipe {name!r}")
    plugins.check("backbones", recipe.backbone.name)
    plugins.check("datasets", recipe.data.kind)
    for benchmark in recipe.eval.benchmarks:
        plugins.check("benchmarks", benchmark)
    for label in recipe.labels():
        plugins.check("methods", _block(recipe, label)[0])
    return recipe


def _tree(name: str, runs: Path) -> dict[str, Any]:
    if name.endswith(miniature.SUFFIX) and name not in shipped():
        return miniature.tiny(_read(name.removesuffix(miniature.SUFFIX)), runs)
    return _read(name)


def _read(name: str) -> dict[str, Any]:
    source: Any = Path(name)
    if source.suffix in (".yaml", ".yml"):
        title = source.stem
        if not source.is_file():
            raise UserError(f"recipe file {name!r} does not exist")
    elif name in shipped():
        source, title = _folder() / f"{name}.yaml", name
    else:
        raise unknown("recipe", name, shipped(), "twinbench list recipes")
    try:
        tree = yaml.safe_load(source.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {name!r} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"recipe {name!r} must be a mapping of sections")
    return {"name": title, **tree, "source": "" if name in shipped() else name}


def overridden(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A tree of settings with `a.b=c` laid over it. Raises UserError for one that does not read so."""
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise UserError(f"--set {item!r} must read key=value, as in train.lr=1e-4")
        *parents, last = key.split(".")
        node = tree
        for part in parents:
            node = node.setdefault(_key(part), {})
            if not isinstance(node, dict):
                raise UserError(f"--set {item!r}: {part!r} is a value, not a section")
        try:
            node[_key(last)] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--set {item!r}: {value!r} is not a YAML value") from None
    return tree


def _key(part: str) -> Any:
    return int(part) if part.isdigit() else part


# ---- one method ----


def resolve(recipe: Recipe, label: str, seed: int = 0) -> Resolved:
    """The settings of one method under the recipe; imports the method and checks its block.

    A method that the recipe does not list runs with its defaults. Raises UserError for bad input."""
    if label not in recipe.labels() and label not in plugins.names("methods"):
        known = sorted({*recipe.labels(), *plugins.names("methods")})
        raise unknown("method", label, known, "twinbench list methods")
    name, block = _block(recipe, label)
    where = f"recipe {recipe.name!r}, method {label!r}"
    shared = recipe.model_dump(exclude={"name", "description", "methods", "presets"})
    over = {key: block.pop(key, None) or {} for key in ("backbone", "train", "sample")}
    for key, value in over.items():
        shared[key] = {**shared[key], **value}
    if "weights" in block:
        shared["backbone"]["weights"] = block.pop("weights")
    config = validate(plugins.method(name).Config, block, where).model_dump()
    for benchmark, options in recipe.eval.benchmarks.items():
        kind = plugins.benchmark(benchmark, recipe.data.kind)
        validate(kind.Config, options, f"recipe {recipe.name!r}, benchmark {benchmark!r}")
    tree = {"recipe": recipe.name, "label": label, "method": name, "seed": seed, **shared, "config": config}
    tree |= {"preset": recipe.preset_of(label), "like": str(recipe.labels().get(label, {}).get("like", ""))}
    tree["own_nfe"] = tuple(over["sample"])
    return validate(Resolved, tree, where)


def _block(recipe: Recipe, label: str) -> tuple[str, dict[str, Any]]:
    """The method of a label and its block, laid over that of the label which it is `like`."""
    blocks = recipe.labels()
    block = dict(blocks.get(label, {}))
    where = f"recipe {recipe.name!r}, method {label!r}"
    for key in ("backbone", "train", "sample"):
        if not isinstance(block.get(key) or {}, dict):
            raise UserError(f"{where}: {key} must be a mapping of settings, got {block[key]!r}")
    like = block.pop("like", None)
    if like is None:
        return str(block.pop("method", label)), block
    if like not in blocks or "like" in blocks[like]:
        known = ", ".join(name for name in blocks if "like" not in blocks[name])
        raise UserError(f"{where}: like {like!r} must be a label that stands for itself, one of {known}")
    name, below = _block(recipe, like)
    return str(block.pop("method", name)), _over(below, block)


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """One tree laid over another, section by section."""
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            merged[key] = _over(below[key], above[key])
    return merged


def nfe_of(resolved: Resolved) -> list[int]:
    """The budgets at which a method is evaluated if none are named: the recipe's `eval.nfe`, and those of its own
    block."""
    return sorted({*resolved.eval.nfe, *resolved.own_nfe})


def difference(a: Any, b: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """The dotted keys at which two trees differ, with both values (None where a side has none)."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted({*a, *b}, key=str)
        return [row for k in keys for row in difference(a.get(k), b.get(k), f"{path}.{k}" if path else str(k))]
    return [] if a == b else [(path, a, b)]
