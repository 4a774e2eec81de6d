"""Vector-quantised autoencoders."""

import dataclasses

from genjax.config import register
from genjax.data import CaptionedImages, Images
from genjax.families.vae.discrete_vae import Annealing, DiscreteVAE
from genjax.families.vae.vq_vae import VQVAE
from genjax.nn.distributions import Gaussian
from genjax.optimizers import Adam, Cosine
from genjax.training import Evaluation, Experiment, Training

_SHRUNK = {
    "model.channels": (4,),
    "model.embedding_dim": 4,
    "model.num_codes": 8,
    "data.name": "digits",
    "data.batch_size": 16,
    "data.pad_to": None,
}


def _experiment(model: VQVAE, data: Images, num_steps: int) -> Experiment:
    training = Training(
        num_steps=num_steps,
        steps_per_dispatch=10,
        log_every=200,
        evaluate_every=1000,
        sample_every=1000,
        checkpoint_every=1000,
        best_metric="nll_bound",
    )
    return Experiment(model=model, data=data, training=training)


@register(
    "vq_vae_digits",
    source="van den Oord et al. 2017, arXiv:1711.00937, on the UCI digits",
    shrunk=_SHRUNK,
)
def vq_vae_digits() -> Experiment:
    """A VQ-VAE on the embedded handwritten digits: 4 x 4 places, 64 codes by moving averages.

    python -m experiments.train --experiment=vq_vae_digits --workdir=runs/vq_vae_digits

    About a minute on two CPU cores.
    """
    model = VQVAE(
        channels=(32,),
        num_residual_blocks=1,
        embedding_dim=16,
        num_codes=64,
        optimizer=Adam(learning_rate=1e-3, schedule=Cosine()),
    )
    return _experiment(model, Images(name="digits", batch_size=64), 3000)


@register(
    "vq_vae_mnist",
    source="van den Oord et al. 2017, arXiv:1711.00937",
    shrunk=_SHRUNK,
)
def vq_vae_mnist() -> Experiment:
    """A VQ-VAE on MNIST padded to 32 x 32: 8 x 8 places, 256 codes.

    python -m experiments.train --experiment=vq_vae_mnist --data.dir=TFDS_DIRECTORY --workdir=runs/vq_vae_mnist

    About an hour on two CPU cores, minutes on a GPU.
    """
    model = VQVAE(
        channels=(32, 64),
        embedding_dim=32,
        num_codes=256,
        output=Gaussian(scale=0.1, learned_scale="shared"),
        optimizer=Adam(learning_rate=1e-3, schedule=Cosine(warmup_steps=100)),
    )
    return _experiment(model, Images(name="mnist", pad_to=(32, 32), batch_size=128), 20000)


_SCENES = Experiment(
    model=VQVAE(
        channels=(32, 64),
        embedding_dim=32,
        num_codes=256,
        output=Gaussian(scale=0.1, learned_scale="shared"),
        optimizer=Adam(learning_rate=2e-3, clip_norm=1e4, schedule=Cosine(warmup_steps=50), ema_decay=0.99),
    ),
    data=CaptionedImages(preprocessing="signed", batch_size=32, eval_batch_size=200),
    training=Training(num_steps=5000, log_every=50, evaluate_every=500, sample_every=1000, checkpoint_every=250),
    evaluation=Evaluation(num_examples=400),
)
_SHRUNK_SCENES = {
    "model.embedding_dim": 4,
    "model.num_codes": 8,
    "data.num_made": 32,
    "data.num_held_out": 24,
    "data.batch_size": 8,
}


@register(
    "vq_vae_scenes",
    source="van den Oord et al. 2017, arXiv:1711.00937, on made pictures",
    shrunk={**_SHRUNK_SCENES, "model.channels": (4,)},
)
def vq_vae_scenes() -> Experiment:
    """The autoencoder of dalle_scenes: pictures of Scenes, 32 x 32 pixels, to 8 x 8 codes of 256.

    python -m experiments.train --experiment=vq_vae_scenes --workdir=runs/vq_vae_scenes
    python -m experiments.quality --workdir=runs/vq_vae_scenes --judge=scenes

    About five minutes of one CPU core.
    """
    return _SCENES


@register(
    "dvae_scenes",
    source="Ramesh et al. 2021, arXiv:2102.12092, on made pictures",
    shrunk={**_SHRUNK_SCENES, "model.channels": (4, 4)},
)
def dvae_scenes() -> Experiment:
    """The discrete VAE of DALL-E on pictures of Scenes: 32 x 32 pixels to 8 x 8 codes of 256.

    python -m experiments.train --experiment=dvae_scenes --workdir=runs/dvae_scenes

    About 20 minutes of one CPU core.
    """
    model = DiscreteVAE(
        channels=(16, 32, 64),
        num_blocks=1,
        input_kernel=3,
        embedding_dim=32,
        num_codes=256,
        temperature=Annealing(start=1.0, stop=0.0625, share=0.8),
        kl_weight=Annealing(start=0.0, stop=1.0, share=0.1),
        optimizer=_SCENES.model.optimizer,
    )
    return dataclasses.replace(_SCENES, model=model, training=dataclasses.replace(_SCENES.training, num_steps=3000))
