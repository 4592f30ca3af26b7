"""What is known of a score under other prompts of the kind: bootstrap draws of every place of a board, paired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from twinbench import statistics
from twinbench.judges import distances
from twinbench.report.comparisons import Drawn, Place
from twinbench.results import Record
from twinbench.statistics import Metric


def item_draws(metric: Metric, items: Mapping[Place, Sequence[Any]]) -> dict[Place, Drawn]:
    """Bootstrap draws of every place whose seeds all have rows on the same keys; equal keys share their indices."""
    groups: dict[frozenset[str], list[Place]] = {}
    for place, runs in items.items():
        found = {statistics.keys(metric, run) if run else frozenset() for run in runs}
        if len(found) == 1 and (keys := found.pop()):
            groups.setdefault(keys, []).append(place)
    out: dict[Place, Drawn] = {}
    for keys, places in groups.items():
        draws = statistics.bootstrap(metric, [run for place in places for run in items[place]])
        cuts = np.cumsum([len(items[place]) for place in places])[:-1]
        out |= {place: (keys, part) for place, part in zip(places, np.split(draws, cuts, axis=1), strict=True)}
    return out


def feature_draws(places: Mapping[Place, Sequence[Record]]) -> dict[Place, Drawn]:
    """Bootstrap draws of the Frechet distance where the features of the images and of the reference were kept."""
    out: dict[Place, Drawn] = {}
    for place, runs in places.items():
        reference, kept = runs[0].reference(), [r.features() for r in runs]
        if reference is None or any(pair is None for pair in kept):
            continue
        pairs = [pair for pair in kept if pair is not None]
        keys = {frozenset(map(str, k)) for _, k in pairs}
        if len(keys) == 1:
            draws = [distances.frechet_draws(x, [str(k) for k in ks], reference) for x, ks in pairs]
            out[place] = (keys.pop(), np.stack(draws, axis=1))
    return out
