"""What a trained StyleGAN can be asked: the styles of a real picture, and how equivariant its generator is.

Projection (Karras et al. 2020, arXiv:1912.04958, appendix D) starts at the mean of w and minimises the distance of G(w) to a
picture by Adam, with a learning rate that ramps up and down and noise on w that fades.  The paper's distance is LPIPS; any
function of pictures to features serves, and without one it is the pictures at several sizes.

Equivariance (Karras et al. 2021, arXiv:2106.12423, section 2.2, eq. 7): the peak signal-to-noise ratio between what the
generator makes of a moved input and the moved picture,

    EQ = 10 log10( I_max^2 / E (G(t[z0]; w) - t[G(z0; w)])^2 ),   I_max = 2 for pictures in [-1, 1]
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from genjax.families.gan.style_gan import StyleGAN
from genjax.families.gan.style_gan3 import StyleGAN3Network
from genjax.families.gan.style_layers import STATISTICS
from genjax.model import Array, TrainState


def pyramid(x: Array) -> Array:
    """Pictures [B, H, W, C] at all sizes down to 4 pixels, each with the same weight, as features [B, F]."""
    features = []
    while True:
        features.append(x.reshape(x.shape[0], -1) / np.sqrt(np.prod(x.shape[1:])))
        if min(x.shape[1:3]) < 8 or x.shape[1] % 2 or x.shape[2] % 2:
            return jnp.concatenate(features, axis=1)
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def project(
    model: StyleGAN,
    state: TrainState,
    x: Array,
    key: Array,
    num_steps: int = 500,
    learning_rate: float = 0.1,
    style_noise: float = 0.05,
    per_layer: bool = False,
    features: Callable[[Array], Array] = pyramid,
) -> tuple[Array, Array]:
    """Styles whose pictures are close to given ones.

    Args:
      model: the model.
      state: trained state.
      x: pictures, [B, *data_shape].
      key: random key.
      num_steps: steps of Adam.
      learning_rate: its peak.
      style_noise: noise on w at the start, in standard deviations of w; it is 0 after three quarters of the steps.
      per_layer: let every layer have its own w (W+) instead of one for all (W).
      features: pictures to features [B, F], whose squared distance is minimised.

    Returns:
      Styles [B, layers, style_dim], and the squared distance at every step, [num_steps, B].
    """
    latents = jax.random.normal(jax.random.fold_in(key, 0), (1000, model.latent_dim))
    sampled = model.styles(state, latents)
    spread = jnp.sqrt(jnp.mean((sampled[:, 0] - sampled[:, 0].mean(0, keepdims=True)) ** 2))
    mean = model.generator_variables(state)[STATISTICS]["mapping"]["mean_style"]
    layers = sampled.shape[1] if per_layer else 1
    start = jnp.broadcast_to(mean[None, None], (len(x), layers, mean.shape[0]))
    target = features(x)

    def distance(styles: Array, noise: Array) -> tuple[Array, Array]:
        styles = jnp.broadcast_to(styles + noise, (len(x), sampled.shape[1], mean.shape[0]))
        distances = jnp.sum((features(model.synthesize(state, styles)) - target) ** 2, axis=1)
        return distances.sum(), distances

    def rate(step: Array) -> Array:
        t = (step + 1.0) / num_steps
        ramp = jnp.clip((1.0 - t) / 0.25, 0.0, 1.0)
        return learning_rate * (0.5 - 0.5 * jnp.cos(ramp * jnp.pi)) * jnp.clip(t / 0.05, 0.0, 1.0)

    optimizer = optax.adam(rate)

    def step(carry, i):
        styles, opt_state = carry
        strength = spread * style_noise * jnp.maximum(0.0, 1.0 - i / num_steps / 0.75) ** 2
        noise = strength * jax.random.normal(jax.random.fold_in(key, i + 1), styles.shape)
        gradient, distances = jax.grad(distance, has_aux=True)(styles, noise)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return (optax.apply_updates(styles, updates), opt_state), distances

    (styles, _), distances = jax.lax.scan(step, (start, optimizer.init(start)), jnp.arange(num_steps))
    return jnp.broadcast_to(styles, (len(x), sampled.shape[1], mean.shape[0])), distances


def translation_equivariance(model: StyleGAN, state: TrainState, styles: Array, shift: tuple[int, int]) -> Array:
    """EQ-T in decibels of a StyleGAN3 for a shift by whole pixels (down, right), over pictures of styles [B, layers, W].

    Pixels that the shift brings in from outside are left out.

    Raises:
      ValueError: the generator has no input that could be moved, or the shift leaves nothing.
    """
    if not isinstance(model.network, StyleGAN3Network):
        raise ValueError("only the generator of StyleGAN3 has an input that can be moved")
    height, width = model.data_shape[:2]
    down, right = shift
    if abs(down) >= height or abs(right) >= width:
        raise ValueError(f"a shift by {shift} leaves nothing of pictures of {height} x {width}")
    matrix = jnp.array([[1.0, 0.0, -right / width], [0.0, 1.0, -down / height], [0.0, 0.0, 1.0]])
    moved, still = model.synthesize(state, styles, None, matrix), model.synthesize(state, styles)
    rows, columns = slice(max(down, 0), height + min(down, 0)), slice(max(right, 0), width + min(right, 0))
    error = moved[:, rows, columns] - jnp.roll(still, shift, (1, 2))[:, rows, columns]
    return 10.0 * jnp.log10(4.0 / jnp.mean(error**2))


def rotation_equivariance(model: StyleGAN, state: TrainState, styles: Array) -> Array:
    """EQ-R in decibels of a StyleGAN3 for a quarter turn, which needs no resampling, within the largest disc.

    Raises:
      ValueError: the generator has no input that could be turned.
    """
    if not isinstance(model.network, StyleGAN3Network):
        raise ValueError("only the generator of StyleGAN3 has an input that can be moved")
    matrix = jnp.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    turned, still = model.synthesize(state, styles, None, matrix), model.synthesize(state, styles)
    error = turned - jnp.rot90(still, axes=(1, 2))
    size = model.data_shape[0]
    place = np.arange(size) + 0.5 - size / 2
    disc = np.hypot(place[:, None], place[None]) < size / 2
    return 10.0 * jnp.log10(
        4.0 / (jnp.sum(error**2 * disc[None, :, :, None]) / (disc.sum() * error.shape[0] * error.shape[3]))
    )
