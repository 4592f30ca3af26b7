"""A cache of latents and text embeddings: what training asks for when neither the VAE nor the text encoders are in
memory.

    <root>/<pipeline>-<hash>/index.json      all that the contents depend on
                             null.safetensors, shard-00000.safetensors, ...

A shard holds consecutive samples: latents [n, C, h, w], or one by one where their shapes differ; the words of all its
samples one after the other, without padding, with the offset of each; what else a family conditions on, stacked. A
shard is written when it is whole, so a kill loses one at most, and it is a function of its samples alone, so any number
of processes writes the same bytes.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from twinbench.backbones.codec import Words
from twinbench.backbones.pipeline import PipelineBackbone, PipelineConfig
from twinbench.backbones.source import Source
from twinbench.data.buckets import PARTS, Buckets, grouped
from twinbench.data.captioned import Captioned
from twinbench.data.samples import Encoded, WordSamples
from twinbench.errors import UserError
from twinbench.files import read_json, write_json
from twinbench.ranks import ALONE, Ranks
from twinbench.settings import digest
from twinbench.tensors import read_tensors, save_tensors

SCHEMA = "twinbench.cache/1"
SHARD = 256  # samples; of Qwen-Image at 512 pixels about 300 MB
OPEN = 64  # shards that a reader keeps open
CROP = "the middle square, by Lanczos"
LATENTS = "latents"  # of all samples; of one of them, by its place in the shard: latents.17


def key(kind: type[PipelineBackbone], config: PipelineConfig, data: Captioned) -> dict[str, Any]:
    """All that latents and embeddings depend on; the transformer is not among it."""
    import diffusers

    source = Source(config.model, config.revision, config.offline)
    index = source.sizes(kind.pipeline)
    parts = sorted(name for name, part in index.items() if isinstance(part, list | tuple) and part[0])
    words = [*(name for name in parts if name not in ("transformer", "scheduler", "vae")), *kind.own]
    widest = data.config.aspect_buckets
    crop = f"buckets up to {widest}, {PARTS} parts, by Lanczos" if widest else CROP
    seen = {"vae": source.sha256("vae"), "resolution": config.resolution, "crop": crop} if data.pictures else None
    return {
        "schema": SCHEMA,
        "pipeline": kind.pipeline,
        "words": {name: source.sha256(name) for name in words},
        "template": _template(getattr(diffusers, kind.pipeline)),
        "tokens": config.tokens,
        "text_dtype": config.text_dtype or config.dtype,
        "labels": index.get("id2label"),
        "pictures": seen,
        "samples": data.sha256(),
    }


def _template(pipeline: Any) -> str:
    """A hash of what the stock pipeline does to a prompt: its methods about prompts, and its defaults."""
    methods = [m for name, m in sorted(vars(pipeline).items()) if inspect.isfunction(m) and "prompt" in name]
    defaults = {n: repr(p.default) for n, p in inspect.signature(pipeline.__call__).parameters.items() if "instr" in n}
    told = "".join(inspect.getsource(method) for method in [pipeline.__init__, *methods])
    return hashlib.sha256(f"{told}{defaults}".encode()).hexdigest()


class Cache:
    """The folder of one key."""

    def __init__(self, root: Path, key: dict[str, Any], samples: int, shard: int = SHARD) -> None:
        """shard: samples of a file; a cache that was begun keeps its own. Raises UserError for a damaged index."""
        self.key, self.samples, self.sha256 = key, samples, digest(key)
        self.folder = root / f"{key['pipeline']}-{self.sha256[:16]}"
        self.shard = shard
        if (index := self.folder / "index.json").is_file():
            try:
                self.shard = int(read_json(index)["shard"])
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{index} is damaged; delete {self.folder} and make the cache again") from None

    def __len__(self) -> int:
        """Shards of the whole; never none."""
        return -(-self.samples // self.shard)

    def rows(self, shard: int) -> range:
        """The samples of a shard."""
        return range(shard * self.shard, min((shard + 1) * self.shard, self.samples))

    def path(self, shard: int) -> Path:
        return self.folder / f"shard-{shard:05d}.safetensors"

    @property
    def null(self) -> Path:
        return self.folder / "null.safetensors"

    @property
    def missing(self) -> list[int]:
        """The shards that are not there yet."""
        return [i for i in range(len(self)) if not self.path(i).is_file()]

    @property
    def complete(self) -> bool:
        return self.null.is_file() and not self.missing

    def make(self, encoded: Encoded, ranks: Ranks = ALONE) -> Iterator[int]:
        """Encode this process's shards that are missing; yields how many of its shards are done."""
        if ranks.first:
            index = {"schema": SCHEMA, "key": self.key, "samples": self.samples, "shard": self.shard}
            write_json(self.folder / "index.json", {**index, "shards": len(self)})
            if not self.null.is_file():
                save_tensors(self.null, encoded.nothing(), {})
        for done, shard in enumerate(ranks.share(range(len(self)), 1), 1):
            for stale in self.folder.glob(f".{self.path(shard).name}.*"):  # left by a kill in the middle of a write
                stale.unlink(missing_ok=True)
            if not self.path(shard).is_file():
                save_tensors(self.path(shard), _stacked(encoded, self.rows(shard)), {})
            yield done

    def open(self, masked: bool) -> Cached:
        return Cached(self, masked)


def _stacked(encoded: Encoded, rows: range) -> dict[str, Tensor]:
    words = [encoded.words(i) for i in rows]
    out = {name: torch.stack([word[name] for word in words]) for name in words[0] if name != "text"}
    if "text" in words[0]:
        out["text"] = torch.cat([word["text"] for word in words])
        out["offset"] = torch.tensor([0, *(len(word["text"]) for word in words)]).cumsum(0)
    if not encoded.data.pictures:
        return out
    latents = [encoded.latent(i) for i in rows]
    if encoded.alike:
        return {**out, LATENTS: torch.stack(latents)}
    return {**out, **{f"{LATENTS}.{at}": x for at, x in enumerate(latents)}}


class Cached(WordSamples):
    """A whole cache, read where it lies. masked: whether the family knows a mask of the words."""

    def __init__(self, cache: Cache, masked: bool) -> None:
        self.cache, self.masked = cache, masked
        self.empty = read_tensors(cache.null)[0]
        self._shard = lru_cache(OPEN)(self._opened)

    def _opened(self, shard: int) -> tuple[Any, list[str], Tensor | None]:
        """A shard, its tensors' names, and where the words of each sample begin."""
        path = self.cache.path(shard)
        try:
            file: Any = safe_open(path, "pt").__enter__()
            names = list(file.keys())
            return file, names, file.get_tensor("offset") if "offset" in names else None
        except Exception as error:
            raise UserError(f"{path} is damaged ({error}); delete it and give twinbench cache again") from None

    def __len__(self) -> int:
        return self.cache.samples

    def _slice(self, i: int, name: str) -> Any:
        """A tensor of the shard of a sample, unread."""
        return self._shard(i // self.cache.shard)[0].get_slice(name)

    def _row(self, i: int, name: str) -> Tensor:
        at = i % self.cache.shard
        return self._slice(i, name)[at : at + 1][0]

    def _own(self, i: int) -> str:
        """What the latents of a sample are called where shapes differ."""
        return f"{LATENTS}.{i % self.cache.shard}"

    def buckets(self) -> Buckets:
        if self._own(0) not in self._shard(0)[1]:
            return super().buckets()
        return grouped(tuple(self._slice(i, self._own(i)).get_shape()[1:]) for i in range(len(self)))

    def latents(self, rows: Sequence[int]) -> Tensor | None:
        names = self._shard(0)[1]
        if self._own(0) in names:
            return torch.stack([self._slice(i, self._own(i))[:] for i in rows])
        return torch.stack([self._row(i, LATENTS) for i in rows]) if LATENTS in names else None

    def words(self, i: int) -> Words:
        file, names, offset = self._shard(i // self.cache.shard)
        told = [name for name in names if name not in ("text", "offset") and not name.startswith(LATENTS)]
        out = {name: self._row(i, name) for name in told}
        if offset is not None:
            first, end = offset[i % self.cache.shard : i % self.cache.shard + 2].tolist()
            out["text"] = file.get_slice("text")[first:end]
        return out

    def nothing(self) -> Words:
        return self.empty
