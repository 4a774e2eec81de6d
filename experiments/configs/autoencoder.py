"""Autoencoders on the embedded digits; a minute or less each on two CPU cores."""

from genjax.config import register
from genjax.data import Images
from genjax.families.autoencoder.autoencoder import Autoencoder
from genjax.families.autoencoder.contractive import ContractiveAutoencoder
from genjax.families.autoencoder.denoising import DenoisingAutoencoder, GaussianNoise
from genjax.families.autoencoder.sparse import SparseAutoencoder
from genjax.nn.distributions import Gaussian
from genjax.nn.encoder_decoder import MLPNetwork
from genjax.optimizers import Adam, Cosine
from genjax.training import Experiment, Training

_SHRUNK = {"model.latent_dim": 2, "model.network.hidden_dims": (8,), "data.batch_size": 32}
_NETWORK = MLPNetwork(hidden_dims=(256,), activation="silu")
_OPTIMIZER = Adam(learning_rate=1e-3, schedule=Cosine())


def _digits(model: Autoencoder) -> Experiment:
    return Experiment(
        model=model,
        data=Images(name="digits", preprocessing="unit", batch_size=128),
        training=Training(num_steps=5000, steps_per_dispatch=50, log_every=500, evaluate_every=2500, sample_every=5000),
    )


@register(
    "autoencoder_digits",
    source="Hinton & Salakhutdinov 2006",
    shrunk=_SHRUNK,
)
def autoencoder_digits() -> Experiment:
    """A plain autoencoder with 16 code dimensions.

    python -m experiments.train --experiment=autoencoder_digits --workdir=runs/autoencoder
    """
    return _digits(Autoencoder(latent_dim=16, network=_NETWORK, optimizer=_OPTIMIZER))


@register(
    "denoising_autoencoder_digits",
    source="Vincent et al. 2008; Vincent 2011",
    shrunk=_SHRUNK,
)
def denoising_autoencoder_digits() -> Experiment:
    """A denoising autoencoder, whose reconstruction is also a score.

    python -m experiments.train --experiment=denoising_autoencoder_digits --workdir=runs/denoising

    Other corruptions: --model.corruption=masking, --model.corruption=salt_and_pepper.
    """
    model = DenoisingAutoencoder(
        latent_dim=64,
        network=_NETWORK,
        output=Gaussian(),
        optimizer=_OPTIMIZER,
        corruption=GaussianNoise(scale=0.3),
    )
    return _digits(model)


@register(
    "sparse_autoencoder_digits",
    source="Ng 2011, CS294A lecture notes",
    shrunk=_SHRUNK,
)
def sparse_autoencoder_digits() -> Experiment:
    """A sparse autoencoder with more code dimensions than pixels.

    python -m experiments.train --experiment=sparse_autoencoder_digits --workdir=runs/sparse

    The L1 penalty: --model.penalty=l1 --model.code_activation=relu --model.weight=0.1.
    """
    return _digits(SparseAutoencoder(latent_dim=128, network=_NETWORK, optimizer=_OPTIMIZER))


@register(
    "contractive_autoencoder_digits",
    source="Rifai et al. 2011",
    shrunk=_SHRUNK,
)
def contractive_autoencoder_digits() -> Experiment:
    """A contractive autoencoder with the exact norm of its Jacobian.

    python -m experiments.train --experiment=contractive_autoencoder_digits --workdir=runs/contractive
    """
    return _digits(ContractiveAutoencoder(latent_dim=32, network=_NETWORK, optimizer=_OPTIMIZER))
