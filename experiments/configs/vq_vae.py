"""Vector-quantised autoencoders."""

from genjax.config import register
from genjax.data import Images
from genjax.families.vae.vq_vae import VQVAE
from genjax.nn.distributions import Gaussian
from genjax.optimizers import Adam, Cosine
from genjax.training import Experiment, Training

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
