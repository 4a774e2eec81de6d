"""Flash attention on TPUs: JAX's splash attention (jax.experimental.pallas.ops.tpu.splash_attention).

    attention(q, k, v) = softmax(scale * q k^T) v

computed in tiles (Dao et al. 2022), without the tiles that a causal mask or a window hides, forward and backward.
Pallas, which takes a second to import, is imported where a program for a TPU is traced.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array

#: Part of a program's name, before the number of pairs of a query and a key that a kernel computes: a compiled program
#: does not tell it otherwise.
PAIRS = "splash_pairs_"
# Sides of tiles, the largest that divides the tokens.
_TILES = (1024, 512, 256, 128)


def splash(
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: float,
    causal: bool = False,
    window: int | None = None,
    query_segments: Array | None = None,
    key_segments: Array | None = None,
    key_mask: Array | None = None,
    interpret: bool = False,
) -> Array:
    """Attention of queries [B, T, H, D] to keys and values [B, S, K, D], [B, T, H, D]; see `attention_mask`.

    A query that sees no key gives a mean of values, as everywhere, but not always the mean of all.

    Args:
      q, k, v: queries, keys and values on one device: XLA cannot split a kernel over a mesh.
      scale: factor on the logits.
      causal, window, query_segments, key_segments, key_mask: which keys a query sees.
      interpret: run the kernel's program on any platform, for tests.
    """
    segments = None
    if query_segments is not None or key_mask is not None:
        zeros = lambda a: jnp.zeros(a.shape[:2], jnp.int32)
        seen = zeros(k) if key_segments is None else key_segments
        seen = seen if key_mask is None else jnp.where(key_mask.astype(bool), seen, -1)
        segments = _library().SegmentIds(zeros(q) if query_segments is None else query_segments, seen)

    kernel = _kernel(q.shape[2], q.shape[1], k.shape[1], causal, window, interpret)
    # A scale in half precision would change the temperature of all rows alike.
    q = (q.astype(jnp.float32) * scale).astype(q.dtype)
    with jax.named_scope(f"{PAIRS}{_num_pairs(q.shape[1], k.shape[1], causal, window)}"):
        return jax.vmap(kernel)(*(a.swapaxes(1, 2) for a in (q, k, v)), segments).swapaxes(1, 2)


def _tile(num_tokens: int) -> int:
    """Side of a tile."""
    return next(side for side in _TILES if num_tokens % side == 0)


def _band(length: int, size: int, causal: bool, window: int | None) -> tuple[int, int]:
    """The least and the largest distance, query - key, at which a key is seen."""
    farthest = max(length, size) if window is None else window - 1
    return 0 if causal else -farthest, farthest


def _num_pairs(length: int, size: int, causal: bool, window: int | None) -> int:
    """Pairs of a query and a key in the tiles that the kernel computes."""
    rows, columns = _tile(length), _tile(size)
    first, last = _band(length, size, causal, window)
    distance = np.arange(0, length, rows)[:, None] - np.arange(0, size, columns)[None]
    return int(((distance + rows > first) & (distance - columns < last)).sum()) * rows * columns


def _library() -> Any:
    from jax.experimental.pallas.ops.tpu import splash_attention

    return splash_attention


class _Band:
    """The mask [T, S] that is True where first <= query - key <= last, in the form that the kernel's maker takes.

    It asks for any() and all() of every tile, which JAX's own masks make of all its places: minutes for 128k tokens.
    Here two numbers stand for a tile.
    """

    def __init__(self, length: int, size: int, first: int, last: int) -> None:
        self._shape, self.first, self.last = (length, size), first, last
        self.q_sequence = np.arange(length, dtype=np.int32)

    @property
    def shape(self) -> tuple[int, int]:
        """T and S."""
        return self._shape

    def mask_function(self, queries: Any, keys: Any) -> Any:
        """The mask at places, for tiles in which it is not the same everywhere."""
        distance = queries - keys
        return (distance >= self.first) & (distance <= self.last)

    def __getitem__(self, tile: tuple[slice, slice]) -> np.ndarray:
        """An array with the same any() and all() as a tile of the mask."""
        queries, keys = (range(n)[part] for n, part in zip(self.shape, tile))
        least, most = queries[0] - keys[-1], queries[-1] - keys[0]
        seen = most >= self.first and least <= self.last
        return np.array([[seen, seen and self.first <= least and most <= self.last]])

    def _key(self) -> tuple[Any, ...]:
        return (*self.shape, self.first, self.last)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Band) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


@functools.lru_cache(maxsize=16)
def _kernel(num_heads: int, length: int, size: int, causal: bool, window: int | None, interpret: bool) -> Any:
    """The kernel for H heads of T queries and S keys: (q [H, T, D], k, v [K, S, D], segments) -> [H, T, D]."""
    rows, columns = _tile(length), _tile(size)

    class Mask(_Band, _library().Mask):
        """The kernel's maker asks for the class too."""

    mask = Mask(length, size, *_band(length, size, causal, window))
    # Not the fused backward kernel: it keeps gradients of the queries for every tile of keys.
    sizes = _library().BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        block_q_dq=rows,
        block_kv_dq=columns,
    )
    with jax.ensure_compile_time_eval():
        return _library().make_splash_mha(
            _library().MultiHeadMask([mask] * num_heads),
            block_sizes=sizes,
            head_shards=1,
            q_seq_shards=1,
            interpret=interpret,
        )
