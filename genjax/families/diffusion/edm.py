"""EDM: the design space of diffusion models (Karras et al. 2022, arXiv:2206.00364).

    D(z, sigma) = c_skip z + c_out F(c_in z, log(sigma) / 4)                                                   (eq. 7)
    loss = lambda(sigma) |D(x + sigma n, sigma) - x|^2                                                         (eq. 8)

    c_skip = s_d^2 / (sigma^2 + s_d^2),  c_out = sigma s_d / sqrt(sigma^2 + s_d^2),  c_in = 1 / sqrt(sigma^2 + s_d^2),
    lambda = 1 / c_out^2,  so that the loss is the plain error of F

with s_d the deviation of the data, log sigma ~ N(-1.2, 1.2^2), and Heun's second-order steps between noise levels
spaced evenly in sigma^(1/7).
"""

from __future__ import annotations

import dataclasses

from genjax.families.diffusion.diffusion import Diffusion, ODELikelihood
from genjax.families.diffusion.processes import Karras, Process
from genjax.families.diffusion.samplers import Heun, Sampler
from genjax.families.diffusion.targets import Target
from genjax.families.diffusion.times import LogNormalNoise, TimeDistribution


@dataclasses.dataclass(frozen=True, kw_only=True)
class EDM(ODELikelihood, Diffusion):
    """EDM's process, preconditioning, noise distribution and sampler."""

    process: Process = Karras()
    target: Target = "edm"
    sigma_data: float = 0.5
    scale_input: bool = True
    times: TimeDistribution = LogNormalNoise()
    sampler: Sampler = Heun(num_steps=18)
