"""Autoregressive models of binarised MNIST and of the digits."""

import dataclasses

from genjax.config import register
from genjax.data import Images
from genjax.families.autoregressive.base import AutoregressiveModel
from genjax.families.autoregressive.fvsbn import FVSBN
from genjax.families.autoregressive.gated_pixel_cnn import GatedPixelCNN
from genjax.families.autoregressive.image_gpt import ImageGPT
from genjax.families.autoregressive.made import MADE
from genjax.families.autoregressive.nade import NADE
from genjax.families.autoregressive.pixel_cnn import PixelCNN
from genjax.families.autoregressive.pixel_cnn_pp import PixelCNNPP
from genjax.families.autoregressive.pixel_rnn import PixelRNN
from genjax.families.autoregressive.pixel_snail import PixelSNAIL
from genjax.families.autoregressive.vq_prior import VQPrior
from genjax.families.vae.vq_vae import VQVAE
from genjax.nn.distributions import Categorical, DiscretizedLogistic
from genjax.nn.transformer import Transformer
from genjax.optimizers import Adam, AdamW, Cosine
from genjax.training import Experiment, Training

_DIGITS = {"data.name": "digits", "data.batch_size": 32}
_BINARY_DIGITS = {**_DIGITS, "data.preprocessing": "binarize_dynamic"}


def _binary_mnist(model: AutoregressiveModel, num_steps: int, batch_size: int = 100) -> Experiment:
    """The fixed binarisation, 50000 training images."""
    return Experiment(
        model=model,
        data=Images(name="binarized_mnist", batch_size=batch_size),
        training=Training(
            num_steps=num_steps,
            steps_per_dispatch=20,
            log_every=500,
            evaluate_every=2500,
            sample_every=5000,
            checkpoint_every=2500,
            best_metric="nll",
        ),
    )


def _dynamic_mnist(model: AutoregressiveModel, batch_size: int, num_steps: int = 50000) -> Experiment:
    """MNIST binarised anew at every step."""
    experiment = _binary_mnist(model, num_steps, batch_size)
    data = Images(name="mnist", preprocessing="binarize_dynamic", batch_size=batch_size)
    return dataclasses.replace(experiment, data=data)


@register(
    "fvsbn_mnist",
    source="Frey 1998; Larochelle & Murray 2011",
    shrunk=_BINARY_DIGITS,
)
def fvsbn_mnist() -> Experiment:
    """A fully visible sigmoid belief network on statically binarised MNIST.

    python -m experiments.train --experiment=fvsbn_mnist --data.dir=TFDS_DIRECTORY --workdir=runs/fvsbn_mnist

    A minute or two on two CPU cores.  For figures on dynamic binarisation, --data.name=mnist
    --data.preprocessing=binarize_dynamic.
    """
    return _binary_mnist(FVSBN(optimizer=Adam(learning_rate=2e-3, schedule=Cosine())), 10000)


@register(
    "nade_mnist",
    source="Larochelle & Murray 2011",
    shrunk={**_BINARY_DIGITS, "model.hidden_dim": 8},
)
def nade_mnist() -> Experiment:
    """NADE with 500 hidden units on statically binarised MNIST.

    python -m experiments.train --experiment=nade_mnist --data.dir=TFDS_DIRECTORY --workdir=runs/nade_mnist

    Half an hour on one CPU core.  For figures on dynamic binarisation, --data.name=mnist
    --data.preprocessing=binarize_dynamic.
    """
    return _binary_mnist(NADE(optimizer=Adam(learning_rate=1e-3, schedule=Cosine())), 25000)


@register(
    "made_mnist",
    source="Germain et al. 2015, arXiv:1502.03509",
    shrunk={**_BINARY_DIGITS, "model.hidden_dims": (16, 16)},
)
def made_mnist() -> Experiment:
    """MADE with two hidden layers and direct connections on statically binarised MNIST.

    python -m experiments.train --experiment=made_mnist --data.dir=TFDS_DIRECTORY --workdir=runs/made_mnist

    Within 20 minutes on two CPU cores.  --data.name=mnist --data.preprocessing=binarize_dynamic draws the binary pixels
    anew at every step, and overfits less.
    """
    optimizer = AdamW(learning_rate=1e-3, weight_decay=1e-1, schedule=Cosine(warmup_steps=200))
    return _binary_mnist(MADE(hidden_dims=(1500, 1500), direct=True, optimizer=optimizer), 10000)


@register(
    "made_agnostic_mnist",
    source="Germain et al. 2015, arXiv:1502.03509, algorithm 1 with 32 sets of masks",
    shrunk={**_BINARY_DIGITS, "model.hidden_dims": (16, 16), "model.num_masks": 2},
)
def made_agnostic_mnist() -> Experiment:
    """An order- and connectivity-agnostic MADE, evaluated as the mixture over its masks.

    python -m experiments.train --experiment=made_agnostic_mnist --data.dir=TFDS_DIRECTORY --workdir=runs/made_agnostic

    About an hour on two CPU cores.
    """
    model = MADE(
        hidden_dims=(1500, 1500),
        order_agnostic=True,
        connectivity_agnostic=True,
        num_masks=32,
        optimizer=Adam(learning_rate=1e-3, schedule=Cosine(warmup_steps=200)),
    )
    return _binary_mnist(model, 25000)


@register(
    "pixel_cnn_mnist",
    source="van den Oord et al. 2016, arXiv:1601.06759",
    shrunk={
        **_BINARY_DIGITS,
        "model.num_blocks": 1,
        "model.hidden_dim": 4,
        "model.output_dim": 4,
        "model.first_size": 3,
    },
)
def pixel_cnn_mnist() -> Experiment:
    """PixelCNN with seven masked residual blocks of 32 features on MNIST binarised anew at every step.

    python -m experiments.train --experiment=pixel_cnn_mnist --data.dir=TFDS_DIRECTORY --workdir=runs/pixel_cnn_mnist

    A wide first convolution and learned positions take the place of depth; for the paper's net, --model.num_blocks=15
    --model.hidden_dim=16 --model.first_size=7 --model.learned_positions=false.  About 15 minutes on two CPU cores.
    """
    optimizer = Adam(learning_rate=2e-3, schedule=Cosine(warmup_steps=200), clip_norm=50.0)
    model = PixelCNN(num_blocks=7, hidden_dim=32, first_size=11, learned_positions=True, optimizer=optimizer)
    return _dynamic_mnist(model, batch_size=16, num_steps=16000)


@register(
    "pixel_rnn_mnist",
    source="van den Oord et al. 2016, arXiv:1601.06759, diagonal BiLSTM",
    shrunk={
        **_BINARY_DIGITS,
        "model.num_layers": 1,
        "model.hidden_dim": 2,
        "model.output_dim": 4,
        "model.first_size": 3,
    },
)
def pixel_rnn_mnist() -> Experiment:
    """PixelRNN, 7 layers of diagonal bidirectional LSTMs of 16 units, on statically binarised MNIST.

    python -m experiments.train --experiment=pixel_rnn_mnist --data.dir=TFDS_DIRECTORY --workdir=runs/pixel_rnn_mnist

    For a GPU.
    """
    optimizer = Adam(learning_rate=1e-3, schedule=Cosine(warmup_steps=500), clip_norm=1.0)
    return _binary_mnist(PixelRNN(optimizer=optimizer), 50000, 64)


_GATED = {"model.num_layers": 2, "model.hidden_dim": 4, "model.output_dim": 4, "model.first_size": 3}


@register(
    "gated_pixel_cnn_mnist",
    source="van den Oord et al. 2016, arXiv:1606.05328",
    shrunk={**_BINARY_DIGITS, **_GATED},
)
def gated_pixel_cnn_mnist() -> Experiment:
    """The gated PixelCNN, 10 layers of 128 features, on MNIST binarised anew at every step.

    python -m experiments.train --experiment=gated_pixel_cnn_mnist --data.dir=TFDS_DIRECTORY --workdir=runs/gated

    For a GPU.
    """
    model = GatedPixelCNN(optimizer=Adam(learning_rate=1e-3, schedule=Cosine(warmup_steps=500), clip_norm=1.0))
    return _dynamic_mnist(model, 128)


@register(
    "gated_pixel_cnn_digits",
    source="van den Oord et al. 2016, arXiv:1606.05328, on the UCI digits",
    shrunk={**_DIGITS, **_GATED},
)
def gated_pixel_cnn_digits() -> Experiment:
    """A class-conditional gated PixelCNN on the embedded 8 x 8 digits with all their 17 levels (of other data, theirs).

    python -m experiments.train --experiment=gated_pixel_cnn_digits --workdir=runs/gated_digits
    python -m experiments.sample --workdir=runs/gated_digits --label=3

    A few minutes on two CPU cores.
    """
    return Experiment(
        model=GatedPixelCNN(
            hidden_dim=32,
            num_layers=5,
            first_size=5,
            output_dim=64,
            class_conditional=True,
            output=Categorical(),
            optimizer=Adam(learning_rate=1e-3, schedule=Cosine(warmup_steps=100), clip_norm=1.0),
        ),
        data=Images(name="digits", batch_size=64),
        training=Training(
            num_steps=3000,
            steps_per_dispatch=20,
            log_every=100,
            evaluate_every=500,
            sample_every=1000,
            checkpoint_every=500,
            best_metric="nll",
        ),
    )


@register(
    "pixel_snail_mnist",
    source="Chen et al. 2018, arXiv:1712.09763",
    shrunk={
        **_BINARY_DIGITS,
        "model.hidden_dim": 4,
        "model.num_blocks": 1,
        "model.num_residual": 1,
        "model.key_dim": 2,
        "model.value_dim": 2,
        "model.output_dim": 4,
    },
)
def pixel_snail_mnist() -> Experiment:
    """PixelSNAIL on MNIST binarised anew at every step.

    python -m experiments.train --experiment=pixel_snail_mnist --data.dir=TFDS_DIRECTORY --workdir=runs/pixel_snail

    For a GPU.
    """
    return _dynamic_mnist(PixelSNAIL(optimizer=Adam(schedule=Cosine(warmup_steps=500), clip_norm=1.0)), 128)


@register(
    "image_gpt_mnist",
    source="Chen et al. 2020, Generative pretraining from pixels",
    shrunk={
        **_BINARY_DIGITS,
        "model.transformer.num_layers": 1,
        "model.transformer.width": 4,
        "model.transformer.num_heads": 1,
    },
)
def image_gpt_mnist() -> Experiment:
    """A causal transformer over the pixels of MNIST, binarised anew at every step.

    python -m experiments.train --experiment=image_gpt_mnist --data.dir=TFDS_DIRECTORY --workdir=runs/image_gpt

    For a GPU.
    """
    model = ImageGPT(
        transformer=Transformer(num_layers=8, width=64, num_heads=2, positions="none"),
        optimizer=Adam(learning_rate=3e-3, schedule=Cosine(warmup_steps=500), clip_norm=1.0),
    )
    return _dynamic_mnist(model, 64)


@register(
    "pixel_cnn_pp_cifar10",
    source="Salimans et al. 2017, arXiv:1701.05517",
    shrunk={**_DIGITS, "model.hidden_dim": 4, "model.num_blocks": 1, "model.num_levels": 2},
)
def pixel_cnn_pp_cifar10() -> Experiment:
    """PixelCNN++ on CIFAR-10: three levels of five blocks in each pass, half of their units dropped.

    python -m experiments.train --experiment=pixel_cnn_pp_cifar10 --data.dir=TFDS_DIRECTORY --workdir=runs/pixel_cnn_pp

    For several GPUs.
    """
    model = PixelCNNPP(
        optimizer=Adam(learning_rate=4e-4, schedule=Cosine(warmup_steps=1000), clip_norm=1.0, ema_decay=0.9995)
    )
    experiment = _binary_mnist(model, 200000, 64)
    return dataclasses.replace(experiment, data=Images(name="cifar10", batch_size=64, horizontal_flip=True))


@register(
    "vq_prior_digits",
    source="van den Oord et al. 2017, arXiv:1711.00937, a gated PixelCNN over the codes of a VQ-VAE",
    shrunk={
        "data.batch_size": 32,
        "model.vq_vae.channels": (4,),
        "model.vq_vae.num_codes": 8,
        **{name.replace("model.", "model.prior."): value for name, value in _GATED.items()},
        "model.untrained_vq_vae": True,
    },
)
def vq_prior_digits() -> Experiment:
    """A prior over the codes of the VQ-VAE of the digits, which is trained first.

    python -m experiments.train --experiment=vq_vae_digits --model.codebook=gradient \\
        --model.output=discretized_logistic --model.output.num_levels=17 --workdir=runs/vq_vae_gradient
    python -m experiments.train --experiment=vq_prior_digits --training.init_from=runs/vq_vae_gradient \\
        --training.init_prefix=encoder,decoder,codebook --workdir=runs/vq_prior

    A few minutes on two CPU cores.  A VQ-VAE whose codes are moving averages, the default, serves as well.
    """
    # Strong decay and few steps, as there are about 1400 pictures to learn from.
    optimizer = AdamW(weight_decay=1.0, schedule=Cosine(warmup_steps=100))
    prior = GatedPixelCNN(hidden_dim=32, num_layers=4, first_size=3, output_dim=64, optimizer=optimizer)
    output = DiscretizedLogistic(num_levels=17)
    vq_vae = VQVAE(channels=(32,), num_residual_blocks=1, embedding_dim=16, num_codes=64, output=output)
    return Experiment(
        model=VQPrior(vq_vae=vq_vae, prior=prior),
        data=Images(name="digits", batch_size=64),
        training=Training(
            num_steps=1000,
            steps_per_dispatch=20,
            log_every=100,
            evaluate_every=100,
            sample_every=500,
            checkpoint_every=100,
            best_metric="nll_bound",
        ),
    )


@register(
    "vq_prior_mnist",
    source="van den Oord et al. 2017, arXiv:1711.00937, a gated PixelCNN over the codes of a VQ-VAE",
    shrunk={
        "data.name": "digits",
        "data.batch_size": 32,
        "data.pad_to": None,
        "model.vq_vae.channels": (4,),
        "model.vq_vae.num_codes": 8,
        **{name.replace("model.", "model.prior."): value for name, value in _GATED.items()},
        "model.untrained_vq_vae": True,
    },
)
def vq_prior_mnist() -> Experiment:
    """A prior over the 8 x 8 codes of the VQ-VAE of MNIST, which is trained first.

    python -m experiments.train --experiment=vq_vae_mnist --data.dir=TFDS_DIRECTORY \\
        --model.output=discretized_logistic --workdir=runs/vq_vae_mnist
    python -m experiments.train --experiment=vq_prior_mnist --data.dir=TFDS_DIRECTORY \\
        --training.init_from=runs/vq_vae_mnist --training.init_prefix=encoder,decoder,codebook \\
        --workdir=runs/vq_prior_mnist

    About an hour on two CPU cores for each, minutes on a GPU.
    """
    optimizer = AdamW(weight_decay=0.1, schedule=Cosine(warmup_steps=100))
    prior = GatedPixelCNN(hidden_dim=64, num_layers=6, first_size=5, output_dim=128, optimizer=optimizer)
    vq_vae = VQVAE(channels=(32, 64), embedding_dim=32, num_codes=256, output=DiscretizedLogistic())
    return Experiment(
        model=VQPrior(vq_vae=vq_vae, prior=prior),
        data=Images(name="mnist", pad_to=(32, 32), batch_size=64),
        training=Training(
            num_steps=10000,
            steps_per_dispatch=20,
            log_every=200,
            evaluate_every=1000,
            sample_every=2500,
            checkpoint_every=1000,
            best_metric="nll_bound",
        ),
    )
