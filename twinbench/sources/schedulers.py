"""Schedulers of diffusers: chosen by name, made anew for the steps that are asked for, and with keyed noise."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import torch
import yaml

from twinbench.errors import UserError, unknown
from twinbench.sources.index import line

FLOW = "FlowMatch"  # how the classes begin whose sigmas are in (0, 1]


def chosen(text: str) -> tuple[Any, dict[str, Any]]:
    """`NAME` or `NAME:key=value,...`: the class of diffusers and its settings. Raises UserError for one that does not
    exist."""
    import diffusers

    name, _, rest = text.partition(":")
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        known = [known for known in dir(diffusers) if known.endswith("Scheduler")]
        raise unknown("scheduler", name, known, "a class of diffusers, as in --scheduler LCMScheduler")
    settings = {}
    for part in rest.split(",") if rest else ():
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals:
            raise UserError(f"--scheduler {text}: settings are key=value, as in {name}:timestep_spacing=trailing")
        if key not in parameters(kind):
            raise UserError(f"--scheduler: {unknown('setting', key, parameters(kind), f'of {name}')}")
        settings[key] = _value(value)
    return kind, settings


def _value(text: str) -> Any:
    """As YAML reads it, but 1e-4 is a number too."""
    told = yaml.safe_load(text)
    try:
        return float(told) if isinstance(told, str) else told
    except ValueError:
        return told


def parameters(kind: Any) -> list[str]:
    return [name for name in inspect.signature(kind.__init__).parameters if name != "self"]


def steps_by(kind: Any) -> set[str]:
    """How a scheduler may be told its steps: sigmas (of a flow), timesteps."""
    told = {"sigmas", "timesteps"} & set(inspect.signature(kind.set_timesteps).parameters)
    return told if kind.__name__.startswith(FLOW) else told - {"sigmas"}


def made(given: Any, text: str | None, changed: Mapping[str, Any]) -> Any:
    """A scheduler of the given one's settings, anew: of another class and with its settings, where a text says so, and
    with what else is changed. Raises UserError for settings that cannot be."""
    kind, settings = chosen(text) if text else (type(given), {})
    known = {key: value for key, value in changed.items() if key in parameters(kind)}
    try:
        return kind.from_config(given.config, **(known | settings))
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"--scheduler {text or kind.__name__}: {line(error)}") from None


def keyed(scheduler: Any, noise: Callable[[str], torch.Tensor]) -> None:
    """Give a scheduler that draws noise at its i-th step that of the name i."""
    step, at = scheduler.step, count()
    module: Any = sys.modules[type(scheduler).__module__]
    draw = getattr(module, "randn_tensor", None)

    def stepped(*args: Any, **rest: Any) -> Any:
        name = str(next(at))

        def drawn(shape: Any, device: Any = None, dtype: Any = None, **_: Any) -> torch.Tensor:
            rows = noise(name)
            return torch.cat([rows] * (shape[0] // len(rows))).to(device, dtype)  # guidance may double the rows

        module.randn_tensor = drawn
        try:
            return step(*args, **rest)
        finally:
            module.randn_tensor = draw

    if draw is not None:
        scheduler.step = stepped
