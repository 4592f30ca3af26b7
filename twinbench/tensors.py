"""Tensors on disk: safetensors files with JSON metadata, written atomically."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from twinbench.errors import UserError
from twinbench.files import replace


def save_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """A safetensors file with JSON metadata, atomically."""
    ready = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    replace(path, lambda file: file.write(save(ready, {"twinbench": json.dumps(metadata)})))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and metadata of a file. Raises UserError if it is missing or damaged."""
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {}).get("twinbench", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"weights file {path} does not exist") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and give the same command again") from None
