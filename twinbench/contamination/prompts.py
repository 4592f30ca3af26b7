"""The prompts of a benchmark, as an audit looks for them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from twinbench import assets, files
from twinbench.errors import UserError

DPG_TEXTS = "b9b69d55cecc388d330511f4ddf029da1b0343c38e8306c3490fcb222efadb42"  # sha256 of the 1065 files' list of sums


@dataclass(frozen=True)
class Prompt:
    bench: str
    key: str
    task: str
    text: str


def prompts_of(bench: str, csv: Path | None = None) -> list[Prompt]:
    """The prompts of `geneval` or `dpg`. csv: DPG-Bench's table of questions; without one the fetched table, or else
    the texts of its prompts. Raises UserError for another name or where data are missing."""
    if bench == "geneval":
        from twinbench.data.geneval import prompts

        return [Prompt(bench, f"{i:05d}", row["tag"], row["prompt"]) for i, row in enumerate(prompts())]
    if bench == "dpg":
        texts = _texts() if csv is None and not assets.here("dpg") else {}
        return [Prompt(bench, key, key.rstrip("0123456789") or "plain", t) for key, t in (texts or _table(csv)).items()]
    raise UserError(f"no audit for benchmark {bench!r}; one of geneval, dpg")


def _texts() -> dict[str, str]:
    """By item, of dpg/prompts/<item>.txt among the assets, as ELLA's repository has them; none without that folder."""
    folder = assets.root() / "dpg" / "prompts"
    places = sorted(folder.glob("*.txt"))
    sums = "".join(f"{files.sha256(place)}  dpg/prompts/{place.name}\n" for place in places)
    if places and hashlib.sha256(sums.encode()).hexdigest() != DPG_TEXTS:
        raise UserError(f"{folder} does not hold the 1065 prompts as published; delete it, and twinbench fetch dpg")
    return {place.stem: place.read_text(encoding="utf-8").strip() for place in places}


def _table(csv: Path | None) -> dict[str, str]:
    from twinbench.benchmarks.dpg_pictures import DPG, DPGConfig

    asked = DPG(None, DPGConfig(csv=str(csv) if csv else None, copies=1)).requests()
    return {request.key: request.prompt for request in asked}
