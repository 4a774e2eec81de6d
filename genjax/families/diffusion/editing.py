"""Editing pictures with a model that was not trained for it: image-to-image (SDEdit) and inpainting (RePaint).

SDEdit   start the sampler at z_t = alpha x + sigma epsilon of a given x            Meng et al. 2022, arXiv:2108.01073
RePaint  after each ancestral step, replace the known pixels by their noised       Lugmayr et al. 2022, arXiv:2201.09865
         values; go back some steps and forth again, a few times, so that the
         known and the new parts come to fit
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array, check_data_shape
from genjax.errors import UserError
from genjax.families.diffusion.diffusion import Diffusion
from genjax.families.diffusion.grids import Node, times
from genjax.families.diffusion.processes import Spacing, posterior_from
from genjax.model import TrainState


def image_to_image(
    model: Diffusion, state: TrainState, key: Array, x: Array, strength: float = 0.5, **condition: Any
) -> Array:
    """Adds noise to examples x [N, *data_shape] and samples from there; strength 1 is sampling from pure noise.

    Raises:
      UserError: examples of another shape, a strength outside (0, 1], or a strength smaller than a step of the sampler.
    """
    check_data_shape(x, model.data_shape)
    if not 0.0 < strength <= 1.0:
        raise UserError(f"strength={strength} must lie in (0, 1]")
    model = model.on_grid()
    sampler, process = model.sampler, model.process_of(state.eval_params)
    noise_key, step_key = jax.random.split(key)
    condition, negative = model.sampling_conditions(state, len(x), condition.pop("label", None), condition)
    start = round((1.0 - strength) * sampler.num_steps)
    if start == sampler.num_steps:
        raise UserError(
            f"strength={strength} is less than half a step of the sampler's {start}, "
            "which leaves examples as they are; give more strength or steps"
        )
    _, alpha, sigma = sampler.grid(process)
    z = alpha[start] * x + sigma[start] * jax.random.normal(noise_key, x.shape)
    denoise = model.denoiser(state.eval_params, condition, empty=negative)
    return sampler.run(denoise, process, z, step_key, start=jnp.asarray(start))


def resampling_steps(num_steps: int, num_resamples: int, jump_length: int) -> np.ndarray:
    """The order in which RePaint takes its steps (Lugmayr et al. 2022, section 4.2 and appendix).

    Nodes are numbered from 0 (noise) to num_steps (data).  From every jump_length-th node, counted backwards from the
    last noisy node, RePaint goes back by jump_length nodes, num_resamples - 1 times.

    Returns:
      Rows (node before the step, node to go on from after the step), int32 [M, 2].
    """
    left = dict.fromkeys(range(num_steps - 1, jump_length - 1, -jump_length), num_resamples - 1)
    rows, node = [], 0
    while node < num_steps:
        then = node + 1
        back = then - jump_length if left.get(then, 0) else then
        if back < then:
            left[then] -= 1
        rows.append((node, back))
        node = back
    return np.array(rows, np.int32)


def inpaint(
    model: Diffusion,
    state: TrainState,
    key: Array,
    x: Array,
    mask: Array,
    /,
    num_steps: int = 50,
    num_resamples: int = 5,
    jump_length: int = 1,
    spacing: Spacing | None = None,
    **condition: Any,
) -> Array:
    """Fills in the unknown values of examples.

    Args:
      model: a diffusion model.
      state: its trained state.
      key: random key.
      x: examples [N, *data_shape]; values where the mask is 0 are not used.
      mask: 1 where x is known, else 0; the shape of x, or length 1 along axes on which the mask does not depend.
      num_steps: steps from noise to data (250 in the paper).
      num_resamples: number of times that each step is taken; 1 replaces the known part only (10 in the paper).
      jump_length: number of steps to go back at once (10 in the paper).
      spacing: spacing of the steps; None takes the model's sampler's.
      **condition: label and others, as for `sample`.

    Returns:
      Examples [N, *data_shape] that equal x where the mask is 1.

    Raises:
      UserError: examples or a mask of another shape, no resampling, or a model that gives no mean of the data.
    """
    check_data_shape(x, model.data_shape)
    if mask.ndim != x.ndim or any(m not in (1, n) for m, n in zip(mask.shape, x.shape)):
        raise UserError(f"the mask has shape {mask.shape}, which does not fit examples of shape {x.shape}")
    for name, value in (("num_resamples", num_resamples), ("jump_length", jump_length)):
        if value < 1:
            raise UserError(f"{name}={value} must be at least 1")
    if model.gives_path_ends:
        raise UserError(
            f"RePaint needs the mean of the data, which {type(model).__name__} does not give; use EDM or DDPM"
        )
    process, sampler = model.process_of(state.eval_params), model.sampler
    condition, negative = model.sampling_conditions(state, len(x), condition.pop("label", None), condition)
    denoise = model.denoiser(state.eval_params, condition, empty=negative)
    known = jnp.broadcast_to(mask, x.shape) > 0
    x = jnp.where(known, x, 0.0)
    spacing = sampler.spacing if spacing is None else spacing
    grid = times(process, spacing, num_steps, sampler.rho, min_log_ratio=sampler.min_log_ratio, shift=sampler.shift)
    order = resampling_steps(num_steps, num_resamples, jump_length)
    at = lambda nodes: jax.tree.map(lambda a: a[nodes], grid)
    rows = (at(order[:, 0]), at(order[:, 0] + 1), at(order[:, 1]), jnp.arange(len(order)))
    noise = lambda k: jax.random.normal(k, x.shape)

    def body(z: Array, row: tuple[Node, Node, Node, Array]) -> tuple[Array, None]:
        now, then, back, index = row
        keys = jax.random.split(jax.random.fold_in(key, index), 3)
        x0 = denoise(z, now.t, jnp.zeros_like(z)).x0
        a, b, variance = posterior_from(now.alpha, now.sigma, then.alpha, then.sigma)
        unknown = a * z + b * x0 + jnp.sqrt(variance) * noise(keys[0])
        z = jnp.where(known, then.alpha * x + then.sigma * noise(keys[1]), unknown)
        # q(z_back | z_then), which is z itself if both nodes are the same.
        ratio = back.alpha / then.alpha
        added = jnp.maximum(back.sigma**2 - (ratio * then.sigma) ** 2, 0.0)
        return ratio * z + jnp.sqrt(added) * noise(keys[2]), None

    start = process.prior_scale * noise(jax.random.fold_in(key, len(order)))
    return jax.lax.scan(body, start, rows)[0]
