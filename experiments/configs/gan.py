"""Generative adversarial networks on two-dimensional densities and on pictures."""

import dataclasses

from experiments.configs.style_gan import SHRUNK_STYLE_GAN2
from genjax.config import register
from genjax.data import Images, Points
from genjax.families.gan.augmentation import ADA
from genjax.families.gan.dcgan import DCGANNetwork
from genjax.families.gan.gan import GAN
from genjax.families.gan.maxout import MaxoutNetwork
from genjax.families.gan.sngan import SNGANNetwork
from genjax.families.gan.style_gan import StyleGAN
from genjax.families.gan.style_gan2 import StyleGAN2Network
from genjax.nn.encoder_decoder import MLPNetwork
from genjax.optimizers import Adam, Linear, RMSProp
from genjax.training import Experiment, Training

_UNCONDITIONAL = ("curves", "walk")
_PICTURES = (*_UNCONDITIONAL, "classes")


@register(
    "wgan_gp_eight_gaussians",
    source="Gulrajani et al. 2017, arXiv:1704.00028",
    shrunk={"model.latent_dim": 2, "model.network.hidden_dims": (8,), "data.batch_size": 40},
)
def wgan_gp_eight_gaussians() -> Experiment:
    """WGAN-GP on a ring of eight Gaussians.

    python -m experiments.train --experiment=wgan_gp_eight_gaussians --workdir=runs/wgan_gp

    About a minute on two CPU cores.  Each of the critic's five updates takes 256 points of its own.
    """
    optimizer = Adam(learning_rate=1e-4, b1=0.5, b2=0.9)
    model = GAN(
        latent_dim=2,
        network=MLPNetwork(hidden_dims=(128, 128, 128)),
        objective="wasserstein",
        penalty="wgan_gp",
        penalty_weight=0.1,
        num_discriminator_steps=5,
        fresh_examples=True,
        generator_optimizer=optimizer,
        discriminator_optimizer=optimizer,
    )
    training = Training(num_steps=10000, steps_per_dispatch=50, num_samples=1000, pictures=("curves",))
    return Experiment(model=model, data=Points(name="eight_gaussians", batch_size=1280), training=training)


@register(
    "gan_mnist",
    source="Goodfellow et al. 2014, arXiv:1406.2661",
    shrunk={
        "model.latent_dim": 4,
        "model.network.generator_dims": (8,),
        "model.network.discriminator_dims": (8,),
        "data.name": "digits",
        "data.batch_size": 32,
    },
)
def gan_mnist() -> Experiment:
    """The first adversarial networks, perceptrons with maxout and dropout in the discriminator, on MNIST.

    python -m experiments.train --experiment=gan_mnist --data.dir=DIRECTORY --workdir=runs/gan_mnist

    Latents are normal and the rule is Adam, where the paper has uniform ones and momentum.  An
    hour (a guess) on two CPU cores.
    """
    model = GAN(latent_dim=100, network=MaxoutNetwork())
    training = Training(
        num_steps=60000, steps_per_dispatch=10, sample_every=5000, num_samples=100, pictures=_UNCONDITIONAL
    )
    return Experiment(model=model, data=Images(name="mnist", preprocessing="unit", batch_size=100), training=training)


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
    shrunk={"model.latent_dim": 4, "model.network.base_channels": 4, "data.batch_size": 32},
)
def dcgan_digits() -> Experiment:
    """DCGAN on the embedded 8 x 8 digits, conditional on the class.

    python -m experiments.train --experiment=dcgan_digits --workdir=runs/dcgan_digits
    """
    model = _dcgan(32, latent_dim=32, conditioning="concatenation")
    data = Images(name="digits", preprocessing="signed", batch_size=64)
    training = Training(num_steps=5000, steps_per_dispatch=20, sample_every=1000, num_samples=100, pictures=_PICTURES)
    return Experiment(model=model, data=data, training=training)


@register(
    "dcgan_mnist",
    source="Radford et al. 2016, arXiv:1511.06434; projection: Miyato & Koyama 2018, arXiv:1802.05637",
    shrunk={
        "model.latent_dim": 4,
        "model.network.base_channels": 4,
        "data.name": "digits",
        "data.pad_to": (16, 16),
        "data.batch_size": 32,
    },
)
def dcgan_mnist() -> Experiment:
    """Class-conditional DCGAN on MNIST at 28 x 28, with R1 in place of the discriminator's batch norm.

    python -m experiments.train --experiment=dcgan_mnist --data.dir=DIRECTORY --workdir=runs/dcgan_mnist
    python -m experiments.quality --workdir=runs/dcgan_mnist --features=runs/feature_net_mnist

    A quarter of an hour on two CPU cores.  Rates five times the paper's that fall to 0 suit so short a run; the class
    is what matters most: without it, and with half the channels, the same steps end at a distance of 45.
    """
    adam = Adam(learning_rate=1e-3, b1=0.5, schedule=Linear())
    model = _dcgan(
        64,
        latent_dim=64,
        conditioning="projection",
        network=DCGANNetwork(discriminator_norm="none"),
        penalty="r1",
        penalty_weight=0.1,
        penalty_every=16,
        generator_optimizer=dataclasses.replace(adam, ema_decay=0.999),
        discriminator_optimizer=adam,
    )
    data = Images(name="mnist", preprocessing="signed", batch_size=64)
    training = Training(num_steps=20000, steps_per_dispatch=10, sample_every=5000, num_samples=100, pictures=_PICTURES)
    return Experiment(model=model, data=data, training=training)


@register(
    "dcgan_folder",
    source="Radford et al. 2016, arXiv:1511.06434",
    shrunk={
        "model.latent_dim": 4,
        "model.network.base_channels": 4,
        "data.name": "digits",
        "data.image_size": None,
        "data.pad_to": (16, 16),
        "data.batch_size": 32,
    },
)
def dcgan_folder() -> Experiment:
    """DCGAN as the paper trains it, on any folder of pictures, which are cropped and scaled to 64 x 64; needs a GPU.

    python -m experiments.train --experiment=dcgan_folder --data.dir=FOLDER --workdir=runs/dcgan
    python -m experiments.train --experiment=dcgan_folder --data.name=emoji --data.dir=emoji64.npz --workdir=runs/dcgan

    1024 channels at 4 x 4 pixels (figure 1), batch norm in both networks; latents are normal,
    where the paper has U(-1, 1).
    """
    adam = Adam(learning_rate=2e-4, b1=0.5)
    model = _dcgan(128, generator_optimizer=adam)
    data = Images(name="folder", image_size=(64, 64), preprocessing="signed", batch_size=128)
    training = Training(
        num_steps=50000, sample_every=1000, num_samples=64, checkpoint_every=5000, pictures=_UNCONDITIONAL
    )
    return Experiment(model=model, data=data, training=training)


@register(
    "wgan_mnist",
    source="Arjovsky et al. 2017, arXiv:1701.07875",
    shrunk={
        "model.latent_dim": 4,
        "model.network.base_channels": 4,
        "model.num_discriminator_steps": 2,
        "data.name": "digits",
        "data.batch_size": 32,
    },
)
def wgan_mnist() -> Experiment:
    """DCGAN's networks with the recipe of the first WGAN on MNIST: RMSProp at 5e-5, clipping
    at .01, five critic updates.

    python -m experiments.train --experiment=wgan_mnist --data.dir=DIRECTORY --workdir=runs/wgan_mnist

    Each update of the critic takes 64 pictures of its own.  Hours (a guess) on two CPU cores, as the rate is so small.
    """
    rule = RMSProp(learning_rate=5e-5, decay=0.99)
    model = _dcgan(
        32,
        objective="wasserstein",
        clip_weights=0.01,
        num_discriminator_steps=5,
        fresh_examples=True,
        generator_optimizer=rule,
        discriminator_optimizer=rule,
    )
    data = Images(name="mnist", preprocessing="signed", batch_size=320)
    training = Training(
        num_steps=50000, steps_per_dispatch=10, sample_every=5000, num_samples=100, pictures=_UNCONDITIONAL
    )
    return Experiment(model=model, data=data, training=training)


@register(
    "sngan_cifar10",
    source="Miyato et al. 2018, arXiv:1802.05957; projection: Miyato & Koyama 2018, arXiv:1802.05637",
    shrunk={
        "model.latent_dim": 4,
        "model.network.generator_channels": 4,
        "model.network.discriminator_channels": 4,
        "model.num_discriminator_steps": 2,
        "data.name": "digits",
        "data.batch_size": 32,
    },
)
def sngan_cifar10() -> Experiment:
    """Residual SNGAN with the projection discriminator on CIFAR-10, as the paper trains it; needs a GPU.

    python -m experiments.train --experiment=sngan_cifar10 --data.dir=DIRECTORY --workdir=runs/sngan

    The five updates of the discriminator take 64 pictures each.  The paper computes in float32; this is bfloat16.  On
    eight devices: --training.mesh=data:8.
    """
    adam = Adam(learning_rate=2e-4, b1=0.0, b2=0.9, schedule=Linear())
    model = GAN(
        latent_dim=128,
        network=SNGANNetwork(),
        conditioning="projection",
        objective="hinge",
        num_discriminator_steps=5,
        fresh_examples=True,
        compute_dtype="bfloat16",
        generator_optimizer=dataclasses.replace(adam, ema_decay=0.9999),
        discriminator_optimizer=adam,
    )
    data = Images(name="cifar10", preprocessing="signed", batch_size=320, horizontal_flip=True)
    training = Training(num_steps=50000, sample_every=1000, num_samples=100, checkpoint_every=5000, pictures=_PICTURES)
    return Experiment(model=model, data=data, training=training)


@register(
    "stylegan2_shapes",
    source="Karras et al. 2020, arXiv:1912.04958 and arXiv:2006.06676",
    shrunk=SHRUNK_STYLE_GAN2,
)
def stylegan2_shapes() -> Experiment:
    """StyleGAN2 with adaptive augmentation on the embedded coloured shapes of 32 x 32 pixels; better on a GPU.

    python -m experiments.train --experiment=stylegan2_shapes --workdir=runs/stylegan2

    StyleGAN3-T: --model.network=style_gan3_network --model.path_length_weight=0, and R with twice the channels too:

        ... --model.network.rotation --model.network.channel_base=4096 --model.network.channel_max=256 \\
        --model.blur_radius=1

    Larger pictures, for GPUs: stylegan2_emoji, stylegan2_celeba_hq, stylegan2_ffhq and stylegan3_ffhq.
    """
    model = StyleGAN(
        latent_dim=128,
        network=StyleGAN2Network(style_dim=128, num_mapping_layers=4, channel_base=2048, channel_max=128),
        penalty_weight=1.0,
        augmentation=ADA(images_to_one=100_000),
    )
    data = Images(name="shapes", preprocessing="signed", batch_size=32)
    training = Training(num_steps=20000, sample_every=500, num_samples=64, pictures=_UNCONDITIONAL)
    return Experiment(model=model, data=data, training=training)
