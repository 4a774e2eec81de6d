"""Projection: the styles of a real picture in a trained StyleGAN (Karras et al. 2020, arXiv:1912.04958, appendix D).

It starts at the mean of w and minimises, by Adam with a learning rate that ramps up and down
and with noise on w that fades,

    |F(G(w, n)) - F(x)|^2 + 1e5 sum_{maps, sizes} (mean_p n[p] n[p + (0, 1)])^2 + (mean_p n[p] n[p + (1, 0)])^2

also over the noise maps n.  The second part keeps the picture out of the noise: neighbouring pixels of n shall not
correlate, at all sizes down to 8 pixels.  After every step the maps are normalised to mean 0 and variance 1.  The
paper's F is LPIPS; any function of pictures to features serves, and without one it is the pictures at several sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from genjax.batch import Array, PyTree
from genjax.families.gan.style_gan import StyleGAN
from genjax.families.gan.style_layers import STATISTICS
from genjax.model import TrainState


def pyramid(x: Array) -> Array:
    """Pictures [B, H, W, C] at all sizes down to 4 pixels, each with the same weight, as features [B, F]."""
    features = []
    while True:
        features.append(x.reshape(x.shape[0], -1) / np.sqrt(np.prod(x.shape[1:])))
        if min(x.shape[1:3]) < 8 or x.shape[1] % 2 or x.shape[2] % 2:
            return jnp.concatenate(features, axis=1)
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


class Projection(NamedTuple):
    """Styles [B, layers, W] and noise maps whose pictures are close, and the squared
    distance at every step, [steps, B].
    """

    styles: Array
    noise: PyTree
    distances: Array


def correlation_of_neighbours(maps: Array) -> Array:
    """Squared correlations of neighbours in noise maps [B, H, W], at all sizes down to 8 pixels, summed."""
    total = jnp.zeros(())
    while True:
        for axis in (1, 2):
            total += jnp.sum(jnp.mean(maps * jnp.roll(maps, 1, axis), axis=(1, 2)) ** 2)
        batch, height, width = maps.shape
        if min(height, width) <= 8:
            return total
        # Means of four values have half the deviation.
        maps = 2.0 * maps.reshape(batch, height // 2, 2, width // 2, 2).mean((2, 4))


def _standardized(maps: Array) -> Array:
    """Noise maps [B, H, W] with mean 0 and variance 1."""
    maps = maps - maps.mean((1, 2), keepdims=True)
    return maps * jax.lax.rsqrt(jnp.mean(maps**2, axis=(1, 2), keepdims=True) + 1e-8)


def project(
    model: StyleGAN,
    state: TrainState,
    x: Array,
    key: Array,
    num_steps: int = 500,
    learning_rate: float = 0.1,
    style_noise: float = 0.05,
    noise_weight: float = 1e5,
    per_layer: bool = False,
    features: Callable[[Array], Array] = pyramid,
) -> Projection:
    """Styles and noise whose pictures are close to given ones.

    Args:
      model: the model.
      state: trained state.
      x: pictures, [B, *data_shape].
      key: random key.
      num_steps: steps of Adam.
      learning_rate: peak learning rate.
      style_noise: noise on w at the start, as a multiple of the root of E |w - E w|^2; it is 0 after
        three quarters of the steps.
      noise_weight: weight of the correlations of neighbours in the noise maps.
      per_layer: let every layer have its own w (W+) instead of one for all (W).
      features: pictures to features [B, F], whose squared distance is minimised.
    """
    first_key, noise_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
    sampled = model.styles(state, jax.random.normal(first_key, (10_000, model.latent_dim)))
    spread = style_deviation(sampled[:, 0])
    mean = model.generator_variables(state)[STATISTICS]["mapping"]["mean_style"]
    layers = sampled.shape[1] if per_layer else 1
    start = jnp.broadcast_to(mean[None, None], (len(x), layers, mean.shape[0]))
    maps = jax.tree.map(_standardized, model.network.noise_maps(model.data_shape, noise_key, len(x)))
    target = features(x)

    def everywhere(styles: Array) -> Array:
        return jnp.broadcast_to(styles, (len(x), sampled.shape[1], mean.shape[0]))

    def loss(found: tuple[Array, PyTree], moved: Array) -> tuple[Array, Array]:
        styles, maps = found
        pictures = model.synthesize(state, everywhere(styles + moved), noise=maps)
        distances = jnp.sum((features(pictures) - target) ** 2, axis=1)
        correlation = sum(map(correlation_of_neighbours, jax.tree.leaves(maps)), jnp.zeros(()))
        return distances.sum() + noise_weight * correlation, distances

    def rate(step: Array) -> Array:
        t = (step + 1.0) / num_steps
        ramp = jnp.clip((1.0 - t) / 0.25, 0.0, 1.0)
        return learning_rate * (0.5 - 0.5 * jnp.cos(ramp * jnp.pi)) * jnp.clip(t / 0.05, 0.0, 1.0)

    optimizer = optax.adam(rate)

    def step(carry, i):
        found, opt_state = carry
        strength = spread * style_noise * jnp.maximum(0.0, 1.0 - i / num_steps / 0.75) ** 2
        moved = strength * jax.random.normal(jax.random.fold_in(key, i + 2), start.shape)
        gradient, distances = jax.grad(loss, has_aux=True)(found, moved)
        updates, opt_state = optimizer.update(gradient, opt_state)
        styles, maps = optax.apply_updates(found, updates)
        return ((styles, jax.tree.map(_standardized, maps)), opt_state), distances

    found = (start, maps)
    ((styles, maps), _), distances = jax.lax.scan(step, (found, optimizer.init(found)), jnp.arange(num_steps))
    return Projection(everywhere(styles), maps, distances)


def style_deviation(styles: Array) -> Array:
    """The root of E |w - E w|^2 of styles [N, W], a scalar."""
    return jnp.sqrt(jnp.mean(jnp.sum((styles - styles.mean(0, keepdims=True)) ** 2, axis=1)))
