"""Variational autoencoders on digits and MNIST."""

from genjax.config import register
from genjax.data import Images
from genjax.families.vae.beta_vae import BetaTCVAE, BetaVAE, CapacityVAE
from genjax.families.vae.conditional_vae import ConditionalVAE
from genjax.families.vae.iwae import IWAE
from genjax.families.vae.vae import VAE
from genjax.nn.distributions import Gaussian
from genjax.nn.encoder_decoder import ConvNetwork, MLPNetwork
from genjax.optimizers import Adam, Cosine
from genjax.training import Evaluation, Experiment, Training

_SHRUNK = {"model.latent_dim": 2, "model.network.hidden_dims": (8,), "data.batch_size": 32}
_SHRUNK_CONV = {"model.latent_dim": 2, "model.network.channels": (2, 4), "model.network.hidden_dims": (8,)}
_SHRUNK_MNIST = {**_SHRUNK, "data.name": "digits", "data.preprocessing": "binarize_static"}


@register(
    "vae_digits",
    source="Kingma & Welling 2014, arXiv:1312.6114, on the UCI digits",
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
            # Ten epochs; keeps more latent dimensions in use, which is worth most of a nat of likelihood.
            kl_warmup_steps=5000,
        )
    )


@register(
    "iwae_mnist",
    source="Burda et al. 2016, arXiv:1509.00519, one stochastic layer",
    shrunk=_SHRUNK_MNIST,
)
def iwae_mnist() -> Experiment:
    """vae_mnist with the bound of k = 5 importance samples.

    python -m experiments.train --experiment=iwae_mnist --data.dir=TFDS_DIRECTORY --workdir=runs/iwae_mnist
    python -m experiments.evaluate --workdir=runs/iwae_mnist --model.num_importance_samples=1000

    About eight minutes on two CPU cores; --model.gradient=doubly_reparametrised takes the DReG gradient.
    """
    return _mnist(
        IWAE(
            latent_dim=50,
            network=MLPNetwork(hidden_dims=(200, 200), activation="tanh"),
            optimizer=Adam(learning_rate=1e-3, schedule=Cosine()),
            num_samples=5,
        )
    )


@register(
    "conv_vae_mnist",
    source="Kingma & Welling 2014, arXiv:1312.6114, with residual convolutional networks",
    shrunk={**_SHRUNK_CONV, "data.name": "digits", "data.batch_size": 32, "model.network.num_residual_blocks": 1},
)
def conv_vae_mnist() -> Experiment:
    """A residual convolutional VAE on MNIST (TFDS mnist), binarised anew at every step.

    python -m experiments.train --experiment=conv_vae_mnist --data.dir=TFDS_DIRECTORY --workdir=runs/conv_vae_mnist

    Minutes on a GPU; about an hour on two CPU cores.
    """
    return Experiment(
        model=VAE(
            latent_dim=32,
            network=ConvNetwork(channels=(32, 64), num_residual_blocks=1),
            optimizer=Adam(learning_rate=1e-3, schedule=Cosine(warmup_steps=200)),
        ),
        data=Images(name="mnist", preprocessing="binarize_dynamic", batch_size=128),
        training=Training(
            num_steps=25000, steps_per_dispatch=10, log_every=100, evaluate_every=2500, sample_every=2500
        ),
    )


def _digits(model: VAE, name: str = "digits", num_steps: int = 5000) -> Experiment:
    return Experiment(
        model=model,
        data=Images(name=name, preprocessing="binarize_dynamic", batch_size=128),
        training=Training(num_steps=num_steps, steps_per_dispatch=50, log_every=500, sample_every=num_steps),
    )


@register(
    "conditional_vae_digits",
    source="Kingma et al. 2014, arXiv:1406.5298, M2 with observed labels",
    shrunk=_SHRUNK,
)
def conditional_vae_digits() -> Experiment:
    """A VAE conditional on the class of the embedded digits; half a minute on two CPU cores.

    python -m experiments.train --experiment=conditional_vae_digits --workdir=runs/conditional_vae
    python -m experiments.sample --workdir=runs/conditional_vae --label=3,8
    """
    return _digits(
        ConditionalVAE(
            latent_dim=8,
            network=MLPNetwork(hidden_dims=(256, 256), activation="silu"),
            optimizer=Adam(learning_rate=2e-3, schedule=Cosine()),
        )
    )


@register(
    "linear_vae_digits",
    source="Tipping & Bishop 1999; Lucas et al. 2019, arXiv:1911.02469",
    shrunk={"data.batch_size": 32},
)
def linear_vae_digits() -> Experiment:
    """A VAE with an affine encoder and decoder on the digits, whose optimum is probabilistic PCA; seconds on CPU.

    python -m experiments.train --experiment=linear_vae_digits --workdir=runs/linear_vae
    python -m experiments.evaluate --workdir=runs/linear_vae --evaluation.split=train
    """
    return Experiment(
        model=VAE(
            latent_dim=8,
            network=MLPNetwork(hidden_dims=()),
            output=Gaussian(scale=0.3, learned_scale="shared"),
            optimizer=Adam(learning_rate=3e-2, schedule=Cosine()),
            num_importance_samples=100,
        ),
        data=Images(name="digits", preprocessing="unit", batch_size=1024),
        training=Training(num_steps=10000, steps_per_dispatch=50, log_every=1000, checkpoint_every=10000),
    )


def _sprites(model: VAE) -> Experiment:
    data = Images(name="sprites", preprocessing="unit", batch_size=64)
    training = Training(num_steps=20000, steps_per_dispatch=20, log_every=500, evaluate_every=5000, sample_every=5000)
    return Experiment(model=model, data=data, training=training)


_SPRITES_NETWORK = MLPNetwork(hidden_dims=(400, 400), activation="relu")
_SHRUNK_SPRITES = {**_SHRUNK, "data.name": "digits"}


@register(
    "beta_vae_sprites",
    source="Higgins et al. 2017",
    shrunk=_SHRUNK_SPRITES,
)
def beta_vae_sprites() -> Experiment:
    """beta-VAE on procedural sprites with known factors; five minutes on two CPU cores.

    python -m experiments.train --experiment=beta_vae_sprites --workdir=runs/beta_vae
    python -m experiments.latents --workdir=runs/beta_vae --tool=disentangle
    """
    return _sprites(BetaVAE(latent_dim=10, network=_SPRITES_NETWORK, optimizer=Adam(learning_rate=5e-4), beta=4.0))


@register(
    "capacity_vae_sprites",
    source="Burgess et al. 2018, arXiv:1804.03599",
    shrunk={**_SHRUNK_SPRITES, "model.capacity_steps": 2},
)
def capacity_vae_sprites() -> Experiment:
    """beta-VAE with a rising capacity on sprites; five minutes on two CPU cores.

    python -m experiments.train --experiment=capacity_vae_sprites --workdir=runs/capacity_vae_sprites
    """
    model = CapacityVAE(
        latent_dim=10,
        network=_SPRITES_NETWORK,
        optimizer=Adam(learning_rate=5e-4),
        gamma=100.0,
        max_capacity=16.0,
        capacity_steps=15000,
    )
    return _sprites(model)


@register(
    "beta_tcvae_sprites",
    source="Chen et al. 2018, arXiv:1802.04942",
    shrunk=_SHRUNK_SPRITES,
)
def beta_tcvae_sprites() -> Experiment:
    """beta-TCVAE on sprites; five minutes on two CPU cores.

    python -m experiments.train --experiment=beta_tcvae_sprites --workdir=runs/beta_tcvae_sprites
    python -m experiments.latents --workdir=runs/beta_tcvae_sprites --tool=disentangle
    """
    model = BetaTCVAE(
        latent_dim=10, network=_SPRITES_NETWORK, optimizer=Adam(learning_rate=5e-4), beta=6.0, num_examples=4916
    )
    return _sprites(model)
