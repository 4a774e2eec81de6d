"""Attention, in all forms that genjax's transformers use.

    attention(q, k, v) = softmax(scale * q k^T + bias) v            (Vaswani et al. 2017, eq. 1)

with several heads (eq. after 1), fewer key-value heads than query heads (Ainslie et al. 2023), masks that are
causal, causal after a prefix that sees itself whole, local (a window), of segments in packed sequences, and of padding.

A `KVCache` is a pytree of fixed shape: attention takes it and returns a new one, with new keys and values written at
place `start`.  Causality hides all later places.  So one compiled step serves every position, and the rows of a batch
may be at different positions.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from genjax import devices
from genjax.batch import Array
from genjax.errors import UserError
from genjax.nn import sharding
from genjax.nn.dropout import dropout
from genjax.nn.positions import RotaryScaling, rotary_angles, rotate

# Finite, so that a query that may attend to no key gives the mean of the values and not NaN.
MASKED = -1e30


class KVCache(flax.struct.PyTreeNode):
    """Keys and values of the tokens so far, each [B, K, S, D] with S the largest length."""

    keys: Array
    values: Array

    @classmethod
    def zeros(cls, batch: int, num_kv_heads: int, length: int, head_dim: int, dtype: Any = jnp.float32) -> KVCache:
        """An empty cache."""
        shape = (batch, num_kv_heads, length, head_dim)
        return cls(keys=jnp.zeros(shape, dtype), values=jnp.zeros(shape, dtype))

    def write(self, keys: Array, values: Array, start: Array) -> KVCache:
        """Writes [B, K, T, D] at slots start .. start + T - 1.

        `start` is an array [B], one place for each row, and keys beyond the last slot are dropped; or it is a scalar,
        and the caller makes sure that all keys fit.
        """

        def put(cache: Array, new: Array) -> Array:
            new = new.astype(cache.dtype)
            if start.ndim == 0:
                return jax.lax.dynamic_update_slice_in_dim(cache, new, start, axis=2)
            slots = start[:, None] + jnp.arange(new.shape[2])[None]  # [B, T]
            write_row = lambda row, index, values: row.at[:, index].set(values, mode="drop")
            return jax.vmap(write_row)(cache, slots, new)

        return KVCache(keys=put(self.keys, keys), values=put(self.values, values))

    def grow(self, length: int) -> KVCache:
        """The cache enlarged to `length` tokens."""
        more = [(0, 0), (0, 0), (0, length - self.keys.shape[2]), (0, 0)]
        return KVCache(keys=jnp.pad(self.keys, more), values=jnp.pad(self.values, more))


def attention_mask(
    query_index: Array,
    key_index: Array,
    *,
    causal: bool = False,
    window: int | None = None,
    query_segments: Array | None = None,
    key_segments: Array | None = None,
    key_mask: Array | None = None,
    prefix_lengths: Array | None = None,
) -> Array | None:
    """Which keys each query may see, bool [B | 1, 1, T, S]; None if every query may see all keys.

    Args:
      query_index: place of each query in the sequence, [B | 1, T].
      key_index: place of each key, [S].
      causal: a query sees only keys at or before its own place.
      window: a query sees only keys less than this many places away.
      query_segments, key_segments: numbers of the packed sequences, [B, T] and [B, S]; a query sees only its own
        segment.
      key_mask: True at keys that are no padding, [B, S].
      prefix_lengths: with `causal`, the number of first keys that every query sees, [B] (Raffel et al. 2020, figure 4).
    """
    parts = []
    distance = query_index[:, :, None] - key_index[None, None]  # [B | 1, T, S]
    if causal:
        seen = distance >= 0
        if prefix_lengths is not None:
            seen = seen | (key_index[None, None] < prefix_lengths[:, None, None])
        parts.append(seen)
    if window is not None:
        parts.append(jnp.abs(distance) < window)
    if query_segments is not None:
        parts.append(query_segments[:, :, None] == key_segments[:, None])
    if key_mask is not None:
        parts.append(key_mask.astype(bool)[:, None])
    if not parts:
        return None
    mask = parts[0]
    for part in parts[1:]:
        mask = mask & part
    return mask[:, None]


def _heads_first(
    q: Array, k: Array, v: Array, bias: Array | None, mask: Array | None, scale: float, rate: float, keys: Array | None
) -> tuple[Array, Array]:
    """Attention of queries [B, H, T, D] to keys and values [B, K, S, D]: output [B, H, T, D] and
    weights [B, H, T, S].
    """
    batch, heads, length, dim = q.shape
    kv_heads, size = k.shape[1:3]
    groups = heads // kv_heads
    rows = q.reshape(batch, kv_heads, groups * length, dim)
    logits = jnp.einsum("bktd,bksd->bkts", rows, k, preferred_element_type=jnp.float32)
    logits = logits.reshape(batch, heads, length, size) * scale
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = jnp.where(mask, logits, MASKED)
    weights = jax.nn.softmax(logits, axis=-1)
    used = dropout(weights, rate, keys).astype(v.dtype).reshape(batch, kv_heads, groups * length, size)
    mixed = jnp.einsum("bkts,bksd->bktd", used, v)
    return mixed.reshape(batch, heads, length, v.shape[-1]), weights


def flash_possible(q: Array, k: Array, *, biased: bool, causal: bool, window: int | None) -> bool:
    """Whether cuDNN's fused attention takes queries [B, T, H, D] and keys [B, S, K, D].

    cuDNN needs a GPU, half precision and at most 128 features a head.  It supports windows to the left only, and has no
    gradient if a bias or a mask is used with an odd length.

    Args:
      q, k: queries and keys.
      biased: whether there is a bias or a mask other than the causal one.
      causal, window: which keys a query sees.
    """
    return (
        devices.platform() == "gpu"
        and q.dtype in (jnp.bfloat16, jnp.float16)
        and q.shape[-1] <= 128
        and q.shape[-1] % 8 == 0
        and (causal or window is None)
        and not (biased and (q.shape[1] % 2 or k.shape[1] % 2))
    )


def _flash(
    q: Array, k: Array, v: Array, bias: Array | None, mask: Array | None, scale: float, causal: bool, window: int | None
) -> Array:
    """cuDNN's attention of queries [B, T, H, D] to keys and values [B, S, K, D], output [B, T, H, D]."""
    if mask is not None:
        # cuDNN broadcasts a bias over rows and heads, but not over queries or keys.
        mask = jnp.broadcast_to(mask, (*mask.shape[:2], q.shape[1], k.shape[1]))
    if bias is not None:
        # A float32 bias makes gradients NaN (jax-ml/jax issue 32242).
        bias = bias.astype(q.dtype)
    return jax.nn.dot_product_attention(
        q,
        k,
        v,
        bias,
        mask,
        scale=scale,
        is_causal=causal,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )


def attend(q: Array, k: Array, v: Array, key_mask: Array | None = None) -> Array:
    """Attention of all queries to all keys, with the scale 1 / sqrt(D).

    Args:
      q, k, v: queries [B, T, H, D], keys and values [B, S, H, D].
      key_mask: True at keys that are no padding, [B, S].

    Returns:
      What the queries find, the heads joined, [B, T, H D].
    """
    batch, length, heads, dim = q.shape
    mask = None if key_mask is None else key_mask.astype(bool)[:, None, None]
    if flash_possible(q, k, biased=mask is not None, causal=False, window=None):
        mixed = _flash(q, k, v, None, mask, dim**-0.5, False, None)
    else:
        first = (a.swapaxes(1, 2) for a in (q, k, v))
        mixed = _heads_first(*first, None, mask, dim**-0.5, 0.0, None)[0].swapaxes(1, 2)
    return sharding.split_tokens(mixed.reshape(batch, length, heads * dim), "tensor")


class Attention(nn.Module):
    """Multi-head attention of x to itself, or to a context.

    Attributes:
      num_heads: query heads H.
      num_kv_heads: key and value heads K, which divides H; None for H.
      head_dim: width D of a head; None for width / H.
      qkv_bias, output_bias: whether the projections have biases.
      key_bias: whether the keys have a bias (they have none in Whisper); None for qkv_bias.
      cross: whether keys and values come from a context.
      causal: queries see only keys at or before them (self-attention).
      window: queries see only keys less than this far away, or None.
      rotary_dim: number of features of each head that rotary positions rotate; 0 for none.
      rotary_base, rotary_scaling: base of the rotary frequencies, and their scaling for longer contexts.
      qk_norm: RMS norm of queries and keys (as in Qwen 3).
      scale: factor on the logits; None for 1 / sqrt(D).
      dropout_rate: dropout of the attention weights.
      dtype: compute type; parameters stay float32.
      init_std: standard deviation of the weights; None for LeCun's.
      output_init_std: standard deviation of the output projection's weights.
    """

    num_heads: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    qkv_bias: bool = True
    output_bias: bool = True
    key_bias: bool | None = None
    cross: bool = False
    causal: bool = False
    window: int | None = None
    rotary_dim: int = 0
    rotary_base: float = 10000.0
    rotary_scaling: RotaryScaling | None = None
    qk_norm: bool = False
    norm_epsilon: float = 1e-6
    scale: float | None = None
    dropout_rate: float = 0.0
    dtype: Any = jnp.float32
    init_std: float | None = None
    output_init_std: float | None = None

    def _dense(self, name: str, features: int, use_bias: bool, std: float | None) -> nn.Dense:
        init = nn.initializers.lecun_normal() if std is None else nn.initializers.normal(std)
        # The three maps before the attention are split by columns, the map after it by rows.
        product = None if name == "output" else sharding.columns_product
        return nn.Dense(features, use_bias, self.dtype, kernel_init=init, dot_general=product, name=name)

    @nn.compact
    def __call__(
        self,
        x: Array,
        context: Array | None = None,
        *,
        positions: Array | None = None,
        segment_ids: Array | None = None,
        key_segment_ids: Array | None = None,
        key_mask: Array | None = None,
        prefix_lengths: Array | None = None,
        bias: Array | None = None,
        cache: KVCache | None = None,
        start: Array | None = None,
        dropout_keys: Array | None = None,
        return_weights: bool = False,
    ) -> tuple[Array, KVCache | None, Array | None]:
        """Attends.

        Args:
          x: input that queries are made of, [B, T, C].
          context: input that keys and values are made of in cross-attention, [B, S, C']; None for self-attention.
          positions: position of each token for rotary angles, [B | 1, T]; None for 0, 1, ...
          segment_ids: packed sequences, [B, T].
          key_segment_ids: packed sequences of the context, [B, S].
          key_mask: True at keys that are no padding, [B, S].
          prefix_lengths: number of first tokens that all tokens see, also those before them, [B]; with a cache, the
            call that reads the prefix must read it whole.
          bias: added to the logits, [B | 1, H | 1, T, S].
          cache: keys and values of earlier tokens; in cross-attention, keys and values of the context, which need not
            be given again.
          start: number of tokens already in the cache, a scalar or [B].
          dropout_keys: keys [B], or None in evaluation.
          return_weights: whether to return the weights as well.

        Returns:
          The output [B, T, C], the renewed cache (in cross-attention the context's keys and values) or None, and
          the weights [B, H, T, S] or None.

        Raises:
          UserError: the heads do not divide as they must, or a window leaves a query nothing to see.
        """
        batch, length, width = x.shape
        heads = self.num_heads
        kv_heads = self.num_kv_heads or heads
        if heads % kv_heads:
            raise UserError(f"num_kv_heads={kv_heads} must divide num_heads={heads}")
        if self.head_dim is None and width % heads:
            raise UserError(f"num_heads={heads} must divide the width {width}, or head_dim must be given")
        dim = self.head_dim or width // heads
        sharding.check_divides("tensor", num_heads=heads, num_kv_heads=kv_heads)
        if self.window is not None and self.window < 1:
            # A query that sees nothing would get the mean of all values, also of later ones.
            raise UserError(f"window={self.window} of an attention must be at least 1, the query's own place, or none")
        if self.cross and context is None and cache is None:
            raise UserError("cross-attention needs a context, or a cache of one")

        def norm(name: str, a: Array) -> Array:
            return nn.RMSNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name=name)(a) if self.qk_norm else a

        def as_heads(a: Array, count: int) -> Array:
            # Devices of the axis tensor hold whole heads.
            return sharding.split_tokens(a.reshape(batch, -1, count, dim), "tensor")

        copies = sharding.for_columns(x, heads, kv_heads)
        q = as_heads(self._dense("query", heads * dim, self.qkv_bias, self.init_std)(copies), heads)
        q = norm("query_norm", q)
        k = v = None
        if not self.cross or context is not None:
            source = copies if context is None else sharding.for_columns(context, kv_heads)
            key_bias = self.qkv_bias if self.key_bias is None else self.key_bias
            k = self._dense("key", kv_heads * dim, key_bias, self.init_std)(source)
            v = self._dense("value", kv_heads * dim, self.qkv_bias, self.init_std)(source)
            k = norm("key_norm", as_heads(k, kv_heads))
            v = as_heads(v, kv_heads)

        offset = jnp.zeros((), jnp.int32) if start is None else start
        index = jnp.arange(length)[None] + (offset[:, None] if offset.ndim else offset)  # [B | 1, T]
        if self.rotary_dim and not self.cross:
            cos, sin = rotary_angles(
                index if positions is None else positions, self.rotary_dim, self.rotary_base, self.rotary_scaling
            )
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)

        scale = dim**-0.5 if self.scale is None else self.scale
        # cuDNN knows causality without exceptions, which a mask takes the place of where there is a prefix.
        plainly_causal = self.causal and prefix_lengths is None
        flash = (
            (cache is None or k is not None and self.cross)
            and not return_weights
            and (dropout_keys is None or self.dropout_rate == 0.0)
            and flash_possible(
                q,
                k,
                biased=any(a is not None for a in (bias, key_mask, segment_ids, prefix_lengths)),
                causal=plainly_causal,
                window=self.window,
            )
        )
        if flash:
            mask = attention_mask(
                index,
                jnp.arange(k.shape[1]),
                causal=self.causal and not self.cross and not plainly_causal,
                query_segments=segment_ids,
                key_segments=segment_ids if key_segment_ids is None else key_segment_ids,
                key_mask=key_mask,
                prefix_lengths=prefix_lengths,
            )
            mixed = _flash(q, k, v, bias, mask, scale, plainly_causal, self.window)
            weights = None
            if self.cross:
                cache = KVCache(keys=k.swapaxes(1, 2), values=v.swapaxes(1, 2))
        else:
            # [B, H, T, D] before the two products: on a CPU a tenth of the whole step.
            q = q.swapaxes(1, 2)
            if k is not None:
                k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
            if self.cross and k is not None:
                cache = KVCache(keys=k, values=v)
            elif cache is not None:
                if not self.cross:
                    cache = cache.write(k, v, offset)
                k, v = cache.keys.astype(self.dtype), cache.values.astype(self.dtype)
            key_index = jnp.arange(k.shape[2])
            mask = attention_mask(
                index,
                key_index,
                causal=self.causal and not self.cross,
                window=None if self.cross else self.window,
                query_segments=segment_ids,
                key_segments=segment_ids if key_segment_ids is None else key_segment_ids,
                key_mask=key_mask,
                prefix_lengths=prefix_lengths,
            )
            mixed, weights = _heads_first(q, k, v, bias, mask, scale, self.dropout_rate, dropout_keys)
            mixed = mixed.swapaxes(1, 2)
        mixed = sharding.split_tokens(mixed.reshape(batch, length, heads * dim), "tensor")
        out = self._dense("output", width, self.output_bias, self.output_init_std or self.init_std)(mixed)
        return sharding.split_tokens(out), cache, weights if return_weights else None
