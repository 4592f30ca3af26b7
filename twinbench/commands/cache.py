"""cache: what training asks for in place of the VAE and the text encoders."""

from __future__ import annotations

from contextlib import nullcontext

import typer

from twinbench.commands.options import RUNS, Overrides, RecipeName, Runs, Threads, Tiny
from twinbench.errors import UserError
from twinbench.miniature import named


def cache(
    recipe: RecipeName,
    tiny: Tiny = False,
    sets: Overrides = None,
    threads: Threads = 1,
    runs: Runs = RUNS,
) -> None:
    """Encode the pictures and captions of a recipe for a large model, once. The same command goes on where it stopped;
    under torchrun every process does its share.

    Example: twinbench cache --recipe qwen-image --set data.path=pictures
    """
    from twinbench import recipe as recipes

    loaded = recipes.load(named(recipe, tiny), sets, runs)
    import torch

    from twinbench.console import bar
    from twinbench.data.captioned import Captioned
    from twinbench.ranks import together
    from twinbench.training import caching
    from twinbench.training.networks import make_data

    torch.set_num_threads(threads)
    data = make_data(loaded.data)
    if not isinstance(data, Captioned):
        raise UserError(
            f"recipe {loaded.name!r} trains on the embedded world {loaded.data.kind!r}, which needs no cache"
        )
    with together() as ranks:
        if ranks.first:
            caching.pipeline_of(loaded.backbone)
        ranks.wait()
        held = caching.cache_of(loaded.backbone, data, runs)
        share = max(1, len(ranks.share(range(len(held)), 1)))
        with bar(f"cache {loaded.name}") if ranks.first else nullcontext(lambda *_: None) as show:
            for done in caching.make(held, loaded.backbone, data, ranks):
                show(done / share, f"{done} of {share} shards of {held.shard} samples")
        ranks.wait()
        if ranks.first:
            typer.echo(held.folder)
