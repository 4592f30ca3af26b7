"""How a pipeline spends a number of evaluations: by options, or as its export says (`twinbench.json` in its folder):

{"sample": {"1": {"sigmas": [0.999], "guidance": 1.0, "stochastic": false}, "2": {...}}}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from twinbench.errors import UserError
from twinbench.files import read_json
from twinbench.settings import Strict, validate
from twinbench.sources import schedulers
from twinbench.sources.index import Index

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
    scheduler; timesteps: falling, of the training's grid; scheduler: another one, as `schedulers.chosen` reads it."""

    nfe: int
    steps: int
    sigmas: tuple[float, ...] | None = None
    guidance: float | None = None
    stochastic: bool | None = None
    shift: float | None = None
    timesteps: tuple[int, ...] | None = None
    scheduler: str | None = None

    @property
    def counted(self) -> int:
        return self.nfe

    def as_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "nfe" and value is not None}

    def arguments(self, index: Index) -> dict[str, Any]:
        """What the pipeline is called with. Raises UserError for sigmas or timesteps that it does not take."""
        out: dict[str, Any] = {"num_inference_steps": self.steps}
        for name, row in (("sigmas", self.sigmas), ("timesteps", self.timesteps)):
            if row and name not in index.takes:
                raise UserError(f"{index.kind.__name__} takes no {name}; leave --{name} out")
            if row:
                out[name] = list(row)
        if (
            "intermediate_timesteps" in index.takes and self.steps != 2
        ):  # SANA-Sprint's default holds for two steps only
            out["intermediate_timesteps"] = None
        return out | (index.guided(self.guidance) if self.guidance is not None else {})

    def scheduled(self, given: Any) -> Any:
        """The scheduler, anew, as these steps want it. Raises UserError for a setting that it does not have."""
        kind, _ = schedulers.chosen(self.scheduler) if self.scheduler else (type(given), {})
        changed: dict[str, Any] = {}
        if self.sigmas or self.shift is not None:
            changed = {"shift": 1.0 if self.shift is None else self.shift, "use_dynamic_shifting": False}
            changed["shift_terminal"] = None
        if self.stochastic is not None:
            changed["stochastic_sampling"] = self.stochastic
        lacks = {"shift": self.shift is not None, "stochastic_sampling": bool(self.stochastic)}
        if odd := [key for key, asked in lacks.items() if asked and key not in schedulers.parameters(kind)]:
            raise UserError(f"{kind.__name__} has no {' and no '.join(odd)}")
        told = schedulers.steps_by(kind)
        if self.sigmas and "sigmas" not in told:
            raise UserError(
                f"--sigmas are noise levels of flow matching, which {kind.__name__} does not take; give its steps by "
                "--timesteps, as in --timesteps 999,749,499,249, or a flow --scheduler FlowMatchEulerDiscreteScheduler"
            )
        if self.timesteps and "timesteps" not in told:
            raise UserError(f"{kind.__name__} takes no timesteps; --scheduler chooses another, as LCMScheduler")
        made = schedulers.made(given, self.scheduler, changed)
        if self.timesteps and self.timesteps[0] >= (most := made.config.get("num_train_timesteps", 1000)):
            raise UserError(f"--timesteps begins with {self.timesteps[0]}, and {kind.__name__} ends at {most - 1}")
        return made


# ---- what is asked ----


@dataclass(frozen=True)
class StepOptions:
    """What the command line says of them: --nfe, --sigmas (a row for each number of evaluations), --guidance,
    --scheduler-shift, --timesteps (rows too), --scheduler."""

    nfe: Sequence[int] | None = None
    sigmas: Sequence[Sequence[float]] = ()
    guidance: float | None = None
    shift: float | None = None
    timesteps: Sequence[Sequence[int]] = ()
    scheduler: str | None = None

    @property
    def steps_said(self) -> bool:
        """Whether anything but the number of evaluations is said."""
        told = self.sigmas or self.timesteps or self.scheduler
        return bool(told) or self.guidance is not None or self.shift is not None

    def rows(self, passes: int) -> dict[int, Steps]:
        """The plans of the rows, by number of evaluations. Raises UserError for rows of both kinds."""
        if self.sigmas and self.timesteps:
            raise UserError("--sigmas and --timesteps both say the steps; give one of them")
        every = [Steps(0, len(row), sigmas=tuple(row)) for row in self.sigmas]
        every += [Steps(0, len(row), timesteps=tuple(row)) for row in self.timesteps]
        return {one.steps * passes: self.plan(one, passes) for one in every}

    def plan(self, one: Steps, passes: int) -> Steps:
        nfe = one.steps * passes
        return replace(one, nfe=nfe, guidance=self.guidance, shift=self.shift, scheduler=self.scheduler)


def plans(folder: Path, options: StepOptions, usual: Sequence[int] | None = None) -> list[Steps]:
    """One plan for each number of evaluations: by the options, else as the export says, else plain steps.

    usual: what is drawn if neither --nfe nor rows nor the export say it; without it one, two and four steps. Raises
    UserError where an asked number is not among what is given, or guidance takes two at a time."""
    asked = options.nfe
    given = {} if options.steps_said else exported(folder)
    passes = 1 if given else Index(folder).passes(options.guidance)
    given = given or options.rows(passes)
    for plan in given.values():
        row = plan.sigmas or (1.0,)
        if row[0] > 1 or row[-1] <= 0 or list(row) != sorted(set(row), reverse=True):
            raise UserError(f"sigmas must fall strictly within (0, 1], got {list(row)}")
    none = "; guidance takes two a step, --guidance 1 turns it off" if passes == 2 else ""
    if given:
        if missing := [nfe for nfe in asked or () if nfe not in given]:
            what = "timesteps" if options.timesteps else "sigmas"
            example = "999,499" if options.timesteps else "0.999,0.6"
            raise UserError(
                f"{what} are given for {', '.join(map(str, sorted(given)))} evaluations, not for {missing[0]}{none}; "
                f"--{what} gives them, as in --{what} {example}"
            )
        return [given[nfe] for nfe in sorted(asked or given)]
    if odd := [nfe for nfe in asked or usual or () if nfe % passes]:
        raise UserError(f"{odd[0]} evaluations cannot be had, ask for an even number{none}")
    wanted = asked or usual or [steps * passes for steps in (1, 2, 4)]
    return [options.plan(Steps(nfe, nfe // passes), passes) for nfe in wanted]


def said(folder: Path) -> Any:
    """What an export says of itself; None without its file. Raises UserError for one that is no JSON."""
    try:
        return read_json(folder / SETTINGS)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(str(error)) from None


def side(folder: Path) -> int | None:
    """The side of an export's pictures in pixels, where it says so."""
    tree = said(folder)
    size = tree.get("size") if isinstance(tree, dict) else None
    return size if isinstance(size, int) else None


def exported(folder: Path) -> dict[int, Steps]:
    """How the export spends its evaluations, by their number; empty without its file. Raises UserError for a wrong
    one."""
    path, tree = folder / SETTINGS, said(folder)
    if tree is None:
        return {}
    entries = tree.get("sample") if isinstance(tree, dict) else None
    if not isinstance(entries, dict) or not all(key.isdigit() and isinstance(e, dict) for key, e in entries.items()):
        raise UserError(f"{path} needs `sample`: settings by number of evaluations")
    out = {}
    for key, entry in entries.items():
        e = validate(Exported, entry, f"{path}, sample.{key}")
        out[int(key)] = Steps(int(key), len(e.sigmas), e.sigmas, e.guidance, e.stochastic)
    return out
