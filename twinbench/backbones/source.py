"""Where a pretrained pipeline lies: a folder, or a repository of the model hub (its cache is read where it has it)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinbench.errors import UserError
from twinbench.sums import sha256


@dataclass(frozen=True)
class Source:
    """model: a folder or a hub id; offline: ask the cache alone (HF_HUB_OFFLINE=1 says the same for all)."""

    model: str
    revision: str | None = None
    offline: bool = False

    def load(self, kind: str, part: str | None = None, **options: Any) -> Any:
        """An object of the diffusers class `kind` with the weights of one part, or of the whole pipeline."""
        import diffusers

        if part:
            options["subfolder"] = part
        return self._asked(getattr(diffusers, kind).from_pretrained, **options)

    def sizes(self, kind: str, part: str | None = None) -> dict[str, Any]:
        """The configuration of one part, or the pipeline's list of parts."""
        import diffusers

        where = {"subfolder": part} if part else {}
        return dict(self._asked(getattr(diffusers, kind).load_config, **where))

    def folder(self, part: str | None = None) -> Path:
        """The folder itself, or the hub's files of this revision on disk, of one part or of the whole."""
        if Path(self.model).is_dir():
            return Path(self.model)
        from huggingface_hub import snapshot_download

        kept = [f"{part}/*"] if part else None
        others = ["*.bin", "*.ckpt", "*.onnx*", "*.msgpack"]
        return Path(self._asked(snapshot_download, allow_patterns=kept, ignore_patterns=others))

    def sha256(self, part: str = "transformer") -> str:
        """Of the names and contents of a part's weights and configuration, wherever they lie."""
        files = sorted(p for p in (self.folder(part) / part).iterdir() if p.suffix in (".json", ".safetensors"))
        if not files:
            raise UserError(f"no {part} found at {self.model!r}; give backbone.model a diffusers folder or a hub id")
        return hashlib.sha256("".join(f"{p.name} {_content(p)}\n" for p in files).encode()).hexdigest()

    def beside(self, name: str) -> Path | None:
        """A file beside the parts of a pipeline, where the folder has it."""
        path = Path(self.model) / name
        return path if path.is_file() else None

    def _asked(self, call: Callable[..., Any], **options: Any) -> Any:
        quiet()
        try:
            return call(self.model, revision=self.revision, local_files_only=self.offline, **options)
        except (OSError, ValueError) as error:
            what = options.get("subfolder", "pipeline")
            why = " ".join(str(error).split())[:200]
            raise UserError(
                f"no {what} found at {self.model!r}; give backbone.model a diffusers folder or a hub id ({why})"
            ) from None


def quiet() -> None:
    """No bars and warnings of the libraries: the work has a bar of its own."""
    from diffusers.utils import logging as diffusers
    from transformers.utils import logging as transformers

    for library in (diffusers, transformers):
        library.set_verbosity_error()
        library.disable_progress_bar()


def _content(path: Path) -> str:
    """The sha256 of a file; the hub's cache links large ones to files of that name."""
    name = path.resolve().name
    return name if path.is_symlink() and re.fullmatch("[0-9a-f]{64}", name) else sha256(path)
