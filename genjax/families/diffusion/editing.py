"""Editing pictures with a model that was not trained for it: image-to-image (SDEdit) and inpainting (RePaint).

SDEdit   start the sampler at z_t = alpha x + sigma epsilon of a given x            Meng et al. 2022, arXiv:2108.01073
RePaint  after each ancestral step put the known pixels, noised, back in place, and go back and forth between times a few
         times, so that both parts come to fit                                     Lugmayr et al. 2022, arXiv:2201.09865
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from genjax.families.diffusion.diffusion import Diffusion
from genjax.families.diffusion.processes import posterior_from
from genjax.families.diffusion.samplers import Node, Spacing, times
from genjax.model import Array, TrainState


def image_to_image(
    model: Diffusion, state: TrainState, key: Array, x: Array, strength: float = 0.5, **condition: Any
) -> Array:
    """Noises examples x [N, *data_shape] part of the way and samples back; strength 1 is sampling from nothing.

    Raises:
      ValueError: examples of another shape, or a strength outside of (0, 1].
    """
    _check_shape(model, x)
    if not 0.0 < strength <= 1.0:
        raise ValueError(f"strength={strength} must lie in (0, 1]")
    sampler, process = model.sampler, model.process_of(state.eval_params)
    noise_key, step_key = jax.random.split(key)
    condition = model.sampling_condition(len(x), condition.pop("label", None), condition)
    start = round((1.0 - strength) * sampler.num_steps)
    _, alpha, sigma = times(process, sampler.spacing, sampler.num_steps, sampler.rho, sampler.to_data)
    z = alpha[start] * x + sigma[start] * jax.random.normal(noise_key, x.shape)
    denoise = model.denoiser(state.eval_params, condition)
    return sampler.run(denoise, process, z, step_key, start=jnp.asarray(start))


def inpaint(
    model: Diffusion,
    state: TrainState,
    key: Array,
    x: Array,
    mask: Array,
    num_steps: int = 50,
    num_resamples: int = 5,
    spacing: Spacing = "uniform",
    **condition: Any,
) -> Array:
    """Fills in what is missing.

    Args:
      model: a diffusion model.
      state: its trained state.
      key: random key.
      x: examples [N, *data_shape]; their values where the mask is 0 are not used.
      mask: 1 where x is known, of the shape of x, with axes of length 1 where it is the same along them.
      num_steps: steps from noise to data.
      num_resamples: how often each step is taken; 1 replaces the known part only.
      spacing: of the steps.
      **condition: label and others, as for `sample`.

    Returns:
      Examples [N, *data_shape] that equal x where the mask is 1.

    Raises:
      ValueError: examples or a mask of another shape.
    """
    _check_shape(model, x)
    if mask.ndim != x.ndim or any(m not in (1, n) for m, n in zip(mask.shape, x.shape)):
        raise ValueError(f"the mask has shape {mask.shape}, which does not fit examples of shape {x.shape}")
    if num_resamples < 1:
        raise ValueError(f"num_resamples={num_resamples} must be at least 1")
    process = model.process_of(state.eval_params)
    condition = model.sampling_condition(len(x), condition.pop("label", None), condition)
    denoise = model.denoiser(state.eval_params, condition)
    known = jnp.broadcast_to(mask, x.shape) > 0
    x = jnp.where(known, x, 0.0)
    grid = Node(*times(process, spacing, num_steps))
    rows = (jax.tree.map(lambda a: a[:-1], grid), jax.tree.map(lambda a: a[1:], grid), jnp.arange(num_steps))
    noise = lambda k: jax.random.normal(k, x.shape)  # noqa: E731

    def body(z: Array, row: tuple[Node, Node, Array]) -> tuple[Array, None]:
        now, then, index = row

        def once(repeat: Array, z: Array) -> Array:
            keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, index), repeat), 3)
            x0 = denoise(z, now.t, jnp.zeros_like(z)).x0
            a, b, variance = posterior_from(now.alpha, now.sigma, then.alpha, then.sigma)
            unknown = a * z + b * x0 + jnp.sqrt(variance) * noise(keys[0])
            z = jnp.where(known, then.alpha * x + then.sigma * noise(keys[1]), unknown)
            # Back to `now`, but not after the last time.
            ratio = now.alpha / then.alpha
            back = ratio * z + jnp.sqrt(jnp.maximum(now.sigma**2 - (ratio * then.sigma) ** 2, 0.0)) * noise(keys[2])
            return jnp.where((repeat < num_resamples - 1) & (then.sigma > 0.0), back, z)

        return jax.lax.fori_loop(0, jnp.where(then.sigma > 0.0, num_resamples, 1), once, z), None

    start = process.prior_scale * noise(jax.random.fold_in(key, num_steps))
    return jax.lax.scan(body, start, rows)[0]


def _check_shape(model: Diffusion, x: Array) -> None:
    if x.shape[1:] != tuple(model.data_shape):
        raise ValueError(f"examples have shape {x.shape[1:]}, but the model makes {tuple(model.data_shape)}")
