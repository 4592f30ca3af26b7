"""Which cache belongs to a recipe, and how it is made: the text encoders and the VAE are loaded for it, the transformer
is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from twinbench import miniature, plugins
from twinbench.backbones.pipeline import PipelineBackbone, PipelineConfig
from twinbench.data.cache import Cache, key
from twinbench.data.captioned import Captioned
from twinbench.data.samples import Encoded
from twinbench.errors import UserError
from twinbench.ranks import ALONE, Ranks
from twinbench.sections import BackboneSection
from twinbench.settings import validate


def pipeline_of(section: BackboneSection) -> tuple[type[PipelineBackbone], PipelineConfig]:
    """The class and the checked settings of a large model; a tiny twin is made where it is not there yet. Raises
    UserError for a backbone of an embedded world, or a wrong setting."""
    kind: Any = plugins.backbone(section.name)
    if not issubclass(kind, PipelineBackbone):
        raise UserError(
            f"backbone {section.name!r} belongs to an embedded world: captioned pictures need a large model"
        )
    miniature.ready(section)
    return kind, validate(kind.Config, section.options, f"backbone {section.name!r}")


def cache_of(section: BackboneSection, data: Captioned, runs: Path) -> Cache:
    """The cache of some data for a backbone, whether it is there or not. Raises UserError for aspect buckets, if the
    backbone takes squares alone."""
    kind, config = pipeline_of(section)
    if data.config.aspect_buckets and not kind.oblong:
        raise UserError(f"backbone {section.name!r} takes square pictures alone; leave data.aspect_buckets out")
    root = Path(data.config.cache) if data.config.cache else runs / "cache"
    return Cache(root, key(kind, config, data), len(data))


def sizes_only(section: BackboneSection) -> PipelineBackbone:
    """A backbone whose transformer has sizes and no weights, and takes no memory; its codec is whole."""
    kind, config = pipeline_of(section)
    try:
        with torch.device("meta"):
            return kind(config.model_copy(update={"pretrained": False}))
    except ValueError as error:
        raise UserError(f"backbone {section.name!r}: {error}") from None


def make(cache: Cache, section: BackboneSection, data: Captioned, ranks: Ranks = ALONE) -> Iterator[int]:
    """Make what is missing of this process's part; yields how many of its shards are done."""
    device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    yield from cache.make(Encoded(data, sizes_only(section), device), ranks)
