"""Flow matching, rectified flow and minibatch optimal transport.

    z_t = (1 - t) x + t epsilon,    loss = E |v(z_t, t) - (epsilon - x)|^2,    dz = v dt from t = 1 to 0

Lipman et al. 2023 (arXiv:2210.02747), Liu et al. 2023 (arXiv:2209.03003); time runs from data to noise.  OT-CFM (Tong et al.
2024, arXiv:2302.00482) pairs the noise with the data of a minibatch at least squared distance, which straightens the paths: here
by Sinkhorn's algorithm on the device, followed by a draw from the plan.  Other interpolants (Albergo et al. 2023,
arXiv:2303.08797) are other processes with the same target, such as process=trigonometric.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from genjax.families.diffusion.diffusion import Diffusion
from genjax.families.diffusion.processes import GaussianProcess, Process, Straight
from genjax.families.diffusion.samplers import Euler, Sampler
from genjax.families.diffusion.targets import Target
from genjax.model import Array, Batch, example_keys


def sinkhorn(cost: Array, regularization: float, num_iterations: int) -> Array:
    """Log of the entropic optimal plan between uniform marginals (Cuturi 2013, arXiv:1306.0895), each row a distribution.

    Args:
      cost: [N, N].
      regularization: weight of the entropy, relative to the mean cost.
      num_iterations: alternating normalisations.

    Returns:
      Log-probabilities [N, N] whose rows sum to 1 and whose columns nearly do.
    """
    logits = -cost / (regularization * jnp.mean(cost) + 1e-12)

    def normalize(_: Array, plan: Array) -> Array:
        plan = plan - jax.nn.logsumexp(plan, axis=0, keepdims=True)
        return plan - jax.nn.logsumexp(plan, axis=1, keepdims=True)

    return jax.lax.fori_loop(0, num_iterations, normalize, logits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowMatching(Diffusion):
    """Flow matching.

    Attributes:
      coupling: independent noise, or paired by optimal transport within each batch (each microbatch or device by itself).
      regularization: entropy of the transport plan, relative to the mean cost.
      sinkhorn_iterations: iterations of Sinkhorn's algorithm.
    """

    process: Process = Straight()
    target: Target = "velocity"
    sampler: Sampler = Euler(num_steps=50, variable="time")
    coupling: Literal["independent", "optimal_transport"] = "independent"
    regularization: float = 0.02
    sinkhorn_iterations: int = 50

    def draw(self, batch: Batch, key: Array, process: GaussianProcess) -> tuple[Array, Array, Array]:
        t, epsilon, keys = super().draw(batch, key, process)
        if self.coupling == "optimal_transport":
            x = batch["x"]
            a, b = x.reshape(x.shape[0], -1), epsilon.reshape(x.shape[0], -1)
            cost = jnp.square(a).sum(1)[:, None] + jnp.square(b).sum(1)[None] - 2.0 * a @ b.T
            plan = sinkhorn(cost, self.regularization, self.sinkhorn_iterations)
            choice_keys = example_keys(jax.random.fold_in(key, 1), batch)
            epsilon = epsilon[jax.vmap(jax.random.categorical)(choice_keys, plan)]
        return t, epsilon, keys
