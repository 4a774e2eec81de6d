"""Mixtures of discretised logistics over the channels of a pixel (PixelCNN++, Salimans et al. 2017, arXiv:1701.05517).

    p(x) = sum_k pi_k prod_c [F((x_c + delta/2 - m_kc) / s_kc) - F((x_c - delta/2 - m_kc) / s_kc)],   F = sigmoid

The mean of each channel is linear in the channels before it (eq. 3), with coefficients in (-1, 1):

    m_kc = mu_kc + sum_{e<c} tanh(a_kce) x_e
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from genjax.batch import Array
from genjax.nn.distributions import discretized_logistic_log_prob
from genjax.values import Lattice


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscretizedLogisticMixture(Lattice):
    """Distribution of whole pixels x [..., C] given parameters [..., P].

    Attributes:
      num_components: number of logistics.
      low: smallest value of the lattice.
      high: largest value of the lattice.
      num_levels: number of its values; None takes the data set's.
      min_log_scale: smallest log scale, in units where the lattice reaches from -1 to 1.
    """

    num_components: int = 10
    min_log_scale: float = -7.0

    def num_parameters(self, channels: int) -> int:
        """Number P of parameters of a pixel with `channels` channels."""
        return self.num_components * (1 + 2 * channels + channels * (channels - 1) // 2)

    def _split(self, parameters: Array, channels: int) -> tuple[Array, Array, Array, Array]:
        k = self.num_components
        parameters = parameters.astype(jnp.float32)
        logits, rest = parameters[..., :k], parameters[..., k:]
        rest = rest.reshape(*rest.shape[:-1], k, -1)
        means, scales, coefficients = jnp.split(
            rest, [channels, 2 * channels], axis=-1
        )  # [..., K, C], ..., [..., K, C(C-1)/2]
        return logits, means, jnp.maximum(scales, self.min_log_scale), jnp.tanh(coefficients)

    def _signed(self, x: Array) -> Array:
        return 2.0 * self.unit(x) - 1.0

    def _coupled(self, means: Array, coefficients: Array, x: Array, c: int) -> Array:
        """Mean of channel c [..., K] given the channels before it, signed x [..., C]."""
        first = c * (c - 1) // 2
        mean = means[..., c]
        for e in range(c):
            mean = mean + coefficients[..., first + e] * x[..., e, None]
        return mean

    def log_prob(self, parameters: Array, x: Array) -> Array:
        """log p(x) of each pixel in nats, shape [...]."""
        channels = x.shape[-1]
        logits, means, log_scales, coefficients = self._split(parameters, channels)
        x = self._signed(x.astype(jnp.float32))
        total = jax.nn.log_softmax(logits)
        for c in range(channels):
            mean = self._coupled(means, coefficients, x, c)
            total = total + self._bin(x[..., c, None], mean, log_scales[..., c])
        return jax.nn.logsumexp(total, axis=-1)

    def _bin(self, x: Array, mean: Array, log_scale: Array) -> Array:
        """log-probability of signed x under logistics, shapes that broadcast."""
        return discretized_logistic_log_prob(x, mean, log_scale, -1.0, 1.0, self.levels)

    def sample(
        self, parameters: Array, key: Array, given: Array, known: Array, temperature: Array | float = 1.0
    ) -> Array:
        """One draw of each pixel, [..., C].

        Channel after channel, of all levels by their probability p(x_c | x_<c)^(1 / temperature), where component k
        weighs its posterior given the channels before: pi_k p_k(x_<c).

        Args:
          parameters: [..., P].
          key: random key.
          given: values [..., C], read where they are known.
          known: boolean [..., C]; known channels keep their value, and those after them are drawn given it.
          temperature: T.
        """
        log_weights, means, log_scales, coefficients = self._split(parameters, given.shape[-1])
        lattice = jnp.linspace(-1.0, 1.0, self.levels)
        x, values = jnp.zeros(given.shape), []

        def log_probability(value: Array, mean: Array, log_scale: Array, log_weights: Array) -> Array:
            return jax.nn.logsumexp(log_weights + self._bin(value, mean, log_scale), axis=-1)

        of_levels = jax.vmap(log_probability, (0, None, None, None), -1)
        for c in range(given.shape[-1]):
            mean, log_scale = self._coupled(means, coefficients, x, c), log_scales[..., c]  # [..., K]

            logits = of_levels(lattice, mean, log_scale, log_weights)  # [..., L]
            level = jax.random.categorical(jax.random.fold_in(key, c), logits / temperature)
            values.append(jnp.where(known[..., c], given[..., c], self.value(level)))
            x = x.at[..., c].set(self._signed(values[-1]))
            log_weights = log_weights + self._bin(x[..., c, None], mean, log_scale)
        return jnp.stack(values, axis=-1)
