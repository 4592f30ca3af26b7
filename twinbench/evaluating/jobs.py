"""What is to be done: one score under one plan, and whether the results hold it already."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinbench.benchmarks.base import Benchmark
from twinbench.data.base import Request
from twinbench.errors import UserError
from twinbench.results import read_json
from twinbench.settings import digest
from twinbench.sources.base import Source


@dataclass(frozen=True)
class Job:
    """One score that is to be made."""

    benchmark: Benchmark
    source: Source
    requests: Sequence[Request]
    limit: int | None

    @property
    def stem(self) -> str:
        """The name of the score's files; neither a quick look with a limit nor one at validation prompts takes the
        place of the whole."""
        prompts = "" if self.benchmark.prompts == "evaluation" else f"-{self.benchmark.prompts}"
        return f"{self.benchmark.name}-nfe{self.source.plan.nfe}{prompts}" + (
            f"-limit{self.limit}" if self.limit else ""
        )

    @property
    def asked(self) -> str:
        """What was asked, as a name and a hash that changes with --limit."""
        return f"{self.source.prompts}#{digest([(r.key, r.copy, r.prompt) for r in self.requests])[:8]}"

    def identity(self) -> dict[str, Any]:
        b, drawing = self.benchmark, self.source.folder.name
        return {"drawing": drawing, "judge": b.judge_name, "version": b.version, "prompts": self.asked}

    def stands(self, target: Path, allowed: Set[str] = frozenset()) -> bool:
        """Whether this very score is in the results already; one that cannot be read is made anew, and so is one with
        `errors` or by judges `untested` unless that is allowed."""
        old = self._old(target)
        flaws = {name for name in ("errors", "untested") if old.get(name)}
        return bool(old) and flaws <= allowed and all(old.get(key) == value for key, value in self.identity().items())

    def refuse_other(self, target: Path) -> None:
        """Raises UserError where the results hold a pipeline's score of this name, of pictures drawn under other
        settings: nothing but the command line says which are meant."""
        old = self._old(target)
        if "drawn" in old and old.get("drawing") != self.source.folder.name:
            raise otherwise(target / f"{self.stem}.json", old, "--again to replace it")

    def _old(self, target: Path) -> dict[str, Any]:
        return read_score(target / f"{self.stem}.json")


def read_score(path: Path) -> dict[str, Any]:
    """A score, empty where there is none that can be read."""
    try:
        old = read_json(path)
    except (FileNotFoundError, ValueError):
        return {}
    return old if isinstance(old, dict) else {}


def otherwise(path: Path, old: dict[str, Any], mend: str) -> UserError:
    """The error for a score of a pipeline that would be replaced by one of other settings."""
    settings = sorted((old["drawn"] | old.get("schedule", {})).items())
    told = ", ".join(f"{name} {value}" for name, value in settings)
    return UserError(f"{path} is of other settings ({told}); give another --label, or {mend}")
