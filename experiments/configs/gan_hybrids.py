"""Translation between two domains of pictures, and adversarial networks that also encode."""

import dataclasses

from genjax.config import register
from genjax.data import Images, Translations
from genjax.families.gan.adversarial_autoencoder import AdversarialAutoencoder, CodeMatching
from genjax.families.gan.bigan import BiGAN
from genjax.families.gan.cycle_gan import CycleGAN
from genjax.families.gan.info_gan import InfoGAN
from genjax.families.gan.pix2pix import Pix2Pix
from genjax.families.gan.translation import ResNetTranslator, UNetTranslator
from genjax.families.gan.vae_gan import VAEGAN
from genjax.nn.encoder_decoder import MLPNetwork
from genjax.optimizers import Adam, Linear
from genjax.training import Experiment, Training

_SHRUNK = {"model.latent_dim": 2, "model.network.hidden_dims": (8,), "model.num_features": 4, "data.batch_size": 16}
_TRAINING = Training(
    num_steps=20000, steps_per_dispatch=50, log_every=1000, evaluate_every=5000, sample_every=5000, pictures=("curves",)
)
_NETWORK = MLPNetwork(hidden_dims=(256, 256), activation="leaky_relu")
_DIGITS = Images(name="digits", preprocessing="unit", batch_size=128)


@register(
    "pix2pix_shapes",
    source="Isola et al. 2017, arXiv:1611.07004, on coloured shapes",
    shrunk={
        "model.network.channels": (4, 4),
        "model.discriminator_channels": (4,),
        "data.name": "digits",
        "data.batch_size": 8,
    },
)
def pix2pix_shapes() -> Experiment:
    """Outlines of coloured shapes to the shapes, 32 x 32.

    python -m experiments.train --experiment=pix2pix_shapes --workdir=runs/pix2pix

    Half an hour (a guess) on two CPU cores.  The paper's sizes, on two folders with pictures
    of the same names, for a GPU:

        ... --data.name=folder --data.dir=PHOTOS --data.source_dir=LABELS --data.image_size=256,256 --data.batch_size=1
            --model.network.channels=64,128,256,512,512,512,512,512 --model.discriminator_channels=64,128,256
    """
    model = Pix2Pix(network=UNetTranslator(channels=(32, 64, 128, 128)), discriminator_channels=(32, 64))
    training = Training(
        num_steps=4000, log_every=100, evaluate_every=1000, sample_every=1000, num_samples=16, pictures=("curves",)
    )
    return Experiment(model=model, data=Translations(name="shapes", batch_size=16), training=training)


@register(
    "cycle_gan_sprites",
    source="Zhu et al. 2017, arXiv:1703.10593, on sprites and their outlines",
    shrunk={
        "model.network.num_channels": 2,
        "model.network.num_residual_blocks": 1,
        "model.network.outer_kernel_size": 3,
        "model.discriminator_channels": (4,),
        "model.identity_weight": 0.0,
        "model.pool_size": 5,
        "data.name": "digits",
        "data.batch_size": 8,
    },
)
def cycle_gan_sprites() -> Experiment:
    """Outlines of sprites to filled sprites and back, 32 x 32, without pairs.

    python -m experiments.train --experiment=cycle_gan_sprites --workdir=runs/cycle_gan

    An hour (a guess) on two CPU cores.  As in the paper the rates stay for half of the steps, and then fall to 0.  The
    paper's sizes, on two folders of pictures, for a GPU:

        ... --data.name=folder --data.dir=HORSES --data.source_dir=ZEBRAS --data.image_size=256,256 --data.batch_size=1
            --model.network.num_channels=64 --model.network.num_residual_blocks=9 \\
            --model.discriminator_channels=64,128,256
    """
    adam = Adam(learning_rate=2e-4, b1=0.5, schedule=Linear(constant_share=0.5))
    model = CycleGAN(
        network=ResNetTranslator(num_channels=16, num_residual_blocks=3),
        discriminator_channels=(32, 64),
        generator_optimizer=adam,
        discriminator_optimizer=adam,
    )
    training = Training(
        num_steps=4000, log_every=100, evaluate_every=1000, sample_every=1000, num_samples=16, pictures=("curves",)
    )
    return Experiment(model=model, data=Translations(name="sprites", paired=False, batch_size=8), training=training)


@register(
    "vae_gan_digits",
    source="Larsen et al. 2016, arXiv:1512.09300, on the UCI digits",
    shrunk=_SHRUNK,
)
def vae_gan_digits() -> Experiment:
    """VAE-GAN of the embedded digits.

    python -m experiments.train --experiment=vae_gan_digits --workdir=runs/vae_gan

    Half a minute on one CPU core.
    """
    model = VAEGAN(latent_dim=16, network=_NETWORK, output_activation="sigmoid", kl_weight=0.05, penalty_weight=0.1)
    return Experiment(model=model, data=_DIGITS, training=dataclasses.replace(_TRAINING, num_steps=5000))


@register(
    "adversarial_autoencoder_digits",
    source="Makhzani et al. 2016, arXiv:1511.05644, on the UCI digits",
    shrunk={
        "model.latent_dim": 2,
        "model.network.hidden_dims": (8,),
        "model.matching.hidden_dims": (8,),
        "data.batch_size": 16,
    },
)
def adversarial_autoencoder_digits() -> Experiment:
    """Adversarial autoencoder of the embedded digits with a normal prior.

    python -m experiments.train --experiment=adversarial_autoencoder_digits --workdir=runs/aae

    A minute on two CPU cores.
    """
    adam = Adam(learning_rate=1e-3, b1=0.5)
    model = AdversarialAutoencoder(
        latent_dim=8,
        network=_NETWORK,
        matching=CodeMatching(penalty_weight=0.1),
        encoder_optimizer=adam,
        discriminator_optimizer=adam,
    )
    return Experiment(model=model, data=_DIGITS, training=_TRAINING)


@register(
    "bigan_digits",
    source="Donahue et al. 2017, arXiv:1605.09782, on the UCI digits",
    shrunk=_SHRUNK,
)
def bigan_digits() -> Experiment:
    """Bidirectional GAN of the embedded digits; --model.stochastic_encoder makes it adversarially learned inference.

    python -m experiments.train --experiment=bigan_digits --workdir=runs/bigan

    Two minutes on one CPU core.
    """
    return Experiment(
        model=BiGAN(latent_dim=16, network=_NETWORK, output_activation="sigmoid"), data=_DIGITS, training=_TRAINING
    )


@register(
    "info_gan_digits",
    source="Chen et al. 2016, arXiv:1606.03657, on the UCI digits",
    shrunk={**{k: v for k, v in _SHRUNK.items() if k != "model.latent_dim"}, "model.noise_dim": 2},
)
def info_gan_digits() -> Experiment:
    """InfoGAN of the embedded digits with ten categories and two continuous variables.

    python -m experiments.train --experiment=info_gan_digits --workdir=runs/info_gan
    python -m experiments.latents --workdir=runs/info_gan --tool=traverse

    A minute on two CPU cores.
    """
    model = InfoGAN(network=_NETWORK, output_activation="sigmoid", penalty_weight=0.1)
    return Experiment(model=model, data=_DIGITS, training=_TRAINING)
