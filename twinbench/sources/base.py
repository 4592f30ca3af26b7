"""The one protocol behind everything that can be evaluated, and the record under which its scores are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from twinbench.data.base import Request
from twinbench.run import environment


class Plan(Protocol):
    """How one number of network evaluations is spent."""

    @property
    def nfe(self) -> int:
        """As asked for; 0 where nobody knows."""
        ...

    @property
    def counted(self) -> int | None: ...

    def as_dict(self) -> dict[str, Any]:
        """The schedule, as it stands beside every score."""
        ...


class Source(Protocol):
    """Images for the requests of one set of prompts, at one number of evaluations."""

    block: int  # requests that are drawn by one process, so that any number of processes draws the same batches
    prompts: str  # whose requests they are: the noise belongs to it

    @property
    def plan(self) -> Plan: ...

    @property
    def folder(self) -> Path:
        """Where work on these images is kept; its name stands for all that they depend on."""
        ...

    def draw(self, requests: Sequence[Request]) -> Iterator[int]:
        """Draw and store what is missing; yields how many are done, first how many were there."""
        ...

    def read(self, requests: Sequence[Request]) -> Any:
        """Of an embedded world a Tensor [n, ...], else pictures uint8 [h, w, 3], opened when they are asked for."""
        ...


@dataclass(frozen=True)
class Subject:
    """Who is evaluated: run.json's record, the plans, and the images under a plan for a set of prompts and all of its
    requests. told: what a score says of drawn images beside their schedule, where no recipe says it."""

    record: dict[str, Any]
    plans: Sequence[Plan]
    source: Callable[[Any, str, Sequence[Request]], Source]
    release: Callable[[], None] = lambda: None  # give memory back once all is drawn
    told: Callable[[Any, Sequence[Request]], dict[str, Any]] = lambda source, requests: {}


def record(recipe: str, label: str, method: str, fingerprint: str, origin: str) -> dict[str, Any]:
    """A record as that of a run, of something that was not trained here: its costs are not known.

    method: "pipeline" or "images"; fingerprint: a sha256 of what the images depend on, or of the images."""
    return {
        "schema": "twinbench.run/1",
        "label": label,
        "method": method,
        "recipe": recipe,
        "seed": 0,
        "fingerprint": fingerprint,
        "group": fingerprint,
        "origin": origin,
        **environment(),
        **{name: None for name in ("steps", "images", "network_passes", "seconds", "cpu_seconds", "peak_bytes")},
        "networks": [],
        "resolved": {},
        "weights_sha256": fingerprint,
        "finished": True,
    }
