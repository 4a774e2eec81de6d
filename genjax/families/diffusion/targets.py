"""Prediction targets of a network, conversions between them, and weights of errors.

Given z = alpha x + sigma epsilon, all targets carry the same information and differ in where they are accurate:

    x0         x
    epsilon    epsilon                                   (Ho et al. 2020)
    v          alpha epsilon - sigma x                   (Salimans & Ho 2022, arXiv:2202.00512)
    score      -epsilon / sigma                          (Song et al. 2021)
    velocity   alpha' x + sigma' epsilon, ' = d / dt     (Lipman et al. 2023)
    edm        F = (x - c_skip z / alpha) / c_out        (Karras et al. 2022, table 1), for data of deviation sigma_data

Each is affine in (z, x):  target = a z + b x.  So x = (target - a z) / b, and an error of the target is b times the
error of x.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax.numpy as jnp

from genjax.batch import Array
from genjax.errors import UserError
from genjax.families.diffusion.processes import GaussianProcess, expand

Target = Literal["epsilon", "x0", "v", "score", "velocity", "edm"]
Weighting = Literal["simple", "epsilon", "x0", "v", "velocity", "edm", "min_snr", "p2", "likelihood"]


class Affine(NamedTuple):
    """target = of_z z + of_x x, at some times."""

    of_z: Array
    of_x: Array


def coefficients(target: Target, process: GaussianProcess, t: Array, sigma_data: float = 1.0) -> Affine:
    """The two factors of a target at times of any shape.

    Raises:
      UserError: there is no such target.
    """
    alpha, sigma = process.alpha(t), process.sigma(t)
    match target:
        case "x0":
            return Affine(jnp.zeros_like(alpha), jnp.ones_like(alpha))
        case "epsilon":
            return Affine(1.0 / sigma, -alpha / sigma)
        case "v":
            return Affine(alpha / sigma, -(alpha**2) / sigma - sigma)
        case "score":
            return Affine(-1.0 / sigma**2, alpha / sigma**2)
        case "velocity":
            d_alpha, d_sigma = process.derivatives(t)
            return Affine(d_sigma / sigma, d_alpha - d_sigma * alpha / sigma)
        case "edm":
            # x = c_skip z / alpha + c_out F with s = sigma / alpha, written without dividing by alpha.
            total = alpha**2 * sigma_data**2 + sigma**2
            c_skip_z = alpha * sigma_data**2 / total
            c_out = sigma * sigma_data / jnp.sqrt(total)
            return Affine(-c_skip_z / c_out, 1.0 / c_out)
    raise UserError(f"unknown target {target!r}; choose one of {', '.join(Target.__args__)}")


def make_target(
    target: Target, process: GaussianProcess, t: Array, x: Array, epsilon: Array, sigma_data: float = 1.0
) -> Array:
    """The value of a target for data x and noise epsilon [B, ...] at times [B]; also well defined where sigma is 0."""
    alpha, sigma = expand(process.alpha(t), x), expand(process.sigma(t), x)
    match target:
        case "x0":
            return x
        case "epsilon":
            return epsilon
        case "v":
            return alpha * epsilon - sigma * x
        case "score":
            return -epsilon / sigma
        case "velocity":
            d_alpha, d_sigma = process.derivatives(t)
            return expand(d_alpha, x) * x + expand(d_sigma, x) * epsilon
        case "edm":
            # F = (sigma x - alpha sigma_data^2 epsilon) / (sigma_data sqrt(alpha^2 sigma_data^2 + sigma^2))
            scale = sigma_data * jnp.sqrt(alpha**2 * sigma_data**2 + sigma**2)
            return (sigma * x - alpha * sigma_data**2 * epsilon) / scale
    raise UserError(f"unknown target {target!r}; choose one of {', '.join(Target.__args__)}")


def to_x0(
    target: Target, process: GaussianProcess, t: Array, z: Array, prediction: Array, sigma_data: float = 1.0
) -> Array:
    """The clean data that a prediction of the target means, for z [B, ...] at times [B] or one time for all."""
    alpha, sigma = expand(process.alpha(t), z), expand(process.sigma(t), z)
    match target:
        case "x0":
            return prediction
        case "epsilon":
            return (z - sigma * prediction) / alpha
        case "v":
            # alpha z - sigma v = (alpha^2 + sigma^2) x
            return (alpha * z - sigma * prediction) / (alpha**2 + sigma**2)
        case "score":
            return (z + sigma**2 * prediction) / alpha
        case "velocity":
            d_alpha, d_sigma = process.derivatives(t)
            d_alpha, d_sigma = expand(d_alpha, z), expand(d_sigma, z)
            return (sigma * prediction - d_sigma * z) / (d_alpha * sigma - d_sigma * alpha)
        case "edm":
            total = alpha**2 * sigma_data**2 + sigma**2
            return alpha * sigma_data**2 / total * z + sigma * sigma_data / jnp.sqrt(total) * prediction
    raise UserError(f"unknown target {target!r}; choose one of {', '.join(Target.__args__)}")


def epsilon_of(process: GaussianProcess, t: Array, z: Array, x0: Array) -> Array:
    """The noise that z and an estimate of the data imply."""
    return (z - expand(process.alpha(t), z) * x0) / expand(process.sigma(t), z)


def score_of(process: GaussianProcess, t: Array, z: Array, x0: Array) -> Array:
    """grad_z log q(z_t) that an estimate of E[x | z] implies (Tweedie's formula)."""
    return (expand(process.alpha(t), z) * x0 - z) / expand(process.sigma(t), z) ** 2


def loss_weight(
    weighting: Weighting,
    target: Target,
    process: GaussianProcess,
    t: Array,
    sigma_data: float = 1.0,
    gamma: float = 5.0,
) -> Array:
    """Factor on the squared error of the target that turns it into the loss named by `weighting`.

    In terms of the squared error of x0 the weights are

        x0 1        epsilon snr       v (alpha^2 + sigma^2)^2 / sigma^2      velocity (alpha' - sigma' alpha / sigma)^2
        edm  1 / sigma^2 + 1 / sigma_data^2, with alpha = 1
        min_snr     min(snr, gamma)                          (Hang et al. 2023, arXiv:2303.09556)
        p2          snr / (1 + snr)^gamma                    (Choi et al. 2022, arXiv:2204.00227, k = 1)
        likelihood  -snr' / 2                                (Kingma et al. 2021, eq. 17), the continuous bound in nats

    Args:
      weighting: which weighting; `simple` leaves the error of the target as it is.
      target: prediction target of the network.
      process: the forward process.
      t: times, shape [B].
      sigma_data: standard deviation of the data, of target and weighting `edm`.
      gamma: parameter of min_snr (5 in the paper) and p2 (1 in the paper).

    Returns:
      Weights, shape [B].
    """
    if weighting in ("simple", target):
        return jnp.ones_like(t)
    own = coefficients(target, process, t, sigma_data).of_x ** 2
    if weighting in ("epsilon", "x0", "v", "velocity", "edm"):
        return coefficients(weighting, process, t, sigma_data).of_x ** 2 / own
    snr = (process.alpha(t) / process.sigma(t)) ** 2
    match weighting:
        case "min_snr":
            return jnp.minimum(snr, gamma) / own
        case "p2":
            return snr / (1.0 + snr) ** gamma / own
        case "likelihood":
            alpha, sigma = process.alpha(t), process.sigma(t)
            d_alpha, d_sigma = process.derivatives(t)
            return -snr * (d_alpha / alpha - d_sigma / sigma) / own
    raise UserError(f"unknown weighting {weighting!r}; choose one of {', '.join(Weighting.__args__)}")
