"""Diffusion models on two-dimensional densities, digits and MNIST."""

from genjax.config import register
from genjax.data import Images, Points
from genjax.families.diffusion.consistency import ConsistencyDistillation, ConsistencyModel
from genjax.families.diffusion.ddpm import DDPM
from genjax.families.diffusion.dit import DiT
from genjax.families.diffusion.edm import EDM
from genjax.families.diffusion.flow_matching import FlowMatching
from genjax.families.diffusion.guidance import Guidance
from genjax.families.diffusion.image_to_image import ImageToImage
from genjax.families.diffusion.networks import ResidualMLP
from genjax.families.diffusion.noisy_classifier import NoisyClassifier
from genjax.families.diffusion.processes import Discrete
from genjax.families.diffusion.reflow import Reflow
from genjax.families.diffusion.samplers import DPMSolver, Euler, PredictorCorrector
from genjax.families.diffusion.score_sde import ScoreSDE
from genjax.families.diffusion.unet import UNet
from genjax.families.diffusion.vdm import VDM
from genjax.optimizers import Adam, Cosine
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
            num_steps=10000, steps_per_dispatch=100, log_every=1000, evaluate_every=5000, checkpoint_every=5000,
            num_samples=2000,
        ),
    )  # fmt: skip


_POINT_OPTIMIZER = Adam(learning_rate=1e-3, schedule=Cosine(), ema_decay=0.999)


@register(
    "ddpm_moons",
    source=_DDPM,
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
    shrunk={**_SHRUNK_POINTS, "model.likelihood_steps": 2},
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
    "rectified_flow_points",
    source="Liu et al. 2022, arXiv:2209.03003, algorithm 1",
    shrunk={
        **_SHRUNK_POINTS,
        "model.likelihood_steps": 2,
        "model.teacher_sampler.num_steps": 2,
        "model.untrained_teacher": True,
    },
)
def rectified_flow_points() -> Experiment:
    """Straightens `flow_matching_points` by its own pairs, until one step follows its paths.

    python -m experiments.train --experiment=flow_matching_points --workdir=runs/flow_matching_points
    python -m experiments.train --experiment=rectified_flow_points --training.init_from=runs/flow_matching_points \\
        --workdir=runs/rectified_flow

    About ten minutes on two CPU cores, after the teacher's.
    """
    model = Reflow(
        network=ResidualMLP(),
        sampler=Euler(num_steps=1, variable="time"),
        likelihood_steps=50,
        likelihood_trace="exact",
        optimizer=_POINT_OPTIMIZER,
    )
    return _points(model, "checkerboard")


@register(
    "consistency_distillation_points",
    source="Song et al. 2023, arXiv:2303.01469, algorithm 2",
    shrunk={**_SHRUNK_POINTS, "model.untrained_teacher": True},
)
def consistency_distillation_points() -> Experiment:
    """Distils `edm_points` into a map from noise to data.

    python -m experiments.train --experiment=edm_points --workdir=runs/edm_points
    python -m experiments.train --experiment=consistency_distillation_points --training.init_from=runs/edm_points \\
        --workdir=runs/consistency

    About a minute on two CPU cores, after the teacher's.  With target_decay=0 errors grow from level to level,
    and samples are next to noise.
    """
    model = ConsistencyDistillation(
        network=ResidualMLP(), sigma_data=1.0, target_decay=0.95, optimizer=_POINT_OPTIMIZER
    )
    return _points(model, "swiss_roll")


# One step a dispatch: on CPU, XLA's gradients of convolutions are tens of times slower inside of a scan.
_DIGITS_UNET = UNet(channels=32, channel_multipliers=(1, 2), num_blocks=1, attention_levels=(1,))


@register(
    "edm_digits",
    source=_EDM,
    shrunk=_SHRUNK_DIGITS,
)
def edm_digits() -> Experiment:
    """Class-conditional EDM on the embedded digits.

    python -m experiments.train --experiment=edm_digits --workdir=runs/edm_digits
    python -m experiments.sample --workdir=runs/edm_digits --model.guidance.scale=1 --label=3

    About six minutes on two CPU cores.
    """
    return Experiment(
        model=EDM(
            network=_DIGITS_UNET,
            condition_on=("label",),
            optimizer=Adam(learning_rate=1e-3, schedule=Cosine(warmup_steps=100), ema_decay=0.999),
        ),
        data=Images(name="digits", preprocessing="signed", batch_size=128),
        training=Training(
            num_steps=3000, log_every=100, evaluate_every=1000, sample_every=1000, num_samples=100
        ),
    )  # fmt: skip


@register(
    "consistency_digits",
    source="Song & Dhariwal 2023, arXiv:2310.14189, on the UCI digits",
    shrunk={
        "data.batch_size": 16,
        "model.network": "residual_mlp",
        "model.network.hidden_dim": 4,
        "model.network.num_blocks": 1,
    },
)
def consistency_digits() -> Experiment:
    """Improved consistency training on the embedded digits, without a teacher;
    --model.sampler.num_steps=2 takes a second evaluation.

    python -m experiments.train --experiment=consistency_digits --workdir=runs/consistency_digits

    About twelve minutes on two CPU cores.
    """
    model = ConsistencyModel(
        network=_DIGITS_UNET,
        condition_on=("label",),
        condition_dropout=0.0,
        max_levels=160,
        optimizer=Adam(learning_rate=5e-4, schedule=Cosine(warmup_steps=100), ema_decay=0.999),
    )
    return Experiment(
        model=model,
        data=Images(name="digits", preprocessing="signed", batch_size=128),
        training=Training(num_steps=4000, log_every=100, evaluate_every=2000, sample_every=1000, num_samples=100),
    )


@register(
    "noisy_classifier_digits",
    source="Dhariwal & Nichol 2021, arXiv:2105.05233, section 4, on the UCI digits",
    shrunk=_SHRUNK_DIGITS,
)
def noisy_classifier_digits() -> Experiment:
    """A classifier of the embedded digits under the noise of `edm_digits`, which it then guides.

    python -m experiments.train --experiment=noisy_classifier_digits --workdir=runs/noisy_classifier_digits
    python -m experiments.denoising --workdir=runs/edm_digits --tool=guidance --classifier=runs/noisy_classifier_digits

    About three minutes on two CPU cores.
    """
    network = UNet(channels=32, channel_multipliers=(1, 2), num_blocks=1, attention_levels=(1,), dropout_rate=0.1)
    return Experiment(
        model=NoisyClassifier(network=network, optimizer=Adam(learning_rate=1e-3, schedule=Cosine(warmup_steps=100))),
        data=Images(name="digits", preprocessing="signed", batch_size=128),
        training=Training(num_steps=1500, log_every=100, evaluate_every=500, num_samples=40),
    )


def _mnist(model, preprocessing: str = "signed", **training) -> Experiment:
    options = {"num_steps": 12000, "log_every": 200, "evaluate_every": 4000, "sample_every": 4000, "num_samples": 64}
    return Experiment(
        model=model,
        data=Images(name="mnist", preprocessing=preprocessing, batch_size=32, eval_batch_size=250),
        training=Training(**{**options, **training}),
        evaluation=Evaluation(num_examples=1000),
    )


# Patches of 2 x 2 halve the time of a step on CPU at the same number of operations a place; so narrow a network sees
# each picture ten times in half an hour of two cores.
_MNIST_UNET = UNet(channels=32, channel_multipliers=(1, 2, 2), num_blocks=1, attention_levels=(1,), patch_size=2)
_MNIST_OPTIMIZER = Adam(learning_rate=1e-3, schedule=Cosine(warmup_steps=200), clip_norm=1.0, ema_decay=0.999)


@register(
    "ddpm_mnist",
    source=f"{_DDPM}; Nichol & Dhariwal 2021, arXiv:2102.09672",
    shrunk={**_SHRUNK_IMAGES, "model.bound_terms": 2},
)
def ddpm_mnist() -> Experiment:
    """Unconditional DDPM with learned variances on 8-bit MNIST, the cosine schedule, sampled by DPM-Solver++.

    python -m experiments.train --experiment=ddpm_mnist --data.dir=TFDS_DIRECTORY --workdir=runs/ddpm_mnist
    python -m experiments.evaluate --workdir=runs/ddpm_mnist --evaluation.num_examples=none

    About half an hour on two CPU cores.
    """
    return _mnist(
        DDPM(
            process=Discrete(schedule="cosine"),
            variance="learned",
            network=_MNIST_UNET,
            # There alpha |x| is about 0.3 of the noise's deviation, for 784 pixels, and
            # nothing is seen of a picture yet.
            sampler=DPMSolver(num_steps=20, min_log_ratio=-4.5),
            optimizer=_MNIST_OPTIMIZER,
        ),
        num_steps=25000,
    )


@register(
    "edm_mnist",
    source=f"{_EDM}; Ho & Salimans 2022, arXiv:2207.12598",
    shrunk=_SHRUNK_IMAGES,
)
def edm_mnist() -> Experiment:
    """Class-conditional EDM on MNIST with classifier-free guidance.

    python -m experiments.train --experiment=edm_mnist --data.dir=TFDS_DIRECTORY --workdir=runs/edm_mnist
    python -m experiments.sample --workdir=runs/edm_mnist --model.guidance.scale=2

    About a quarter of an hour on two CPU cores.  Without classes, with an early checkpoint as what guides, in half an
    hour, at 2.7 times the Frechet distance of as many training pictures:

        ... --model.condition_on= --model.guidance.scale=0 --training.num_steps=25000 --training.keep_checkpoints=25
        python -m experiments.sample --workdir=... --weak_step=3000 --model.guidance.scale=1
    """
    return _mnist(
        EDM(network=_MNIST_UNET, condition_on=("label",), guidance=Guidance(scale=0.5), optimizer=_MNIST_OPTIMIZER)
    )


@register(
    "flow_matching_mnist",
    source=_CFM,
    shrunk=_SHRUNK_IMAGES,
)
def flow_matching_mnist() -> Experiment:
    """Unconditional flow matching on dequantised MNIST with the U-Net of `ddpm_mnist`.

    python -m experiments.train --experiment=flow_matching_mnist --data.dir=TFDS_DIRECTORY \\
        --workdir=runs/flow_matching_mnist

    About a quarter of an hour on two CPU cores.
    """
    return _mnist(FlowMatching(network=_MNIST_UNET, optimizer=_MNIST_OPTIMIZER), "dequantize_signed")


@register(
    "super_resolution_mnist",
    source="Saharia et al. 2021, arXiv:2104.07636, with EDM",
    shrunk=_SHRUNK_IMAGES,
)
def super_resolution_mnist() -> Experiment:
    """Doubles the resolution of MNIST; --model.degradation=hole --model.factor=2 fills in a hole instead.

    python -m experiments.train --experiment=super_resolution_mnist --data.dir=TFDS_DIRECTORY \\
        --workdir=runs/super_resolution
    python -m experiments.sample --workdir=runs/super_resolution --reconstruct

    About a quarter of an hour on two CPU cores.
    """
    return _mnist(ImageToImage(network=_MNIST_UNET, optimizer=_MNIST_OPTIMIZER))


@register(
    "inpainting_mnist",
    source="Saharia et al. 2022, arXiv:2111.05826, with EDM",
    shrunk={
        "data.name": "digits",
        "data.batch_size": 16,
        "model.network": "residual_mlp",
        "model.network.hidden_dim": 4,
        "model.network.num_blocks": 1,
        "model.sampler.num_steps": 2,
    },
)
def inpainting_mnist() -> Experiment:
    """Fills in the middle of MNIST's pictures from what is around it.

    python -m experiments.train --experiment=inpainting_mnist --data.dir=TFDS_DIRECTORY --workdir=runs/inpainting
    python -m experiments.sample --workdir=runs/inpainting --reconstruct

    About a quarter of an hour on two CPU cores.  `experiments.denoising --tool=inpaint` does it by RePaint, with a
    model that was not trained for it.
    """
    return _mnist(ImageToImage(degradation="hole", network=_MNIST_UNET, optimizer=_MNIST_OPTIMIZER))


@register(
    "vdm_digits",
    source="Kingma et al. 2021, arXiv:2107.00630, on the UCI digits",
    shrunk={**_SHRUNK_DIGITS, "model.num_bound_samples": 2},
)
def vdm_digits() -> Experiment:
    """Variational diffusion with a learned schedule on the embedded digits.

    python -m experiments.train --experiment=vdm_digits --workdir=runs/vdm_digits

    About six minutes on two CPU cores.
    """
    return Experiment(
        model=VDM(
            network=_DIGITS_UNET,
            schedule_dim=32,
            gamma_min=-8.0,
            optimizer=Adam(learning_rate=1e-3, schedule=Cosine(warmup_steps=100), clip_norm=1.0, ema_decay=0.999),
        ),
        data=Images(name="digits", preprocessing="signed", batch_size=128),
        training=Training(num_steps=3000, log_every=100, evaluate_every=1000, sample_every=1000, num_samples=64),
    )


@register(
    "vdm_mnist",
    source="Kingma et al. 2021, arXiv:2107.00630, on MNIST",
    shrunk={**_SHRUNK_IMAGES, "model.num_bound_samples": 2, "model.schedule_dim": 2},
)
def vdm_mnist() -> Experiment:
    """Variational diffusion with a learned schedule on 8-bit MNIST, by the U-Net of `ddpm_mnist`.

    python -m experiments.train --experiment=vdm_mnist --data.dir=TFDS_DIRECTORY --workdir=runs/vdm_mnist
    python -m experiments.evaluate --workdir=runs/vdm_mnist --evaluation.num_examples=none

    About 35 minutes on two CPU cores.
    """
    model = VDM(network=_MNIST_UNET, schedule_dim=32, fourier_exponents=(7, 8), optimizer=_MNIST_OPTIMIZER)
    return _mnist(model, num_steps=25000)


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
    shrunk=_SHRUNK_DIT,
)
def dit_mnist() -> Experiment:
    """A small DiT on MNIST, flow matching, class-conditional.

    python -m experiments.train --experiment=dit_mnist --data.dir=TFDS_DIRECTORY --workdir=runs/dit_mnist

    About half an hour on two CPU cores.
    """
    network = DiT(patch_size=4, hidden_dim=128, num_layers=6, num_heads=4)
    return _mnist(FlowMatching(network=network, condition_on=("label",), optimizer=_MNIST_OPTIMIZER))
