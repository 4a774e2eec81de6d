"""Monotone rational-quadratic splines (Durkan et al. 2019, "Neural Spline Flows", arXiv:1906.04032, section 3.1).

On bin k with width w, height h, slope s = h / w, knot derivatives d_k and d_{k+1}, and xi = (x - x_k) / w:

    y     = y_k + h (s xi^2 + d_k xi (1 - xi)) / (s + (d_{k+1} + d_k - 2 s) xi (1 - xi))          (eq. 4)
    dy/dx = s^2 (d_{k+1} xi^2 + 2 s xi (1 - xi) + d_k (1 - xi)^2) / (s + (...) xi (1 - xi))^2     (eq. 5)

The inverse is the root of a quadratic (eqs. 6-8).  Outside [-bound, bound] the map is the identity.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from genjax.batch import Array
from genjax.errors import UserError

MIN_BIN = 1e-3
MIN_DERIVATIVE = 1e-3


def _knots(unnormalized: Array, bound: float) -> tuple[Array, Array]:
    """Positions [..., K + 1] of the knots from -bound to bound, and the sizes [..., K] of the bins."""
    num_bins = unnormalized.shape[-1]
    fractions = MIN_BIN + (1.0 - MIN_BIN * num_bins) * jax.nn.softmax(unnormalized, -1)
    inner = jnp.cumsum(fractions[..., :-1], -1) * (2.0 * bound) - bound
    edge = jnp.full_like(inner[..., :1], bound) if num_bins > 1 else jnp.full_like(fractions, bound)
    positions = jnp.concatenate([-edge, inner, edge], -1)
    return positions, positions[..., 1:] - positions[..., :-1]


def _pick(values: Array, index: Array) -> Array:
    return jnp.take_along_axis(values, index[..., None], -1)[..., 0]


def rational_quadratic_spline(x: Array, parameters: Array, bound: float, inverse: bool = False) -> tuple[Array, Array]:
    """Applies one spline to each element.

    Args:
      x: values, any shape.
      parameters: unconstrained numbers of shape [*x.shape, 3 K - 1]: K widths, K heights, K - 1 inner derivatives;
        all zero gives the identity.
      bound: half the side of the square in which the spline lives.
      inverse: apply the inverse map instead.

    Returns:
      The values, and the log-derivatives of the map that was applied, both of x's shape.
    """
    num_bins = (parameters.shape[-1] + 1) // 3
    if 3 * num_bins - 1 != parameters.shape[-1]:
        raise UserError(f"a spline of K bins takes 3 K - 1 parameters an element, got {parameters.shape[-1]}")
    knots_x, widths = _knots(parameters[..., :num_bins], bound)
    knots_y, heights = _knots(parameters[..., num_bins : 2 * num_bins], bound)
    # softplus(offset) + MIN_DERIVATIVE = 1, so that zero parameters give slope 1, as in the tails.
    offset = jnp.log(jnp.expm1(jnp.asarray(1.0 - MIN_DERIVATIVE, x.dtype)))
    inner = MIN_DERIVATIVE + jax.nn.softplus(parameters[..., 2 * num_bins :] + offset)
    ones = jnp.ones_like(knots_x[..., :1])
    derivatives = jnp.concatenate([ones, inner, ones], -1)

    inside = (x > -bound) & (x < bound)
    # Outside values are replaced before the formula, because `where` alone would let their NaNs into the gradient.
    safe = jnp.where(inside, x, jnp.zeros_like(x))
    edges = knots_y if inverse else knots_x
    index = jnp.sum(safe[..., None] >= edges[..., 1:-1], -1)
    left_x, left_y = _pick(knots_x, index), _pick(knots_y, index)
    w, h = _pick(widths, index), _pick(heights, index)
    d0, d1 = _pick(derivatives, index), _pick(derivatives, index + 1)
    s = h / w
    curvature = d1 + d0 - 2.0 * s
    if inverse:
        rise = safe - left_y
        a = h * (s - d0) + rise * curvature
        b = h * d0 - rise * curvature
        c = -s * rise
        # The small number keeps the gradient finite where rounding leaves nothing.
        root = jnp.sqrt(jnp.maximum(b**2 - 4.0 * a * c, 1e-30))
        # Of the two ways to write the solution, the one without a difference of nearly equal numbers.
        positive = b >= 0.0
        xi = jnp.where(
            positive, -2.0 * c / jnp.where(positive, b + root, 1.0), (root - b) / jnp.where(positive, 1.0, 2.0 * a)
        )
    else:
        xi = (safe - left_x) / w
    # Rounding may leave the bin, beyond which slopes need not be positive; `clip` would halve gradients on knots.
    xi = jnp.where(xi < 0.0, 0.0, jnp.where(xi > 1.0, 1.0, xi))
    if inverse:
        value = left_x + xi * w
    mix = xi * (1.0 - xi)
    denominator = s + curvature * mix
    if not inverse:
        value = left_y + h * (s * xi**2 + d0 * mix) / denominator
    slope = d1 * xi**2 + 2.0 * s * mix + d0 * (1.0 - xi) ** 2
    log_derivative = 2.0 * jnp.log(s) + jnp.log(slope) - 2.0 * jnp.log(denominator)
    if inverse:
        log_derivative = -log_derivative
    return jnp.where(inside, value, x), jnp.where(inside, log_derivative, jnp.zeros_like(x))
