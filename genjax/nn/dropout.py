"""Dropout whose noise belongs to the example.

Each example has its own key, so accumulation over microbatches, `pmap` and one large batch drop the same units, and so
do scanned and unrolled layers.  Without keys (None), in evaluation, nothing is dropped.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from genjax.batch import Array
from genjax.errors import UserError


def fold_in(keys: Array | None, index: int | Array) -> Array | None:
    """Derives keys [B] for the place `index` in a network; None stays None."""
    return None if keys is None else jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, index)


def keep_mask(keys: Array, rate: float, shape: tuple[int, ...]) -> Array:
    """Booleans, True with probability 1 - round(65536 rate) / 65536, shape [B, *shape] for keys [B].

    Raises:
      UserError: the rate is no probability below 1.
    """
    threshold = round(rate * 65536)
    if not 0 <= threshold < 65536:
        raise UserError(f"a rate of dropout or zoneout must be at least 0 and less than 1, and it is {rate}")
    size = 1
    for length in shape:
        size *= length
    # Two decisions from each 32-bit word, because on a CPU the generator takes most of the time of dropout.
    words = jax.vmap(lambda key: jax.random.bits(key, ((size + 1) // 2,), jnp.uint32))(keys)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(keys.shape[0], -1)[:, :size]
    return (halves >= threshold).reshape(keys.shape[0], *shape)


def dropout(x: Array, rate: float, keys: Array | None, broadcast_axes: tuple[int, ...] = ()) -> Array:
    """Zeroes units of x [B, ...] with probability `rate` and scales the others, so that the mean does not change.

    Args:
      x: activations.
      rate: probability of a zero, to 16 bits.
      keys: one random key an example, or None to return x.
      broadcast_axes: axes of x along which one decision holds (variational dropout: the time axis).
    """
    if keys is None or rate == 0.0:
        return x
    shape = tuple(1 if axis in broadcast_axes else n for axis, n in enumerate(x.shape) if axis > 0)
    keep = keep_mask(keys, rate, shape)
    probability = 1.0 - round(rate * 65536) / 65536
    return jnp.where(keep, x / probability, jnp.zeros((), x.dtype)).astype(x.dtype)
