"""Any text-to-image pipeline of diffusers, as it stands, at a few evaluations.

Noise is paired as everywhere: the initial latents and every later noise belong to the request and the step, whatever
form the network takes them in. Evaluations are counted at the network, in rows, so guidance counts two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twinbench import sums
from twinbench.backbones.source import quiet
from twinbench.data.base import Request
from twinbench.errors import UserError, WorkError
from twinbench.randomness import request_noise
from twinbench.settings import digest
from twinbench.sources import schedulers
from twinbench.sources.index import Index, line, located
from twinbench.sources.pictures import Place, write_png
from twinbench.sources.steps import SETTINGS, StepOptions, Steps, plans, side
from twinbench.sources.stored import Store, file_of

SCHEMA = "twinbench.pipeline/2"
WEIGHTS = (".safetensors", ".json", ".txt", ".model")  # what a pipeline is made of
CLASS = "class"  # the tag of requests whose prompt is the number of a class


class Pipeline:
    """A pipeline by folder or repository; its weights are loaded when something is missing."""

    usual = "a photo of a bench"  # what is drawn where only time counts

    def __init__(self, name: str, size: int | None, batch: int) -> None:
        """size: of a picture's side in pixels, else the export's or the pipeline's own; batch: drawn at once."""
        self.name, self.batch = name, batch
        self.folder = located(name)
        self.size = size or side(self.folder)
        self.index = Index(self.folder, name)
        self.made: Any = None

    def plans(self, options: StepOptions, usual: Sequence[int] | None = None) -> list[Steps]:
        """How its evaluations are spent. Raises UserError for what it cannot do, as far as its files say."""
        made = plans(self.folder, options, usual)
        for plan in made:
            plan.scheduled(self.index.scheduler())
            plan.arguments(self.index)
        return made

    def asked(self, requests: Sequence[Request]) -> None:
        """Raises UserError for requests that it cannot draw."""
        if any(r.tag == CLASS and r.prompt.isdigit() for r in requests):
            raise UserError(f"{self.name} draws words, and classes are asked for; evaluate it on another reference")

    def load(self) -> Any:
        """The pipeline, on the GPU where there is one."""
        if self.made is None:
            import diffusers

            quiet()
            try:
                self.made = diffusers.DiffusionPipeline.from_pretrained(
                    str(self.folder), dtype=getattr(torch, self.dtype), use_safetensors=True
                )
            except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
                raise UserError(f"{self.name} is not a whole diffusers pipeline ({line(error)})") from None
            self.scheduler = self.made.scheduler
            device = "cuda" if torch.cuda.is_available() else "cpu"
            self.made.to(device).set_progress_bar_config(disable=True)
            self.pixels()
        return self.made

    @property
    def dtype(self) -> str:
        """The precision of its networks: bfloat16 on a GPU, else float32."""
        return "bfloat16" if torch.cuda.is_available() else "float32"

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

    def call(self, requests: Sequence[Request], prompts: str, settings: Mapping[str, Any]) -> np.ndarray:
        """Pictures [n, h, w, 3] in [0, 1] of the requests, from their noise."""
        height, width = self.pixels()
        asked = {
            "prompt": [r.prompt for r in requests],
            "latents": self.noise(requests, prompts).to(next(self.network.parameters()).dtype),
            "height": height,
            "width": width,
        }
        if "use_resolution_binning" in self.index.takes:
            asked["use_resolution_binning"] = False  # latents have the size that is asked for
        return np.asarray(self.made(**settings, **asked, output_type="np").images)

    def pixels(self) -> tuple[int, int]:
        """Height and width of its pictures. Raises UserError for a size that it would round."""
        if self.size:
            unit = self._unit
            if self.size % unit:
                below, above = self.size // unit * unit, -(-self.size // unit) * unit
                near = f"{below} or {above}" if below else str(above)
                raise UserError(f"--size {self.size}: {self.name} draws sides that {unit} divides, such as {near}")
            return self.size, self.size
        told = self.index.takes
        if isinstance(told.get("height"), int):
            return told["height"], told["width"]
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
    def _unit(self) -> int:
        """Pixels of a token's side."""
        config: Any = self.network.config
        patch = (config.get("all_patch_size") or [config.get("patch_size")])[0]
        latents = 2 if hasattr(self.made, "_pack_latents") else patch if isinstance(patch, int) else 1
        return int(getattr(self.made, "vae_scale_factor", 1)) * latents

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
        settings = self.plan.arguments(self.pipeline.index)
        pipe.scheduler = self.plan.scheduled(self.pipeline.scheduler)
        schedulers.keyed(pipe.scheduler, lambda name: self.pipeline.noise(padded, self.prompts, name))
        with counting(self.pipeline.network) as rows:
            try:
                pictures = self.pipeline.call(padded, self.prompts, settings)
            except UserError:
                raise
            except Exception as error:
                first = requests[0]
                raise WorkError(
                    f"{self.pipeline.name} failed at {first.key!r}, copy {first.copy} "
                    f"({type(error).__name__}: {line(error)})"
                ) from error
        self._counted(sum(rows) / len(padded))
        if len(pictures) != len(padded) or not np.isfinite(pictures).all():
            raise WorkError(f"{self.pipeline.name} drew no whole picture of {requests[0].key!r} and those after it")
        return (pictures[: len(requests)] * 255).round().astype(np.uint8)

    def _counted(self, taken: float) -> None:
        """Raises UserError unless a picture took as many evaluations as were asked for."""
        if taken == self.plan.nfe:
            return
        scheduler = type(self.pipeline.made.scheduler).__name__
        if taken == 2 * self.plan.nfe:
            why = "guidance counts two: --guidance 1 turns it off"
        else:
            why = f"{scheduler} was told {self.plan.steps} steps; --scheduler, --timesteps or --nfe mend it"
        asked = f"{self.plan.nfe} were asked for ({why})"
        raise UserError(f"{self.pipeline.name} took {taken:g} evaluations of its network where {asked}")

    def told(self, requests: Sequence[Request]) -> dict[str, Any]:
        """What a score says of these drawn pictures beside the schedule."""
        height, width = Place(self.folder / file_of(requests[0])).open().shape[:2]
        return {"height": height, "width": width, "dtype": self.pipeline.dtype, "batch": self.pipeline.batch}

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
