"""Variational autoencoders on digits and MNIST."""

from genjax.config import register
from genjax.data import Images
from genjax.families.vae.vae import VAE
from genjax.nn.encoder_decoder import MLPNetwork
from genjax.optimizers import Adam, Cosine
from genjax.training import Evaluation, Experiment, Training

_SHRUNK = {"model.latent_dim": 2, "model.network.hidden_dims": (8,), "data.batch_size": 32}
_SHRUNK_MNIST = {**_SHRUNK, "data.name": "digits", "data.preprocessing": "binarize_static"}


@register(
    "vae_digits",
    source="Kingma & Welling 2014, arXiv:1312.6114, on the UCI digits",
    expected="test ELBO about -22.2 nats, importance-weighted NLL about 21.7 nats (8 x 8 binary pixels, drawn anew)",
    shrunk=_SHRUNK,
)
def vae_digits() -> Experiment:
    """A VAE on the embedded handwritten digits, binarised anew at every step; the experiment of `make demo`.

    python -m experiments.train --experiment=vae_digits --workdir=runs/vae_digits

    About half a minute on two CPU cores.
    """
    return Experiment(
        model=VAE(
            latent_dim=16,
            network=MLPNetwork(hidden_dims=(256, 256), activation="silu"),
            optimizer=Adam(learning_rate=2e-3, schedule=Cosine(warmup_steps=200)),
            num_importance_samples=500,
        ),
        data=Images(name="digits", preprocessing="binarize_dynamic", batch_size=128),
        training=Training(
            num_steps=20000,
            steps_per_dispatch=50,
            log_every=1000,
            evaluate_every=5000,
            sample_every=5000,
            checkpoint_every=5000,
            best_metric="nll_bound",
        ),
    )


def _mnist(model: VAE) -> Experiment:
    return Experiment(
        model=model,
        # 50 epochs of the 50000 training images.
        data=Images(name="binarized_mnist", batch_size=100),
        training=Training(
            num_steps=25000,
            steps_per_dispatch=50,
            log_every=500,
            evaluate_every=5000,
            sample_every=5000,
            checkpoint_every=5000,
            best_metric="nll_bound",
        ),
        evaluation=Evaluation(split="test"),
    )


@register(
    "vae_mnist",
    source="Kingma & Welling 2014, arXiv:1312.6114; architecture of Burda et al. 2016, arXiv:1509.00519, one layer",
    expected="test ELBO >= -99.5 nats; importance-weighted NLL (1000 samples) <= 94.5 nats",
    shrunk=_SHRUNK_MNIST,
)
def vae_mnist() -> Experiment:
    """A VAE on statically binarised MNIST (TFDS binarized_mnist): 2 x 200 tanh, 50 latents, 50 epochs.

    python -m experiments.train --experiment=vae_mnist --data.dir=TFDS_DIRECTORY --workdir=runs/vae_mnist
    python -m experiments.evaluate --workdir=runs/vae_mnist --model.num_importance_samples=1000

    About three minutes on two CPU cores, and about ten for the evaluation.
    """
    return _mnist(
        VAE(
            latent_dim=50,
            network=MLPNetwork(hidden_dims=(200, 200), activation="tanh"),
            optimizer=Adam(learning_rate=1e-3, schedule=Cosine()),
        )
    )
