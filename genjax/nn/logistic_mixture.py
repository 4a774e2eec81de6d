"""Mixtures of discretised logistics over the channels of a pixel (PixelCNN++, Salimans et al. 2017, arXiv:1701.05517).

    p(x) = sum_k pi_k prod_c [F((x_c + delta/2 - m_kc) / s_kc) - F((x_c - delta/2 - m_kc) / s_kc)],   F = sigmoid

The mean of each channel is linear in the channels before it (eq. 3), with coefficients in (-1, 1):

    m_kc = mu_kc + sum_{e<c} tanh(a_kce) x_e
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from genjax.nn.distributions import Lattice, discretized_logistic_log_prob

Array = jax.Array


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
        """P of pixels with so many channels."""
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
            total = total + discretized_logistic_log_prob(
                x[..., c, None], mean, log_scales[..., c], -1.0, 1.0, self.levels
            )
        return jax.nn.logsumexp(total, axis=-1)

    def sample(self, parameters: Array, key: Array, channels: int, temperature: Array | float = 1.0) -> Array:
        """One draw of each pixel, [..., C]; the temperature divides logits and multiplies scales."""
        logits, means, log_scales, coefficients = self._split(parameters, channels)
        component_key, value_key = jax.random.split(key)
        component = jax.random.categorical(component_key, logits / temperature)[..., None, None]
        means, log_scales, coefficients = (
            jnp.take_along_axis(a, component, axis=-2) for a in (means, log_scales, coefficients)
        )  # [..., 1, C]
        noise = temperature * jax.random.logistic(value_key, means[..., 0, :].shape)
        x = jnp.zeros(noise.shape)
        steps = self.levels - 1
        for c in range(channels):
            mean = self._coupled(means, coefficients, x, c)[..., 0]
            draw = mean + jnp.exp(log_scales[..., 0, c]) * noise[..., c]
            level = jnp.clip(jnp.round((draw + 1.0) / 2.0 * steps), 0, steps)
            x = x.at[..., c].set(2.0 * level / steps - 1.0)
        return self.low + (x + 1.0) / 2.0 * (self.high - self.low)
