"""A watermark in the noise that pictures are made of (Wen et al. 2023, arXiv:2305.20030: Tree-Ring, its ring key).

The Fourier transform of the first noise z of a sampler is replaced, on the frequencies around 0, by a key that is
constant along each ring.  Rings stay where they are when a picture is turned, moved or cut.  To look for the key, the
probability-flow ODE is solved from the picture back to the noise, with no secret but the key and the model.

    score    eta = sum_k |F(k) - key(k)|^2 / (sigma^2 / 2)      over half of the frequencies, F = transform of the noise
    chance   eta of pictures without the mark follows the noncentral chi-squared distribution with 2 K degrees of
             freedom and the noncentrality sum_k key(k)^2 / (sigma^2 / 2)                            (section 4.3)

Noise is real, so F(-k) is the conjugate of F(k): the key is real, and one of each two frequencies counts.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array
from genjax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TreeRing:
    """Settings of the watermark.

    Attributes:
      seed: the secret number that decides the key.
      radius: radius of the outermost ring, in frequencies; the paper has 10 for noise of 64 x 64.
      channel: channel of the noise that carries the key.
    """

    seed: int = 0
    radius: int = 4
    channel: int = 0

    def __post_init__(self) -> None:
        if self.radius < 1 or self.channel < 0:
            raise UserError(
                f"the watermark has radius={self.radius} and channel={self.channel}; "
                "the radius must be at least 1, and the channel at least 0"
            )

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuses noise [H, W, C] that has no room for the rings.

        Raises:
          UserError: the examples are no pictures, too small for the radius, or lack the channel.
        """
        if len(shape) != 3:
            raise UserError(f"a Tree-Ring watermark needs noise of height, width and channels, and this has {shape}")
        # The largest frequency is its own mirror image and has another variance.
        if 2 * self.radius >= min(shape[:2]):
            raise UserError(
                f"the watermark's radius={self.radius} must be less than half of the height and width {shape[:2]}"
            )
        if self.channel >= shape[2]:
            raise UserError(f"the watermark's channel={self.channel} does not exist; the noise has {shape[2]}")

    def frequencies(self) -> np.ndarray:
        """One of each two opposite frequencies of the rings, [K, 2]; their mean, 0, carries no key."""
        offsets = np.arange(-self.radius, self.radius + 1)
        rows, columns = np.meshgrid(offsets, offsets, indexing="ij")
        half = (rows > 0) | ((rows == 0) & (columns > 0))
        return np.stack([rows, columns], -1)[half & (np.hypot(rows, columns) <= self.radius)]

    def key(self) -> Array:
        """The value of each of the `frequencies`, float32 [K]; equal on a ring, N(0, 1) over rings."""
        ring = np.hypot(*self.frequencies().T).round().astype(int)
        return jax.random.normal(jax.random.key(self.seed), (self.radius + 1,))[ring]

    def mark(self, z: Array, prior_scale: float = 1.0) -> Array:
        """Noise z [N, H, W, C] of deviation `prior_scale` with the key in place of its low frequencies."""
        self.check(z.shape[1:])
        spectrum = jnp.fft.fft2(z[..., self.channel], norm="ortho")
        rows, columns = self.frequencies().T
        for sign in (1, -1):
            spectrum = spectrum.at[:, sign * rows, sign * columns].set(prior_scale * self.key()[None])
        return z.at[..., self.channel].set(jnp.fft.ifft2(spectrum, norm="ortho").real)

    def score(self, z: Array) -> tuple[Array, Array]:
        """How far noise z [N, H, W, C] is from the key.

        Returns:
          eta [N] and its noncentrality [N] under chance, with sigma^2 from the frequencies themselves, as in the paper.
        """
        self.check(z.shape[1:])
        rows, columns = self.frequencies().T
        spectrum = jnp.fft.fft2(z[..., self.channel], norm="ortho")[:, rows, columns]
        half_variance = 0.5 * jnp.mean(jnp.abs(spectrum) ** 2, axis=1)
        eta = jnp.sum(jnp.abs(spectrum - self.key()[None]) ** 2, axis=1) / half_variance
        return eta, jnp.sum(self.key() ** 2) / half_variance

    def p_values(self, z: Array) -> np.ndarray:
        """Probability of a picture without the mark being as near to the key as noise z [N, H, W, C], float64 [N]."""
        from scipy.stats import ncx2

        eta, noncentrality = self.score(z)
        degrees = 2 * len(self.frequencies())
        return ncx2.cdf(np.asarray(eta, np.float64), degrees, np.asarray(noncentrality, np.float64))
