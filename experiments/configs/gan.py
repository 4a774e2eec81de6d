"""Generative adversarial networks on two-dimensional densities."""

from genjax.config import register
from genjax.data import Points
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
