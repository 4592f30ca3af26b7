"""Settings, checked: what a recipe, a method or a benchmark may be told, and problems in words. No torch here."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from twinbench.errors import UserError, unknown

REQUIRED = "???"


def _power_of_two(n: int) -> int:
    if n & (n - 1):
        raise ValueError(f"must be a power of two, got {n}")
    return n


PowerOfTwo = Annotated[int, AfterValidator(_power_of_two)]


class Strict(BaseModel):
    """Settings: frozen, and a misspelt name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def idle_unless(self, met: bool, needed: str, *names: str) -> None:
        """Raises ValueError for the first of some settings that is not its default, unless what they need is met."""
        for name in names:
            if not met and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} has no effect without {needed}")


class Lora(Strict):
    """Adapters on a frozen network (LoRA)."""

    rank: int = Field(16, ge=1)
    alpha: float | None = Field(None, gt=0, description="what they add is scaled by alpha / rank; null: by 1")


def digest(value: Any) -> str:
    """What settings are called: the sha256 of their canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def missing(tree: Any, path: str = "") -> list[str]:
    """The dotted keys whose value is still ???."""
    if isinstance(tree, dict):
        return [key for k, v in tree.items() for key in missing(v, f"{path}.{k}" if path else str(k))]
    return [path] if tree == REQUIRED else []


def validate(model: Any, tree: dict[str, Any], where: str) -> Any:
    if holes := missing(tree):
        raise UserError(f"{where} needs a value for {holes[0]} (--set {holes[0]}=...)")
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise UserError(_sentence(error.errors()[0], model, where)) from None


def _sentence(problem: Any, model: Any, where: str) -> str:
    """The first problem of a validation, in words, with a near name for a misspelt one."""
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        for part in problem["loc"][:-1]:
            field = getattr(model, "model_fields", {}).get(part)
            model = field.annotation if field is not None else (get_args(model) or (model,))[-1]  # a dict's values
            model = next((kind for kind in get_args(model) if hasattr(kind, "model_fields")), model)  # not its None
        parent, known = ".".join(map(str, problem["loc"][:-1])), list(getattr(model, "model_fields", {}))
        error = unknown("setting", str(problem["loc"][-1]), known, f"known: {', '.join(known)}")
        return f"{where}: {parent + ': ' if parent else ''}{error}"
    message = problem["msg"].removeprefix("Value error, ")
    given = "" if problem["type"] in ("missing", "value_error") else f", got {problem['input']!r}"
    return f"{where}: {key + ': ' if key else ''}{message}{given}"
