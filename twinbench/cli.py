"""The command line: which commands there are, and how it ends. Each is thin and imports what is heavy when it runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, cast

import typer

from twinbench.commands import audit, cache, compare, data, doctor, evaluate, export, latency, look, plan
from twinbench.errors import UserError, WorkError

app = typer.Typer(
    help="Train few-step image generators under shared recipes, and compare them honestly.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
COMMANDS: dict[str, Callable[..., None]] = {
    "bench": compare.bench,
    "cache": cache.cache,
    "train": compare.train,
    "eval": evaluate.evaluate,
    "report": compare.report,
    "list": look.list_names,
    "show": look.show,
    "export": export.export,
    "fetch": data.fetch,
    "reference": data.reference,
    "plan": plan.plan,
    "latency": latency.latency,
    "audit": audit.audit,
    "doctor": doctor.doctor,
}
for name, command in COMMANDS.items():
    app.command(name)(command)

INTERRUPTED = 130
Misuse = cast(type[Exception], typer.BadParameter.__mro__[1])  # UsageError, of click or of typer's copy of it


def main() -> None:
    """Exit codes: 0 done, 1 failure at work, 2 bad input, 130 interrupted."""
    try:
        code = app(standalone_mode=False) or 0
        if code == INTERRUPTED:  # typer made it of the interrupt
            raise KeyboardInterrupt
    except Misuse as error:
        code = misused(error)
    except UserError as error:
        code = fail(str(error), 2)
    except WorkError as error:
        code = fail(str(error), 1)
    except KeyboardInterrupt:
        code = fail("interrupted; the same command goes on from the last save", INTERRUPTED)
    except (PermissionError, NotADirectoryError, FileExistsError, IsADirectoryError) as error:
        code = fail(f"cannot write {error.filename} ({error.strerror}); choose another folder", 2)
    except OSError as error:
        code = fail(f"{error.strerror or error} ({error.filename}); nothing that was saved is lost", 1)
    sys.exit(code)


def misused(error: Any) -> int:
    """A wrong command line: what is wrong with it, and where the right one is described."""
    message = error.format_message()
    if "\n" in message:  # no command at all: typer's message is the help
        print(message, file=sys.stderr)
        return 2
    where = error.ctx.command_path if error.ctx else "twinbench"
    return fail(f"{message[:1].lower()}{message[1:].rstrip('.')} ({where} --help)", 2)


def fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
