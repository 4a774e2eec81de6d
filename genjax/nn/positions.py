"""Positions: how a transformer knows the places of its tokens.

learned, sinusoidal   added to the embeddings (Vaswani et al. 2017, section 3.5).
rotary                queries and keys are turned by an angle position * frequency (RoPE, Su et al. 2021, eq. 34),
                      with the scalings that stretch a trained context.
ALiBi                 logits are lowered by slope_h * (i - j) (Press et al. 2022, section 3).
T5                    logits get a learned bias by head and bucket of j - i (Raffel et al. 2020, section 2.1).
"""

from __future__ import annotations

import abc
import dataclasses
import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array
from genjax.errors import UserError


def sinusoidal_table(length: int, dim: int, base: float = 10000.0) -> np.ndarray:
    """Sines in the first half of the features, cosines in the second, shape [length, dim].

    Raises:
      UserError: `dim` is odd.
    """
    if dim % 2:
        raise UserError(f"sinusoidal positions need an even width, and the width is {dim}")
    angles = np.arange(length)[:, None] * base ** (-np.arange(0, dim, 2) / dim)[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def segment_positions(segment_ids: Array) -> Array:
    """Position of each token within its segment, [B, T] -> [B, T]; a segment is a run of equal ids."""
    index = jnp.arange(segment_ids.shape[1])[None]
    starts = jnp.concatenate(
        [jnp.ones_like(segment_ids[:, :1], bool), segment_ids[:, 1:] != segment_ids[:, :-1]], axis=1
    )
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotaryScaling(abc.ABC):
    """A change of the rotary frequencies, so that a model reads further than it was trained.

    Attributes:
      factor: ratio of the new context's length to the trained length.
    """

    factor: float = 1.0

    @abc.abstractmethod
    def frequencies(self, frequencies: np.ndarray, base: float) -> np.ndarray:
        """Returns the changed angles per position, shape [rotary_dim / 2]."""

    @property
    def attention_factor(self) -> float:
        """Factor on cosines and sines, so its square is on the attention logits."""
        return 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearScaling(RotaryScaling):
    """Position interpolation (Chen et al. 2023): every angle divided by `factor`."""

    def frequencies(self, frequencies: np.ndarray, base: float) -> np.ndarray:
        return frequencies / self.factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class NTKScaling(RotaryScaling):
    """A larger base, base * factor^(d / (d - 2)): fast angles stay, the slowest is divided by `factor`.

    With d = 2 there is only the fastest angle, base^0, which stays.
    """

    def frequencies(self, frequencies: np.ndarray, base: float) -> np.ndarray:
        dim = 2 * len(frequencies)
        if dim == 2:
            return frequencies
        base = base * self.factor ** (dim / (dim - 2))
        return base ** (-np.arange(0, dim, 2) / dim)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Scaling(RotaryScaling):
    """Llama 3.1: short wavelengths stay, angles of long wavelengths are divided by `factor`, with a ramp between.

    Attributes:
      original_length: context of the pre-training.
      low_frequency_factor: angles with fewer turns than this in `original_length` are divided by `factor`.
      high_frequency_factor: angles with more turns than this stay.
    """

    factor: float = 8.0
    original_length: int = 8192
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0

    def frequencies(self, frequencies: np.ndarray, base: float) -> np.ndarray:
        turns = self.original_length * frequencies / (2 * math.pi)
        width = self.high_frequency_factor - self.low_frequency_factor
        stay = np.clip((turns - self.low_frequency_factor) / width, 0.0, 1.0)
        return frequencies * (stay + (1.0 - stay) / self.factor)


@dataclasses.dataclass(frozen=True, kw_only=True)
class YarnScaling(RotaryScaling):
    """YaRN (Peng et al. 2023, eq. 18-22): a ramp over the features, and a warmer softmax.

    Attributes:
      original_length: context of the pre-training.
      beta_fast: turns in that context above which an angle stays.
      beta_slow: turns below which it is divided by `factor`.
    """

    original_length: int = 2048
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def frequencies(self, frequencies: np.ndarray, base: float) -> np.ndarray:
        half = len(frequencies)

        def feature(turns: float) -> float:
            return half * math.log(self.original_length / (turns * 2 * math.pi)) / math.log(base)

        low = max(math.floor(feature(self.beta_fast)), 0)
        high = min(math.ceil(feature(self.beta_slow)), 2 * half - 1)
        divided = np.clip((np.arange(half) - low) / max(high - low, 1e-3), 0.0, 1.0)
        return frequencies * (1.0 - divided + divided / self.factor)

    @property
    def attention_factor(self) -> float:
        return 1.0 if self.factor <= 1.0 else 0.1 * math.log(self.factor) + 1.0


def rotary_angles(
    positions: Array, dim: int, base: float = 10000.0, scaling: RotaryScaling | None = None
) -> tuple[Array, Array]:
    """Cosines and sines for `rotate`, each float32 [..., dim / 2] for positions [...].

    Raises:
      UserError: `dim` is odd.
    """
    if dim % 2:
        raise UserError(f"rotary positions turn pairs of features, so their number must be even, and it is {dim}")
    frequencies = base ** (-np.arange(0, dim, 2) / dim)
    factor = 1.0
    if scaling is not None:
        frequencies, factor = scaling.frequencies(frequencies, base), scaling.attention_factor
    angles = jnp.expand_dims(positions.astype(jnp.float32), -1) * jnp.asarray(frequencies, jnp.float32).reshape(
        (1,) * positions.ndim + (-1,)
    )
    return factor * jnp.cos(angles), factor * jnp.sin(angles)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Turns feature pairs (k, k + r / 2) of the first r features; x [B, T, H, D], cos and sin [B | 1, T, r / 2]."""
    half = cos.shape[-1]
    cos, sin = cos[:, :, None], sin[:, :, None]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([*(t.astype(x.dtype) for t in turned), rest], axis=-1)


def rotate_pairs(x: Array, cos: Array, sin: Array) -> Array:
    """Turns feature pairs (2 k, 2 k + 1); x [B, T, H, D], cos and sin [T, D / 2]."""
    cos, sin = cos[None, :, None], sin[None, :, None]
    pairs = x.reshape(*x.shape[:-1], -1, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def alibi_slopes(num_heads: int) -> np.ndarray:
    """Slopes 2^(-8 h / H), h = 1 .. H, if H is a power of two.

    Otherwise the slopes of the power of two below H, then every other slope of the power above, until there are H.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = 2.0 ** (-8.0 * np.arange(1, power + 1) / power)
    more = 2.0 ** (-4.0 * np.arange(1, 2 * (num_heads - power), 2) / power)
    return np.concatenate([slopes, more]).astype(np.float32)


class SlopeBias(flax.struct.PyTreeNode):
    """Bias -slope_h |i - j| as a function of the places of queries and keys; `slopes` has one for each head, [H]."""

    slopes: Array

    def __call__(self, query_index: Array, key_index: Array) -> Array:
        """Places [B | 1, T] and [S] or [B, S] -> [B | 1, H, T, S]."""
        distance = jnp.abs(query_index[:, :, None] - jnp.atleast_2d(key_index)[:, None])
        return -self.slopes[None, :, None, None] * distance[:, None].astype(jnp.float32)


def t5_bucket(relative: Array, num_buckets: int, max_distance: int, bidirectional: bool) -> Array:
    """Bucket of key index minus query index: half of them exact, the others logarithmic up to `max_distance`.

    Raises:
      UserError: there are too few buckets for one to be exact, or all distances would be exact.
    """
    exact = num_buckets // (4 if bidirectional else 2)
    if not 1 <= exact < max_distance:
        raise UserError(
            f"relative_buckets={num_buckets} and relative_max_distance={max_distance} make {exact} exact buckets; "
            "there must be one at least, and fewer than the largest distance"
        )
    bucket = jnp.zeros_like(relative)
    if bidirectional:
        num_buckets //= 2
        bucket = jnp.where(relative > 0, num_buckets, 0)
        distance = jnp.abs(relative)
    else:
        distance = jnp.maximum(-relative, 0)
    ratio = jnp.log(jnp.maximum(distance, 1).astype(jnp.float32) / exact) / math.log(max_distance / exact)
    far = jnp.minimum(exact + (ratio * (num_buckets - exact)).astype(jnp.int32), num_buckets - 1)
    return bucket + jnp.where(distance < exact, distance, far)


class BucketBias(flax.struct.PyTreeNode):
    """T5's bias as a function of the places of queries and keys; `table` has a row for each bucket, [buckets, H]."""

    table: Array
    max_distance: int = flax.struct.field(pytree_node=False)
    bidirectional: bool = flax.struct.field(pytree_node=False)

    def __call__(self, query_index: Array, key_index: Array) -> Array:
        """Places [B | 1, T] and [S] or [B, S] -> [B | 1, H, T, S]."""
        relative = jnp.atleast_2d(key_index)[:, None] - query_index[:, :, None]
        bucket = t5_bucket(relative, self.table.shape[0], self.max_distance, self.bidirectional)
        return jnp.take(self.table, bucket, axis=0).transpose(0, 3, 1, 2)


class T5Bias(nn.Module):
    """The learned table of T5's bias by head and bucket."""

    num_heads: int
    num_buckets: int = 32
    max_distance: int = 128
    bidirectional: bool = True

    @nn.compact
    def __call__(self) -> BucketBias:
        table = self.param("embedding", nn.initializers.normal(0.02), (self.num_buckets, self.num_heads))
        return BucketBias(table, self.max_distance, self.bidirectional)
