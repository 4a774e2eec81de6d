"""Autoencoders for latent diffusion, and diffusion models of their codes."""

import dataclasses

from genjax.config import register
from genjax.data import CaptionedImages, Images
from genjax.families.vae.autoencoder_kl import AutoencoderKL
from genjax.families.vae.picture_autoencoder import PictureNetwork
from genjax.optimizers import Adam, Cosine
from genjax.training import Experiment, Training


@register(
    "autoencoder_kl_shapes",
    source="Rombach et al. 2022, arXiv:2112.10752, on coloured shapes",
    shrunk={
        "model.network.channels": (4, 4),
        "model.network.num_groups": 2,
        "model.gan_weight": 0.5,
        "model.gan_start": 1,
        "model.discriminator_channels": (4,),
        "data.batch_size": 8,
    },
)
def autoencoder_kl_shapes() -> Experiment:
    """The autoencoder of latent diffusion on coloured shapes: 32 x 32 pixels to codes of 8 x 8 x 4.

    python -m experiments.train --experiment=autoencoder_kl_shapes --workdir=runs/autoencoder_kl_shapes

    About ten minutes on two CPU cores.
    """
    return Experiment(
        model=AutoencoderKL(
            network=PictureNetwork(channels=(16, 32, 32), num_groups=8),
            optimizer=Adam(learning_rate=2e-3, schedule=Cosine(warmup_steps=50), clip_norm=1e4, ema_decay=0.99),
        ),
        data=Images(name="shapes", preprocessing="signed", batch_size=16),
        training=Training(
            num_steps=1500, log_every=50, evaluate_every=500, sample_every=500, checkpoint_every=500, best_metric="psnr"
        ),
    )


@register(
    "autoencoder_kl_scenes",
    source="Rombach et al. 2022, arXiv:2112.10752, on made pictures",
    shrunk={
        "model.network.channels": (4, 4),
        "model.network.num_groups": 2,
        "model.discriminator_channels": (4,),
        "data.num_made": 32,
        "data.num_held_out": 24,
        "data.batch_size": 8,
    },
)
def autoencoder_kl_scenes() -> Experiment:
    """The autoencoder of latent_text_to_image_scenes: 32 x 32 pixels of Scenes to codes of 8 x 8 x 4.

    python -m experiments.train --experiment=autoencoder_kl_scenes --workdir=runs/autoencoder_kl_scenes

    About ten minutes of one CPU core.
    """
    shapes = autoencoder_kl_shapes()
    # Squared error finds small things sooner than absolute error does.  Noise of the posterior teaches the decoder to
    # draw the same of codes that a diffusion model gets nearly right.
    model = dataclasses.replace(shapes.model, reconstruction="gaussian", kl_weight=1e-3)
    data = CaptionedImages(preprocessing="signed", batch_size=16, eval_batch_size=200)
    return dataclasses.replace(
        shapes, model=model, data=data, training=dataclasses.replace(shapes.training, num_steps=4000)
    )
