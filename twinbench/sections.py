"""The shared sections of a recipe: backbone, data, training, sampling, evaluation. No torch here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from twinbench.settings import Lora, Strict

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
    optimizer: Literal["adamw", "muon", "radam"] = "adamw"
    lr: float = Field(5e-4, gt=0)
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, gt=0, description="largest gradient norm")
    warmup: int = Field(0, ge=0, description="steps in which the learning rate rises")
    decay: float = Field(0.0, ge=0, le=1, description="last share of the budget, in which the rate falls to 0")
    ema: float = Field(0.99, ge=0, lt=1, description="limit of the average's decay")
    evaluate: Literal["average", "student"] = "average"
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the products inside the network")
    recompute: bool | None = Field(None, description="true: keep no activations within blocks, but compute them anew")
    offload: bool | None = Field(None, description="true: several processes keep their shards in the host's memory")
    lora: Lora | None = Field(None, description="train adapters on the frozen initial weights; null: all weights")
    save_every: int = Field(100, ge=1, description="steps between checkpoints")
    save_aside: bool | None = Field(
        None, description="true: several processes write checkpoints while they train on, from copies on the host"
    )
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
        self.idle_unless(self.steps is not None, "steps", "gap", "curve")
        return self


class Evaluation(Strict):
    nfe: tuple[Count, ...] = Field((1, 2, 4), min_length=1)
    benchmarks: dict[str, dict[str, Any]] = Field(default_factory=dict)
    chunk: int = Field(16, ge=1, description="rows of every network call; images depend on it in the last bit")
