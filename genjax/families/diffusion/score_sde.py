"""Score-based models through stochastic differential equations (Song et al. 2021, arXiv:2011.13456).

    dz = f(t) z dt + g(t) dw,    loss = E sigma(t)^2 |score(z_t, t) - grad log q(z_t | x)|^2             (eq. 7)

The network predicts epsilon = -sigma score, so that the weighted loss is the plain error of epsilon.  Samples come from
the reverse SDE with Langevin corrections, likelihoods from the probability-flow ODE.
"""

from __future__ import annotations

import dataclasses

from genjax.families.diffusion.diffusion import Diffusion, ODELikelihood
from genjax.families.diffusion.processes import Process, VariancePreserving
from genjax.families.diffusion.samplers import PredictorCorrector, Sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreSDE(ODELikelihood, Diffusion):
    """Score SDE; process is variance_preserving, sub_variance_preserving or variance_exploding (with scale_input=true).

    weighting=likelihood makes the loss the bound of the likelihood (Song et al. 2021, arXiv:2101.09258).
    """

    process: Process = VariancePreserving()
    sampler: Sampler = PredictorCorrector()
