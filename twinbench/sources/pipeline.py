"""Any text-to-image pipeline of diffusers, as it stands, at a few evaluations.

Noise is paired as everywhere: the initial latents and every later noise belong to the request and the step, whatever
form the network takes them in. Evaluations are counted at the network, in rows, so guidance counts two.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twinbench import sums
from twinbench.data.base import Request
from twinbench.errors import UserError, WorkError
from twinbench.randomness import request_noise
from twinbench.settings import digest
from twinbench.sources.pictures import write_png
from twinbench.sources.steps import SETTINGS, Steps
from twinbench.sources.stored import Store, file_of

SCHEMA = "twinbench.pipeline/2"
WEIGHTS = (".safetensors", ".json", ".txt", ".model")  # what a pipeline is made of


class Pipeline:
    """A pipeline by folder or repository; its weights are loaded when something is missing."""

    def __init__(self, name: str, size: int | None, batch: int) -> None:
        """size: of a picture's side in pixels, else the pipeline's own; batch: pictures drawn at once."""
        self.name, self.size, self.batch = name, size, batch
        self.folder = located(name)
        self.made: Any = None

    def load(self) -> Any:
        """The pipeline, on the GPU in bfloat16 where there is one, else in float32."""
        if self.made is None:
            import diffusers
            import transformers

            for library in (diffusers, transformers):
                library.utils.logging.disable_progress_bar()
            cuda = torch.cuda.is_available()
            try:
                self.made = diffusers.DiffusionPipeline.from_pretrained(
                    str(self.folder), dtype=torch.bfloat16 if cuda else torch.float32, use_safetensors=True
                )
            except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
                raise UserError(f"{self.name} is not a whole diffusers pipeline ({_line(error)})") from None
            self.scheduler = self.made.scheduler
            self.made.to("cuda" if cuda else "cpu").set_progress_bar_config(disable=True)
        return self.made

    def release(self) -> None:
        self.made = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def network(self) -> torch.nn.Module:
        """What is evaluated. Raises UserError for a pipeline without transformer and UNet."""
        network = getattr(self.made, "transformer", None) or getattr(self.made, "unet", None)
        if not isinstance(network, torch.nn.Module):
            raise UserError(f"{self.name} has neither a transformer nor a unet, so its evaluations cannot be counted")
        return network

    def identity(self) -> str:
        """The sha256 of what it draws with: all weights and configurations, by name and content."""
        kept = [p for p in sorted(self.folder.rglob("*")) if p.suffix in WEIGHTS and p.is_file() and p.name != SETTINGS]
        return digest([(str(p.relative_to(self.folder)), sums.sha256(p)) for p in kept])

    def pixels(self) -> tuple[int, int]:
        """Height and width of its pictures."""
        if self.size:
            return self.size, self.size
        told = inspect.signature(self.made.__call__).parameters
        if "height" in told and isinstance(told["height"].default, int):
            return told["height"].default, told["width"].default
        latent = getattr(self.made, "default_sample_size", None) or getattr(self.network.config, "sample_size", None)
        if not isinstance(latent, int):
            raise UserError(f"{self.name} does not say how large its pictures are; --size 1024 does")
        return (latent * self.made.vae_scale_factor,) * 2

    def noise(self, requests: Sequence[Request], prompts: str, name: str = "init") -> torch.Tensor:
        """The noise of the requests, float32, drawn as [channels, h, w] and brought to the form of the network."""
        packs, shape = hasattr(self.made, "_pack_latents"), self._shape
        rows = torch.stack([request_noise(shape, prompts, r.key, r.copy, name) for r in requests])
        return self.made._pack_latents(rows, len(rows), *shape) if packs else rows

    @property
    def _shape(self) -> tuple[int, ...]:
        """Of the latents of a picture."""
        height, width = self.pixels()
        config: Any = self.network.config
        channels = int(config.in_channels)
        if hasattr(self.made, "_pack_latents"):  # two by two latents are one token
            side = 2 * self.made.vae_scale_factor
            return channels // 4, 2 * (height // side), 2 * (width // side)
        cpu = torch.device("cpu")
        first = self.made.prepare_latents(1, channels, height, width, torch.float32, cpu, torch.Generator())
        return tuple((first[0] if isinstance(first, tuple) else first).shape[1:])


class PipelineSource:
    """The pictures of a pipeline at one number of evaluations."""

    def __init__(self, pipeline: Pipeline, fingerprint: str, plan: Steps, prompts: str, images: Path) -> None:
        self.pipeline, self.plan, self.prompts, self.block = pipeline, plan, prompts, pipeline.batch
        key: dict[str, Any] = {"schema": SCHEMA, "weights": fingerprint, "schedule": plan.as_dict(), "prompts": prompts}
        key |= {"size": pipeline.size, "batch": pipeline.batch, "cuda": torch.cuda.is_available()}
        self.folder = images / f"nfe{plan.nfe}-{digest(key)[:16]}"
        self.store = Store(self.folder)

    def draw(self, requests: Sequence[Request]) -> Iterator[int]:
        """Draw the batches in which a picture is missing; yields how many are done."""
        missing = {(r.key, r.copy) for r in self.store.missing(requests)}
        size = self.pipeline.batch
        batches = [requests[start : start + size] for start in range(0, len(requests), size)]
        todo = [batch for batch in batches if any((r.key, r.copy) in missing for r in batch)]
        done = len(requests) - sum(map(len, todo))
        yield done
        for batch in todo:
            for request, picture in zip(batch, self.fresh(batch), strict=True):
                if (request.key, request.copy) in missing:
                    write_png(self.folder / file_of(request), picture)
            done += len(batch)
            yield done

    def fresh(self, requests: Sequence[Request]) -> np.ndarray:
        """uint8 [n, h, w, 3], drawn in a batch of exactly `batch` rows."""
        pipe = self.pipeline.load()
        padded = [*requests, *[requests[-1]] * (self.pipeline.batch - len(requests))]
        height, width = self.pipeline.pixels()
        arguments = self.plan.arguments(pipe) | {
            "prompt": [r.prompt for r in padded],
            "latents": self.pipeline.noise(padded, self.prompts).to(next(self.pipeline.network.parameters()).dtype),
            "height": height,
            "width": width,
            "output_type": "np",
        }
        if "use_resolution_binning" in inspect.signature(pipe.__call__).parameters:
            arguments["use_resolution_binning"] = False  # latents have the size that is asked for
        pipe.scheduler = self.plan.scheduler(self.pipeline.scheduler)
        self._key_noise(pipe.scheduler, padded)
        with counting(self.pipeline.network) as rows:
            try:
                pictures = np.asarray(pipe(**arguments).images)
            except Exception as error:
                first = requests[0]
                raise WorkError(
                    f"{self.pipeline.name} failed at {first.key!r}, copy {first.copy} "
                    f"({type(error).__name__}: {_line(error)})"
                ) from error
        if sum(rows) != self.plan.nfe * len(padded):
            raise UserError(
                f"{self.pipeline.name} took {sum(rows) / len(padded):g} evaluations of its network where "
                f"{self.plan.nfe} were asked for (guidance counts two: --guidance 1 turns it off)"
            )
        if len(pictures) != len(padded) or not np.isfinite(pictures).all():
            raise WorkError(f"{self.pipeline.name} drew no whole picture of {requests[0].key!r} and those after it")
        return (pictures[: len(requests)] * 255).round().astype(np.uint8)

    def _key_noise(self, scheduler: Any, requests: Sequence[Request]) -> None:
        """Give a scheduler that draws noise at its i-th step that of the requests and of i."""
        step, at = scheduler.step, count()
        module: Any = sys.modules[type(scheduler).__module__]
        draw = getattr(module, "randn_tensor", None)

        def keyed(*args: Any, **rest: Any) -> Any:
            name = str(next(at))

            def noise(shape: Any, device: Any = None, dtype: Any = None, **_: Any) -> torch.Tensor:
                return self.pipeline.noise(requests, self.prompts, name).to(device, dtype)

            module.randn_tensor = noise
            try:
                return step(*args, **rest)
            finally:
                module.randn_tensor = draw

        if draw is not None:
            scheduler.step = keyed

    def read(self, requests: Sequence[Request]) -> Any:
        return self.store.read(requests)


@contextmanager
def counting(network: torch.nn.Module) -> Iterator[list[int]]:
    """The rows of every call of a network meanwhile."""
    rows: list[int] = []

    def note(_: Any, given: Any, named: Any) -> None:
        first = given[0] if given else next(named[key] for key in ("hidden_states", "sample", "x") if key in named)
        rows.append(len(first))

    hook = network.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield rows
    finally:
        hook.remove()


def located(name: str) -> Path:
    """The folder of a pipeline: itself, or the hub's local copy of a repository. Raises UserError if there is none."""
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "model_index.json").is_file():
            raise UserError(f"{name} holds no model_index.json, so it is no diffusers pipeline")
        return folder.resolve()
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(name, use_safetensors=True))
    except (OSError, ValueError) as error:
        raise UserError(
            f"pipeline {name!r} is neither a folder nor a repository that can be had ({_line(error)})"
        ) from None


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
