"""How a pipeline spends a number of evaluations: by options, or as its export says (`twinbench.json` in its folder):

{"sample": {"1": {"sigmas": [0.999], "guidance": 1.0, "stochastic": false}, "2": {...}}}
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from twinbench.errors import UserError
from twinbench.files import read_json
from twinbench.settings import Strict, validate

SETTINGS = "twinbench.json"


class Exported(Strict):
    """One entry of `sample`."""

    sigmas: tuple[float, ...] = Field(min_length=1, description="falling, in (0, 1], as the network sees them")
    guidance: float = Field(1.0, ge=0, description="1 is none")
    stochastic: bool = False


@dataclass(frozen=True)
class Steps:
    """steps: calls of the scheduler; sigmas: falling, in (0, 1], as the network sees them (the scheduler's own shift is
    off then); guidance: 1 is none, None the pipeline's own; stochastic: fresh noise at every step; shift: of the
    scheduler."""

    nfe: int
    steps: int
    sigmas: tuple[float, ...] | None = None
    guidance: float | None = None
    stochastic: bool | None = None
    shift: float | None = None

    @property
    def counted(self) -> int:
        return self.nfe

    def as_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "nfe" and value is not None}

    def arguments(self, pipe: Any) -> dict[str, Any]:
        """What the pipeline is called with. Raises UserError for sigmas that it does not take."""
        taken = inspect.signature(pipe.__call__).parameters
        out: dict[str, Any] = {"num_inference_steps": self.steps}
        if self.sigmas:
            if "sigmas" not in taken:
                raise UserError(f"{type(pipe).__name__} takes no sigmas; leave --sigmas out")
            out["sigmas"] = list(self.sigmas)
        if "intermediate_timesteps" in taken and self.steps != 2:  # SANA-Sprint's default holds for two steps only
            out["intermediate_timesteps"] = None
        return out | (_guided(pipe, self.guidance) if self.guidance is not None else {})

    def scheduler(self, given: Any) -> Any:
        """The scheduler, anew, as these steps want it. Raises UserError for a setting that it does not have."""
        changed: dict[str, Any] = {}
        if self.sigmas or self.shift is not None:
            changed = {"shift": 1.0 if self.shift is None else self.shift, "use_dynamic_shifting": False}
            changed["shift_terminal"] = None
        if self.stochastic is not None:
            changed["stochastic_sampling"] = self.stochastic
        unknown = [key for key in changed if key not in inspect.signature(type(given).__init__).parameters]
        if (self.shift is not None and "shift" in unknown) or (self.stochastic and "stochastic_sampling" in unknown):
            raise UserError(f"{type(given).__name__} has no {' and no '.join(unknown)}")
        return type(given).from_config(given.config, **{k: v for k, v in changed.items() if k not in unknown})


def _guided(pipe: Any, scale: float) -> dict[str, Any]:
    """Guidance in the pipeline's words; scale 1 is none, except where the network was taught it as an input."""
    if getattr(getattr(pipe, "transformer", None), "config", {}).get("guidance_embeds"):
        return {"guidance_scale": scale}
    if "true_cfg_scale" in inspect.signature(pipe.__call__).parameters:
        return {"true_cfg_scale": scale} | ({"negative_prompt": " "} if scale != 1 else {})
    if type(pipe).__name__.startswith("ZImage"):  # positive + s (positive - negative): 0 is none
        return {"guidance_scale": scale - 1}
    return {"guidance_scale": scale}


# ---- what is asked ----


@dataclass(frozen=True)
class StepOptions:
    """What the command line says of them: --nfe, --sigmas (a row for each number of evaluations), --guidance,
    --scheduler-shift."""

    nfe: Sequence[int] | None = None
    sigmas: Sequence[Sequence[float]] = ()
    guidance: float | None = None
    shift: float | None = None


def plans(folder: Path, options: StepOptions, usual: Sequence[int] | None = None) -> list[Steps]:
    """One plan for each number of evaluations: by the options, else as the export says, else plain steps.

    usual: what is drawn if neither --nfe nor sigmas nor the export say it; without it one, two and four steps. Raises
    UserError where an asked number is not among what is given."""
    asked, sigmas, guidance, shift = options.nfe, options.sigmas, options.guidance, options.shift
    passes = 1 if guidance in (None, 1.0) or _embeds(folder) else 2
    given = {len(row) * passes: Steps(len(row) * passes, len(row), tuple(row), guidance, shift=shift) for row in sigmas}
    if not sigmas and guidance is None and shift is None:
        given = exported(folder)
    for plan in given.values():
        row = plan.sigmas or ()
        if not row or row[0] > 1 or row[-1] <= 0 or list(row) != sorted(set(row), reverse=True):
            raise UserError(f"sigmas must fall strictly within (0, 1], got {list(row)}")
    if given:
        if missing := [nfe for nfe in asked or () if nfe not in given]:
            raise UserError(
                f"sigmas are given for {', '.join(map(str, sorted(given)))} evaluations, not for {missing[0]}; "
                "--sigmas gives them, as in --sigmas 0.999,0.6"
            )
        return [given[nfe] for nfe in sorted(asked or given)]
    if odd := [nfe for nfe in asked or usual or () if nfe % passes]:
        raise UserError(
            f"guidance takes two evaluations a step: {odd[0]} of them cannot be had, ask for an even number"
        )
    wanted = asked or usual or [steps * passes for steps in (1, 2, 4)]
    return [Steps(nfe, nfe // passes, None, guidance, shift=shift) for nfe in wanted]


def _embeds(folder: Path) -> bool:
    """Whether guidance is an input of the network, and no second evaluation."""
    path = folder / "transformer" / "config.json"
    return path.is_file() and bool(read_json(path).get("guidance_embeds"))


def exported(folder: Path) -> dict[int, Steps]:
    """What the export says, by number of evaluations; empty without its file. Raises UserError for a wrong one."""
    path = folder / SETTINGS
    try:
        tree = read_json(path)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(str(error)) from None
    entries = tree.get("sample") if isinstance(tree, dict) else None
    if not isinstance(entries, dict) or not all(key.isdigit() and isinstance(e, dict) for key, e in entries.items()):
        raise UserError(f"{path} needs `sample`: settings by number of evaluations")
    out = {}
    for key, entry in entries.items():
        e = validate(Exported, entry, f"{path}, sample.{key}")
        out[int(key)] = Steps(int(key), len(e.sigmas), e.sigmas, e.guidance, e.stochastic)
    return out
