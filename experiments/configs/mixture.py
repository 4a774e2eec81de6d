"""Mixtures of points and digits."""

from __future__ import annotations

import dataclasses

from genjax.config import register
from genjax.data import Images, Points
from genjax.families.mixture.dirichlet_process import DirichletProcessMixture
from genjax.families.mixture.mixture import MixtureModel
from genjax.nn.emissions import Bernoulli
from genjax.training import Experiment, Training

_POINTS = {"data.num_train": 256, "data.num_held_out": 64, "data.batch_size": 64}


def _points(model: MixtureModel, name: str) -> Experiment:
    data = Points(name=name, num_train=10000, batch_size=10000, eval_batch_size=5000)
    return Experiment(model=model, data=data, training=Training(num_steps=100, log_every=10, steps_per_dispatch=10))


@register(
    "gmm_two_moons",
    source="Dempster et al. 1977, doi:10.1111/j.2517-6161.1977.tb01600.x",
    shrunk={**_POINTS, "model.num_components": 3},
)
def gmm_two_moons() -> Experiment:
    """Sixteen full-covariance Gaussians on two moons by EM.

    python -m experiments.train --experiment=gmm_two_moons --workdir=runs/gmm_two_moons
    """
    return _points(MixtureModel(num_components=16), "two_moons")


@register(
    "dp_mixture_eight_gaussians",
    source="Blei & Jordan 2006, doi:10.1214/06-BA104",
    shrunk={**_POINTS, "model.num_components": 4},
)
def dp_mixture_eight_gaussians() -> Experiment:
    """Truncated Dirichlet-process mixture, which drops the components that it does not need.

    python -m experiments.train --experiment=dp_mixture_eight_gaussians --workdir=runs/dp_mixture
    """
    experiment = _points(DirichletProcessMixture(), "eight_gaussians")
    return dataclasses.replace(experiment, training=dataclasses.replace(experiment.training, num_steps=2000))


@register(
    "bernoulli_mixture_digits",
    source="Bishop 2006, Pattern Recognition and Machine Learning, section 9.3.3",
    shrunk={"data.batch_size": 32, "model.num_components": 4},
)
def bernoulli_mixture_digits() -> Experiment:
    """Sixty-four Bernoulli components on binary 8x8 digits.

    python -m experiments.train --experiment=bernoulli_mixture_digits --workdir=runs/bernoulli_mixture
    """
    model = MixtureModel(num_components=64, component=Bernoulli(pseudo_count=0.1))
    data = Images(name="digits", preprocessing="binarize_static", batch_size=1400)
    return Experiment(model=model, data=data, training=Training(num_steps=50, log_every=10))
