"""Flow matching, rectified flow and minibatch optimal transport.

    z_t = (1 - t) x + t epsilon,    loss = E |v(z_t, t) - (epsilon - x)|^2,    dz = v dt from t = 1 to 0

Lipman et al. 2023 (arXiv:2210.02747), Liu et al. 2023 (arXiv:2209.03003); time runs from data to noise.  OT-CFM (Tong
et al. 2024, arXiv:2302.00482) pairs the noise with the data of a minibatch at least squared distance, which straightens
the paths; each noise has one partner (section 3.2, with exact transport).  Other interpolants between data and normal
noise (Albergo et al. 2023, arXiv:2303.08797) are other processes with the same target: process=trigonometric, and with
a latent variable process=latent_noise.  Interpolants between two sets of data are not here.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, counted_examples
from genjax.families.diffusion.assignment import assign
from genjax.families.diffusion.diffusion import Diffusion, ODELikelihood
from genjax.families.diffusion.processes import GaussianProcess, LinearInterpolant, Process
from genjax.families.diffusion.samplers import Euler, Sampler
from genjax.families.diffusion.targets import Target
from genjax.families.diffusion.transformer_checkpoints import FLUX, SD3
from genjax.interop.architecture import Architecture


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowMatching(ODELikelihood, Diffusion):
    """Flow matching.

    Attributes:
      coupling: independent noise, or noise paired with data by optimal transport within each batch (each microbatch or
        device separately).  The pairing ignores conditions, so a conditional model sees noise that
        depends a little on its condition.
    """

    architectures: ClassVar[tuple[Architecture, ...]] = (SD3, FLUX)

    process: Process = LinearInterpolant()
    target: Target = "velocity"
    sampler: Sampler = Euler(num_steps=50, variable="time")
    coupling: Literal["independent", "optimal_transport"] = "independent"

    @property
    def text_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of a context of one token and of a pooled text, of a network that knows their widths."""
        found = {}
        if (width := getattr(self.network, "context_dim", None)) is not None and "context" in self.condition_on:
            found["context"] = (1, width)
        if (width := getattr(self.network, "vector_dim", None)) is not None and "vector" in self.condition_on:
            found["vector"] = (width,)
        return found

    def draw(self, batch: Batch, key: Array, process: GaussianProcess) -> tuple[Array, Array, Array]:
        t, epsilon, keys = super().draw(batch, key, process)
        if self.coupling == "optimal_transport":
            x = batch["x"]
            a, b = x.reshape(x.shape[0], -1), epsilon.reshape(x.shape[0], -1)
            # Terms that depend on the row or the column only do not influence the pairing, and are left out.
            cost = -2.0 * jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
            counted = counted_examples(batch)
            if counted is not None:
                # More costly than any two pairs that it could replace, so that padding is paired with noise of padding.
                dear = 2.0 * cost.max() - cost.min() + 1.0
                cost = jnp.where(counted[:, None] == counted[None], cost, dear)
            epsilon = epsilon[assign(jax.lax.stop_gradient(cost))]
        return t, epsilon, keys
