"""Diffusion models of CIFAR-10 with the settings of their papers, for GPUs."""

from genjax.config import register
from genjax.data import Images
from genjax.families.diffusion.ddpm import DDPM
from genjax.families.diffusion.edm import EDM
from genjax.families.diffusion.flow_matching import FlowMatching
from genjax.families.diffusion.unet import UNet
from genjax.optimizers import Adam, Linear
from genjax.training import Experiment, Training


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
_SHRUNK_CIFAR = {
    "data.name": "digits",
    "data.batch_size": 16,
    "data.horizontal_flip": False,
    "model.network.channels": 4,
    "model.network.channel_multipliers": (1,),
    "model.network.num_blocks": 1,
    "model.network.attention_levels": (),
    "model.sampler.num_steps": 2,
}


@register(
    "ddpm_cifar10",
    source="Ho et al. 2020, arXiv:2006.11239",
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
    source="Karras et al. 2022, arXiv:2206.00364",
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
    source="Lipman et al. 2023, arXiv:2210.02747; Tong et al. 2024, arXiv:2302.00482",
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
