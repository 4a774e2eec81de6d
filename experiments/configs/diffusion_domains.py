"""Diffusion models of other domains than points and digits: emoji, videos, sound, text."""

from genjax.config import register
from genjax.data import Images, Text, Videos, Waveforms
from genjax.families.diffusion.discrete import D3PM, MaskedDiffusion
from genjax.families.diffusion.edm import EDM
from genjax.families.diffusion.guidance import Guidance
from genjax.families.diffusion.unet import UNet
from genjax.optimizers import Adam, Cosine
from genjax.training import Evaluation, Experiment, Training

_EDM = "Karras et al. 2022, arXiv:2206.00364"


@register(
    "edm_emoji",
    source=f"{_EDM}, on Noto Emoji (Apache 2.0) and Twemoji (CC BY 4.0)",
    shrunk={
        "data.name": "digits",
        "data.image_size": None,
        "data.batch_size": 16,
        "model.network": "residual_mlp",
        "model.network.hidden_dim": 4,
        "model.network.num_blocks": 1,
        "model.sampler.num_steps": 2,
    },
)
def edm_emoji() -> Experiment:
    """EDM on 32 x 32 emoji, conditional on their category; --data.image_size=64,64 for the larger ones.

    python -m experiments.train --experiment=edm_emoji --data.dir=emoji64.npz --workdir=runs/edm_emoji

    For a GPU.
    """
    network = UNet(channels=64, channel_multipliers=(1, 2, 2), num_blocks=2, attention_levels=(1, 2), dropout_rate=0.1)
    return Experiment(
        model=EDM(
            network=network,
            condition_on=("label",),
            guidance=Guidance(scale=0.5),
            optimizer=Adam(learning_rate=5e-4, schedule=Cosine(warmup_steps=500), clip_norm=1.0, ema_decay=0.9995),
        ),
        data=Images(name="emoji", preprocessing="signed", image_size=(32, 32), batch_size=64),
        training=Training(num_steps=30000, evaluate_every=5000, sample_every=5000, num_samples=63),
    )


_SHRUNK_UNET = {
    "model.network.channels": 4,
    "model.network.channel_multipliers": (1,),
    "model.network.num_blocks": 1,
    "model.network.attention_levels": (),
    "model.sampler.num_steps": 2,
    "data.num_train": 40,
    "data.batch_size": 8,
}


@register(
    "edm_moving_digits",
    source="Ho et al. 2022, arXiv:2204.03458, with EDM, on videos after Srivastava et al. 2015, arXiv:1502.04681",
    shrunk={**_SHRUNK_UNET, "data.num_frames": 2, "data.frame_size": 8},
)
def edm_moving_digits() -> Experiment:
    """EDM with a factorised space-time U-Net on videos of moving digits, conditional on the digit.

    python -m experiments.train --experiment=edm_moving_digits --workdir=runs/edm_moving_digits

    About an hour on two CPU cores.
    """
    network = UNet(
        channels=32, channel_multipliers=(1, 2), num_blocks=1, attention_levels=(1,), video=True, patch_size=2
    )
    optimizer = Adam(learning_rate=1e-3, schedule=Cosine(warmup_steps=200), clip_norm=1.0, ema_decay=0.999)
    return Experiment(
        model=EDM(network=network, condition_on=("label",), optimizer=optimizer),
        data=Videos(batch_size=32),
        training=Training(num_steps=6000, evaluate_every=2000, sample_every=1000, num_samples=20),
    )


@register(
    "edm_tones",
    source=f"{_EDM}, with a one-dimensional U-Net",
    shrunk={**_SHRUNK_UNET, "data.num_samples": 64, "model.network.patch_size": 4},
)
def edm_tones() -> Experiment:
    """EDM on waveforms of procedural tones, conditional on their kind.

    python -m experiments.train --experiment=edm_tones --workdir=runs/edm_tones
    python -m experiments.train --experiment=edm_tones --data.name=spoken_digits --data.dir=fsdd.npz \\
        --data.num_samples=4096 --model.sigma_data=0.06 --workdir=runs/edm_spoken_digits

    About half an hour on two CPU cores for the tones.
    """
    network = UNet(channels=64, channel_multipliers=(1, 1, 2, 2), num_blocks=1, attention_levels=(2, 3), patch_size=8)
    optimizer = Adam(learning_rate=1e-3, schedule=Cosine(warmup_steps=200), clip_norm=1.0, ema_decay=0.999)
    return Experiment(
        model=EDM(network=network, sigma_data=0.25, condition_on=("label",), optimizer=optimizer),
        data=Waveforms(batch_size=32),
        training=Training(num_steps=6000, evaluate_every=2000, sample_every=1000, num_samples=10),
    )


_SHRUNK_TEXT = {
    "model.hidden_dim": 8,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.num_bound_samples": 2,
    "data.sequence_length": 16,
    "data.batch_size": 16,
    "data.stride": None,
    "evaluation.num_examples": 100,
}
_TEXT_OPTIMIZER = Adam(learning_rate=1e-3, schedule=Cosine(warmup_steps=100), ema_decay=0.999)


def _text(model) -> Experiment:
    return Experiment(
        model=model,
        data=Text(name="python_topics", sequence_length=64, batch_size=32, stride=1),
        training=Training(num_steps=3000, evaluate_every=1000, best_metric="nll_bound_per_token", num_samples=8),
        evaluation=Evaluation(num_examples=500),
    )


@register(
    "masked_diffusion_text",
    source="Sahoo et al. 2024, arXiv:2406.07524, on the help texts that Python carries",
    shrunk={**_SHRUNK_TEXT, "model.num_steps_sampling": 4},
)
def masked_diffusion_text() -> Experiment:
    """Masked diffusion of characters on embedded text.

    python -m experiments.train --experiment=masked_diffusion_text --workdir=runs/masked_diffusion_text

    About ten minutes on two CPU cores.
    """
    return _text(MaskedDiffusion(optimizer=_TEXT_OPTIMIZER))


@register(
    "d3pm_text",
    source="Austin et al. 2021, arXiv:2107.03006, on the help texts that Python carries",
    shrunk={**_SHRUNK_TEXT, "model.num_timesteps": 4},
)
def d3pm_text() -> Experiment:
    """Discrete diffusion of characters in 100 steps by uniform noise; --model.noise=absorbing masks them instead.

    python -m experiments.train --experiment=d3pm_text --workdir=runs/d3pm_text

    About ten minutes on two CPU cores.
    """
    return _text(D3PM(optimizer=_TEXT_OPTIMIZER))
