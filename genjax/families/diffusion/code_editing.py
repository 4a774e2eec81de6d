"""Editing pictures by Stable Diffusion: image to image, and inpainting by replacement or by a network that sees masks.

    image to image    start at the code of x with noise, alpha c + sigma epsilon         (SDEdit, arXiv:2108.01073)
    replacement       after each step the code is alpha c + sigma epsilon where x is known, always with one epsilon
    seen masks        the network sees [mask, code of x without the unknown part] beside the code: image_channels = 5

Noise and starting times are those of the library diffusers (its pipelines Img2Img and Inpaint), so that the same noise
gives the same picture.  Its PNDM is the exception: it asks one time twice, loses one of the two where it starts later
than at the second time, and then steps with times that are not the code's; here every start is a step of the method.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from genjax.batch import Array, PyTree, check_data_shape
from genjax.errors import UserError
from genjax.families.diffusion.grids import Node
from genjax.families.diffusion.stable_diffusion import StableDiffusion
from genjax.model import TrainState


def first_node(strength: float, num_steps: int) -> int:
    """The node that an edit starts from: the last int(strength num_steps) steps are taken.

    Raises:
      UserError: the strength is not in (0, 1], or less than a step.
    """
    if not 0.0 < strength <= 1.0:
        raise UserError(f"strength={strength} must lie in (0, 1]; 1 keeps nothing of the picture but its frame")
    taken = int(num_steps * strength)
    if taken == 0:
        raise UserError(
            f"strength={strength} is less than one of the {num_steps} steps, which leaves pictures as they are; give "
            f"at least {1 / num_steps:.3g}, or more steps"
        )
    return num_steps - taken


def edit(
    model: StableDiffusion,
    state: TrainState,
    key: Array,
    x: Array,
    strength: float = 0.8,
    known: Array | None = None,
    noise: Array | None = None,
    code_noise: Array | None = None,
    masked_code_noise: Array | None = None,
    **condition: Any,
) -> Array:
    """Pictures that start from pictures x [N, *data_shape], [N, *data_shape].

    Args:
      model: the model.
      state: its state.
      key: random key.
      x: the pictures, in [-1, 1].
      strength: share of the steps that are taken; with `known`, 1 starts from pure noise.
      known: 1 where x is to stay and 0 where it is drawn anew, [N | 1, H, W, 1]; None changes the whole picture.
      noise: N(0, I) of the codes' shape.
      code_noise, masked_code_noise: N(0, I) of the codes' shape, with which codes of x, and of x without its unknown
        part, are drawn.
      **condition: tokens and others, as for `StableDiffusion.sample`.

    Raises:
      UserError: pictures, mask or strength do not fit, or the network sees a mask and none is given.
    """
    check_data_shape(x, model.data_shape)
    start = first_node(strength, model.diffusion.sampler.num_steps)
    sees_mask = bool(model.image_channels)
    if sees_mask and known is None:
        raise UserError("the network sees a mask beside the code; give what is known (--mask), or another model")
    if known is not None:
        known = _checked(known, x.shape)
    params = model.merged_params(state.eval_params)
    keys = jax.random.split(key, 4)
    shape = (len(x), *model.coder.code_shape)
    drawn = (jax.random.normal(k, shape) for k in keys[:3])
    noise, code_noise, masked_code_noise = (
        new if given is None else given for given, new in zip((noise, code_noise, masked_code_noise), drawn)
    )
    if sees_mask:
        latent = code_of(model, state, params, jnp.where(known > 0.5, x, 0.0), masked_code_noise)
        condition["image"] = jnp.concatenate([1.0 - _of_codes(model, known, len(x)), latent], axis=-1)
    z, conditions, empty, step_key = model.prepared(state, keys[3], len(x), noise=noise, **condition)
    diffusion = model.code_model().on_grid()
    learned = model.diffusion_state(state).params
    process, sampler = diffusion.process_of(learned), diffusion.sampler
    code = code_of(model, state, params, x, code_noise)
    _, alpha, sigma = sampler.grid(process)
    if known is None or strength < 1.0:
        z = alpha[start] * code + sigma[start] * noise
    adjust = None
    if known is not None and not sees_mask:
        kept = _of_codes(model, known, len(x))

        def adjust(z: Array, then: Node) -> Array:
            there = jnp.where(then.t > 0.0, then.alpha * code + then.sigma * noise, code)
            return kept * there + (1.0 - kept) * z

    denoise = diffusion.denoiser(learned, conditions, empty=empty)
    codes = sampler.run(denoise, process, z, step_key, start=jnp.asarray(start), adjust=adjust)
    return model.decode_codes(state, codes)


def code_of(model: StableDiffusion, state: TrainState, params: PyTree, x: Array, noise: Array) -> Array:
    """Scaled codes of pictures, drawn with noise of their shape."""
    posterior = model.coder.posterior(params["autoencoder"], x)
    return model.scaled(state.learned, posterior.sample(noise))


def _checked(known: Array, shape: tuple[int, ...]) -> Array:
    """What is known, as 0 and 1.

    Raises:
      UserError: it has another size than the pictures.
    """
    if known.ndim != 4 or known.shape[1:] != (*shape[1:3], 1) or known.shape[0] not in (1, shape[0]):
        raise UserError(f"the mask has shape {known.shape}, and pictures of shape {shape} need {(1, *shape[1:3], 1)}")
    return (known > 0.5).astype(jnp.float32)


def _of_codes(model: StableDiffusion, known: Array, count: int) -> Array:
    """Which codes are known: a code counts as its first pixel does, [count, h, w, 1]."""
    factor = model.coder.network.factor
    small = known[:, ::factor, ::factor]
    return jnp.broadcast_to(small, (count, *small.shape[1:]))
