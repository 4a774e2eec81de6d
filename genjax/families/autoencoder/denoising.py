"""The denoising autoencoder (Vincent et al. 2008; Vincent et al. 2010), which reconstructs x from a corrupted x~.

    loss = -log p(x | decoder(encoder(x~))),    x~ ~ c(x~ | x)

With Gaussian corruption of scale sigma and squared error, the optimal reconstruction r is the posterior mean, and
(Vincent 2011, "A connection between score matching and denoising autoencoders"; Alain & Bengio 2014, arXiv:1211.4246)

    (r(x~) - x~) / sigma^2 = grad log p_sigma(x~),    p_sigma = p * N(0, sigma^2 I),

which approaches the score of p itself as sigma goes to 0.
"""

from __future__ import annotations

import abc
import dataclasses

import jax
import jax.numpy as jnp

from genjax.batch import Array
from genjax.errors import UserError
from genjax.families.autoencoder.autoencoder import Autoencoder
from genjax.model import TrainState


@dataclasses.dataclass(frozen=True)
class Corruption(abc.ABC):
    """A way to corrupt examples."""

    @abc.abstractmethod
    def __call__(self, x: Array, key: Array) -> Array:
        """One example x, of any shape, corrupted."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianNoise(Corruption):
    """Adds normal noise.

    Attributes:
      scale: standard deviation of the noise.
    """

    scale: float = 0.3

    def __call__(self, x: Array, key: Array) -> Array:
        return x + self.scale * jax.random.normal(key, x.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masking(Corruption):
    """Sets values to 0.

    Attributes:
      probability: probability that a value is set to 0.
    """

    probability: float = 0.25

    def __call__(self, x: Array, key: Array) -> Array:
        return jnp.where(jax.random.bernoulli(key, self.probability, x.shape), 0.0, x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaltAndPepper(Corruption):
    """Sets values to the lowest or the highest, with equal probability.

    Attributes:
      probability: probability that a value is changed.
      low: the lowest value.
      high: the highest value.
    """

    probability: float = 0.1
    low: float = 0.0
    high: float = 1.0

    def __call__(self, x: Array, key: Array) -> Array:
        uniform = jax.random.uniform(key, x.shape)
        x = jnp.where(uniform < self.probability, self.high, x)
        return jnp.where(uniform < 0.5 * self.probability, self.low, x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoisingAutoencoder(Autoencoder):
    """Autoencoder that is trained to undo a corruption.

    Attributes:
      corruption: corruption of the encoder's input in training.
    """

    corruption: Corruption = GaussianNoise()

    def corrupt(self, x: Array, keys: Array) -> Array:
        return jax.vmap(self.corruption)(x, keys)

    def denoise(self, state: TrainState, x: Array, noise_level: Array | None = None) -> Array:
        """Reconstruction of noisy x [B, ...], the shape of x; the network was trained for one noise level
        only."""
        del noise_level
        return self.decode(state, self.code(state.eval_params, x))

    def score(self, state: TrainState, x: Array) -> Array:
        """(r(x) - x) / sigma^2, the score of the data with noise of scale sigma, the shape of x.

        Raises:
          UserError: the corruption is not Gaussian.
        """
        if not isinstance(self.corruption, GaussianNoise):
            raise UserError(f"a score needs corruption=gaussian_noise, not {type(self.corruption).__name__}")
        return (self.denoise(state, x) - x) / self.corruption.scale**2
