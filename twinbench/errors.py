"""The two ways to fail, as the command line tells them apart."""

from __future__ import annotations

from difflib import get_close_matches


class UserError(Exception):
    """Bad input: one sentence that names the thing and the mend. The command line prints it and exits with 2."""


class WorkError(Exception):
    """A failure at work: one sentence that says where, and what is left. The command line prints it and exits with
    1."""


def unknown(kind: str, name: str, known: list[str], hint: str) -> UserError:
    """The error for a name that does not exist, with the nearest one that does."""
    close = get_close_matches(name, known, 1, 0.5)
    guess = f"; did you mean {close[0]!r}?" if close else ""
    return UserError(f"{kind} {name!r} not found{guess} ({hint})")
