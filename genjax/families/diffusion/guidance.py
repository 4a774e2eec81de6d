"""Guidance: pushing samples towards a condition.

Classifier-free (Ho & Salimans 2022, arXiv:2207.12598, eq. 6, with weight w; others write 1 + w):

    x0 = x0(z, c) + w (x0(z, c) - x0(z))

which is the same in x0, epsilon or v, as each is affine in the others.  Guidance may be limited to an interval of times
(Kynkaanniemi et al. 2024, arXiv:2404.07724).  It inflates the standard deviation, which may be scaled back (Lin et
al. 2023, arXiv:2305.08891, eq. 15 and 16, here of x0).  Classifier guidance (Dhariwal & Nichol 2021,
arXiv:2105.05233, algorithm 2):

    x0 = x0(z) + w sigma^2 / alpha grad_z log p(y | z, t)

Autoguidance (Karras et al. 2024, arXiv:2406.02507) needs no condition: a weaker model of the same data, such as the
model at an earlier step of training, replaces the unconditional model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from genjax.batch import Array
from genjax.errors import UserError
from genjax.families.diffusion.processes import GaussianProcess
from genjax.families.diffusion.samplers import Denoiser, Estimate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guidance:
    """Classifier-free guidance, and autoguidance where `sample` is given a weaker model.

    Attributes:
      scale: weight w; 0 samples from the model itself, with one evaluation a step.
      start: guidance is used only at times t / t_max above this.
      stop: guidance is used only at times t / t_max below this.
      rescale: 0 keeps the guided estimate's standard deviation, 1 scales it to the
        conditional estimate's; between, a mix.
    """

    scale: float = 0.0
    start: float = 0.0
    stop: float = 1.0
    rescale: float = 0.0

    @property
    def is_used(self) -> bool:
        """Whether guidance may have an effect: the scale is not 0, or is traced."""
        return isinstance(self.scale, jax.core.Tracer) or self.scale != 0.0

    def check(self, condition_on: tuple[str, ...], condition_dropout: float) -> None:
        """Refuses classifier-free guidance of a model for which it would be meaningless.

        Raises:
          UserError: the model has no condition, or was never trained without it.
        """
        if self.is_used and not condition_on:
            raise UserError(
                "guidance.scale leads away from the model without its condition, and this one has none; "
                "give guidance.scale=0, or sample with a weaker model (experiments.sample --weak_step)"
            )
        if self.is_used and not condition_dropout:
            raise UserError(
                "guidance.scale leads away from the model without its condition, "
                "which condition_dropout=0 never trains; train with condition_dropout=0.1, or give guidance.scale=0"
            )

    def combine(self, conditional: Array, unconditional: Array, t: Array, t_max: float) -> Array:
        """The guided estimate of x0 at a time, from the model's and the unconditional (or
        weaker) estimate, all [B, ...].
        """
        inside = (t >= self.start * t_max) & (t <= self.stop * t_max)
        weight = jnp.where(inside, self.scale, 0.0)
        guided = conditional + weight * (conditional - unconditional)
        if self.rescale:
            axes = tuple(range(1, guided.ndim))
            ratio = conditional.std(axes, keepdims=True) / jnp.maximum(guided.std(axes, keepdims=True), 1e-6)
            guided = guided * (self.rescale * ratio + 1.0 - self.rescale)
        return guided


def with_classifier(
    denoise: Denoiser, process: GaussianProcess, log_likelihood: Callable[[Array, Array], Array], scale: float = 1.0
) -> Denoiser:
    """A denoiser guided by a classifier of noisy data.

    Args:
      denoise: the denoiser to guide.
      process: the forward process.
      log_likelihood: (z [B, ...], t scalar) -> log p(y | z) [B] of the wanted classes.
      scale: weight w.
    """

    def guided(z: Array, t: Array, x0_before: Array) -> Estimate:
        estimate = denoise(z, t, x0_before)
        gradient = jax.grad(lambda a: log_likelihood(a, t).sum())(z)
        # Pure noise tells no class: there a classifier's gradient is only error, which the factor would blow up.
        alpha = process.alpha(t)
        factor = jnp.where(alpha > 1e-4, scale * process.sigma(t) ** 2 / jnp.maximum(alpha, 1e-4), 0.0)
        return estimate._replace(x0=estimate.x0 + factor * gradient)

    return guided
