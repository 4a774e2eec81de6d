"""Markov chain Monte Carlo on posteriors that are well understood."""

from __future__ import annotations

from genjax.config import register
from genjax.data import Evidence
from genjax.families.monte_carlo.monte_carlo import MonteCarlo, StochasticGradientLangevin
from genjax.families.monte_carlo.targets import CorrelatedGaussian, EightSchools, Funnel, LogisticRegression, Target
from genjax.training import Experiment, Training

_SHRUNK = {"model.num_chains": 2, "model.num_draws": 4, "model.num_warmup": 0}
_SHRUNK_NUTS = {**_SHRUNK, "model.kernel.max_depth": 2}
# NUTS takes long to compile, so one of its experiments is tested with it.
_SHRUNK_MALA = {**_SHRUNK, "model.kernel": "mala"}


def _training(num_steps: int) -> Training:
    return Training(
        num_steps=num_steps,
        steps_per_dispatch=100,
        log_every=500,
        checkpoint_every=num_steps,
        num_samples=1000,
    )


def _nuts(target: Target, data: Evidence, **fields) -> Experiment:
    model = MonteCarlo(target=target, num_chains=4, num_warmup=1000, num_draws=2000, **fields)
    return Experiment(model=model, data=data, training=_training(3000))


@register(
    "nuts_eight_schools",
    source="Rubin 1981, doi:10.3102/10769986006004377; Hoffman & Gelman 2014, arXiv:1111.4246",
    shrunk=_SHRUNK_NUTS,
)
def nuts_eight_schools() -> Experiment:
    """The hierarchical normal model of eight schools, non-centred, by NUTS.  Seconds on two cores.

    python -m experiments.train --experiment=nuts_eight_schools --workdir=runs/nuts_eight_schools
    python -m experiments.chains --workdir=runs/nuts_eight_schools
    """
    return _nuts(EightSchools(), Evidence(name="eight_schools", batch_size=8, eval_batch_size=8))


@register(
    "nuts_funnel",
    source="Neal 2003, doi:10.1214/aos/1056562461; Hoffman & Gelman 2014, arXiv:1111.4246",
    shrunk=_SHRUNK_MALA,
)
def nuts_funnel() -> Experiment:
    """Neal's funnel in ten dimensions, non-centred, by NUTS.  Seconds on two cores.

    python -m experiments.train --experiment=nuts_funnel --workdir=runs/nuts_funnel
    """
    return _nuts(Funnel(), Evidence(batch_size=8, eval_batch_size=8))


@register(
    "nuts_correlated_gaussian",
    source="Hoffman & Gelman 2014, arXiv:1111.4246",
    shrunk={**_SHRUNK_MALA, "model.target.dim": 2},
)
def nuts_correlated_gaussian() -> Experiment:
    """A normal of 50 coordinates with correlation .95 of neighbours, by NUTS.  Seconds on two cores.

    python -m experiments.train --experiment=nuts_correlated_gaussian --workdir=runs/nuts_correlated_gaussian
    """
    return _nuts(CorrelatedGaussian(dim=50, correlation=0.95), Evidence(batch_size=8, eval_batch_size=8))


@register(
    "nuts_logistic_regression",
    source="Hoffman & Gelman 2014, arXiv:1111.4246; data of Street et al. 1993, in scikit-learn",
    shrunk=_SHRUNK_MALA,
)
def nuts_logistic_regression() -> Experiment:
    """Bayesian logistic regression with 31 weights, by NUTS.  Half a minute on two cores.

    python -m experiments.train --experiment=nuts_logistic_regression --workdir=runs/nuts_logistic_regression
    """
    return _nuts(LogisticRegression(), Evidence(name="breast_cancer", batch_size=456))


@register(
    "sgld_logistic_regression",
    source="Welling & Teh 2011, ICML",
    shrunk={**_SHRUNK, "data.batch_size": 16},
)
def sgld_logistic_regression() -> Experiment:
    """Bayesian logistic regression from minibatches, by stochastic-gradient Langevin dynamics.  Seconds on two cores.

    python -m experiments.train --experiment=sgld_logistic_regression --workdir=runs/sgld_logistic_regression
    """
    model = StochasticGradientLangevin(target=LogisticRegression(), num_chains=8, num_draws=10000, num_warmup=10000)
    data = Evidence(name="breast_cancer", batch_size=32)
    return Experiment(model=model, data=data, training=_training(20000))
