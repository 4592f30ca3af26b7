"""Texts that share most of their letters: the Jaccard overlap of their character 5-grams, candidates by MinHash.

Broder 1997; the signatures are cut into bands, and texts that agree in any whole band are compared exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from zlib import crc32

import numpy as np

GRAM = 5
BANDS, ROWS = 32, 4  # two texts of overlap 0.8 agree in some band but for 4 in 10^8
_PRIME = (1 << 31) - 1
_A, _B = np.random.default_rng(0).integers(1, _PRIME, (2, BANDS * ROWS, 1), dtype=np.uint64)


def grams(text: str) -> frozenset[str]:
    """The character 5-grams; of a shorter text, the text itself."""
    return frozenset(text[i : i + GRAM] for i in range(max(1, len(text) - GRAM + 1)))


def overlap(a: frozenset[str], b: frozenset[str]) -> float:
    """Jaccard: |a and b| / |a or b|."""
    return len(a & b) / len(a | b)


class Near:
    """Finds, among known texts, those of at least a given overlap with another."""

    def __init__(self, texts: Iterable[str], least: float) -> None:
        self.grams, self.least = [grams(text) for text in texts], least
        self.buckets: dict[tuple[int, bytes], list[int]] = {}
        for i, known in enumerate(self.grams):
            for bucket in _bands(known):
                self.buckets.setdefault(bucket, []).append(i)

    def find(self, text: str) -> Iterator[tuple[int, float]]:
        """The places of the near texts, with their overlap; in order."""
        mine = grams(text)
        candidates = {i for bucket in _bands(mine) for i in self.buckets.get(bucket, ())}
        for i in sorted(candidates):
            if (share := overlap(mine, self.grams[i])) >= self.least:
                yield i, share


def _bands(of: frozenset[str]) -> Iterator[tuple[int, bytes]]:
    hashes = np.array([crc32(gram.encode()) % _PRIME for gram in of], np.uint64)
    signature = ((_A * hashes + _B) % _PRIME).min(1).astype(np.uint32).reshape(BANDS, ROWS)
    yield from ((band, row.tobytes()) for band, row in enumerate(signature))
