"""Classifiers that give features for the judgement of samples; see experiments/quality.py."""

from genjax.config import register
from genjax.data import Images
from genjax.families.classifier.feature_net import FeatureNet
from genjax.training import Experiment, Training

_SHRUNK = {"model.channels": (2,), "model.num_features": 4, "model.num_ascent_steps": 2, "data.batch_size": 32}


@register(
    "feature_net_digits",
    source="LeCun et al. 1998, on the UCI digits",
    shrunk=_SHRUNK,
)
def feature_net_digits() -> Experiment:
    """A classifier of the embedded digits.

    python -m experiments.train --experiment=feature_net_digits --workdir=runs/feature_net_digits

    Half a minute on two CPU cores.
    """
    return Experiment(
        model=FeatureNet(num_features=64, largest_shift=1),
        data=Images(name="digits", batch_size=128),
        training=Training(num_steps=1500, steps_per_dispatch=50, log_every=500, evaluate_every=500, num_samples=20),
    )


@register(
    "feature_net_mnist",
    source="LeCun et al. 1998, Proceedings of the IEEE 86(11)",
    shrunk={**_SHRUNK, "data.name": "digits"},
)
def feature_net_mnist() -> Experiment:
    """A classifier of MNIST, trained on its first 54000 pictures.

    python -m experiments.train --experiment=feature_net_mnist --workdir=runs/feature_net_mnist

    Three minutes on two CPU cores.
    """
    training = Training(num_steps=4000, steps_per_dispatch=10, log_every=200, evaluate_every=2000, num_samples=20)
    return Experiment(model=FeatureNet(), data=Images(name="mnist", batch_size=128), training=training)
