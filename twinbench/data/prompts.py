"""Prompts without pictures, for methods that need no data but their own samples: a text file with one a line, or a
.jsonl file with a field."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from twinbench.data.captioned import Captioned, StoredConfig, caption_of
from twinbench.errors import UserError, WorkError


class Prompts(Captioned):
    Config: ClassVar[type[StoredConfig]] = StoredConfig
    config: StoredConfig
    pictures: ClassVar[bool] = False

    def captions(self) -> Sequence[str]:
        path = Path(self.config.path)
        if not path.is_file():
            raise UserError(f"data.path {self.config.path!r} is no file of prompts")
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        if path.suffix != ".jsonl":
            return lines
        try:
            return [caption_of(json.loads(line), self.config.field, f"{path}: {line[:40]}") for line in lines]
        except ValueError as error:
            raise UserError(f"{path} is no JSON, line by line ({error})") from None

    def picture(self, i: int) -> np.ndarray:
        raise WorkError("these data are prompts alone")

    def pieces(self) -> Iterable[str]:
        return ()
