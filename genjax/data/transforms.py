"""Named transforms of images, from integer levels v in {0, ..., L - 1} to a model's input, with exact densities.

    unit                x = v / (L - 1)
    signed              x = 2 v / (L - 1) - 1
    levels              x = v
    binarize_threshold  x = [v / (L - 1) > 1/2]
    binarize_dynamic    x ~ Bernoulli(v / (L - 1)), drawn anew whenever the example is seen
    binarize_static     the same, drawn once for all
    dequantize          x = (v + u) / L,  u ~ U[0, 1)^D
    dequantize_signed   x = 2 (v + u) / L - 1
    logit               x = logit(alpha + (1 - 2 alpha) (v + u) / L)

The last three map the dequantised levels v + u by a bijection x = f(v + u).  A density model of x then bounds the
probability of the levels (Theis et al. 2016, "A note on the evaluation of generative models", arXiv:1511.01844):

    log P(v) >= E_u [ log p(x) + log |det df / d(v + u)| ]

and the log-determinant is given per example as `log_abs_det` [B], in nats.
"""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

Preprocessing = Literal[
    "unit",
    "signed",
    "levels",
    "binarize_threshold",
    "binarize_dynamic",
    "binarize_static",
    "dequantize",
    "dequantize_signed",
    "logit",
]


def values_of(name: Preprocessing, num_levels: int, alpha: float) -> dict[str, Any]:
    """What `spec()` says of the values that a transform gives: `range`, and `num_levels`, None of what fills the range.

    Args:
      name: which transform.
      num_levels: L.
      alpha: margin of the logit transform.
    """
    if name.startswith("binarize"):
        return {"range": (0.0, 1.0), "num_levels": 2}
    match name:
        case "unit":
            return {"range": (0.0, 1.0), "num_levels": num_levels}
        case "signed":
            return {"range": (-1.0, 1.0), "num_levels": num_levels}
        case "levels":
            return {"range": (0.0, num_levels - 1.0), "num_levels": num_levels}
        case "dequantize":
            return {"range": (0.0, 1.0), "num_levels": None}
        case "dequantize_signed":
            return {"range": (-1.0, 1.0), "num_levels": None}
    end = float(np.log1p(-alpha) - np.log(alpha))
    return {"range": (-end, end), "num_levels": None}


def bernoulli_per_example(keys: jax.Array, probability: jax.Array) -> jax.Array:
    """Draws 0 or 1 with the given probabilities [B, ...], each example from its own key [B]."""
    draw = jax.vmap(lambda key, p: jax.random.bernoulli(key, p))
    return draw(keys, probability).astype(jnp.float32)


def uniform_per_example(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws from U[0, 1) with shape [B, *shape], each example from its own key [B]."""
    return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)


def dequantize(levels: jax.Array, noise: jax.Array, num_levels: int) -> tuple[jax.Array, jax.Array]:
    """x = (v + u) / L.

    Args:
      levels: v, shape [B, ...].
      noise: u in [0, 1), same shape.
      num_levels: L.

    Returns:
      x in [0, 1), same shape, and log |det dx / d(v + u)|, shape [B].
    """
    # The largest u in float32 can round v + u up to L.
    x = jnp.minimum((levels + noise) / num_levels, 1.0 - jnp.finfo(jnp.float32).epsneg)
    dimension = np.prod(levels.shape[1:])
    return x, jnp.full(levels.shape[:1], -dimension * np.log(num_levels), jnp.float32)


def logit(x: jax.Array, alpha: float) -> tuple[jax.Array, jax.Array]:
    """logit(alpha + (1 - 2 alpha) x) of x in [0, 1] (Dinh et al. 2017, section 4.1).

    Returns:
      The logits, same shape as x, and the log |det| of the map, shape [B].
    """
    y = alpha + (1.0 - 2.0 * alpha) * x
    log_derivative = np.log1p(-2.0 * alpha) - jnp.log(y) - jnp.log1p(-y)
    return jnp.log(y) - jnp.log1p(-y), jnp.sum(log_derivative, axis=tuple(range(1, x.ndim)))


def inverse_logit(x: jax.Array, alpha: float) -> jax.Array:
    """The inverse of `logit`."""
    return (jax.nn.sigmoid(x) - alpha) / (1.0 - 2.0 * alpha)


def apply(
    name: Preprocessing, levels: jax.Array, keys: jax.Array, num_levels: int, alpha: float
) -> tuple[jax.Array, jax.Array | None]:
    """Applies a named transform.

    Args:
      name: which transform; binarize_static expects levels that are binary already.
      levels: integers in {0, ..., num_levels - 1}, shape [B, ...].
      keys: one key per example, shape [B].
      num_levels: L.
      alpha: margin of the logit transform.

    Returns:
      x float32 [B, ...], and log_abs_det [B] where the transform is a bijection of the dequantised levels, else None.
    """
    levels = levels.astype(jnp.float32)
    unit = levels / (num_levels - 1)
    match name:
        case "unit" | "binarize_static":
            return unit, None
        case "signed":
            return 2.0 * unit - 1.0, None
        case "levels":
            return levels, None
        case "binarize_threshold":
            return (unit > 0.5).astype(jnp.float32), None
        case "binarize_dynamic":
            return bernoulli_per_example(keys, unit), None
    x, log_abs_det = dequantize(levels, uniform_per_example(keys, levels.shape[1:]), num_levels)
    match name:
        case "dequantize":
            return x, log_abs_det
        case "dequantize_signed":
            return 2.0 * x - 1.0, log_abs_det + np.log(2.0) * np.prod(levels.shape[1:])
    x, logit_log_abs_det = logit(x, alpha)
    return x, log_abs_det + logit_log_abs_det


def to_unit(name: Preprocessing, x: np.ndarray, num_levels: int, alpha: float) -> np.ndarray:
    """Maps model space back to brightness in [0, 1], for pictures and for metrics of pictures.

    Args:
      name: the transform that made the model's space.
      x: array of any shape in that space.
      num_levels: L.
      alpha: margin of the logit transform.
    """
    x = np.asarray(x, np.float32)
    match name:
        case "signed":
            x = (x + 1.0) / 2.0
        case "levels":
            x = x / (num_levels - 1)
        case "dequantize":
            x = np.floor(np.clip(x, 0.0, 1.0 - 1e-7) * num_levels) / (num_levels - 1)
        case "dequantize_signed":
            return to_unit("dequantize", (x + 1.0) / 2.0, num_levels, alpha)
        case "logit":
            return to_unit("dequantize", np.asarray(inverse_logit(x, alpha)), num_levels, alpha)
    return np.clip(x, 0.0, 1.0)
