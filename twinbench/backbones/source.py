"""Where a pretrained pipeline lies: a folder, or a repository of the model hub (its cache is read where it has it)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinbench.errors import UserError


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

    def folder(self) -> Path:
        """The folder itself, or the hub's files of this revision on disk."""
        if Path(self.model).is_dir():
            return Path(self.model)
        from huggingface_hub import snapshot_download

        return Path(self._asked(snapshot_download, ignore_patterns=["*.bin", "*.ckpt", "*.onnx*", "*.msgpack"]))

    def beside(self, name: str) -> Path | None:
        """A file beside the parts of a pipeline, where the folder has it."""
        path = Path(self.model) / name
        return path if path.is_file() else None

    def _asked(self, call: Callable[..., Any], **options: Any) -> Any:
        try:
            return call(self.model, revision=self.revision, local_files_only=self.offline, **options)
        except (OSError, ValueError) as error:
            what = options.get("subfolder", "pipeline")
            why = " ".join(str(error).split())[:200]
            raise UserError(
                f"no {what} found at {self.model!r}; give backbone.model a diffusers folder or a hub id ({why})"
            ) from None
