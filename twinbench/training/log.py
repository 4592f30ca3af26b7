"""log.jsonl: a row a step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from twinbench.files import write_text


def add(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def trim(path: Path, step: int) -> None:
    """Forget what was logged after the last checkpoint: those steps are made again."""
    if not path.exists():
        return
    text, kept = path.read_text(), []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # a kill in the middle of a line
            break
        if row["step"] > step:
            break
        kept.append(line)
    if (trimmed := "".join(f"{line}\n" for line in kept)) != text:
        write_text(path, trimmed)
