"""Generative adversarial networks on two-dimensional densities and on pictures."""

import dataclasses

from genjax.config import register
from genjax.data import Images, Points
from genjax.families.gan.dcgan import DCGANNetwork
from genjax.families.gan.gan import GAN
from genjax.nn.encoder_decoder import MLPNetwork
from genjax.optimizers import Adam
from genjax.training import Experiment, Training


@register(
    "wgan_gp_eight_gaussians",
    source="Gulrajani et al. 2017, arXiv:1704.00028",
    expected="all eight modes; after 6000 steps 99 % of 1000 samples lie within 4 standard deviations of one",
    shrunk={"model.latent_dim": 2, "model.network.hidden_dims": (8,), "data.batch_size": 32},
)
def wgan_gp_eight_gaussians() -> Experiment:
    """WGAN-GP on a ring of eight Gaussians.

    python -m experiments.train --experiment=wgan_gp_eight_gaussians --workdir=runs/wgan_gp

    About a minute on two CPU cores.
    """
    optimizer = Adam(learning_rate=1e-4, b1=0.5, b2=0.9)
    model = GAN(
        latent_dim=2,
        network=MLPNetwork(hidden_dims=(128, 128, 128)),
        objective="wasserstein",
        penalty="wgan_gp",
        penalty_weight=0.1,
        num_discriminator_steps=5,
        generator_optimizer=optimizer,
        discriminator_optimizer=optimizer,
    )
    training = Training(num_steps=10000, steps_per_dispatch=50, num_samples=1000)
    return Experiment(model=model, data=Points(name="eight_gaussians", batch_size=256), training=training)


def _dcgan(base_channels: int, **changes: object) -> GAN:
    """DCGAN with the paper's recipe; the average of the generator's parameters is kept beside it."""
    adam = Adam(learning_rate=2e-4, b1=0.5)
    model = GAN(
        latent_dim=100,
        network=DCGANNetwork(base_channels=base_channels),
        generator_optimizer=dataclasses.replace(adam, ema_decay=0.999),
        discriminator_optimizer=adam,
    )
    return dataclasses.replace(model, **changes)


@register(
    "dcgan_digits",
    source="Radford et al. 2016, arXiv:1511.06434; conditional on classes as Mirza & Osindero 2014, arXiv:1411.1784",
    expected="each row of ten samples shows the ten digits",
    shrunk={"model.latent_dim": 4, "model.network.base_channels": 4, "data.batch_size": 32},
)
def dcgan_digits() -> Experiment:
    """DCGAN on the embedded 8 x 8 digits, conditional on the class.

    python -m experiments.train --experiment=dcgan_digits --workdir=runs/dcgan_digits
    """
    model = _dcgan(32, latent_dim=32, conditioning="concatenation")
    data = Images(name="digits", preprocessing="signed", batch_size=64)
    training = Training(num_steps=5000, steps_per_dispatch=20, sample_every=1000, num_samples=100)
    return Experiment(model=model, data=data, training=training)


@register(
    "dcgan_mnist",
    source="Radford et al. 2016, arXiv:1511.06434",
    expected="not measured yet",
    shrunk={
        "model.latent_dim": 4,
        "model.network.base_channels": 4,
        "data.name": "digits",
        "data.pad_to": (16, 16),
        "data.batch_size": 32,
    },
)
def dcgan_mnist() -> Experiment:
    """DCGAN on MNIST at 28 x 28.

    python -m experiments.train --experiment=dcgan_mnist --data.dir=DIRECTORY --workdir=runs/dcgan_mnist
    """
    data = Images(name="mnist", preprocessing="signed", batch_size=64)
    training = Training(num_steps=20000, sample_every=1000, num_samples=100)
    return Experiment(model=_dcgan(64), data=data, training=training)
