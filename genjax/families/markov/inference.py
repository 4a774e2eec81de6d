"""Inference in hidden Markov models, in log space, along time in sequence or in parallel (Särkkä & García-Fernández 2021).

    alpha_t(j) = log p(x_1..t, z_t=j)  = l_t(j) + log sum_i exp(alpha_{t-1}(i) + A(i, j))
    beta_t(i)  = log p(x_t+1..T | z_t=i) = log sum_j exp(A(i, j) + l_{t+1}(j) + beta_{t+1}(j))
    gamma_t(i) = exp(alpha_t(i) + beta_t(i) - log p(x))

with the log-initial probabilities [K], the log-transition matrix A [K, K] and l_t(j) = log p(x_t | z_t=j), [B, T, K].
A frame whose l is 0 throughout is one that was not observed; ragged batches end in such frames, at no cost to log p(x).

The parallel forms are associative scans over the matrices A(i, j) + l_t(j), in chunks, since T matrices of K x K may not
fit into memory.  Sums of exponentials are matrix products of terms shifted by their maxima; terms below the smallest
float count as that, so that nothing becomes NaN.  A transition of probability 0 is thereby one of about 1e-38: where frames
can be explained only against it, by 87 nats or more, log p(x) is finite and too large (`viterbi` has no such bound).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class Posterior(NamedTuple):
    """What `smooth` returns.

    Attributes:
      log_prob: log p(x) in nats, [B].
      marginals: p(z_t | x), [B, T, K].
      transitions: expected number of transitions from i to j, summed over the batch, [K, K].
    """

    log_prob: Array
    marginals: Array
    transitions: Array


def log_matmul(a: Array, b: Array) -> Array:
    """log(exp(a) @ exp(b)) of a [..., I, J] and b [..., J, K], in float range throughout."""
    shift_a = jax.lax.stop_gradient(_finite(a.max(-1, keepdims=True)))
    shift_b = jax.lax.stop_gradient(_finite(b.max(-2, keepdims=True)))
    product = jnp.matmul(jnp.exp(a - shift_a), jnp.exp(b - shift_b), precision="highest")
    return jnp.log(jnp.maximum(product, jnp.finfo(product.dtype).tiny)) + shift_a + shift_b


def max_matmul(a: Array, b: Array) -> Array:
    """max_j a[..., i, j] + b[..., j, k]."""
    return (a[..., :, :, None] + b[..., None, :, :]).max(-2)


def _finite(x: Array) -> Array:
    return jnp.maximum(x, jnp.finfo(x.dtype).min / 4)


def _shift(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """x less its maximum, which sequences would otherwise sum up to numbers of few correct decimals."""
    shift = jax.lax.stop_gradient(_finite(x.max(axes)))
    return x - jnp.expand_dims(shift, axes), shift


def _scaled(matmul: Callable) -> Callable:
    """The product of pairs (matrix, log scale)."""

    def product(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        matrix, shift = _shift(matmul(a[0], b[0]), (-2, -1))
        return matrix, a[1] + b[1] + shift

    return product


def _scan_products(start: Array, matrix: Array, frames: Array, frame_first: bool) -> tuple[Array, Array]:
    """Products start @ (matrix, frame) @ (matrix, frame) ... [T, B, K], each divided by its largest entry, and the sum of
    the logarithms of the divisors [B].

    The terms of `log_matmul`, but with logarithms taken of all frames at once.  Since the largest entry of a frame is 1,
    and no other factor is below the smallest float, no divisor is 0.
    """
    tiny = jnp.finfo(start.dtype).tiny

    def step(x: Array, frame: Array) -> tuple[Array, tuple[Array, Array]]:
        if frame_first:
            x = jnp.matmul(x * frame, matrix, precision="highest")
        else:
            x = jnp.maximum(jnp.matmul(x, matrix, precision="highest"), tiny) * frame
        scale = jax.lax.stop_gradient(jnp.maximum(x.max(-1, keepdims=True), tiny))
        x = jnp.maximum(x / scale, tiny)
        return x, (x, scale)

    _, (out, scales) = jax.lax.scan(step, start, frames)
    return out, jnp.log(scales[..., 0]).sum(0)


def _filter(
    log_initial: Array, log_transition: Array, log_likelihood: Array, matmul: Callable, parallel: bool, chunk_size: int
) -> tuple[Array, Array]:
    """alpha [T, B, K] in the algebra of `matmul`, each less a number, and the number of the last [B]."""
    likelihood, offset = _shift(log_likelihood.swapaxes(0, 1), (-1,))  # [T, B, K], [T, B]
    first, scale = _shift(log_initial[None] + likelihood[0], (-1,))

    if not parallel and matmul is log_matmul:
        alphas, log_scale = _scan_products(jnp.exp(first), jnp.exp(log_transition), jnp.exp(likelihood[1:]), False)
        rest, scale = jnp.log(alphas), scale + log_scale
    elif not parallel:

        def step(carry: tuple[Array, Array], frame: Array) -> tuple[tuple[Array, Array], Array]:
            alpha, shift = _shift(matmul(carry[0], log_transition) + frame, (-1,))
            return (alpha, carry[1] + shift), alpha

        (_, scale), rest = jax.lax.scan(step, (first, scale), likelihood[1:])
    else:

        def chunk(carry: tuple[Array, Array], frames: Array) -> tuple[tuple[Array, Array], Array]:
            matrices = _shift(log_transition[None, None] + frames[:, :, None, :], (-2, -1))  # [C, B, K, K]
            products, scales = jax.lax.associative_scan(_scaled(matmul), matrices)
            before = jnp.broadcast_to(carry[0][None, :, None], (*frames.shape[:2], 1, frames.shape[-1]))
            alphas, shifts = _shift(matmul(before, products)[:, :, 0], (-1,))
            return (alphas[-1], carry[1] + scales[-1] + shifts[-1]), alphas

        (_, scale), rest = _chunked(chunk, (first, scale), likelihood[1:], chunk_size)
    return jnp.concatenate([first[None], rest]), scale + offset.sum(0)


def _smooth(log_transition: Array, log_likelihood: Array, matmul: Callable, parallel: bool, chunk_size: int) -> Array:
    """beta [T, B, K] in the algebra of `matmul`, each less a number."""
    likelihood = _shift(log_likelihood.swapaxes(0, 1)[1:][::-1], (-1,))[0]  # frames T..2
    last = jnp.zeros_like(log_likelihood[:, 0])
    if not parallel and matmul is log_matmul:
        rest = jnp.log(_scan_products(jnp.exp(last), jnp.exp(log_transition).T, jnp.exp(likelihood), True)[0])
    elif not parallel:

        def step(beta: Array, frame: Array) -> tuple[Array, Array]:
            beta = _shift(matmul(beta + frame, log_transition.T), (-1,))[0]
            return beta, beta

        rest = jax.lax.scan(step, last, likelihood)[1]
    else:

        def chunk(beta: Array, frames: Array) -> tuple[Array, Array]:
            matrices = _shift(frames[:, :, :, None] + log_transition.T[None, None], (-2, -1))
            products, _ = jax.lax.associative_scan(_scaled(matmul), matrices)
            before = jnp.broadcast_to(beta[None, :, None], (*frames.shape[:2], 1, frames.shape[-1]))
            betas = _shift(matmul(before, products)[:, :, 0], (-1,))[0]
            return betas[-1], betas

        rest = _chunked(chunk, last, likelihood, chunk_size)[1]
    return jnp.concatenate([last[None], rest])[::-1]


def _chunked(chunk: Callable, carry: Any, frames: Array, size: int) -> tuple[Any, Array]:
    """Scans `chunk` over chunks of at most `size` frames; returns its last carry, and what it returns joined."""
    whole = len(frames) // size * size
    parts = [frames[:0]]
    if whole:
        carry, out = jax.lax.scan(chunk, carry, frames[:whole].reshape(-1, size, *frames.shape[1:]))
        parts.append(out.reshape(whole, *out.shape[2:]))
    if whole < len(frames):
        carry, out = chunk(carry, frames[whole:])
        parts.append(out)
    return carry, jnp.concatenate(parts)


def forward(
    log_initial: Array, log_transition: Array, log_likelihood: Array, parallel: bool = False, chunk_size: int = 64
) -> tuple[Array, Array]:
    """Returns log p(x) [B] and log p(z_t | x_1..t) [B, T, K].

    Args:
      log_initial, log_transition, log_likelihood: see above.
      parallel: associative scans instead of sequential ones.
      chunk_size: frames in one parallel scan.
    """
    alpha, scale = _filter(log_initial, log_transition, log_likelihood, log_matmul, parallel, chunk_size)
    return jax.nn.logsumexp(alpha[-1], -1) + scale, jax.nn.log_softmax(alpha).swapaxes(0, 1)


def backward(log_transition: Array, log_likelihood: Array, parallel: bool = False, chunk_size: int = 64) -> Array:
    """Returns beta [B, T, K], each frame's less a number that makes its largest 0."""
    return _smooth(log_transition, log_likelihood, log_matmul, parallel, chunk_size).swapaxes(0, 1)


def smooth(
    log_initial: Array,
    log_transition: Array,
    log_likelihood: Array,
    mask: Array | None = None,
    parallel: bool = False,
    chunk_size: int = 64,
    weights: Array | None = None,
) -> Posterior:
    """Posterior marginals and expected transitions.

    Args:
      log_initial, log_transition, log_likelihood: see above.
      mask: observed frames [B, T]; transitions are counted up to the last of them.  None is all.
      parallel: associative scans instead of sequential ones.
      chunk_size: frames in one parallel scan.
      weights: how often each example counts in the expected transitions [B]; None is once.
    """
    log_prob, alpha = forward(log_initial, log_transition, log_likelihood, parallel, chunk_size)
    beta = backward(log_transition, log_likelihood, parallel, chunk_size)
    marginals = jax.nn.softmax(alpha + beta, -1)
    if mask is None:
        mask = jnp.ones(log_likelihood.shape[:2], bool)
    before_end = jax.lax.cummax(mask.astype(jnp.float32), axis=1, reverse=True)[:, 1:]
    if weights is not None:
        before_end = before_end * weights[:, None]
    source = alpha[:, :-1]
    source = jnp.exp(source - _finite(source.max(-1, keepdims=True)))
    target = (log_likelihood + beta)[:, 1:]
    target = jnp.exp(target - _finite(target.max(-1, keepdims=True)))
    matrix = jnp.exp(log_transition)
    total = jnp.einsum("btj,btj->bt", source @ matrix, target)
    # A tiny total squared is 0 in the gradient, so it is kept well inside of the floats.
    weight = before_end / jnp.maximum(total, 1e-30)
    transitions = matrix * jnp.einsum("bti,btj->ij", source * weight[..., None], target, precision="highest")
    return Posterior(log_prob, marginals, transitions)


def viterbi(
    log_initial: Array, log_transition: Array, log_likelihood: Array, parallel: bool = False, chunk_size: int = 16
) -> tuple[Array, Array]:
    """The most likely state paths [B, T] and their joint log-probabilities with x [B].

    The parallel form takes the best state of each frame by max-marginals: the same path, unless two are equally likely.
    """

    def vector(alpha: Array, matrix: Array) -> Array:
        return (alpha[:, :, None] + matrix[None]).max(1)

    if parallel:
        alpha, scale = _filter(log_initial, log_transition, log_likelihood, max_matmul, True, chunk_size)
        beta = _smooth(log_transition, log_likelihood, max_matmul, True, chunk_size)
        return (alpha + beta).argmax(-1).swapaxes(0, 1), alpha[-1].max(-1) + scale
    alpha, scale = _filter(log_initial, log_transition, log_likelihood, vector, False, chunk_size)

    def step(state: Array, delta: Array) -> tuple[Array, Array]:
        state = (delta + log_transition.T[state]).argmax(-1)
        return state, state

    last = alpha[-1].argmax(-1)
    rest = jax.lax.scan(step, last, alpha[:-1], reverse=True)[1]
    return jnp.concatenate([rest, last[None]]).swapaxes(0, 1), alpha[-1].max(-1) + scale


def sample_states(
    keys: Array,
    log_initial: Array,
    log_transition: Array,
    log_likelihood: Array,
    parallel: bool = False,
    chunk_size: int = 64,
) -> Array:
    """State paths [B, T] drawn from p(z | x): forward filter, backward sampling (Scott 2002), one key an example.

    Frame t maps each possible z_{t+1} to a z_t by Gumbel noise; sequential and parallel forms compose the same maps.
    """
    alpha = forward(log_initial, log_transition, log_likelihood, parallel, chunk_size)[1]
    noise = jax.vmap(lambda key: jax.random.gumbel(key, alpha.shape[1:], alpha.dtype))(keys)
    noisy = (alpha + noise).swapaxes(0, 1)  # [T, B, K]
    last = noisy[-1].argmax(-1)
    if not parallel:

        def step(state: Array, row: Array) -> tuple[Array, Array]:
            state = (row + log_transition.T[state]).argmax(-1)
            return state, state

        rest = jax.lax.scan(step, last, noisy[:-1], reverse=True)[1]
    else:
        maps = (noisy[:-1, :, None, :] + log_transition.T[None, None]).argmax(-1)  # [T-1, B, K]
        compose = lambda later, earlier: jnp.take_along_axis(earlier, later, -1)  # noqa: E731
        maps = jax.lax.associative_scan(compose, maps, reverse=True)
        rest = jnp.take_along_axis(maps, last[None, :, None], -1)[..., 0]
    return jnp.concatenate([rest, last[None]]).swapaxes(0, 1)


def _log_predict(
    log_initial: Array, log_transition: Array, log_likelihood: Array, parallel: bool, chunk_size: int
) -> Array:
    alpha = forward(log_initial, log_transition, log_likelihood, parallel, chunk_size)[1]
    first = jnp.broadcast_to(log_initial, alpha[:, :1].shape)
    return jax.nn.log_softmax(jnp.concatenate([first, log_matmul(alpha, log_transition[None])], 1), -1)


def predict(
    log_initial: Array, log_transition: Array, log_likelihood: Array, parallel: bool = False, chunk_size: int = 64
) -> Array:
    """p(z_t | x_1..t-1) for t = 1..T+1, [B, T+1, K]; arguments are those of `forward`."""
    return jnp.exp(_log_predict(log_initial, log_transition, log_likelihood, parallel, chunk_size))


def frame_log_prob(
    log_initial: Array, log_transition: Array, log_likelihood: Array, parallel: bool = False, chunk_size: int = 64
) -> Array:
    """log p(x_t | x_1..t-1) [B, T], which sum to log p(x); arguments are those of `forward`."""
    predicted = _log_predict(log_initial, log_transition, log_likelihood, parallel, chunk_size)[:, :-1]
    return jax.nn.logsumexp(predicted + log_likelihood, -1)


def stationary_distribution(transition: Array) -> Array:
    """Probabilities [K] that a stochastic matrix [K, K] leaves as they are."""
    size = transition.shape[0]
    system = transition.T - jnp.eye(size) + jnp.ones((size, size))
    return jnp.linalg.solve(system, jnp.ones(size))


def distances_to_stationary(transition: Array, num_steps: int) -> Array:
    """Largest total variation distance to the stationary distribution after 0, 1, ... transitions, [num_steps].

    The distance is over all starts, d(t) = max_i 1/2 sum_j |A^t(i, j) - p(j)| (Levin et al. 2009, section 4.4).
    """
    stationary = stationary_distribution(transition)

    def step(power: Array, _: None) -> tuple[Array, Array]:
        distance = 0.5 * jnp.abs(power - stationary[None]).sum(1).max()
        return jnp.matmul(power, transition, precision="highest"), distance

    return jax.lax.scan(step, jnp.eye(len(transition)), length=num_steps)[1]


def mixing_time(transition: Array, distance: float = 0.25, num_steps: int = 10000) -> int:
    """Transitions after which a chain is within `distance` of its stationary distribution from every start.

    Raises:
      ValueError: it is not after `num_steps`.
    """
    near = np.flatnonzero(np.asarray(distances_to_stationary(transition, num_steps)) <= distance)
    if not len(near):
        raise ValueError(f"the chain does not mix to {distance} within {num_steps} transitions")
    return int(near[0])


def masked_likelihood(log_likelihood: Array, mask: Any) -> Array:
    """Zero where the mask [B, T] hides the frame."""
    return log_likelihood if mask is None else jnp.where(mask[..., None], log_likelihood, 0.0)


def mask_warnings(metrics: Mapping[str, float]) -> list[str]:
    """What the metric `frames`, how many were observed, should tell the user."""
    if metrics.get("frames", 1.0) > 0.0:
        return []
    return ["no frame was observed: the mask hides everything, and nothing was learned; look at the data's mask"]
