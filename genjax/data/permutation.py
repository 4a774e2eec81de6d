"""Random orders of examples: stored for small sets, computed place by place for large ones.

A permutation of 10^8 examples takes 800 MB and seconds to draw.  A Feistel network is a permutation of 2^(2k) numbers
that is computed for one number alone (Luby & Rackoff 1988): with halves l and r and round keys k_i,

    (l, r) <- (r, l xor f(k_i, r))

Numbers that it takes out of the range are put through it again until they are in it (cycle walking, Black & Rogaway
2002), which takes at most four rounds on average, as 2^(2k) < 4 count.
"""

from __future__ import annotations

import functools

import numpy as np

#: Orders of at most this many examples are drawn whole and kept, in 32 MiB each.
LARGEST_STORED = 2**22
_ROUNDS = 8


def permuted(key: tuple[int, ...], places: np.ndarray, count: int) -> np.ndarray:
    """The examples at places [...] of the random order of `count` examples that a key names, int64 [...]."""
    if count <= LARGEST_STORED:
        return _stored(key, count)[places]
    return feistel(key, places, count)


@functools.lru_cache(maxsize=8)
def _stored(key: tuple[int, ...], count: int) -> np.ndarray:
    # A key of one number has always been the seed itself.
    order = np.random.default_rng(key[0] if len(key) == 1 else list(key)).permutation(count)
    order.setflags(write=False)
    return order


def feistel(key: tuple[int, ...], places: np.ndarray, count: int) -> np.ndarray:
    """A permutation of 0 .. count - 1, computed at places [...] alone; count is below 2^62."""
    half = max((int(count - 1).bit_length() + 1) // 2, 1)
    round_keys = np.random.default_rng([*key, count]).integers(0, 2**64, _ROUNDS, dtype=np.uint64)
    values = np.array(places, np.uint64)
    outside = np.ones(values.shape, bool)
    while outside.any():
        values[outside] = _encrypted(values[outside], round_keys, half)
        outside = values >= count
    return values.astype(np.int64)


def _encrypted(values: np.ndarray, round_keys: np.ndarray, half: int) -> np.ndarray:
    mask = np.uint64(2**half - 1)
    left, right = values >> np.uint64(half), values & mask
    for round_key in round_keys:
        left, right = right, left ^ (_mixed(right + round_key) & mask)
    return (left << np.uint64(half)) | right


def _mixed(x: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele et al. 2014); sums and products are modulo 2^64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
