"""StyleGAN2 and StyleGAN3 with the settings of their papers and in bfloat16, for GPUs."""

from genjax.config import register
from genjax.data import Images
from genjax.families.gan.augmentation import ADA
from genjax.families.gan.style_gan import StyleGAN
from genjax.families.gan.style_gan2 import StyleGAN2Network
from genjax.families.gan.style_gan3 import StyleGAN3Network
from genjax.optimizers import Adam
from genjax.training import Experiment, Training

#: One program for all of StyleGAN2, with every penalty due, styles mixed and pictures augmented within four steps.
SHRUNK_STYLE_GAN2 = {
    "model.latent_dim": 4,
    "model.network.style_dim": 4,
    "model.network.num_mapping_layers": 1,
    "model.network.channel_base": 32,
    "model.network.channel_max": 4,
    "model.penalty_every": 2,
    "model.path_length_every": 2,
    "model.augmentation": "ada",
    "model.augmentation.groups": ("color",),
    "model.augmentation.images_to_one": 100,
    "model.compute_dtype": "bfloat16",
    "data.name": "digits",
    "data.image_size": None,
    "data.horizontal_flip": False,
    "data.batch_size": 8,
    "data.num_workers": 0,
}


def _adam(learning_rate: float, ema_decay: float | None = None) -> Adam:
    """Adam with the papers' moments and rate.

    The papers take a step of its own for each penalty, and lower both for these (2020, appendix B); here a penalty is a
    part of a step's loss, so that there is nothing to make up for.
    """
    return Adam(learning_rate=learning_rate, b1=0.0, b2=0.99, ema_decay=ema_decay)


def _pictures(size: int, batch_size: int) -> Images:
    """A folder of pictures, and their mirror images."""
    return Images(
        name="folder",
        image_size=(size, size),
        preprocessing="signed",
        horizontal_flip=True,
        batch_size=batch_size,
        eval_batch_size=batch_size,
        num_workers=8,
    )


def _training(num_steps: int) -> Training:
    return Training(num_steps=num_steps, sample_every=5000, num_samples=16, checkpoint_every=5000, pictures=("curves",))


@register(
    "stylegan2_ffhq",
    source="Karras et al. 2020, arXiv:1912.04958, configuration F",
    shrunk=SHRUNK_STYLE_GAN2,
)
def stylegan2_ffhq() -> Experiment:
    """StyleGAN2 on a folder with the pictures of FFHQ at 1024 x 1024, as the paper trains it
    but in bfloat16; not run here.

    python -m experiments.train --experiment=stylegan2_ffhq --data.dir=FOLDER --training.mesh=data:8 --workdir=runs/ffhq

    Days on eight GPUs; --training.mesh=data:4,fsdp:2 shares the parameters too.  At 256 x 256 (arXiv:2006.06676):

        ... --data.image_size=256,256 --data.batch_size=64 --model.network.channel_base=16384 --model.penalty_weight=1
            --model.network.group_size=8 --model.generator_optimizer.learning_rate=0.0025
            --model.discriminator_optimizer.learning_rate=0.0025 --model.generator_optimizer.ema_decay=0.99778
            --training.num_steps=390000
    """
    model = StyleGAN(
        network=StyleGAN2Network(channel_base=32768),
        penalty_weight=10.0,
        compute_dtype="bfloat16",
        # Half of an average is of the last 10000 pictures.
        generator_optimizer=_adam(2e-3, ema_decay=0.5 ** (32 / 10_000)),
        discriminator_optimizer=_adam(2e-3),
    )
    return Experiment(model=model, data=_pictures(1024, 32), training=_training(780_000))


@register(
    "stylegan2_celeba_hq",
    source="Karras et al. 2020, arXiv:1912.04958 and arXiv:2006.06676, on CelebA-HQ (Karras et al. 2018, "
    "arXiv:1710.10196)",
    shrunk=SHRUNK_STYLE_GAN2,
)
def stylegan2_celeba_hq() -> Experiment:
    """StyleGAN2 with adaptive augmentation on a folder with the 30000 pictures of
    CelebA-HQ, at 256 x 256; not run here.

    python -m experiments.train --experiment=stylegan2_celeba_hq --data.dir=FOLDER --training.mesh=data:8 \\
        --workdir=runs/celeba_hq

    Days on eight GPUs.
    """
    model = StyleGAN(
        network=StyleGAN2Network(channel_base=16384, group_size=8),
        penalty_weight=1.0,
        augmentation=ADA(),
        compute_dtype="bfloat16",
        generator_optimizer=_adam(2.5e-3, ema_decay=0.5 ** (64 / 20_000)),
        discriminator_optimizer=_adam(2.5e-3),
    )
    return Experiment(model=model, data=_pictures(256, 64), training=_training(390_000))


@register(
    "stylegan3_ffhq",
    source="Karras et al. 2021, arXiv:2106.12423",
    shrunk={
        "model.latent_dim": 4,
        "model.network.style_dim": 4,
        "model.network.num_mapping_layers": 1,
        "model.network.channel_base": 16,
        "model.network.channel_max": 4,
        "model.network.num_layers": 1,
        "model.network.num_critical": 0,
        "model.network.margin": 2,
        "model.penalty": "none",
        "data.name": "digits",
        "data.image_size": None,
        "data.horizontal_flip": False,
        "data.batch_size": 8,
        "data.num_workers": 0,
    },
)
def stylegan3_ffhq() -> Experiment:
    """StyleGAN3-T on a folder with the pictures of FFHQ at 256 x 256, as the authors' ablations have it; not run here.

    python -m experiments.train --experiment=stylegan3_ffhq --data.dir=FOLDER --training.mesh=data:8 \\
        --workdir=runs/stylegan3

    Days on eight GPUs.  StyleGAN3-R:

        ... --model.network.rotation --model.network.channel_base=32768 --model.network.channel_max=1024 \\
        --model.blur_radius=10
    """
    model = StyleGAN(
        network=StyleGAN3Network(channel_base=16384),
        penalty_weight=1.0,
        path_length_weight=0.0,
        compute_dtype="bfloat16",
        generator_optimizer=_adam(2.5e-3, ema_decay=0.5 ** (64 / 20_000)),
        discriminator_optimizer=_adam(2.5e-3),
    )
    return Experiment(model=model, data=_pictures(256, 64), training=_training(390_000))


@register(
    "stylegan2_emoji",
    source="Karras et al. 2020, arXiv:1912.04958 and arXiv:2006.06676",
    shrunk=SHRUNK_STYLE_GAN2,
)
def stylegan2_emoji() -> Experiment:
    """StyleGAN2 with adaptive augmentation on emoji of 64 x 64 pixels, in bfloat16; for a GPU.

    python -m experiments.train --experiment=stylegan2_emoji --data.dir=emoji64.npz --workdir=runs/emoji

    With a folder of your own pictures: --data.name=folder --data.dir=FOLDER --data.image_size=64,64; on
    several devices: --training.mesh=data:8.  Sizes and weights are those that the second paper gives
    sets of this size of pictures.
    """
    model = StyleGAN(
        network=StyleGAN2Network(num_mapping_layers=2, channel_base=16384),
        # .0002 times the pixels of a picture, by the size of the batch.
        penalty_weight=0.0002 * 64**2 / 64,
        augmentation=ADA(),
        compute_dtype="bfloat16",
        generator_optimizer=_adam(2.5e-3, ema_decay=0.5 ** (64 / 20_000)),
        discriminator_optimizer=_adam(2.5e-3),
    )
    training = Training(num_steps=60_000, sample_every=2000, num_samples=64, pictures=("curves", "walk"))
    return Experiment(model=model, data=Images(name="emoji", preprocessing="signed", batch_size=64), training=training)
