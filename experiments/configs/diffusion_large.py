"""Diffusion models of CIFAR-10 and of ImageNet's latents with the settings of their papers, for GPUs."""

from genjax.config import register
from genjax.data import Images, Latents
from genjax.families.diffusion.ddpm import DDPM
from genjax.families.diffusion.dit import DiT
from genjax.families.diffusion.edm import EDM
from genjax.families.diffusion.flow_matching import FlowMatching
from genjax.families.diffusion.guidance import Guidance
from genjax.families.diffusion.samplers import Ancestral
from genjax.families.diffusion.unet import UNet
from genjax.optimizers import Adam, AdamW, Linear
from genjax.training import Experiment, Training


def _cifar(model, batch_size: int = 128, **training) -> Experiment:
    return Experiment(
        model=model,
        data=Images(name="cifar10", preprocessing="signed", batch_size=batch_size, horizontal_flip=True),
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
    shrunk=_SHRUNK_CIFAR,
)
def edm_cifar10() -> Experiment:
    """EDM on CIFAR-10 with the widths and rates of the paper's DDPM++, whose augmentation is not here; not run.

    python -m experiments.train --experiment=edm_cifar10 --data.dir=TFDS_DIRECTORY --workdir=runs/edm_cifar10

    Days on eight GPUs.
    """
    network = UNet(
        channels=128,
        channel_multipliers=(2, 2, 2),
        num_blocks=4,
        attention_levels=(1,),
        num_heads=1,
        scale_shift_norm=False,
        resample_blocks=True,
        dropout_rate=0.13,
    )
    # The average's half-life is 500 000 pictures, and the warm-up 10 million.
    ema_decay = 0.5 ** (512 / 500_000)
    optimizer = Adam(learning_rate=1e-3, schedule=Linear(warmup_steps=19531, final_scale=1.0), ema_decay=ema_decay)
    return _cifar(EDM(network=network, optimizer=optimizer), batch_size=512, num_steps=390625)


@register(
    "ot_cfm_cifar10",
    source="Lipman et al. 2023, arXiv:2210.02747; Tong et al. 2024, arXiv:2302.00482",
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


def _dit(network: DiT, num_steps: int, guidance: float) -> Experiment:
    return Experiment(
        model=DDPM(
            network=network,
            variance="learned",
            condition_on=("label",),
            clip_x0=False,
            bound_terms=0,
            sampler=Ancestral(num_steps=250, variance="learned"),
            guidance=Guidance(scale=guidance),
            compute_dtype="bfloat16",
            optimizer=AdamW(learning_rate=1e-4, weight_decay=0.0, ema_decay=0.9999),
        ),
        data=Latents(batch_size=256, scale=0.18215),
        training=Training(
            num_steps=num_steps,
            log_every=100,
            evaluate_every=50000,
            sample_every=20000,
            checkpoint_every=10000,
            num_samples=16,
        ),
    )


_SHRUNK_DIT = {
    "data.name": "random",
    "data.shape": (4, 4, 2),
    "data.batch_size": 16,
    "model.network.hidden_dim": 8,
    "model.network.num_layers": 1,
    "model.network.num_heads": 2,
    "model.sampler.num_steps": 2,
}


@register(
    "dit_b4_imagenet",
    source="Peebles & Xie 2023, arXiv:2212.09748",
    shrunk=_SHRUNK_DIT,
)
def dit_b4_imagenet() -> Experiment:
    """DiT-B/4 on 32 x 32 x 4 latents of ImageNet at 256 x 256, in train.npy and train_label.npy; not run here.

    python -m experiments.train --experiment=dit_b4_imagenet --data.dir=LATENTS --training.mesh=data:8 \\
        --workdir=runs/dit_b4

    About a day on eight GPUs.
    """
    return _dit(DiT(patch_size=4, hidden_dim=768, num_layers=12, num_heads=12), num_steps=400000, guidance=0.0)


@register(
    "dit_xl2_imagenet",
    source="Peebles & Xie 2023, arXiv:2212.09748",
    shrunk={**_SHRUNK_DIT, "model.network.remat": False},
)
def dit_xl2_imagenet() -> Experiment:
    """DiT-XL/2, 675 million parameters, on the latents of `dit_b4_imagenet`; not run here.

    python -m experiments.train --experiment=dit_xl2_imagenet --data.dir=LATENTS --training.mesh=data:4,fsdp:2 \\
        --workdir=runs/dit_xl2

    Weeks on eight GPUs.
    """
    network = DiT(patch_size=2, hidden_dim=1152, num_layers=28, num_heads=16, remat=True)
    # The paper's scale of 1.5 is 1 + w.
    return _dit(network, num_steps=7000000, guidance=0.5)
