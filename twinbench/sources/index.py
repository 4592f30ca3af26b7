"""What a pipeline's files say of it before its weights are loaded: its class of diffusers, what a call of it takes, how
it guides, its scheduler."""

from __future__ import annotations

import inspect
from functools import cache, cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from twinbench.backbones.source import quiet
from twinbench.errors import UserError
from twinbench.files import read_json

SHOWN = 200  # characters of what a library says


class Index:
    """A pipeline's folder; `name` is what it is called in messages."""

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self.folder, self.name = folder, name or str(folder)

    def config(self, part: str) -> dict[str, Any]:
        """The configuration of a part, empty if there is none. Raises UserError for a file that is not JSON."""
        file = "scheduler_config.json" if part == "scheduler" else "config.json"
        return _object(self.folder / part / file)

    @property
    def network(self) -> dict[str, Any]:
        """The configuration of what is evaluated."""
        return self.config("transformer") or self.config("unet")

    @cached_property
    def kind(self) -> Any:
        """The class of diffusers. Raises UserError for one that is asked neither by words nor by classes alone."""
        import diffusers

        name = _object(self.folder / "model_index.json").get("_class_name")
        kind = getattr(diffusers, name, None) if isinstance(name, str) else None
        if not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)):
            raise UserError(f"{self.name} is not a whole diffusers pipeline (its model_index.json names {name!r})")
        takes = set(inspect.signature(kind.__call__).parameters)
        if not {"prompt", "latents"} <= takes and ("class_labels" not in takes or "batch_size" in takes):
            raise UserError(
                f"{self.name} is a {name}, and what is evaluated takes a prompt and latents, or classes as DiT"
            )
        return kind

    @cached_property
    def takes(self) -> dict[str, Any]:
        """What a call takes, with its defaults."""
        return {name: told.default for name, told in inspect.signature(self.kind.__call__).parameters.items()}

    @property
    def classes(self) -> int:
        """How many classes it draws; 0 where it draws words."""
        return int(self.network.get("num_embeds_ada_norm") or 1000) if "class_labels" in self.takes else 0

    def scheduler(self) -> Any:
        """The scheduler, as the pipeline has it. Raises UserError if it has none of diffusers."""
        import diffusers

        given = _object(self.folder / "model_index.json").get("scheduler")
        kind = getattr(diffusers, str(given[1]), None) if isinstance(given, list) and len(given) == 2 else None
        if kind is None or not self.config("scheduler"):
            raise UserError(f"{self.name} is not a whole diffusers pipeline (it has no scheduler of diffusers)")
        return kind.from_config(self.config("scheduler"))

    # ---- guidance ----

    def guided(self, scale: float) -> dict[str, Any]:
        """Guidance in the pipeline's words; scale 1 is none, except where the network was taught it as an input."""
        if self._taught:
            return {"guidance_scale": scale}
        if "true_cfg_scale" in self.takes:
            return {"true_cfg_scale": scale} | ({"negative_prompt": " "} if scale != 1 else {})
        if self.kind.__name__.startswith("ZImage"):  # positive + s (positive - negative): 0 is none
            return {"guidance_scale": scale - 1}
        return {"guidance_scale": scale}

    def passes(self, scale: float | None) -> int:
        """Evaluations a step under a guidance, by the pipeline's own rule; None: under its own guidance."""
        if self._taught:
            return 1
        told = self.takes | (self.guided(scale) if scale is not None else {})
        if "true_cfg_scale" in told:
            return 2 if told["true_cfg_scale"] > 1 and told.get("negative_prompt") else 1
        if not isinstance(told.get("guidance_scale"), int | float):
            return 1
        own: Any = getattr(self.kind, "do_classifier_free_guidance", property(_doubles))
        part = SimpleNamespace(config=_Told(self.network))
        likeness = SimpleNamespace(_guidance_scale=told["guidance_scale"], unet=part, transformer=part)
        try:
            return 2 if own.fget(likeness) else 1
        except AttributeError:  # the rule asks more than files say
            return 2 if _doubles(likeness) else 1

    @property
    def _taught(self) -> bool:
        """Whether guidance is an input of the network, and no second evaluation."""
        return bool(self.network.get("guidance_embeds"))


def _doubles(pipeline: Any) -> bool:
    """The rule of a pipeline that does not tell its own."""
    return bool(pipeline._guidance_scale > 1)


class _Told(dict[str, Any]):
    """A configuration whose entries are attributes; what it does not say is None."""

    __getattr__ = dict.get


def _object(path: Path) -> dict[str, Any]:
    try:
        told = read_json(path)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(str(error)) from None
    return told if isinstance(told, dict) else {}


def located(name: str) -> Path:
    """The folder of a pipeline: itself, or the hub's local copy of a repository. Raises UserError if there is none."""
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise UserError(f"{name} holds no model_index.json, so it is no diffusers pipeline")
        return folder.resolve()
    return _downloaded(name)


@cache
def _downloaded(name: str) -> Path:
    from diffusers import DiffusionPipeline

    quiet()
    try:
        return Path(DiffusionPipeline.download(name, use_safetensors=True))
    except Exception as error:  # the hub's client raises many kinds; all mean the same here
        raise UserError(
            f"pipeline {name!r} is neither a folder nor a repository that can be had "
            f"({type(error).__name__}: {line(error)})"
        ) from None


def line(error: BaseException) -> str:
    """What an error says first."""
    return (str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__)[:SHOWN]
