"""doctor: which judges are at hand, and whether they answer what is known."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from twinbench.commands.options import Overrides
from twinbench.errors import UserError, WorkError, unknown


def doctor(
    judge: Annotated[list[str] | None, typer.Argument(help="Judges (twinbench list judges); all by default.")] = None,
    sets: Overrides = None,
) -> None:
    """Ask the judges what is known: drawn pictures and photographs. A named judge must be there and be right.

    Example: twinbench doctor mask2former --set mask2former.weights=/data/detector.pth
    """
    import os

    from twinbench import plugins
    from twinbench.judges.base import judge as judge_of

    os.environ["HF_HUB_OFFLINE"] = "1"  # to look for a model is not to download it
    known = plugins.names("judges")
    for name in judge or ():
        if name not in known:
            raise unknown("judge", name, known, f"known: {', '.join(known)}")
    settings = _settings(sets or [], known)
    for name, given in settings.items():
        judge_of(name, given)  # a wrong setting is bad input
    failed = []
    for name in judge or known:
        state, note = _examine(name, settings.get(name, {}))
        typer.echo(f"{name:<14} {state:<8} {note}".rstrip())
        if state == "fails" or (state == "missing" and (judge or name in settings)):
            failed.append(name)
    if failed:
        raise WorkError(f"{', '.join(failed)}: see above; eval takes no judge that is missing or fails")


def _examine(name: str, settings: dict[str, Any]) -> tuple[str, str]:
    """ok, missing or fails; and the version, or what mends it with the packages that are here."""
    from twinbench import plugins
    from twinbench.judges.base import judge, present
    from twinbench.judges.weights import Missing

    try:
        kind = plugins.judge(name)
    except ModuleNotFoundError as error:
        return "missing", f"{error}: pip install {error.name}"
    here = ", ".join(" ".join(pair) for pair in present(*getattr(kind, "packages", ())).items())
    here = f" (here: {here})" if here else ""
    for setting, field in kind.Config.model_fields.items():
        if field.is_required() and setting not in settings:
            mend = f"twinbench doctor {name} --set '{name}.{setting}=VALUE'"
            return "missing", f"judge {name} needs its {setting} ({field.description}): {mend}"
    try:
        made = judge(name, settings)
        version = made.version
    except Missing as error:
        return "missing", f"{error}; or --set {name}.weights=PATH{here}"
    except UserError as error:
        return "missing", f"{error}{here}"
    except Exception as error:  # a judge may break in any way; the others are asked all the same
        return "fails", _told(error)
    try:
        if not hasattr(made, "selftest"):
            return "untested", version
        made.selftest()
        return "ok", version
    except ModuleNotFoundError as error:
        return "missing", f"{error}: pip install {error.name}{here}"
    except Exception as error:
        return "fails", _told(error)


def _told(error: Exception) -> str:
    """Its first line; of an error that is not ours, with its kind."""
    line = next(iter(str(error).strip().splitlines()), "")
    return line if isinstance(error, UserError | WorkError) else f"{type(error).__name__}: {line}"


def _settings(sets: list[str], known: list[str]) -> dict[str, dict[str, Any]]:
    """--set judge.setting=value, by judge. Raises UserError."""
    import yaml

    out: dict[str, dict[str, Any]] = {}
    for text in sets:
        key, equals, value = text.partition("=")
        name, dot, setting = key.partition(".")
        if not equals or not dot or name not in known:
            raise UserError(f"--set {text}: as in --set mask2former.weights=PATH (twinbench list judges)")
        try:
            out.setdefault(name, {})[setting] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--set {text}: {value} is no YAML value") from None
    return out
