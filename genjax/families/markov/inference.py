"""Inference in hidden Markov models, in log space, along time in sequence or in parallel (Särkkä & García-Fernández
2021).

    alpha_t(j) = log p(x_1..t, z_t=j)  = l_t(j) + log sum_i exp(alpha_{t-1}(i) + A(i, j))
    beta_t(i)  = log p(x_t+1..T | z_t=i) = log sum_j exp(A(i, j) + l_{t+1}(j) + beta_{t+1}(j))
    gamma_t(i) = exp(alpha_t(i) + beta_t(i) - log p(x))

with the log-initial probabilities [K], the log-transition matrix A [K, K] and l_t(j) = log p(x_t | z_t=j), [B, T, K].
A frame with l = 0 for all states was not observed; ragged batches end in such frames, which do not change log p(x).

The parallel forms are associative scans over the matrices A(i, j) + l_t(j), in chunks, since T matrices of K x K may
not fit into memory.

Sums of exponentials are matrix products of terms shifted by their maxima.  Terms below the smallest float, `tiny`, are
raised to `tiny`, so that nothing becomes NaN.  This is exact unless transitions are (nearly) impossible: if no
transition is below e^-30, a state of relative weight tiny can contribute at most K T tiny e^60 of p(x).  Otherwise
everything is computed a second time with 0 for such terms.  The two results are an upper and a lower bound, which
mostly agree.  Where they differ (the best path for many frames leads nowhere), the sums are computed a third time, term
by term.  An impossible x has log p(x) = -inf and no marginals.  Only log p(x) can be differentiated: its gradients are
posterior expectations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array
from genjax.errors import UserError


class Posterior(NamedTuple):
    """Result of `smooth`.

    Attributes:
      log_prob: log p(x) in nats, [B].
      marginals: p(z_t | x), [B, T, K].
      transitions: expected number of transitions from i to j, summed over the batch, [K, K].
    """

    log_prob: Array
    marginals: Array
    transitions: Array


def log_matmul(a: Array, b: Array, floor: float | None = None) -> Array:
    """log(exp(a) @ exp(b)) of a [..., I, J] and b [..., J, K]; shifted sums are at least `floor`
    (by default tiny).
    """
    shift_a = jax.lax.stop_gradient(_finite(a.max(-1, keepdims=True)))
    shift_b = jax.lax.stop_gradient(_finite(b.max(-2, keepdims=True)))
    product = jnp.matmul(jnp.exp(a - shift_a), jnp.exp(b - shift_b), precision="highest")
    return jnp.log(jnp.maximum(product, jnp.finfo(product.dtype).tiny if floor is None else floor)) + shift_a + shift_b


def _log_matmul_from_zero(a: Array, b: Array) -> Array:
    return log_matmul(a, b, 0.0)


def _log_matmul_by_terms(a: Array, b: Array) -> Array:
    """log(exp(a) @ exp(b)) of a [B, I] and b [I, J] without products, so that no term is lost."""
    return jax.nn.logsumexp(a[:, :, None] + b[None], 1)


def max_matmul(a: Array, b: Array) -> Array:
    """max_j a[..., i, j] + b[..., j, k]."""
    return (a[..., :, :, None] + b[..., None, :, :]).max(-2)


def _finite(x: Array) -> Array:
    return jnp.maximum(x, jnp.finfo(x.dtype).min / 4)


def _shift(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Subtracts the maximum: sums over long sequences would otherwise lose precision.  Returns the maximum too."""
    shift = jax.lax.stop_gradient(_finite(x.max(axes)))
    return x - jnp.expand_dims(shift, axes), shift


def _scan_products(start: Array, matrix: Array, frames: Array, frame_first: bool, floor: float) -> tuple[Array, Array]:
    """Products start @ (matrix, frame) @ (matrix, frame) ... [T, B, K], each divided by its largest entry, and the
    divisors [T, B].

    It computes the terms of `log_matmul`, but takes logarithms of all frames at once.
    """
    tiny = jnp.finfo(start.dtype).tiny

    def step(x: Array, frame: Array) -> tuple[Array, tuple[Array, Array]]:
        if frame_first:
            x = jnp.matmul(x * frame, matrix, precision="highest")
        else:
            x = jnp.maximum(jnp.matmul(x, matrix, precision="highest"), floor) * frame
        scale = jax.lax.stop_gradient(jnp.maximum(x.max(-1, keepdims=True), tiny))
        x = jnp.maximum(x / scale, floor)
        return x, (x, scale)

    _, (out, scales) = jax.lax.scan(step, start, frames)
    return out, scales[..., 0]


def _scan_log(start: Array, matrix: Array, frames: Array, frame_first: bool, matmul: Callable) -> tuple[Array, Array]:
    """The logarithms of the results of `_scan_products`, in the semiring of `matmul`."""
    if matmul is log_matmul or matmul is _log_matmul_from_zero:
        floor = float(jnp.finfo(start.dtype).tiny) if matmul is log_matmul else 0.0
        out, scales = _scan_products(jnp.exp(start), jnp.exp(matrix), jnp.exp(frames), frame_first, floor)
        return jnp.log(out), jnp.log(scales)

    def step(x: Array, frame: Array) -> tuple[Array, tuple[Array, Array]]:
        x, scale = _shift(matmul(x + frame, matrix) if frame_first else matmul(x, matrix) + frame, (-1,))
        return x, (x, scale)

    return jax.lax.scan(step, start, frames)[1]


def _scan_in_parallel(
    start: Array, matrix: Array, frames: Array, frame_first: bool, matmul: Callable, chunk_size: int
) -> tuple[Array, Array]:
    """The results of `_scan_log`, by associative scans over chunks."""

    def product(a: Array, b: Array) -> Array:
        return _shift(matmul(a, b), (-2, -1))[0]

    def chunk(before: Array, frames: Array) -> tuple[Array, tuple[Array, Array]]:
        frames = frames[:, :, :, None] if frame_first else frames[:, :, None, :]
        matrices, shifts = _shift(frames + matrix[None, None], (-2, -1))  # [C, B, K, K], [C, B]
        products = jax.lax.associative_scan(product, matrices)
        start = jnp.broadcast_to(before[None, :, None], (*products.shape[:2], 1, products.shape[-1]))
        out = _shift(matmul(start, products)[:, :, 0], (-1,))[0]
        # The normalisers of single frames are computed anew: differences of sums over the chunk would round them.
        before = jnp.concatenate([before[None], out[:-1]])
        out, scales = _shift(matmul(before[:, :, None], matrices)[:, :, 0], (-1,))
        return out[-1], (out, scales + shifts)

    return _chunked(chunk, start, frames, chunk_size)


def _filter(
    log_initial: Array, log_transition: Array, log_likelihood: Array, matmul: Callable, parallel: bool, chunk_size: int
) -> tuple[Array, Array]:
    """Forward messages alpha in the semiring of `matmul`, normalised per frame, [T, B, K]; also the normalisers [T, B].

    Frame t of the unnormalised alpha is the returned frame plus the sum of the normalisers of frames 1 .. t.
    """
    likelihood, offset = _shift(log_likelihood.swapaxes(0, 1), (-1,))  # [T, B, K], [T, B]
    first, scale = _shift(log_initial[None] + likelihood[0], (-1,))
    if parallel:
        rest, scales = _scan_in_parallel(first, log_transition, likelihood[1:], False, matmul, chunk_size)
    else:
        rest, scales = _scan_log(first, log_transition, likelihood[1:], False, matmul)
    return jnp.concatenate([first[None], rest]), jnp.concatenate([scale[None], scales]) + offset


def _smooth(
    log_transition: Array, log_likelihood: Array, matmul: Callable, parallel: bool, chunk_size: int
) -> tuple[Array, Array]:
    """Backward messages beta in the semiring of `matmul`, normalised per frame, [T, B, K]; also the normalisers [T, B].

    Frame t of the unnormalised beta is the returned frame plus the sum of the normalisers of frames t .. T.
    """
    likelihood, offset = _shift(log_likelihood.swapaxes(0, 1)[1:][::-1], (-1,))  # frames T..2
    last = jnp.zeros_like(log_likelihood[:, 0])
    if parallel:
        rest, scales = _scan_in_parallel(last, log_transition.T, likelihood, True, matmul, chunk_size)
    else:
        rest, scales = _scan_log(last, log_transition.T, likelihood, True, matmul)
    scales = jnp.concatenate([jnp.zeros_like(last[None, :, 0]), scales + offset])
    return jnp.concatenate([last[None], rest])[::-1], scales[::-1]


def _chunked(chunk: Callable, carry: Array, frames: Array, size: int) -> tuple[Array, Array]:
    """Scans `chunk` over chunks of at most `size` frames and joins the vectors and the numbers that it returns."""
    whole = len(frames) // size * size
    vectors, numbers = [frames[:0]], [frames[:0, :, 0]]
    if whole:
        carry, out = jax.lax.scan(chunk, carry, frames[:whole].reshape(-1, size, *frames.shape[1:]))
        vectors.append(out[0].reshape(whole, *out[0].shape[2:]))
        numbers.append(out[1].reshape(whole, *out[1].shape[2:]))
    if whole < len(frames):
        _, out = chunk(carry, frames[whole:])
        vectors.append(out[0])
        numbers.append(out[1])
    return jnp.concatenate(vectors), jnp.concatenate(numbers)


def _when(predicate: Array, compute: Callable, value: Any, *inputs: Array) -> Any:
    """`compute(value, *inputs)`, or `value`; under `vmap`, unlike `lax.cond`, it computes nothing
    if no element asks.
    """

    def body(carry: tuple[Array, Any]) -> tuple[Array, Any]:
        # A barrier ties the computation to the loop: XLA would compute loop invariants before the loop, needed or not.
        value, tied = jax.lax.optimization_barrier((carry[1], inputs))
        return jnp.zeros_like(carry[0]), compute(value, *tied)

    return jax.lax.while_loop(lambda carry: carry[0], body, (predicate, value))[1]


def _exactly(compute: Callable, sums: Callable, log_initial: Array, log_transition: Array, likelihood: Array) -> Any:
    """Result of `compute` in the cheapest algebra that is exact for these inputs; see the head of the file.

    Args:
      compute: a function of a matrix product and the inputs.
      sums: a function of its results that gives logarithms of sums over states, which show whether two algebras agree.
      log_initial, log_transition, likelihood: the inputs.
    """
    inputs = log_initial, log_transition, likelihood
    upper = compute(log_matmul, *inputs)
    certain = (jnp.minimum(log_initial.min(), log_transition.min()) > -30.0) & (likelihood.max(-1) > -jnp.inf).all()

    def bounded(upper: Any, *inputs: Array) -> Any:
        lower, most = compute(_log_matmul_from_zero, *inputs), sums(upper)
        differ = (jnp.abs(sums(lower) - most) > 1e-5 + 1e-6 * jnp.abs(most)).any()
        return _when(differ, lambda _, *inputs: compute(_log_matmul_by_terms, *inputs), lower, *inputs)

    return _when(~certain, bounded, upper, *inputs)


def _log_sum(x: Array) -> Array:
    """Logarithms of sums over the last axis, -inf as its finite stand-in."""
    return _finite(jax.nn.logsumexp(x, -1))


def _filter_exactly(
    log_initial: Array, log_transition: Array, log_likelihood: Array, parallel: bool, chunk_size: int
) -> tuple[Array, Array]:
    """The results of `_filter`, exact."""

    def compute(matmul: Callable, *inputs: Array) -> tuple[Array, Array]:
        return _filter(*inputs, matmul, parallel and matmul is not _log_matmul_by_terms, chunk_size)

    sums = lambda x: jax.nn.logsumexp(x[0], -1) + x[1].cumsum(0)
    return _exactly(compute, sums, log_initial, log_transition, log_likelihood)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def log_prob(
    log_initial: Array, log_transition: Array, log_likelihood: Array, parallel: bool, chunk_size: int
) -> Array:
    """log p(x) [B] in nats.  Its gradients are posterior expectations (Fisher's identity), 0 where x is impossible.

    For the arguments see `forward`.
    """
    alpha, scale = _filter_exactly(log_initial, log_transition, log_likelihood, parallel, chunk_size)
    return jax.nn.logsumexp(alpha[-1], -1) + scale.sum(0)


def _log_prob_forward(*arguments: Any) -> tuple[Array, tuple[Array, ...]]:
    return log_prob(*arguments), arguments[:3]


def _log_prob_backward(
    parallel: bool, chunk_size: int, inputs: tuple[Array, ...], gradient: Array
) -> tuple[Array, ...]:
    _, marginals, transitions = smooth(*inputs, None, parallel, chunk_size, gradient)
    marginals = marginals * gradient[:, None, None]
    return marginals[:, 0].sum(0), transitions, marginals


log_prob.defvjp(_log_prob_forward, _log_prob_backward)


def forward(
    log_initial: Array, log_transition: Array, log_likelihood: Array, parallel: bool = False, chunk_size: int = 64
) -> tuple[Array, Array]:
    """Returns log p(x) [B] and log p(z_t | x_1..t) [B, T, K], all -inf where x_1..t is impossible.

    Args:
      log_initial, log_transition, log_likelihood: see above.
      parallel: associative scans instead of sequential ones.
      chunk_size: frames in one parallel scan.
    """
    alpha, _ = _filter_exactly(log_initial, log_transition, log_likelihood, parallel, chunk_size)
    total = log_prob(log_initial, log_transition, log_likelihood, parallel, chunk_size)
    return total, (alpha - _log_sum(alpha)[..., None]).swapaxes(0, 1)


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
      mask: True at observed frames [B, T]; transitions are counted up to the last observed
        frame.  None if all are observed.
      parallel: associative scans instead of sequential ones.
      chunk_size: frames in one parallel scan.
      weights: weight of each example in the expected transitions [B]; None for 1.
    """

    def compute(matmul: Callable, *inputs: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        in_parallel = parallel and matmul is not _log_matmul_by_terms
        return _filter(*inputs, matmul, in_parallel, chunk_size), _smooth(*inputs[1:], matmul, in_parallel, chunk_size)

    def sums(result: tuple[tuple[Array, Array], tuple[Array, Array]]) -> Array:
        (alpha, before), (beta, after) = result
        return jax.nn.logsumexp(alpha + beta, -1) + before.cumsum(0) + jax.lax.cumsum(after, 0, reverse=True)

    results = _exactly(compute, sums, log_initial, log_transition, log_likelihood)
    (alpha, scale), (beta, _) = results
    log_prob = jax.nn.logsumexp(alpha[-1], -1) + scale.sum(0)
    marginals = jnp.exp(alpha + beta - _log_sum(alpha + beta)[..., None]).swapaxes(0, 1)

    before_end = jnp.ones(log_likelihood.shape[:2]) if mask is None else mask.astype(jnp.float32)
    before_end = jax.lax.cummax(before_end, axis=1, reverse=True)[:, 1:].swapaxes(0, 1)  # [T-1, B]
    if weights is not None:
        before_end = before_end * weights[None]
    source, target = alpha[:-1], log_likelihood.swapaxes(0, 1)[1:] + beta[1:]
    source, target = (x - _finite(x.max(-1, keepdims=True)) for x in (source, target))
    transitions, lost = _count_transitions(source, log_transition, target, before_end)
    lost = (lost & (before_end != 0) & (log_prob > -jnp.inf)[None]).any()
    by_terms = lambda _, *inputs: _count_by_terms(*inputs)
    transitions = _when(lost, by_terms, transitions, source, log_transition, target, before_end)
    return Posterior(log_prob, marginals, transitions)


def _count_transitions(source: Array, log_transition: Array, target: Array, weights: Array) -> tuple[Array, Array]:
    """Expected transitions [K, K] from alpha to l + beta [T-1, B, K], and which may have been lost [T-1, B]."""
    source, matrix, target = jnp.exp(source), jnp.exp(log_transition), jnp.exp(target)
    total = jnp.einsum("tbj,tbj->tb", source @ matrix, target)
    weights = weights / jnp.maximum(total, 1e-30)
    return matrix * jnp.einsum("tbi,tbj->ij", source * weights[..., None], target, precision="highest"), total < 1e-30


def _count_by_terms(source: Array, log_transition: Array, target: Array, weights: Array) -> Array:
    """The results of `_count_transitions`, computed frame by frame in logarithms."""

    def step(total: Array, frame: tuple[Array, Array, Array]) -> tuple[Array, None]:
        joint = frame[0][:, :, None] + log_transition[None] + frame[1][:, None, :]
        joint = jnp.exp(joint - _log_sum(joint.reshape(len(joint), -1))[:, None, None])
        return total + jnp.einsum("b,bij->ij", frame[2], joint), None

    return jax.lax.scan(step, jnp.zeros_like(log_transition), (source, target, weights))[0]


def viterbi(
    log_initial: Array,
    log_transition: Array,
    log_likelihood: Array,
    parallel: bool = False,
    chunk_size: int = 16,
    mask: Array | None = None,
) -> tuple[Array, Array]:
    """The most likely state paths [B, T] and their joint log-probabilities with x [B].

    The parallel form takes the best state of each frame by max-marginals: the same path, unless two are equally likely.

    Args:
      log_initial, log_transition, log_likelihood, parallel, chunk_size: as for `forward`.
      mask: True at observed frames [B, T]; a path ends at the last observed frame and stays there.  None if all frames
        are observed.
    """

    def vector(alpha: Array, matrix: Array) -> Array:
        return (alpha[:, :, None] + matrix[None]).max(1)

    batch, length = log_likelihood.shape[:2]
    times, rows = jnp.arange(length)[:, None], jnp.arange(batch)
    end = jnp.full(batch, length - 1) if mask is None else jnp.where(mask.T, times, 0).max(0)
    inside = times <= end[None]  # [T, B]
    if parallel:
        alpha, scale = _filter(log_initial, log_transition, log_likelihood, max_matmul, True, chunk_size)
        # Sequences are moved so that all end together, since transitions beyond the end would favour some last states.
        behind = (jnp.arange(length)[None] + 1 + end[:, None]) % length
        moved = jnp.take_along_axis(log_likelihood, behind[:, :, None], axis=1)
        beta, _ = _smooth(log_transition, moved, max_matmul, True, chunk_size)
        beta = beta[jnp.minimum(times + length - 1 - end[None], length - 1), rows[None]]
        states = (alpha + beta).argmax(-1)
        states = jnp.where(inside, states, states[end, rows][None])
    else:
        alpha, scale = _filter(log_initial, log_transition, log_likelihood, vector, False, chunk_size)

        def step(state: Array, frame: tuple[Array, Array]) -> tuple[Array, Array]:
            delta, before_end = frame
            state = jnp.where(before_end, (delta + log_transition.T[state]).argmax(-1), state)
            return state, state

        last = alpha[end, rows].argmax(-1)
        rest = jax.lax.scan(step, last, (alpha[:-1], inside[1:]), reverse=True)[1]
        states = jnp.concatenate([rest, last[None]])
    return states.swapaxes(0, 1), alpha[end, rows].max(-1) + jnp.where(inside, scale, 0.0).sum(0)


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
        compose = lambda later, earlier: jnp.take_along_axis(earlier, later, -1)
        maps = jax.lax.associative_scan(compose, maps, reverse=True)
        rest = jnp.take_along_axis(maps, last[None, :, None], -1)[..., 0]
    return jnp.concatenate([rest, last[None]]).swapaxes(0, 1)


def predict(
    log_initial: Array, log_transition: Array, log_likelihood: Array, parallel: bool = False, chunk_size: int = 64
) -> Array:
    """p(z_t | x_1..t-1) for t = 1..T+1, [B, T+1, K]; for the arguments see `forward`."""
    filtered = jnp.exp(forward(log_initial, log_transition, log_likelihood, parallel, chunk_size)[1])
    first = jnp.broadcast_to(jnp.exp(log_initial), filtered[:, :1].shape)
    return jnp.concatenate([first, jnp.matmul(filtered, jnp.exp(log_transition), precision="highest")], 1)


def frame_log_prob(
    log_initial: Array, log_transition: Array, log_likelihood: Array, parallel: bool = False, chunk_size: int = 64
) -> Array:
    """log p(x_t | x_1..t-1) [B, T], whose sum is log p(x); for the arguments see `forward`."""
    alpha, scale = _filter_exactly(log_initial, log_transition, log_likelihood, parallel, chunk_size)
    sums = jax.nn.logsumexp(alpha, -1)
    return (sums - jnp.concatenate([jnp.zeros_like(sums[:1]), _finite(sums[:-1])]) + scale).swapaxes(0, 1)


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
      UserError: it is not within the distance after `num_steps` transitions.
    """
    near = np.flatnonzero(np.asarray(distances_to_stationary(transition, num_steps)) <= distance)
    if not len(near):
        raise UserError(f"the chain does not mix to {distance} within {num_steps} transitions")
    return int(near[0])


def masked_likelihood(log_likelihood: Array, mask: Any) -> Array:
    """Zero where the mask [B, T] hides the frame."""
    return log_likelihood if mask is None else jnp.where(mask[..., None], log_likelihood, 0.0)


def mask_warnings(metrics: Mapping[str, float]) -> list[str]:
    """A sentence for the user if the metric `frames`, the number of observed frames, is 0."""
    if metrics.get("frames", 1.0) > 0.0:
        return []
    return ["no frame was observed: the mask hides everything, and nothing was learned; look at the data's mask"]
