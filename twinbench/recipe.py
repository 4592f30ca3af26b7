"""A recipe says under which conditions methods are compared: YAML in, checked settings out. No torch here.

`load` checks the shared sections and the names of methods without importing any of them; `resolve` imports one
method and checks its block. Everything above `methods` is shared; what differs stands below it, and nowhere else.
"""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from twinbench import plugins
from twinbench.errors import UserError, unknown
from twinbench.settings import Strict, validate

Name = Annotated[str, Field(pattern=r"^\w[^/\\]*$")]  # of a folder
Beta = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class Named(BaseModel):
    """A plug-in and its settings; the settings are checked by the plug-in's own Config when it is resolved."""

    model_config = ConfigDict(frozen=True, extra="allow")

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class BackboneSection(Named):
    name: str
    weights: str = Field("none", description="none | shipped | run:<fingerprint> | a safetensors file")


class DataSection(Named):
    kind: str


class Train(Strict):
    budget: int = Field(ge=0)
    unit: Literal["passes", "steps", "images"] = Field("passes", description="network passes are the fair axis")
    batch: int = Field(64, ge=1)
    micro_batch: int | None = Field(None, ge=1, description="rows at once; the whole batch if null")
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(5e-4, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    warmup: int = Field(0, ge=0, description="steps in which the learning rate rises")
    decay: float = Field(0.0, ge=0, le=1, description="last share of the budget, in which the rate falls to 0")
    ema: float = Field(0.99, ge=0, lt=1, description="limit of the average's decay")
    evaluate: Literal["average", "student"] = "average"
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the products inside the network")
    save_every: int = Field(100, ge=1, description="steps between checkpoints")
    keep: int = Field(2, ge=1, description="checkpoints kept")


class Sample(Strict):
    """How one number of network evaluations is spent."""

    steps: int | None = Field(None, ge=1)
    times: tuple[float, ...] | None = None
    hop: Literal["end", "next", "same"] | None = None
    renoise: float | Literal["sde"] = 0.0
    extrapolation: float = 0.0
    heun: bool = False
    gap: tuple[float, float] = (0.0, 0.0)
    curve: tuple[float, float, float] = (1.0, 1.0, 1.0)
    guidance: float = Field(1.0, ge=0, description="1 is none; anything else doubles the evaluations")

    @model_validator(mode="after")
    def _one_of(self) -> Sample:
        if (self.steps is None) == (self.times is None):
            raise ValueError("give steps or times, one of them")
        return self


class Evaluation(Strict):
    nfe: tuple[Count, ...] = Field((1, 2, 4), min_length=1)
    benchmarks: dict[str, dict[str, Any]] = Field(default_factory=dict)
    chunk: int = Field(16, ge=1, description="rows of every network call; images depend on it in the last bit")


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


class Resolved(Strict):
    """One method under a recipe: the shared sections with the block's own laid over them."""

    recipe: str
    source: str = ""
    label: str
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
        """What a run is: everything that its weights depend on, and nothing else."""
        backbone = {**self.backbone.model_dump(), "weights": weights_sha256}
        train = self.train.model_dump(exclude={"save_every", "keep", "micro_batch"})
        method = {"name": self.method, **self.config}
        return {"backbone": backbone, "data": data_sha256, "train": train, "method": method, "seed": self.seed}


def digest(value: Any) -> str:
    """sha256 of the canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# ---- reading ----


def shipped() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(p.name.removesuffix(".yaml") for p in _folder().iterdir() if p.name.endswith(".yaml"))


def _folder() -> Any:
    return resources.files("twinbench.recipes")


def load(name: str, overrides: list[str] | None = None) -> Recipe:
    """A shipped recipe by name, or a YAML file by path, with `a.b=c` overrides. Raises UserError for bad input."""
    recipe = validate(Recipe, _override(_read(name), overrides or []), f"recipe {name!r}")
    plugins.check("backbones", recipe.backbone.name)
    plugins.check("datasets", recipe.data.kind)
    for benchmark in recipe.eval.benchmarks:
        plugins.check("benchmarks", benchmark)
    for label, block in recipe.methods.items():
        plugins.check("methods", str(block.get("method", label)))
    return recipe


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


def _override(tree: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
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
    if label not in recipe.methods and label not in plugins.names("methods"):
        known = sorted({*recipe.methods, *plugins.names("methods")})
        raise unknown("method", label, known, "twinbench list methods")
    block = dict(recipe.methods.get(label, {}))
    where = f"recipe {recipe.name!r}, method {label!r}"
    name = str(block.pop("method", label))
    shared = recipe.model_dump(exclude={"name", "description", "methods"})
    over = {key: block.pop(key, None) or {} for key in ("train", "sample")}
    for key, value in over.items():
        if not isinstance(value, dict):
            raise UserError(f"{where}: {key} must be a mapping of settings, got {value!r}")
    shared["train"] = {**shared["train"], **over["train"]}
    shared["sample"] = {**shared["sample"], **over["sample"]}
    if "weights" in block:
        shared["backbone"]["weights"] = block.pop("weights")
    config = validate(plugins.method(name).Config, block, where).model_dump()
    for benchmark, options in recipe.eval.benchmarks.items():
        validate(plugins.benchmark(benchmark).Config, options, f"recipe {recipe.name!r}, benchmark {benchmark!r}")
    tree = {"recipe": recipe.name, "label": label, "method": name, "seed": seed, **shared, "config": config}
    tree["own_nfe"] = tuple(over["sample"])
    return validate(Resolved, tree, where)


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
