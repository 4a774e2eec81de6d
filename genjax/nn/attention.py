"""Attention, in all forms that genjax's transformers use.

    attention(q, k, v) = softmax(scale * q k^T + bias) v            (Vaswani et al. 2017, eq. 1)

with several heads (eq. after 1), fewer key-value heads than query heads (Ainslie et al. 2023), masks that are
causal, causal after a prefix that sees itself whole, local (a window), of segments in packed sequences, and of padding.

The attention is computed by a fused kernel where one serves: cuDNN's on GPUs, splash attention on TPUs.  Elsewhere many
queries are attended to in blocks, of which the backward pass computes each again, so that no array [T, S] exists.

A `KVCache` is a pytree of fixed shape: attention takes it and returns a new one, with new keys and values written at
place `start`.  Causality hides all later places.  So one compiled step serves every position, and the rows of a batch
may be at different positions.  Where attention has a window, the cache is a ring: a token takes the slot of the token
that no query sees any more.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from genjax import devices
from genjax.batch import Array
from genjax.errors import UserError
from genjax.nn import sharding
from genjax.nn.dropout import dropout, fold_in
from genjax.nn.positions import RotaryScaling, rotary_angles, rotate
from genjax.nn.products import dense_product
from genjax.nn.splash import splash

# Finite, so that a query that may attend to no key gives the mean of the values and not NaN.
MASKED = -1e30
#: The place of a slot that holds no token yet: later than all queries, so that causality hides it.
NOWHERE = 2**30
#: Logits of a head, T S, above which queries are attended to in blocks, and the fewest queries of a block.
LARGEST_WHOLE = 1024 * 1024
FEWEST_QUERIES = 128
#: Fewest tokens that TPUs attend to by splash attention.
FEWEST_TILED = 512

#: Added to logits: an array [B | 1, H | 1, T, S], or a pytree that gives it for the places of queries [B | 1, T] and of
#: keys, [S] or [B, S].
Bias = Array | Callable[[Array, Array], Array]


class KVCache(flax.struct.PyTreeNode):
    """Keys and values of the tokens so far, each [B, K, S, D].

    A cache of fewer rows than there are queries holds prompts, each of which successive rows share; it is only read.

    Attributes:
      keys, values: of S slots.
      most: number of slots from which on the cache is a ring, in which place p has slot p mod S; None for a cache that
        has a slot for each place.
    """

    keys: Array
    values: Array
    most: int | None = flax.struct.field(pytree_node=False, default=None)

    @classmethod
    def zeros(
        cls,
        batch: int,
        num_kv_heads: int,
        length: int,
        head_dim: int,
        dtype: Any = jnp.float32,
        most: int | None = None,
    ) -> KVCache:
        """An empty cache for `length` tokens."""
        shape = (batch, num_kv_heads, length if most is None else min(length, most), head_dim)
        return cls(keys=jnp.zeros(shape, dtype), values=jnp.zeros(shape, dtype), most=most)

    @property
    def is_ring(self) -> bool:
        """Whether new tokens take the slots of old ones."""
        return self.most is not None and self.keys.shape[2] >= self.most

    def write(self, keys: Array, values: Array, start: Array, limit: Array | None = None) -> KVCache:
        """Writes [B, K, T, D] at places start .. start + T - 1.

        `start` is an array [B], one place for each row, and keys beyond the last slot, or at `limit` [B] and beyond,
        are dropped; or it is a scalar, and the caller makes sure that all keys fit.
        """
        size, length = self.keys.shape[2], keys.shape[2]

        def put(cache: Array, new: Array) -> Array:
            new = new.astype(cache.dtype)
            if start.ndim == 0 and (length == 1 or not self.is_ring):
                first = start % size if self.is_ring else start
                return jax.lax.dynamic_update_slice_in_dim(cache, new, first, axis=2)
            if start.ndim == 0:
                count = min(length, size)
                slots = (start + length - count + jnp.arange(count)) % size
                return cache.at[:, :, slots].set(new[:, :, -count:])
            places = start[:, None] + jnp.arange(length)[None]  # [B, T]
            end = (start + length if limit is None else jnp.minimum(start + length, limit))[:, None]
            # Of tokens that would share a slot of a ring the last one is written.
            kept = (places < end) & (places >= end - size) if self.is_ring else places < end
            slots = jnp.where(kept, places % size if self.is_ring else places, size)
            write_row = lambda row, index, values: row.at[:, index].set(values, mode="drop")
            return jax.vmap(write_row)(cache, slots, new)

        return self.replace(keys=put(self.keys, keys), values=put(self.values, values))

    def places(self, start: Array, length: int) -> Array:
        """Places of the keys that `extended` gives for `length` tokens after `start`: [S'], of a ring [B | 1, S']."""
        slots = jnp.arange(self.keys.shape[2])
        if not self.is_ring:
            return slots
        start = start.reshape(-1, 1)
        last = start - (length > 1)
        held = last - (last - slots[None]) % slots.size
        held = jnp.where(held < 0, NOWHERE, held)
        return held if length == 1 else jnp.concatenate([held, start + jnp.arange(length)[None]], axis=1)

    def extended(
        self, keys: Array, values: Array, start: Array, limit: Array | None = None
    ) -> tuple[KVCache, Array, Array]:
        """Writes as `write` does; also the keys and values [B, K, S', D] that the new tokens may see."""
        new = self.write(keys, values, start, limit)
        if not self.is_ring or keys.shape[2] == 1:
            return new, new.keys, new.values
        # Several tokens at once: the last ones may take the slots of keys that the first ones see.
        join = lambda old, more: jnp.concatenate([old, more.astype(old.dtype)], axis=2)
        return new, join(self.keys, keys), join(self.values, values)

    def grow(self, length: int) -> KVCache:
        """The cache enlarged to `length` tokens."""
        length = length if self.most is None else min(length, self.most)
        more = [(0, 0), (0, 0), (0, length - self.keys.shape[2]), (0, 0)]
        return self.replace(keys=jnp.pad(self.keys, more), values=jnp.pad(self.values, more))


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
      key_index: place of each key, [S] or [B | 1, S].
      causal: a query sees only keys at or before its own place.
      window: a query sees only keys less than this many places away.
      query_segments, key_segments: numbers of the packed sequences, [B, T] and [B, S]; a query sees only its own
        segment.
      key_mask: True at keys that are no padding, [B, S].
      prefix_lengths: with `causal`, the number of first keys that every query sees, [B] (Raffel et al. 2020, figure 4).
    """
    parts = []
    keys = jnp.atleast_2d(key_index)[:, None]
    distance = query_index[:, :, None] - keys  # [B | 1, T, S]
    if causal:
        seen = distance >= 0
        if prefix_lengths is not None:
            seen = seen | (keys < prefix_lengths[:, None, None])
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


class Sight(flax.struct.PyTreeNode):
    """Which keys each query may see: the arguments of `attention_mask`."""

    query_index: Array
    key_index: Array
    query_segments: Array | None = None
    key_segments: Array | None = None
    key_mask: Array | None = None
    prefix_lengths: Array | None = None
    causal: bool = flax.struct.field(pytree_node=False, default=False)
    window: int | None = flax.struct.field(pytree_node=False, default=None)

    def mask(self) -> Array | None:
        """The mask, bool [B | 1, 1, T, S], or None."""
        return attention_mask(
            self.query_index,
            self.key_index,
            causal=self.causal,
            window=self.window,
            query_segments=self.query_segments,
            key_segments=self.key_segments,
            key_mask=self.key_mask,
            prefix_lengths=self.prefix_lengths,
        )

    def bias(self, bias: Bias | None) -> Array | None:
        """The bias as an array."""
        return bias(self.query_index, self.key_index) if callable(bias) else bias


def is_large(length: int, size: int) -> bool:
    """Whether T queries of S keys are attended to in blocks where no fused kernel serves."""
    return length * size > LARGEST_WHOLE and length > FEWEST_QUERIES


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


def _after_prompts(
    q: Array,
    k: Array,
    v: Array,
    prompts: KVCache,
    bias: Callable[[Array, Array], Array] | None,
    sight: Sight,
    lengths: Array,
    scale: float,
) -> Array:
    """Attention of texts to themselves and to prompts that several of them share, [B, H, T, D].

    Args:
      q, k, v: queries [B, H, T, D], keys and values [B, K, T, D] of the texts.
      prompts: keys and values of Q prompts [Q, K, P, D]; B / Q successive texts follow each.
      bias: gives what is added to the logits, or None.
      sight: what the queries see, by their places behind the prompts.
      lengths: number of tokens of each text's prompt, [B].
      scale: factor on the logits.
    """
    batch, heads, length, dim = q.shape
    count, kv_heads, size = prompts.keys.shape[:3]
    place, prompt_place = jnp.arange(length), jnp.arange(size)
    rows = q.reshape(batch, kv_heads, -1, dim)

    def together(a: Array) -> Array:
        """[B, K, N, ...] as [Q, K, B / Q N, ...], so that one product serves all texts of a prompt."""
        a = a.reshape(count, -1, *a.shape[1:]).swapaxes(1, 2)
        return a.reshape(count, kv_heads, -1, *a.shape[4:])

    def apart(a: Array) -> Array:
        a = a.reshape(count, kv_heads, batch // count, -1, *a.shape[3:]).swapaxes(1, 2)
        return a.reshape(batch, *a.shape[2:])

    def logits(found: Array, sight: Sight) -> Array:
        found = found.reshape(batch, heads, length, -1) * scale
        found = found if bias is None else found + sight.bias(bias)
        return jnp.where(sight.mask(), found, MASKED)

    product = functools.partial(jnp.einsum, "bktd,bksd->bkts", preferred_element_type=jnp.float32)
    known = prompt_place[None] < lengths[:, None]
    early = logits(apart(product(together(rows), prompts.keys)), sight.replace(key_index=prompt_place, key_mask=known))
    # Distances within a text do not depend on the length of its prompt.
    own = logits(product(rows, k), sight.replace(query_index=place[None], key_index=place))
    weights = jax.nn.softmax(jnp.concatenate([early, own], axis=-1), axis=-1).astype(v.dtype)
    weights = weights.reshape(batch, kv_heads, -1, size + length)
    early, own = weights[..., :size], weights[..., size:]
    mixed = apart(jnp.einsum("bkts,bksd->bktd", together(early), prompts.values))
    return (mixed + jnp.einsum("bkts,bksd->bktd", own, v)).reshape(batch, heads, length, dim)


def _in_blocks(
    q: Array, k: Array, v: Array, bias: Bias | None, sight: Sight, scale: float, rate: float, keys: Array | None
) -> Array:
    """The output of `_heads_first`, [B, H, T, D], in memory that grows with T + S and not with T S."""
    batch, heads, length, _ = q.shape
    size = max(FEWEST_QUERIES, LARGEST_WHOLE // k.shape[2])
    count = math.ceil(length / size)

    def divided(a: Array | None, axis: int) -> Array | None:
        """[..., T, ...] as [count, ..., size, ...]."""
        if a is None:
            return None
        a = jnp.pad(a, [(0, count * size - length if i == axis else 0) for i in range(a.ndim)])
        a = a.reshape(*a.shape[:axis], count, size, *a.shape[axis + 1 :])
        return jnp.moveaxis(a, axis, 0)

    whole, rows = (bias, None) if bias is None or callable(bias) else (None, divided(bias, 2))
    index, segments = divided(sight.query_index, 1), divided(sight.query_segments, 1)

    def block(own: tuple[Any, ...], shared: tuple[Any, ...], places: tuple[Any, ...], given: tuple[Any, ...]) -> Array:
        (q, rows), (k, v, bias), (place, index, segments), (sight, keys) = own, shared, places, given
        sight = sight.replace(query_index=index, query_segments=segments)
        bias = sight.bias(rows if bias is None else bias)
        return _heads_first(q, k, v, bias, sight.mask(), scale, rate, fold_in(keys, place))[0]

    out = _over_blocks(block, (divided(q, 2), rows), (k, v, whole), (jnp.arange(count), index, segments), (sight, keys))
    return jnp.moveaxis(out, 0, 2).reshape(batch, heads, count * size, -1)[:, :, :length]


# The backward pass keeps nothing of a block but its inputs, whatever `jax.checkpoint` around it says.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _over_blocks(block: Callable[..., Array], own: Any, shared: Any, places: Any, given: Any) -> Array:
    """`block(own[i], shared, places[i], given)` for all i; the last two are not differentiated."""
    return jax.lax.scan(lambda _, x: (None, block(x[0], shared, x[1], given)), None, (own, places))[1]


def _over_blocks_backward(block: Callable[..., Array], saved: tuple[Any, ...], gradient: Array) -> tuple[Any, ...]:
    own, shared, places, given = saved

    def add(total: Any, x: tuple[Any, ...]) -> tuple[Any, Any]:
        own, places, gradient = x
        _, pullback = jax.vjp(lambda own, shared: block(own, shared, places, given), own, shared)
        by_own, by_shared = pullback(gradient)
        return jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, by_shared), by_own

    # Sums over blocks are float32, as the products' own are.
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, jnp.promote_types(a.dtype, jnp.float32)), shared)
    total, by_own = jax.lax.scan(add, zeros, (own, places, gradient))
    return by_own, jax.tree.map(lambda t, a: t.astype(a.dtype), total, shared), None, None


_over_blocks.defvjp(lambda block, *arguments: (_over_blocks(block, *arguments), arguments), _over_blocks_backward)


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


def splash_possible(q: Array, k: Array) -> bool:
    """Whether splash attention takes queries [B, T, H, D] and keys [B, S, K, D]: on TPUs, in tiles of 128 tokens.

    The logits of fewer tokens are small.
    """
    tiled = all(n % 128 == 0 and n >= FEWEST_TILED for n in (q.shape[1], k.shape[1]))
    return tiled and devices.platform() == "tpu"


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


def _fused(q: Array, k: Array, v: Array, bias: Bias | None, sight: Sight, scale: float) -> Array | None:
    """Attention by the fused kernel of the platform that is compiled for, [B, T, H, D]; None where none serves.

    Places of queries and keys are 0, 1, ...
    """
    options = {"causal": sight.causal, "window": sight.window}
    if bias is None and sight.prefix_lengths is None and splash_possible(q, k):
        segments = {name: getattr(sight, name) for name in ("query_segments", "key_segments", "key_mask")}
        return splash(q, k, v, scale=scale, **options, **segments)
    # cuDNN knows causality without exceptions, which a mask takes the place of where there is a prefix.
    plainly_causal = sight.causal and sight.prefix_lengths is None
    others = (bias, sight.key_mask, sight.query_segments, sight.prefix_lengths)
    biased = any(a is not None for a in others)
    if not flash_possible(q, k, biased=biased, causal=plainly_causal, window=sight.window):
        return None
    mask = sight.replace(causal=sight.causal and not plainly_causal, window=None).mask()
    return _flash(q, k, v, sight.bias(bias), mask, scale, plainly_causal, sight.window)


def _mixed(
    q: Array,
    k: Array,
    v: Array,
    bias: Bias | None,
    sight: Sight,
    scale: float,
    rate: float,
    keys: Array | None,
    return_weights: bool = False,
) -> tuple[Array, Array | None]:
    """Attention without a fused kernel: output [B, H, T, D], and weights [B, H, T, S] where asked for."""
    if is_large(q.shape[2], k.shape[2]) and not return_weights:
        return _in_blocks(q, k, v, bias, sight, scale, rate, keys), None
    mixed, weights = _heads_first(q, k, v, sight.bias(bias), sight.mask(), scale, rate, keys)
    return mixed, weights if return_weights else None


def _attention(q: Array, k: Array, v: Array, bias: Bias | None, sight: Sight, scale: float) -> Array:
    """Attention in the way that serves best, [B, T, H, D]; places of queries and keys are 0, 1, ..."""
    tiled = devices.is_divided() and splash_possible(q, k)
    by_hand = devices.is_divided() and (sharding.tokens_divide(q.shape[1], k.shape[1]) or tiled)
    divided = by_hand and sharding.heads_divide(q.shape[0], k.shape[2])

    def here(q: Array, k: Array, v: Array, others: tuple[Bias | None, Sight]) -> Array:
        # XLA cannot split the kernel for TPUs.
        mixed = _fused(q, k, v, *others, scale) if divided or not tiled else None
        if mixed is None:
            # [B, H, T, D] before the two products: on a CPU a tenth of the whole step.
            first = (a.swapaxes(1, 2) for a in (q, k, v))
            mixed = _mixed(*first, *others, scale, 0.0, None)[0].swapaxes(1, 2)
        return mixed

    if not divided:
        return here(q, k, v, (bias, sight))
    specs = (_bias_specs(bias), _sight_specs(sight))
    return sharding.on_own_heads(here, q, k, v, (bias, sight), specs)


def _examples(a: Array) -> Any:
    """How the first axis of an array is split; of one that all examples share it is not."""
    return sharding.EXAMPLES if a.shape[0] > 1 else None


def _sight_specs(sight: Sight) -> Any:
    rows = jax.tree.map(lambda a: PartitionSpec(_examples(a)), sight)
    return rows.replace(key_index=PartitionSpec())


def _bias_specs(bias: Bias | None) -> Any:
    """A bias is split by examples and heads, the parameters of a function by heads, their last axis."""
    if callable(bias):
        return jax.tree.map(lambda a: PartitionSpec(*[None] * (a.ndim - 1), sharding.HEADS), bias)
    return jax.tree.map(lambda a: PartitionSpec(_examples(a), sharding.HEADS if a.shape[1] > 1 else None), bias)


def attend(q: Array, k: Array, v: Array, key_mask: Array | None = None) -> Array:
    """Attention of all queries to all keys, with the scale 1 / sqrt(D).

    Args:
      q, k, v: queries [B, T, H, D], keys and values [B, S, H, D].
      key_mask: True at keys that are no padding, [B, S].

    Returns:
      What the queries find, the heads joined, [B, T, H D].
    """
    batch, length, heads, dim = q.shape
    sight = Sight(query_index=jnp.arange(length)[None], key_index=jnp.arange(k.shape[1]), key_mask=key_mask)
    mixed = _attention(q, k, v, None, sight, dim**-0.5)
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
        product = dense_product if name == "output" else sharding.columns_product
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
        bias: Bias | None = None,
        cache: KVCache | None = None,
        start: Array | None = None,
        limit: Array | None = None,
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
          bias: added to the logits, [B | 1, H | 1, T, S], or a function that gives it.
          cache: keys and values of earlier tokens; in cross-attention, keys and values of the context, which need not
            be given again.
          start: number of tokens already in the cache, a scalar or [B].
          limit: place of each row from which on tokens are not kept in the cache, [B], or None.
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
        sharding.check_heads(heads, kv_heads)
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
        fresh = k is not None and (cache is None or self.cross)
        if fresh and self.cross:
            cache = KVCache(keys=k.swapaxes(1, 2), values=v.swapaxes(1, 2))
        sight = Sight(
            query_index=index,
            key_index=jnp.arange(k.shape[1]) if fresh else cache.places(offset, length),
            query_segments=segment_ids,
            key_segments=segment_ids if key_segment_ids is None else key_segment_ids,
            key_mask=key_mask,
            prefix_lengths=prefix_lengths,
            causal=self.causal and not self.cross,
            window=None if self.cross else self.window,
        )
        dropped = dropout_keys is not None and self.dropout_rate > 0.0
        weights = None
        if fresh and not return_weights and not dropped:
            mixed = _attention(q, k, v, bias, sight, scale)
        else:
            if fresh and dropped and sharding.is_split("sequence"):
                raise UserError(
                    f"attention_dropout={self.dropout_rate} needs all weights of a head on one device, which the axis "
                    "sequence of training.mesh prevents; set it to 0"
                )
            q = q.swapaxes(1, 2)
            if k is not None:
                k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
            if not fresh and not self.cross and cache.keys.shape[0] != batch:
                mixed = _after_prompts(q, k, v, cache, bias, sight, offset, scale)
            else:
                if not fresh:
                    if self.cross:
                        k, v = cache.keys, cache.values
                    else:
                        cache, k, v = cache.extended(k, v, offset, limit)
                    k, v = k.astype(self.dtype), v.astype(self.dtype)
                mixed, weights = _mixed(q, k, v, bias, sight, scale, self.dropout_rate, dropout_keys, return_weights)
            mixed = mixed.swapaxes(1, 2)
        mixed = sharding.split_tokens(mixed.reshape(batch, length, heads * dim), "tensor")
        out = self._dense("output", width, self.output_bias, self.output_init_std or self.init_std)(mixed)
        return sharding.split_tokens(out), cache, weights
