"""Linear Gaussian state-space models: Kalman filter, Rauch-Tung-Striebel smoother, and EM (Shumway & Stoffer 1982).

    z_1 ~ N(m, P),      z_t = F z_{t-1} + q_t,  q_t ~ N(0, Q),      x_t = H z_t + r_t,  r_t ~ N(0, R)

Filter and smoother run along time in sequence or as associative scans (Särkkä & García-Fernández 2021, lemmas 8 to 11).
A filter's element a = (A, b, C, eta, J) stands for p(z_t | z_s, x_s+1..t) = N(A z_s + b, C) and the likelihood of
x_s+1..t as a function of z_s, N^-1(z_s; eta, J); a smoother's (E, g, L) for p(z_t | z_u, x_1..u) = N(E z_u + g, L).

EM starts from the covariances of frames (stochastic realisation, Akaike 1974, doi:10.1109/TAC.1974.1100707): with
C_k = E x_t+k x_t^T, which is H F^k E z z^T H^T, a block matrix of C_i+j+1 has the span of (H; H F; H F^2; ...).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array, Batch, Metrics, PyTree, cross_device_sum
from genjax.errors import UserError
from genjax.families.markov.inference import mask_warnings
from genjax.metrics import Ratio
from genjax.model import TrainState


class Filtered(NamedTuple):
    """log p(x) [], and p(z_t | x_1..t) = N(mean [T, N], covariance [T, N, N])."""

    log_prob: Array
    mean: Array
    covariance: Array


class Smoothed(NamedTuple):
    """log p(x) [], p(z_t | x) = N(mean [T, N], covariance [T, N, N]), and Cov(z_t+1, z_t | x) [T-1, N, N]."""

    log_prob: Array
    mean: Array
    covariance: Array
    cross: Array


def _symmetric(matrix: Array) -> Array:
    return 0.5 * (matrix + matrix.swapaxes(-1, -2))


def _update(params: PyTree, mean: Array, covariance: Array, x: Array, seen: Array) -> tuple[Array, Array, Array]:
    """Mean and covariance after a frame x [D] (observed or not), and log p of the frame."""
    h = params["emission"]
    residual = x - h @ mean
    scale = h @ covariance @ h.T + params["emission_noise"]
    factor = jnp.linalg.cholesky(scale)
    gain = jax.scipy.linalg.cho_solve((factor, True), h @ covariance).T
    white = jax.scipy.linalg.solve_triangular(factor, residual, lower=True)
    log_prob = -0.5 * (white @ white + len(x) * math.log(2 * math.pi)) - jnp.log(jnp.diagonal(factor)).sum()
    # Joseph's form stays positive definite.
    rest = jnp.eye(len(mean)) - gain @ h
    updated = rest @ covariance @ rest.T + gain @ params["emission_noise"] @ gain.T
    keep = lambda new, old: jnp.where(seen, new, old)
    return keep(mean + gain @ residual, mean), keep(_symmetric(updated), covariance), keep(log_prob, 0.0)


def _predict(params: PyTree, mean: Array, covariance: Array) -> tuple[Array, Array]:
    f = params["transition"]
    return f @ mean, _symmetric(f @ covariance @ f.T + params["transition_noise"])


def _filter_elements(params: PyTree, x: Array, mask: Array) -> tuple[Array, ...]:
    f, q, h = params["transition"], params["transition_noise"], params["emission"]
    size = len(f)

    def one(x: Array, seen: Array) -> tuple[Array, ...]:
        scale = h @ q @ h.T + params["emission_noise"]
        solved = jnp.linalg.solve(scale, jnp.concatenate([h, x[:, None]], 1))
        information, vector = h.T @ solved[:, :size], h.T @ solved[:, size]
        rest = jnp.eye(size) - q @ information
        elements = rest @ f, q @ vector, _symmetric(rest @ q), f.T @ vector, _symmetric(f.T @ information @ f)
        hidden = f, jnp.zeros(size), q, jnp.zeros(size), jnp.zeros((size, size))
        return jax.tree.map(lambda a, b: jnp.where(seen, a, b), elements, hidden)

    a, b, c, eta, j = jax.vmap(one)(x, mask)
    mean, covariance, _ = _update(params, params["initial_mean"], params["initial_covariance"], x[0], mask[0])
    return a.at[0].set(0.0), b.at[0].set(mean), c.at[0].set(covariance), eta.at[0].set(0.0), j.at[0].set(0.0)


@jax.vmap
def _combine_filters(first: tuple[Array, ...], second: tuple[Array, ...]) -> tuple[Array, ...]:
    (a1, b1, c1, eta1, j1), (a2, b2, c2, eta2, j2) = first, second
    eye = jnp.eye(len(b1))
    forward = jnp.linalg.solve((eye + c1 @ j2).T, a2.T).T  # A_2 (I + C_1 J_2)^-1
    backward = jnp.linalg.solve((eye + j2 @ c1).T, a1).T  # A_1^T (I + J_2 C_1)^-1
    return (
        forward @ a1,
        forward @ (b1 + c1 @ eta2) + b2,
        _symmetric(forward @ c1 @ a2.T + c2),
        backward @ (eta2 - j2 @ b1) + eta1,
        _symmetric(backward @ j2 @ a1 + j1),
    )


def kalman_filter(params: PyTree, x: Array, mask: Array, parallel: bool = False) -> Filtered:
    """Filters one sequence.

    Args:
      params: initial_mean m [N], initial_covariance P, transition F and transition_noise Q [N, N], emission H [D, N],
        emission_noise R [D, D].
      x: frames [T, D].
      mask: True at observed frames [T]; other frames do not change log p(x).
      parallel: an associative scan instead of a sequential one.
    """
    if parallel:
        elements = _filter_elements(params, x, mask)
        _, means, covariances, _, _ = jax.lax.associative_scan(_combine_filters, elements)
        before = jax.vmap(functools.partial(_predict, params))(means[:-1], covariances[:-1])
        before_mean = jnp.concatenate([params["initial_mean"][None], before[0]])
        before_covariance = jnp.concatenate([params["initial_covariance"][None], before[1]])
        log_probs = jax.vmap(functools.partial(_update, params))(before_mean, before_covariance, x, mask)[2]
        return Filtered(log_probs.sum(), means, covariances)

    def step(carry: tuple[Array, Array], frame: tuple[Array, Array]) -> tuple[tuple[Array, Array], tuple[Array, ...]]:
        mean, covariance, log_prob = _update(params, *carry, *frame)
        return _predict(params, mean, covariance), (log_prob, mean, covariance)

    start = params["initial_mean"], params["initial_covariance"]
    log_probs, means, covariances = jax.lax.scan(step, start, (x, mask))[1]
    return Filtered(log_probs.sum(), means, covariances)


@jax.vmap
def _combine_smoothers(later: tuple[Array, ...], earlier: tuple[Array, ...]) -> tuple[Array, ...]:
    (e2, g2, l2), (e1, g1, l1) = later, earlier
    return e1 @ e2, e1 @ g2 + g1, _symmetric(e1 @ l2 @ e1.T + l1)


def kalman_smoother(params: PyTree, x: Array, mask: Array, parallel: bool = False) -> Smoothed:
    """Smooths one sequence; for the arguments see `kalman_filter`."""
    filtered = kalman_filter(params, x, mask, parallel)
    f = params["transition"]

    def element(mean: Array, covariance: Array) -> tuple[Array, ...]:
        _, predicted = _predict(params, mean, covariance)
        e = jnp.linalg.solve(predicted, f @ covariance).T
        rest = jnp.eye(len(f)) - e @ f
        # Joseph's form again.
        noise = rest @ covariance @ rest.T + e @ params["transition_noise"] @ e.T
        return e, mean - e @ (f @ mean), _symmetric(noise)

    e, g, l = jax.vmap(element)(filtered.mean[:-1], filtered.covariance[:-1])  # noqa: E741
    last = filtered.mean[-1], filtered.covariance[-1]
    if parallel:
        elements = (
            jnp.concatenate([e, jnp.zeros_like(f)[None]]),
            jnp.concatenate([g, last[0][None]]),
            jnp.concatenate([l, last[1][None]]),
        )
        _, means, covariances = jax.lax.associative_scan(_combine_smoothers, elements, reverse=True)
    else:

        def step(carry: tuple[Array, Array], row: tuple[Array, ...]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
            (mean, covariance), (e, g, l) = carry, row  # noqa: E741
            out = e @ mean + g, _symmetric(e @ covariance @ e.T + l)
            return out, out

        means, covariances = jax.lax.scan(step, last, (e, g, l), reverse=True)[1]
        means, covariances = jnp.concatenate([means, last[0][None]]), jnp.concatenate([covariances, last[1][None]])
    return Smoothed(filtered.log_prob, means, covariances, covariances[1:] @ e.swapaxes(-1, -2))


def realize(x: Array, mask: Array, state_dim: int) -> tuple[Array, Array, Array]:
    """Transition [N, N] and emission [D, N] from the covariances of frames at different
    times, and whether there are any.

    Of the basis U [L D, N] of the span above, with row blocks U_i, F = sum_i U_i^T U_i+1, whose norm is at most 1.

    Args:
      x: frames [B, T, D].
      mask: True at observed frames [B, T].
      state_dim: number N, at most (T // 2) D.
    """
    length, dim = x.shape[1:]
    lags = min(length // 2, max(2 * -(-state_dim // dim), 12))
    seen, x = mask.astype(jnp.float32), jnp.where(mask[..., None], x, 0.0)
    product = functools.partial(jnp.einsum, precision="highest")
    blocks = [
        product("btd,bte->de", x[:, k:], x[:, : length - k])
        / jnp.maximum((seen[:, k:] * seen[:, : length - k]).sum(), 1.0)
        for k in range(1, 2 * lags)
    ]
    matrix = jnp.block([[blocks[i + j] for j in range(lags)] for i in range(lags)])
    vectors, values, _ = jnp.linalg.svd(matrix)
    basis = vectors[:, :state_dim].reshape(lags, dim, state_dim)
    transition = product("lda,ldb->ab", basis[:-1], basis[1:])
    return transition, jnp.sqrt(values[0]) * basis[0], values[0] > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearGaussianModel:
    """Linear Gaussian state-space model of sequences `x` [B, T, D], ragged or with gaps by `mask` [B, T], learned by
    EM.

    Attributes:
      state_dim: number N of hidden numbers.
      start: covariances, dynamics estimated from the covariances of frames (if sequences are long enough); or random,
        slowly fading rotations, from which EM may move slowly.
      diagonal_noise: whether the noise of a frame is independent in each number.
      parallel: use associative scans along time instead of sequential scans.
      ridge: smallest variance of a covariance in any direction, so that none becomes singular; the M-step is
        the best one under this bound.
      data_shape: (T, D) of the data; None takes the data set's.  T is the length of samples.
    """

    state_dim: int = 4
    start: Literal["covariances", "random"] = "covariances"
    diagonal_noise: bool = True
    parallel: bool = False
    ridge: float = 1e-5
    data_shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.state_dim < 1:
            raise UserError("a linear Gaussian model needs state_dim >= 1")

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step."""
        keys = jax.random.split(key)
        size, dim = self.state_dim, batch["x"].shape[-1]
        seen = self._mask(batch)[..., None]
        variance = jnp.where(seen, batch["x"] ** 2, 0.0).sum((0, 1)) / jnp.maximum(seen.sum(), 1)
        transition = 0.95 * jnp.linalg.qr(jax.random.normal(keys[0], (size, size)))[0]
        emission = jax.random.normal(keys[1], (dim, size)) * jnp.sqrt(variance / size)[:, None]
        if self.start == "covariances" and size <= batch["x"].shape[1] // 2 * dim:
            *found, related = realize(batch["x"], seen[..., 0], size)
            transition, emission = (jnp.where(related, a, b) for a, b in zip(found, (transition, emission)))
        params = {
            "initial_mean": jnp.zeros(size),
            "initial_covariance": max(1.0, self.ridge) * jnp.eye(size),
            "transition": transition,
            "transition_noise": max(0.1, self.ridge) * jnp.eye(size),
            "emission": emission,
            "emission_noise": jnp.diag(variance + self.ridge),
        }
        return TrainState.create(params)

    @staticmethod
    def _mask(batch: Batch) -> Array:
        return batch.get("mask", jnp.ones(batch["x"].shape[:2], bool))

    def smooth(self, params: PyTree, batch: Batch) -> Smoothed:
        """Smoothed states of every sequence, with leading axis B."""
        smoother = functools.partial(kalman_smoother, params, parallel=self.parallel)
        return jax.vmap(smoother)(batch["x"], self._mask(batch))

    def _statistics(self, params: PyTree, batch: Batch) -> tuple[PyTree, Array]:
        """Expected sums of products over the batch, and log-probabilities [B].

        Sums are of residuals of m, F and H, because sums of the values themselves are not precise when residuals are
        small: with w_t = z_t - F z_t-1 and e_t = x_t - H z_t, sums of w w^T, w z^T, e e^T and e z^T.
        """
        posterior, mask = self.smooth(params, batch), self._mask(batch).astype(jnp.float32)
        f, h = params["transition"], params["emission"]
        mean, covariance, cross = posterior.mean, posterior.covariance, posterior.cross
        pairs = jax.lax.cummax(mask, axis=1, reverse=True)[:, 1:]  # up to the last observed frame
        alive = mask.max(1)
        total = functools.partial(jnp.einsum, precision="highest")
        outer = lambda a, b: a[..., :, None] * b[..., None, :]
        first = mean[:, 0] - params["initial_mean"][None]
        step = mean[:, 1:] - mean[:, :-1] @ f.T
        x = jnp.where(mask[..., None] > 0, batch["x"], 0.0)
        error = (x - mean @ h.T) * mask[..., None]
        step_covariance = covariance[:, 1:] - f @ cross.swapaxes(-1, -2) - cross @ f.T + f @ covariance[:, :-1] @ f.T
        counts = {
            "sequences": alive.sum(),
            "pairs": pairs.sum(),
            "frames": mask.sum(),
            "first": total("b,bi->i", alive, first),
            "first_square": total("b,bij->ij", alive, covariance[:, 0] + outer(first, first)),
            "earlier": total("bt,btij->ij", pairs, covariance[:, :-1] + outer(mean[:, :-1], mean[:, :-1])),
            "step": total("bt,btij->ij", pairs, step_covariance + outer(step, step)),
            "step_state": total("bt,btij->ij", pairs, cross - f @ covariance[:, :-1] + outer(step, mean[:, :-1])),
            "state": total("bt,btij->ij", mask, covariance + outer(mean, mean)),
            "error": total("bt,btij->ij", mask, h @ covariance @ h.T + outer(error, error)),
            "error_state": total("bt,btij->ij", mask, outer(error, mean) - h @ covariance),
        }
        return counts, posterior.log_prob

    def _maximize(self, counts: PyTree, params: PyTree) -> PyTree:
        """The best parameters for expected sums of products, with covariances bounded from below."""

        def regression(left: Array, left_state: Array, state: Array, count: Array) -> tuple[Array, Array]:
            """The correction to a map from states, and the covariance of the residuals after it."""
            scale = jnp.trace(state) / len(state)
            # Against rounding, and against empty sums.
            safe = state + jnp.where(scale > 0, 1e-7 * scale, 1.0) * jnp.eye(len(state))
            more = jnp.linalg.solve(safe, left_state.T).T
            both = more @ left_state.T
            return more, (left - both - both.T + more @ state @ more.T) / jnp.maximum(count, 1.0)

        def bounded(covariance: Array) -> Array:
            values, vectors = jnp.linalg.eigh(_symmetric(covariance))
            return (vectors * jnp.maximum(values, self.ridge)[None]) @ vectors.T

        number = jnp.maximum(counts["sequences"], 1.0)
        first = counts["first"] / number
        f, q = regression(counts["step"], counts["step_state"], counts["earlier"], counts["pairs"])
        h, r = regression(counts["error"], counts["error_state"], counts["state"], counts["frames"])
        new = {
            "initial_mean": params["initial_mean"] + first,
            "initial_covariance": bounded(counts["first_square"] / number - first[:, None] * first[None]),
            "transition": params["transition"] + f,
            "transition_noise": bounded(q),
            "emission": params["emission"] + h,
            "emission_noise": (
                jnp.diag(jnp.maximum(jnp.diagonal(r), self.ridge)) if self.diagonal_noise else bounded(r)
            ),
        }
        # A batch without observed frames changes nothing, and single frames do not change F and Q.
        keep = {"transition": counts["pairs"] > 0, "transition_noise": counts["pairs"] > 0}
        return {name: jnp.where(keep.get(name, counts["frames"] > 0), new[name], params[name]) for name in params}

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One EM step on the batch; give all data as one batch.  `loss` is nats a frame before the step."""
        counts, log_prob = self._statistics(state.params, batch)
        counts = cross_device_sum(counts)
        loss = Ratio(-cross_device_sum(log_prob.sum()), counts["frames"])
        metrics = {"loss": loss, "frames": counts["frames"]}
        return state.replace(step=state.step + 1, params=self._maximize(counts, state.params)), metrics

    def warnings(self, metrics: dict[str, float]) -> list[str]:
        """Sentences for the user about means of metrics that look wrong."""
        return mask_warnings(metrics)

    def log_prob(self, state: TrainState, batch: Batch) -> Array:
        """log p(x) in nats, exact, [B]."""
        filtered = functools.partial(kalman_filter, state.params, parallel=self.parallel)
        return jax.vmap(filtered)(batch["x"], self._mask(batch)).log_prob

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """`nll` in nats of the whole sequence and `num_frames`; `summarize` makes nats a frame of them."""
        return {"nll": -self.log_prob(state, batch), "num_frames": self._mask(batch).sum(1).astype(jnp.float32)}

    def summarize(self, means: dict[str, float]) -> dict[str, float]:
        """Adds nll_per_frame, all frames of the split together."""
        return {**means, "nll_per_frame": Ratio(means["nll"], means["num_frames"]).value()}

    def modes(self, state: TrainState) -> np.ndarray:
        """Modulus, and period in frames (infinite where it does not turn), of each eigenvalue of F, [N, 2]."""
        values = np.linalg.eigvals(np.asarray(state.params["transition"], np.float64))
        angle = np.abs(np.angle(values))
        period = np.divide(2 * np.pi, angle, out=np.full(len(angle), np.inf), where=angle > 0)
        return np.stack([np.abs(values), period], -1)[np.argsort(-period, kind="stable")]

    def impute(self, state: TrainState, batch: Batch) -> Array:
        """Frames that `mask` hides, by their mean given all others; x [B, T, D]."""
        mean = self.smooth(state.params, batch).mean @ state.params["emission"].T
        return jnp.where(self._mask(batch)[..., None], batch["x"], mean)

    def sample(self, state: TrainState, key: Array, num_samples: int, num_frames: int | None = None) -> Array:
        """Draws sequences [num_samples, T, D]."""
        params, dim = state.params, state.params["emission"].shape[0]
        if num_frames is None and self.data_shape is None:
            raise UserError("how long samples are is not known: give num_frames or data_shape")
        factor = {name: jnp.linalg.cholesky(params[name]) for name in params if name.endswith(("noise", "covariance"))}

        def step(z: Array, key: Array) -> tuple[Array, Array]:
            keys = jax.random.split(key)
            x = params["emission"] @ z + factor["emission_noise"] @ jax.random.normal(keys[0], (dim,))
            noise = factor["transition_noise"] @ jax.random.normal(keys[1], z.shape)
            return params["transition"] @ z + noise, x

        def one(key: Array) -> Array:
            first, rest = jax.random.split(key)
            noise = factor["initial_covariance"] @ jax.random.normal(first, (self.state_dim,))
            return jax.lax.scan(
                step, params["initial_mean"] + noise, jax.random.split(rest, num_frames or self.data_shape[0])
            )[1]

        return jax.vmap(one)(jax.random.split(key, num_samples))
