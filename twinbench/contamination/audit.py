"""Contamination: which captions of a training set ask for what a benchmark's prompts ask for.

Each pair of caption and prompt is counted once, under the strictest kind of match that it is:

    exact       the same text
    normalised  the same words, whatever case, punctuation and spaces
    scene       the same objects, counts, colours and relation, in the same order (`twinbench.data.scenes`)
    unordered   the same, in any order: "A left of B" is "B right of A"
    near        character 5-grams with a Jaccard overlap of at least 0.8
    embedding   a cosine of at least 0.9, if a judge of texts is given
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from twinbench import plugins
from twinbench.contamination.minhash import Near
from twinbench.contamination.prompts import Prompt
from twinbench.data.scenes import normalized, scene
from twinbench.errors import UserError

SCHEMA = "twinbench.audit/1"
KINDS = ("exact", "normalised", "scene", "unordered", "near", "embedding")
OVERLAP, COSINE = 0.8, 0.9
EXAMPLES = 3  # shown of each task and kind
TEMPLATE = "a photo of "
FIELDS = ("caption", "prompt", "text")
Embed = Callable[[Sequence[str]], np.ndarray]  # texts -> rows of length 1 [n, d]


@dataclass(frozen=True)
class Match:
    caption: int  # its place in the training set
    prompt: Prompt
    kind: str


@dataclass(frozen=True)
class Captions:
    """The captions of a training set, and what stands for each in its file."""

    texts: list[str]
    lines: list[str]
    suffix: str


def captions_of(source: str) -> Captions:
    """Of a .txt file (one a line), a .jsonl file (the field caption, prompt or text), or a dataset by name.

    Raises UserError for a file that is not there or holds no captions."""
    path = Path(source)
    if path.suffix not in (".txt", ".jsonl"):
        if source not in plugins.names("datasets") and (path.suffix or path.exists()):
            raise UserError(f"captions {source}: give .txt (one a line) or .jsonl, or a dataset's name")
        kind = plugins.dataset(source)
        texts = list(kind(kind.Config()).prompts)
        return Captions(texts, texts, ".txt")
    if not path.is_file():
        raise UserError(f"captions {source} do not exist; give a .txt or .jsonl file, or a dataset's name")
    try:
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"captions {source} are not UTF-8 ({error.reason} at byte {error.start})") from None
    texts = (
        lines if path.suffix == ".txt" else [_caption(line, f"{source}, line {i}") for i, line in enumerate(lines, 1)]
    )
    if not texts:
        raise UserError(f"{source} holds no captions")
    return Captions(texts, lines, path.suffix)


def _caption(line: str, where: str) -> str:
    try:
        row = json.loads(line)
        return next(str(row[name]) for name in FIELDS if name in row)
    except (ValueError, TypeError, StopIteration):
        raise UserError(f"{where}: not a JSON object with one of {', '.join(FIELDS)}") from None


# ---- the search ----


def audit(captions: Sequence[str], prompts: Sequence[Prompt], embed: Embed | None = None) -> list[Match]:
    """Every pair of caption and prompt that matches, by caption and then by prompt."""
    texts = [prompt.text for prompt in prompts]
    keys: dict[str, Callable[[str], Any]] = {"exact": str, "normalised": normalized, "scene": scene}
    tables = []
    for kind, key_of in {**keys, "unordered": _unordered}.items():
        table: dict[Any, list[int]] = {}
        for i, text in enumerate(texts):
            if (key := key_of(text)) is not None:
                table.setdefault(key, []).append(i)
        tables.append((kind, key_of, table))
    near = Near(map(normalized, texts), OVERLAP)
    alike = _alike(captions, texts, embed) if embed else [[]] * len(captions)
    out = []
    for c, caption in enumerate(captions):
        kinds: dict[int, str] = {}
        for kind, key_of, table in tables:
            for i in table.get(key_of(caption), ()):
                kinds.setdefault(i, kind)
        for i, _ in near.find(normalized(caption)):
            kinds.setdefault(i, "near")
        for i in alike[c]:
            kinds.setdefault(i, "embedding")
        out += [Match(c, prompts[i], kind) for i, kind in sorted(kinds.items())]
    return out


def _unordered(text: str) -> Any:
    found = scene(text)
    return found and found.unordered


def _alike(captions: Sequence[str], texts: Sequence[str], embed: Embed) -> list[list[int]]:
    """For each caption, the texts of at least COSINE with it."""
    known, out = np.asarray(embed(texts), np.float32), []
    for start in range(0, len(captions), 4096):
        cosines = np.asarray(embed(captions[start : start + 4096]), np.float32) @ known.T
        out += [np.flatnonzero(row >= COSINE).tolist() for row in cosines]
    return out


# ---- what is told ----


def report(
    captions: Sequence[str], prompts: Sequence[Prompt], matches: Sequence[Match], embedding: str | None = None
) -> dict[str, Any]:
    """The audit as JSON: of each benchmark and task the prompts that some caption matches, by the strictest kind of
    any, the captions that match, and examples of each kind. embedding: the judge of texts, None where none was
    asked."""
    flagged = {match.caption for match in matches}
    template = sum(normalized(caption).startswith(TEMPLATE) for caption in captions)
    tasks: dict[str, dict[str, Any]] = {}
    for prompt in prompts:
        task = tasks.setdefault(prompt.bench, {}).setdefault(prompt.task, _task())
        task["prompts"] += 1
    hit: dict[Prompt, str] = {}
    seen: dict[tuple[str, str], set[int]] = {}
    for match in matches:
        prompt, task = match.prompt, tasks[match.prompt.bench][match.prompt.task]
        hit[prompt] = min(hit.get(prompt, match.kind), match.kind, key=KINDS.index)
        seen.setdefault((prompt.bench, prompt.task), set()).add(match.caption)
        if len(shown := task["examples"].setdefault(match.kind, [])) < EXAMPLES:
            shown.append({"caption": captions[match.caption], "prompt": prompt.text, "key": prompt.key})
    for prompt, kind in hit.items():
        tasks[prompt.bench][prompt.task]["matched"][kind] += 1
    for (bench, name), places in seen.items():
        tasks[bench][name]["captions"] = len(places)
    return {
        "schema": SCHEMA,
        "captions": len(captions),
        "sha256": hashlib.sha256("\n".join(captions).encode()).hexdigest(),
        "flagged": len(flagged),
        "template": template,  # captions that begin as GenEval's prompts do
        "overlap": OVERLAP,
        "cosine": COSINE,
        "embedding": embedding,
        "benchmarks": tasks,
    }


def _task() -> dict[str, Any]:
    return {"prompts": 0, "matched": dict.fromkeys(KINDS, 0), "captions": 0, "examples": {}}


def clean(captions: Iterable[Any], matches: Sequence[Match]) -> list[Any]:
    """The captions, or whatever stands in their places, that match no prompt."""
    flagged = {match.caption for match in matches}
    return [caption for i, caption in enumerate(captions) if i not in flagged]
