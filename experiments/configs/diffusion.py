"""Diffusion models on two-dimensional densities, digits, MNIST, CIFAR-10 and ImageNet's latents."""

from genjax.config import register
from genjax.data import Images, Points, Text, Videos, Waveforms
from genjax.families.diffusion.consistency import ConsistencyDistillation
from genjax.families.diffusion.ddpm import DDPM
from genjax.families.diffusion.discrete import MaskedDiffusion
from genjax.families.diffusion.dit import DiT
from genjax.families.diffusion.edm import EDM
from genjax.families.diffusion.flow_matching import FlowMatching
from genjax.families.diffusion.guidance import Guidance
from genjax.families.diffusion.image_to_image import ImageToImage
from genjax.families.diffusion.networks import ResidualMLP
from genjax.families.diffusion.processes import Discrete
from genjax.families.diffusion.samplers import DPMSolver, PredictorCorrector
from genjax.families.diffusion.score_sde import ScoreSDE
from genjax.families.diffusion.unet import UNet
from genjax.families.diffusion.vdm import VDM
from genjax.optimizers import Adam, Cosine, Linear
from genjax.training import Evaluation, Experiment, Training

_DDPM = "Ho et al. 2020, arXiv:2006.11239"
_EDM = "Karras et al. 2022, arXiv:2206.00364"
_CFM = "Lipman et al. 2023, arXiv:2210.02747; Tong et al. 2024, arXiv:2302.00482"

_SHRUNK_POINTS = {
    "model.network.hidden_dim": 8,
    "model.network.num_blocks": 1,
    "model.sampler.num_steps": 2,
    "data.num_train": 256,
    "data.num_held_out": 64,
    "data.batch_size": 32,
}
_SHRUNK_IMAGES = {
    "data.name": "digits",
    "data.pad_to": None,
    "data.batch_size": 16,
    "model.network.channels": 4,
    "model.network.channel_multipliers": (1,),
    "model.network.num_blocks": 1,
    "model.network.attention_levels": (),
    "model.sampler.num_steps": 2,
}
_SHRUNK_DIGITS = {k: v for k, v in _SHRUNK_IMAGES.items() if k not in ("data.name", "data.pad_to")}


def _points(model, name: str = "two_moons") -> Experiment:
    return Experiment(
        model=model,
        data=Points(name=name, batch_size=256),
        training=Training(
            num_steps=10000, steps_per_dispatch=100, log_every=1000, evaluate_every=5000, checkpoint_every=5000, num_samples=2000
        ),
    )  # fmt: skip


_POINT_OPTIMIZER = Adam(learning_rate=1e-3, schedule=Cosine(), ema_decay=0.999)


@register(
    "ddpm_moons",
    source=_DDPM,
    expected="negative log-likelihood bound on two_moons, nats; samples on the moons",
    shrunk={**_SHRUNK_POINTS, "model.bound_terms": 2},
)
def ddpm_moons() -> Experiment:
    """DDPM with 1000 steps and a residual MLP on two moons.

    python -m experiments.train --experiment=ddpm_moons --workdir=runs/ddpm_moons

    About a minute on two CPU cores.
    """
    return _points(DDPM(network=ResidualMLP(), clip_x0=False, variance="large", optimizer=_POINT_OPTIMIZER))


@register(
    "score_sde_points",
    source="Song et al. 2021, arXiv:2011.13456",
    expected="exact negative log-likelihood on eight_gaussians by the probability-flow ODE, nats",
    shrunk={**_SHRUNK_POINTS, "model.likelihood_steps": 2},
)
def score_sde_points() -> Experiment:
    """VP SDE on eight Gaussians, predictor-corrector samples, exact likelihood.

    python -m experiments.train --experiment=score_sde_points --workdir=runs/score_sde_points

    About a minute on two CPU cores.
    """
    model = ScoreSDE(
        network=ResidualMLP(),
        sampler=PredictorCorrector(num_steps=200),
        likelihood_steps=50,
        likelihood_trace="exact",
        optimizer=_POINT_OPTIMIZER,
    )
    return _points(model, "eight_gaussians")


@register(
    "edm_points",
    source=_EDM,
    expected="exact negative log-likelihood on swiss_roll by the probability-flow ODE, nats",
    shrunk={**_SHRUNK_POINTS, "model.likelihood_steps": 2},
)
def edm_points() -> Experiment:
    """EDM on the swiss roll, 18 steps of Heun's method.

    python -m experiments.train --experiment=edm_points --workdir=runs/edm_points

    About a minute on two CPU cores.
    """
    model = EDM(
        network=ResidualMLP(),
        sigma_data=1.0,
        likelihood_steps=50,
        likelihood_trace="exact",
        optimizer=_POINT_OPTIMIZER,
    )
    return _points(model, "swiss_roll")


@register(
    "flow_matching_points",
    source=_CFM,
    expected="exact negative log-likelihood on checkerboard by the ODE, nats",
    shrunk={**_SHRUNK_POINTS, "model.likelihood_steps": 2, "model.sinkhorn_iterations": 2},
)
def flow_matching_points() -> Experiment:
    """Flow matching on the checkerboard.

    python -m experiments.train --experiment=flow_matching_points --workdir=runs/flow_matching_points

    About two minutes on two CPU cores.  --model.coupling=optimal_transport pairs noise and data within each batch.
    """
    model = FlowMatching(
        network=ResidualMLP(),
        coupling="independent",
        likelihood_steps=50,
        likelihood_trace="exact",
        optimizer=_POINT_OPTIMIZER,
    )
    return _points(model, "checkerboard")


@register(
    "consistency_distillation_points",
    source="Song et al. 2023, arXiv:2303.01469, algorithm 2",
    expected="the swiss roll in one evaluation of the network",
    shrunk=_SHRUNK_POINTS,
)
def consistency_distillation_points() -> Experiment:
    """Distils `edm_points` into a map from noise to data.

    python -m experiments.train --experiment=edm_points --workdir=runs/edm_points
    python -m experiments.train --experiment=consistency_distillation_points --training.init_from=runs/edm_points \\
        --workdir=runs/consistency

    About a minute on two CPU cores, after the teacher's.
    """
    return _points(
        ConsistencyDistillation(network=ResidualMLP(), sigma_data=1.0, optimizer=_POINT_OPTIMIZER), "swiss_roll"
    )


_DIGITS_UNET = UNet(channels=32, channel_multipliers=(1, 2), num_blocks=1, attention_levels=(1,))


@register(
    "edm_digits",
    source=_EDM,
    expected="class-conditional 8 x 8 digits, recognised as their class; guidance by --model.guidance.scale",
    shrunk=_SHRUNK_DIGITS,
)
def edm_digits() -> Experiment:
    """Class-conditional EDM on the embedded digits.

    python -m experiments.train --experiment=edm_digits --workdir=runs/edm_digits
    python -m experiments.sample --workdir=runs/edm_digits --model.guidance.scale=1 --label=3

    About three minutes on two CPU cores.
    """
    return Experiment(
        model=EDM(
            network=_DIGITS_UNET,
            condition_on=("label",),
            optimizer=Adam(learning_rate=1e-3, schedule=Cosine(warmup_steps=100), ema_decay=0.999),
        ),
        data=Images(name="digits", preprocessing="signed", batch_size=128),
        training=Training(
            num_steps=3000, steps_per_dispatch=20, log_every=100, evaluate_every=1000, sample_every=1000, num_samples=100
        ),
    )  # fmt: skip


def _mnist(model, **training) -> Experiment:
    options = {"num_steps": 4000, "log_every": 100, "evaluate_every": 2000, "sample_every": 2000, "num_samples": 64}
    return Experiment(
        model=model,
        data=Images(name="mnist", preprocessing="signed", batch_size=64, eval_batch_size=250),
        training=Training(**{**options, **training}),
        evaluation=Evaluation(num_examples=1000),
    )


# Patches of 2 x 2 halve the time of a step on CPU at the same number of operations a place.
_MNIST_UNET = UNet(channels=64, channel_multipliers=(1, 2), num_blocks=1, attention_levels=(1,), patch_size=2)
_MNIST_OPTIMIZER = Adam(learning_rate=1e-3, schedule=Cosine(warmup_steps=200), clip_norm=1.0, ema_decay=0.999)


@register(
    "ddpm_mnist",
    source=f"{_DDPM}; Nichol & Dhariwal 2021, arXiv:2102.09672",
    expected="bound in bits/dim on 8-bit pixels",
    shrunk={**_SHRUNK_IMAGES, "model.bound_terms": 2},
)
def ddpm_mnist() -> Experiment:
    """Unconditional DDPM with learned variances on 8-bit MNIST, the cosine schedule, sampled by DPM-Solver++.

    python -m experiments.train --experiment=ddpm_mnist --data.dir=TFDS_DIRECTORY --workdir=runs/ddpm_mnist

    About half an hour on two CPU cores.
    """
    return _mnist(
        DDPM(
            process=Discrete(schedule="cosine"),
            variance="learned",
            network=_MNIST_UNET,
            sampler=DPMSolver(num_steps=20),
            optimizer=_MNIST_OPTIMIZER,
        )
    )


@register(
    "edm_mnist",
    source=f"{_EDM}; Ho & Salimans 2022, arXiv:2207.12598",
    expected="class-conditional: at least 99% of guided samples recognised as their class",
    shrunk=_SHRUNK_IMAGES,
)
def edm_mnist() -> Experiment:
    """Class-conditional EDM on MNIST with classifier-free guidance.

    python -m experiments.train --experiment=edm_mnist --data.dir=TFDS_DIRECTORY --workdir=runs/edm_mnist
    python -m experiments.sample --workdir=runs/edm_mnist --model.guidance.scale=2

    About half an hour on two CPU cores.
    """
    return _mnist(
        EDM(network=_MNIST_UNET, condition_on=("label",), guidance=Guidance(scale=0.5), optimizer=_MNIST_OPTIMIZER)
    )


@register(
    "flow_matching_mnist",
    source=_CFM,
    expected="likelihood in bits/dim of dequantised pixels by the ODE, with --model.likelihood_steps=50",
    shrunk=_SHRUNK_IMAGES,
)
def flow_matching_mnist() -> Experiment:
    """Unconditional flow matching on MNIST with the U-Net of `ddpm_mnist`.

    python -m experiments.train --experiment=flow_matching_mnist --data.dir=TFDS_DIRECTORY --workdir=runs/flow_matching_mnist

    About half an hour on two CPU cores.
    """
    return _mnist(FlowMatching(network=_MNIST_UNET, optimizer=_MNIST_OPTIMIZER))


@register(
    "super_resolution_mnist",
    source="Saharia et al. 2021, arXiv:2104.07636, with EDM",
    expected="14 x 14 pictures doubled; compare the sheets with --reconstruct",
    shrunk=_SHRUNK_IMAGES,
)
def super_resolution_mnist() -> Experiment:
    """Doubles the resolution of MNIST; --model.degradation=hole --model.factor=2 fills in a hole instead.

    python -m experiments.train --experiment=super_resolution_mnist --data.dir=TFDS_DIRECTORY --workdir=runs/super_resolution
    python -m experiments.sample --workdir=runs/super_resolution --reconstruct

    About half an hour on two CPU cores.
    """
    return _mnist(ImageToImage(network=_MNIST_UNET, optimizer=_MNIST_OPTIMIZER))


@register(
    "inpainting_mnist",
    source="Saharia et al. 2022, arXiv:2111.05826, with EDM",
    expected="the middle 14 x 14 pixels filled in; compare the sheets with --reconstruct",
    shrunk=_SHRUNK_IMAGES,
)
def inpainting_mnist() -> Experiment:
    """Fills in the middle of MNIST's pictures from what is around it.

    python -m experiments.train --experiment=inpainting_mnist --data.dir=TFDS_DIRECTORY --workdir=runs/inpainting
    python -m experiments.sample --workdir=runs/inpainting --reconstruct

    About half an hour on two CPU cores.  `experiments.denoising --tool=inpaint` does it by RePaint, with a model that was not trained
    for it.
    """
    return _mnist(ImageToImage(degradation="hole", network=_MNIST_UNET, optimizer=_MNIST_OPTIMIZER))


@register(
    "edm_emoji",
    source=f"{_EDM}, on Noto Emoji (Apache 2.0) and Twemoji (CC BY 4.0)",
    expected="pictures of nine categories; not measured",
    shrunk={**_SHRUNK_IMAGES, "data.image_size": None, "data.channels": 3},
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
    expected="digits that keep their shape while they move and bounce; a GIF",
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
    expected="tones of five kinds; a WAV file and spectrograms",
    shrunk={**_SHRUNK_UNET, "data.num_samples": 64, "model.network.patch_size": 4},
)
def edm_tones() -> Experiment:
    """EDM on waveforms of procedural tones, conditional on their kind.

    python -m experiments.train --experiment=edm_tones --workdir=runs/edm_tones
    python -m experiments.train --experiment=edm_tones --data.name=spoken_digits --data.dir=fsdd.npz \\
        --data.num_samples=4096 --workdir=runs/edm_spoken_digits

    About half an hour on two CPU cores for the tones.
    """
    network = UNet(channels=64, channel_multipliers=(1, 1, 2, 2), num_blocks=1, attention_levels=(2, 3), patch_size=8)
    optimizer = Adam(learning_rate=1e-3, schedule=Cosine(warmup_steps=200), clip_norm=1.0, ema_decay=0.999)
    return Experiment(
        model=EDM(network=network, sigma_data=0.15, condition_on=("label",), optimizer=optimizer),
        data=Waveforms(batch_size=32),
        training=Training(num_steps=6000, evaluate_every=2000, sample_every=1000, num_samples=10),
    )


@register(
    "vdm_digits",
    source="Kingma et al. 2021, arXiv:2107.00630, on the UCI digits",
    expected="bound in bits/dim on 17 levels",
    shrunk={**_SHRUNK_DIGITS, "model.num_bound_samples": 2},
)
def vdm_digits() -> Experiment:
    """Variational diffusion with a learned schedule on the embedded digits.

    python -m experiments.train --experiment=vdm_digits --workdir=runs/vdm_digits

    About three minutes on two CPU cores.
    """
    return Experiment(
        model=VDM(
            network=_DIGITS_UNET,
            schedule_dim=32,
            gamma_min=-8.0,
            optimizer=Adam(learning_rate=1e-3, schedule=Cosine(warmup_steps=100), clip_norm=1.0, ema_decay=0.999),
        ),
        data=Images(name="digits", preprocessing="signed", batch_size=128),
        training=Training(
            num_steps=3000, steps_per_dispatch=20, log_every=100, evaluate_every=1000, sample_every=1000, num_samples=64
        ),
    )


@register(
    "masked_diffusion_text",
    source="Sahoo et al. 2024, arXiv:2406.07524, on the help texts that Python carries",
    expected="test bound in nats a character",
    shrunk={
        "model.hidden_dim": 8,
        "model.num_layers": 1,
        "model.num_heads": 2,
        "model.num_steps_sampling": 4,
        "model.num_bound_samples": 2,
        "data.sequence_length": 16,
        "data.batch_size": 16,
        "data.stride": None,
        "evaluation.num_examples": 100,
    },
)
def masked_diffusion_text() -> Experiment:
    """Masked diffusion of characters on embedded text.

    python -m experiments.train --experiment=masked_diffusion_text --workdir=runs/masked_diffusion_text

    About ten minutes on two CPU cores.
    """
    return Experiment(
        model=MaskedDiffusion(optimizer=Adam(learning_rate=1e-3, schedule=Cosine(warmup_steps=100), ema_decay=0.999)),
        data=Text(name="python_topics", sequence_length=64, batch_size=32, stride=1),
        training=Training(num_steps=3000, evaluate_every=1000, best_metric="nll_bound_per_token", num_samples=8),
        evaluation=Evaluation(num_examples=500),
    )


def _cifar(model, **training) -> Experiment:
    return Experiment(
        model=model,
        data=Images(name="cifar10", preprocessing="signed", batch_size=128, horizontal_flip=True),
        training=Training(log_every=100, evaluate_every=50000, sample_every=20000, checkpoint_every=10000, **training),
    )


_CIFAR_UNET = UNet(
    channels=128,
    channel_multipliers=(1, 2, 2, 2),
    num_blocks=2,
    attention_levels=(1,),
    num_heads=1,
    scale_shift_norm=False,
    dropout_rate=0.1,
)
_SHRUNK_CIFAR = {**_SHRUNK_IMAGES, "data.horizontal_flip": False}


@register(
    "ddpm_cifar10",
    source=_DDPM,
    expected="FID 3.17 and 3.75 bits/dim in the paper (800000 steps, 35.7M parameters)",
    shrunk={**_SHRUNK_CIFAR, "model.bound_terms": 2},
)
def ddpm_cifar10() -> Experiment:
    """DDPM on CIFAR-10 with the paper's settings; not run here.

    python -m experiments.train --experiment=ddpm_cifar10 --data.dir=TFDS_DIRECTORY --workdir=runs/ddpm_cifar10

    Days on one GPU; --training.mesh=data:8 shards it.
    """
    optimizer = Adam(
        learning_rate=2e-4, schedule=Linear(warmup_steps=5000, final_scale=1.0), clip_norm=1.0, ema_decay=0.9999
    )
    return _cifar(DDPM(network=_CIFAR_UNET, variance="large", optimizer=optimizer), num_steps=800000)


@register(
    "edm_cifar10",
    source=_EDM,
    expected="FID 1.97 at 35 evaluations in the paper (unconditional, another U-Net and augmentation)",
    shrunk=_SHRUNK_CIFAR,
)
def edm_cifar10() -> Experiment:
    """EDM on CIFAR-10 with the ADM U-Net; not run here.

    python -m experiments.train --experiment=edm_cifar10 --data.dir=TFDS_DIRECTORY --workdir=runs/edm_cifar10

    Days on eight GPUs.
    """
    network = UNet(
        channels=128, channel_multipliers=(2, 2, 2), num_blocks=4, attention_levels=(1,), num_heads=4, dropout_rate=0.13
    )
    optimizer = Adam(
        learning_rate=1e-3, schedule=Linear(warmup_steps=20000, final_scale=1.0), clip_norm=1.0, ema_decay=0.9999
    )
    experiment = _cifar(EDM(network=network, optimizer=optimizer), num_steps=400000)
    return experiment


@register(
    "ot_cfm_cifar10",
    source=_CFM,
    expected="FID 3.5 in the paper (400000 steps)",
    shrunk={**_SHRUNK_CIFAR, "model.coupling": "independent"},
)
def ot_cfm_cifar10() -> Experiment:
    """Flow matching with minibatch optimal transport on CIFAR-10; not run here.

    python -m experiments.train --experiment=ot_cfm_cifar10 --data.dir=TFDS_DIRECTORY --workdir=runs/ot_cfm_cifar10

    Days on one GPU.
    """
    network = UNet(
        channels=128,
        channel_multipliers=(1, 2, 2, 2),
        num_blocks=2,
        attention_levels=(1,),
        num_heads=4,
        dropout_rate=0.1,
    )
    optimizer = Adam(
        learning_rate=2e-4, schedule=Linear(warmup_steps=5000, final_scale=1.0), clip_norm=1.0, ema_decay=0.9999
    )
    return _cifar(FlowMatching(network=network, coupling="optimal_transport", optimizer=optimizer), num_steps=400000)


_SHRUNK_DIT = {
    "data.name": "digits",
    "data.batch_size": 16,
    "model.network.hidden_dim": 8,
    "model.network.num_layers": 1,
    "model.network.num_heads": 2,
    "model.sampler.num_steps": 2,
}


@register(
    "dit_mnist",
    source="Peebles & Xie 2023, arXiv:2212.09748",
    expected="class-conditional MNIST by a small diffusion transformer",
    shrunk=_SHRUNK_DIT,
)
def dit_mnist() -> Experiment:
    """A small DiT on MNIST, flow matching, class-conditional.

    python -m experiments.train --experiment=dit_mnist --data.dir=TFDS_DIRECTORY --workdir=runs/dit_mnist

    About half an hour on two CPU cores.
    """
    network = DiT(patch_size=4, hidden_dim=128, num_layers=6, num_heads=4)
    return _mnist(FlowMatching(network=network, condition_on=("label",), optimizer=_MNIST_OPTIMIZER))
