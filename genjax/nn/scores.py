"""Log-probabilities of targets, without all logits at once where these are large.

    logits_bt = x_bt W,   z_bt = log sum_v exp(logits_btv),   nll_bt = z_bt - logits_bt[y_bt]

Logits [B, T, V] are float32; of a vocabulary of 128k and 32k tokens they take 17 GB an example.  In chunks of tokens
only what a loss reads of them is kept, [B, T], and the backward pass computes each chunk again.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from genjax import devices
from genjax.batch import Array
from genjax.nn import sharding
from genjax.nn.sharding import BATCH_AXES, Path
from genjax.nn.tokens import token_nll

#: Bytes of logits on a device above which they are computed in chunks.
LARGEST_LOGITS = 2**29


class TokenScores(NamedTuple):
    """What is asked of logits, each [B, T].

    Attributes:
      nll: negative log-probability of the target in nats.
      log_normalizer: logarithm of the sum of exp(logits).
      mean: mean of the logits over the vocabulary.
      best: the token with the largest logit.
    """

    nll: Array
    log_normalizer: Array
    mean: Array
    best: Array


def scores_of_logits(logits: Array, targets: Array) -> TokenScores:
    """Scores of targets [B, T] under logits [B, T, V]."""
    logits = logits.astype(jnp.float32)
    normalizer = jax.nn.logsumexp(logits, axis=-1)
    return TokenScores(token_nll(logits, targets), normalizer, logits.mean(-1), logits.argmax(-1))


def scores_of(x: Array, matrix: Array, targets: Array, path: Path, dtype: Any) -> TokenScores:
    """Scores of targets [B, T] under the logits of an output map or a table; see `sharding.logits_of`."""
    dim = sharding.contracted_dim(path)
    parts = _Parts.of(x.shape[0], x.shape[1], matrix.shape[1 - dim])
    if parts.num_chunks == 1:
        return scores_of_logits(sharding.logits_of(x, matrix, path, dtype), targets)
    return TokenScores(*_chunked(x.astype(dtype), matrix, targets, path, parts))


class _Parts(NamedTuple):
    """How tokens [B, T] are divided: in parts of examples and of tokens, as on the devices, and in chunks."""

    examples: int
    tokens: int
    num_chunks: int

    @classmethod
    def of(cls, batch: int, length: int, vocab_size: int) -> _Parts:
        mesh = devices.mesh()
        size = lambda axes: 1 if mesh is None else sharding.axes_size(mesh, axes)
        examples, tokens = size(BATCH_AXES), size("sequence")
        examples, tokens = examples if batch % examples == 0 else 1, tokens if length % tokens == 0 else 1
        num_bytes = 4 * batch * length * vocab_size / (examples * tokens * size("tensor"))
        return cls(examples, tokens, min(math.ceil(num_bytes / LARGEST_LOGITS), length // tokens))

    def divide(self, a: Array) -> Array:
        """[B, T, ...] to chunks [N, P, B / P, S, T / (S N), ...], of padded length."""
        batch, length, *rest = a.shape
        own = length // self.tokens
        size = math.ceil(own / self.num_chunks)
        a = a.reshape(self.examples, batch // self.examples, self.tokens, own, *rest)
        a = jnp.pad(a, [(0, 0)] * 3 + [(0, size * self.num_chunks - own)] + [(0, 0)] * len(rest))
        a = a.reshape(*a.shape[:3], self.num_chunks, size, *rest)
        return sharding.split(jnp.moveaxis(a, 3, 0), None, BATCH_AXES, None, "sequence", None, *[None] * len(rest))

    def join(self, a: Array, length: int) -> Array:
        """The inverse of `divide`."""
        a = jnp.moveaxis(a, 0, 3)
        rest = a.shape[5:]
        a = a.reshape(*a.shape[:3], -1, *rest)[:, :, :, : length // self.tokens]
        return sharding.split(a.reshape(-1, length, *rest), BATCH_AXES, "sequence", *[None] * len(rest))


def _whole(matrix: Array, path: Path, dtype: Any) -> Array:
    """The map as it is multiplied."""
    return sharding.gathered_array(matrix, path, dtype)


def _logits(x: Array, whole: Array, dim: int) -> Array:
    """Logits of a chunk [P, b, S, t, C], [P, b, S, t, V]."""
    logits = jax.lax.dot_general(x, whole, (((4,), (dim,)), ((), ())), preferred_element_type=jnp.float32)
    return sharding.split(logits, BATCH_AXES, None, "sequence", None, "tensor", uneven=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _chunked(x: Array, matrix: Array, targets: Array, path: Path, parts: _Parts) -> tuple[Array, ...]:
    whole, dim, length = _whole(matrix, path, x.dtype), sharding.contracted_dim(path), x.shape[1]

    def chunk(_: None, part: tuple[Array, Array]) -> tuple[None, TokenScores]:
        return None, scores_of_logits(_logits(part[0], whole, dim), part[1])

    _, scores = jax.lax.scan(chunk, None, (parts.divide(x), parts.divide(targets)))
    return tuple(parts.join(score, length) for score in scores)


def _forward(
    x: Array, matrix: Array, targets: Array, path: Path, parts: _Parts
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    scores = _chunked(x, matrix, targets, path, parts)
    return scores, (x, matrix, targets, TokenScores(*scores).log_normalizer)


def _backward(
    path: Path, parts: _Parts, saved: tuple[Array, ...], gradients: tuple[Array, ...]
) -> tuple[Array, Array, None]:
    x, matrix, targets, normalizer = saved
    whole, dim = _whole(matrix, path, x.dtype), sharding.contracted_dim(path)
    by_nll, by_normalizer, by_mean, _ = gradients
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

    def chunk(total: Array, part: tuple[Array, ...]) -> tuple[Array, Array]:
        x, targets, normalizer, by_nll, by_normalizer, by_mean = part
        logits = _logits(x, whole, dim)
        at_target = jax.lax.broadcasted_iota(targets.dtype, logits.shape, 4) == targets[..., None]
        by_logits = (by_nll + by_normalizer)[..., None] * jnp.exp(logits - normalizer[..., None])
        by_logits = by_logits - jnp.where(at_target, by_nll[..., None], 0.0) + by_mean[..., None] / logits.shape[-1]
        by_x = product("pbstv,cv->pbstc" if dim == 0 else "pbstv,vc->pbstc", by_logits, whole).astype(x.dtype)
        # Every device sums over its own tokens; sums over devices follow once, after all chunks.
        own = product("pbstc,pbstv->pscv" if dim == 0 else "pbstc,pbstv->psvc", x, by_logits)
        return _split_sums(total + own, dim), by_x

    sums = jnp.zeros((parts.examples, parts.tokens, *matrix.shape), jnp.float32)
    divided = tuple(parts.divide(a) for a in (x, targets, normalizer, by_nll, by_normalizer, by_mean))
    sums, by_x = jax.lax.scan(chunk, _split_sums(sums, dim), divided)
    mesh, by_matrix = devices.mesh(), None
    if mesh is None:
        by_matrix = sums.sum((0, 1))
    else:
        stored = NamedSharding(mesh, sharding.stored_spec(path, matrix.shape, matrix.dtype, mesh))
        by_matrix = sharding.scattered_sum(lambda sums: sums.sum((0, 1)), (sums,), (3 - dim,), stored, 1 - dim)
    return parts.join(by_x, x.shape[1]), by_matrix.astype(matrix.dtype), None


def _split_sums(sums: Array, dim: int) -> Array:
    """Sums [P, S, C, V] or [P, S, V, C] over the tokens of each device."""
    return sharding.split(sums, BATCH_AXES, "sequence", *((None, "tensor") if dim == 0 else ("tensor", None)))


_chunked.defvjp(_forward, _backward)
