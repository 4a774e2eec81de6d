"""Grids of samplers: falling times from noise to data, and the process's values at these times."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp

from genjax.batch import Array
from genjax.errors import UserError
from genjax.families.diffusion.processes import GaussianProcess, Spacing, shifted_time


class Node(NamedTuple):
    """A time of the grid with the process's values there; the last node has alpha 1 and sigma 0 if
    samples end as data.
    """

    t: Array
    alpha: Array
    sigma: Array


def times(
    process: GaussianProcess,
    spacing: Spacing | None,
    num_steps: int,
    rho: float = 7.0,
    denoise_to_zero: bool = True,
    min_log_ratio: float | None = None,
    shift: float = 1.0,
) -> Node:
    """The grid of a sampler: num_steps + 1 falling times from t_max with alpha and sigma,
    each of shape [num_steps + 1].

    With `denoise_to_zero`, the last node is the data themselves (alpha 1, sigma 0), and if the process has t_min > 0,
    the node before it is t_min.  Without `denoise_to_zero` the last node is t_min.

    Spacings: None, the process's; uniform in t; quadratic, t ~ u^2; karras, sigma / alpha between its extremes with
    power 1 / rho (Karras et al. 2022, eq. 5); log_snr, uniform in log(alpha / sigma).  On processes that start from
    N(0, I) with log(alpha / sigma) < `min_log_ratio` at t_max, the last two spacings begin at `min_log_ratio`, and the
    first step leads there from t_max: while alpha is nearly 0, steps change nothing (lambda_min_clipped of diffusers).
    The first two spacings are shifted: t / t_max becomes s t / (1 + (s - 1) t) with s = `shift`.

    Raises:
      UserError: no steps, or a spacing that the process does not allow.
    """
    if num_steps < 1:
        raise UserError(f"num_steps={num_steps}; a sampler needs at least one step")
    exact = denoise_to_zero and process.t_min == 0.0
    count = num_steps + 1 if exact or not denoise_to_zero else num_steps
    u = jnp.linspace(0.0, 1.0, count) if count > 1 else jnp.zeros((1,))
    t_min, t_max = process.t_min, process.t_max
    spacing = process.spacing if spacing is None else spacing
    if shift != 1.0 and spacing not in ("uniform", "quadratic"):
        raise UserError(f"shift={shift} moves times of the spacings uniform and quadratic, and not of {spacing}")
    match spacing:
        case "uniform":
            t = t_max * shifted_time((t_max + u * (t_min - t_max)) / t_max, shift)
        case "quadratic":
            t = t_max * shifted_time((t_max**0.5 + u * (t_min**0.5 - t_max**0.5)) ** 2 / t_max, shift)
        case "karras" | "log_snr":
            # Ends where sigma / alpha is 0 or infinite are replaced by the nearest usable times of the process.
            if exact:
                u = jnp.linspace(0.0, 1.0, num_steps) if num_steps > 1 else jnp.zeros((1,))
            bounds = jnp.array([t_max if not process.ends_in_pure_noise else 0.999 * t_max, process.earliest_time])
            high, low = process.noise_ratio(bounds)
            if min_log_ratio is not None and process.prior_scale == 1.0:
                high = jnp.minimum(high, math.exp(-min_log_ratio))
            if spacing == "karras":
                ratio = (high ** (1 / rho) + u * (low ** (1 / rho) - high ** (1 / rho))) ** rho
            else:
                ratio = jnp.exp(jnp.log(high) + u * (jnp.log(low) - jnp.log(high)))
            t = process.time_of_noise_ratio(ratio).at[0].set(t_max)
            if t_min > 0.0 and len(u) > 1:
                t = t.at[-1].set(t_min)
            exact = False
        case _:
            raise UserError(f"unknown spacing {spacing!r}; choose one of {', '.join(Spacing.__args__)}")
    if exact:
        t = t.at[-1].set(0.0)
    if denoise_to_zero and len(t) == num_steps:
        t = jnp.concatenate([t, jnp.zeros((1,))])
    alpha, sigma = process.alpha(t), process.sigma(t)
    if denoise_to_zero:
        alpha, sigma = alpha.at[-1].set(1.0), sigma.at[-1].set(0.0)
    return Node(t, alpha, sigma)
