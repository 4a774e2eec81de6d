"""Energy-based models of digits."""

from __future__ import annotations

from genjax.config import register
from genjax.data import Images
from genjax.families.energy.boltzmann_machine import RestrictedBoltzmannMachine
from genjax.families.energy.energy_based_model import EnergyBasedModel
from genjax.optimizers import Adam
from genjax.training import Experiment, Training


@register(
    "rbm_digits",
    source="Tieleman 2008, doi:10.1145/1390156.1390290; Salakhutdinov & Murray 2008, doi:10.1145/1390156.1390266",
    shrunk={
        "data.batch_size": 16,
        "model.num_hidden": 4,
        "model.num_chains": 8,
        "model.num_sampling_steps": 4,
        "model.num_temperatures": 4,
        "model.num_importance_chains": 4,
    },
)
def rbm_digits() -> Experiment:
    """RBM with 128 hidden bits on binary 8x8 digits, by persistent contrastive divergence.  A minute on two cores.

    python -m experiments.train --experiment=rbm_digits --workdir=runs/rbm_digits
    """
    data = Images(name="digits", preprocessing="binarize_static", batch_size=128)
    training = Training(num_steps=20000, steps_per_dispatch=100, log_every=1000, checkpoint_every=10000)
    return Experiment(model=RestrictedBoltzmannMachine(), data=data, training=training)


@register(
    "ebm_digits",
    source="Du & Mordatch 2019, arXiv:1903.08689",
    shrunk={
        "data.batch_size": 16,
        "model.hidden_dims": (4,),
        "model.buffer_size": 32,
        "model.num_langevin_steps": 2,
        "model.num_sampling_steps": 4,
    },
)
def ebm_digits() -> Experiment:
    """Convolutional energy of 8x8 digits, by Langevin dynamics from a replay buffer.  Four minutes of CPU.

    python -m experiments.train --experiment=ebm_digits --workdir=runs/ebm_digits
    """
    data = Images(name="digits", preprocessing="signed", batch_size=128)
    training = Training(num_steps=3000, steps_per_dispatch=10, log_every=100, checkpoint_every=1000)
    optimizer = Adam(learning_rate=1e-3, b1=0.0, clip_norm=0.1)
    return Experiment(
        model=EnergyBasedModel(hidden_dims=(16, 32, 64), optimizer=optimizer), data=data, training=training
    )
