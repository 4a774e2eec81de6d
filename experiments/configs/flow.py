"""Normalising flows: exact likelihoods of points, tables and pictures."""

from __future__ import annotations

from genjax.config import register
from genjax.data import Images, Points
from genjax.families.flow.dequantization import Uniform, Variational
from genjax.families.flow.ffjord import FFJORD
from genjax.families.flow.flow_vae import FlowVAE
from genjax.families.flow.glow import Glow
from genjax.families.flow.maf import IAF, MAF
from genjax.families.flow.neural_spline import NeuralSplineFlow
from genjax.families.flow.nice import NICE
from genjax.families.flow.planar import PlanarFlow
from genjax.families.flow.real_nvp import RealNVP
from genjax.families.flow.residual import ResidualFlow
from genjax.nn.encoder_decoder import MLPNetwork
from genjax.optimizers import Adam, Cosine
from genjax.training import Experiment, Training

# After its start, ActNorm has a gradient of rounding error, which Adam with a small eps makes a full first step of;
# shrunk runs are compared between devices, whose rounding differs.
_SHRUNK = {"model.optimizer.eps": 1e-4}
_POINTS = {**_SHRUNK, "data.num_train": 512, "data.num_held_out": 64, "data.batch_size": 32}
_DIGITS = {**_SHRUNK, "data.name": "digits", "data.batch_size": 16}


def _points(model, name: str = "two_moons", num_steps: int = 5000, **fields) -> Experiment:
    data = Points(name=name, batch_size=256, eval_batch_size=5000)
    return Experiment(
        model=model, data=data, training=Training(num_steps=num_steps, steps_per_dispatch=50, log_every=500, **fields)
    )


def _decayed(learning_rate: float, **fields) -> Adam:
    return Adam(learning_rate=learning_rate, schedule=Cosine(), clip_norm=5.0, **fields)


@register(
    "real_nvp_two_moons",
    source="Dinh et al. 2017, arXiv:1605.08803",
    shrunk={**_POINTS, "model.num_couplings": 2, "model.hidden_dims": (8,)},
)
def real_nvp_two_moons() -> Experiment:
    """Affine couplings on two moons.

    python -m experiments.train --experiment=real_nvp_two_moons --workdir=runs/real_nvp_two_moons

    About 15 s on two CPU cores.
    """
    return _points(RealNVP(num_couplings=8, hidden_dims=(64, 64), optimizer=_decayed(1e-3)))


@register(
    "spline_checkerboard",
    source="Durkan et al. 2019, arXiv:1906.04032",
    shrunk={**_POINTS, "model.num_layers": 2, "model.hidden_dims": (8,), "model.num_bins": 4},
)
def spline_checkerboard() -> Experiment:
    """Rational-quadratic spline couplings on a checkerboard, which affine couplings cannot represent.

    python -m experiments.train --experiment=spline_checkerboard --workdir=runs/spline_checkerboard

    About 54 s on two CPU cores.
    """
    model = NeuralSplineFlow(
        num_layers=4, hidden_dims=(64, 64), num_bins=32, bound=3.0, linear=False, optimizer=_decayed(1e-3)
    )
    return _points(model, "checkerboard")


@register(
    "spline_autoregressive_two_spirals",
    source="Durkan et al. 2019, arXiv:1906.04032",
    shrunk={**_POINTS, "model.num_layers": 2, "model.hidden_dims": (8,), "model.num_bins": 4},
)
def spline_autoregressive_two_spirals() -> Experiment:
    """Autoregressive splines on two spirals.

    python -m experiments.train --experiment=spline_autoregressive_two_spirals --workdir=runs/spirals

    About 90 s on two busy CPU cores.
    """
    model = NeuralSplineFlow(
        steering="autoregressive", num_layers=4, hidden_dims=(64, 64), num_bins=16, optimizer=_decayed(1e-3)
    )
    return _points(model, "two_spirals")


@register(
    "maf_pinwheel",
    source="Papamakarios et al. 2017, arXiv:1705.07057",
    shrunk={**_POINTS, "model.num_layers": 2, "model.hidden_dims": (8,)},
)
def maf_pinwheel() -> Experiment:
    """Masked autoregressive flow on a pinwheel.

    python -m experiments.train --experiment=maf_pinwheel --workdir=runs/maf_pinwheel

    About 16 s on two CPU cores.
    """
    return _points(MAF(num_layers=8, hidden_dims=(64, 64), optimizer=_decayed(1e-3)), "pinwheel")


@register(
    "iaf_two_moons",
    source="Kingma et al. 2016, arXiv:1606.04934",
    shrunk={**_POINTS, "model.num_layers": 2, "model.hidden_dims": (8,)},
)
def iaf_two_moons() -> Experiment:
    """Inverse autoregressive flow on two moons: samples take one pass, the density one pass a dimension.

    python -m experiments.train --experiment=iaf_two_moons --workdir=runs/iaf_two_moons

    About 45 s on two busy CPU cores.
    """
    return _points(IAF(num_layers=6, hidden_dims=(64, 64), optimizer=_decayed(1e-3)))


@register(
    "planar_two_moons",
    source="Rezende & Mohamed 2015, arXiv:1505.05770",
    shrunk={**_POINTS, "model.num_layers": 2},
)
def planar_two_moons() -> Experiment:
    """Thirty-two planar layers on two moons.

    python -m experiments.train --experiment=planar_two_moons --workdir=runs/planar_two_moons

    About 25 s on two CPU cores.
    """
    return _points(PlanarFlow(num_layers=32, optimizer=_decayed(5e-3)))


@register(
    "residual_two_moons",
    source="Chen et al. 2019, arXiv:1906.02735",
    shrunk={**_POINTS, "model.num_blocks": 2, "model.hidden_dims": (8,), "model.exact_dim": 0},
)
def residual_two_moons() -> Experiment:
    """Residual flow on two moons; in two dimensions its log-determinants are exact, above four they are estimated.

    python -m experiments.train --experiment=residual_two_moons --workdir=runs/residual_two_moons

    About 9 minutes on two busy CPU cores.
    """
    return _points(ResidualFlow(num_blocks=10, optimizer=_decayed(2e-3)), num_steps=3000)


@register(
    "ffjord_two_moons",
    source="Grathwohl et al. 2019, arXiv:1810.01367",
    shrunk={**_POINTS, "model.hidden_dims": (8,), "model.tolerance": 1e-6, "model.max_steps": 64},
)
def ffjord_two_moons() -> Experiment:
    """Continuous flow on two moons; needs `pip install 'genjax[ode]'`.

    python -m experiments.train --experiment=ffjord_two_moons --workdir=runs/ffjord_two_moons

    About 4 minutes on two busy CPU cores.
    """
    return _points(FFJORD(tolerance=1e-4, optimizer=_decayed(5e-3)), num_steps=1000)


@register(
    "spline_table",
    source="Durkan et al. 2019, arXiv:1906.04032",
    shrunk={**_POINTS, "data.name": "two_moons", "model.num_layers": 2, "model.hidden_dims": (8,)},
)
def spline_table() -> Experiment:
    """Density estimation of a table of numbers, standardised, from a CSV or NPY file.

    python -m experiments.train --experiment=spline_table --data.dir=table.csv --workdir=runs/table

    `nll` is in nats of the standardised columns, `bits_per_dim` of the raw ones.  The columns that
    --data.condition_columns=NAME,NAME names are not modelled: the others are, given them, and `experiments.sample`
    draws them given --condition=NUMBER,NUMBER.
    """
    model = NeuralSplineFlow(num_layers=6, hidden_dims=(128, 128), optimizer=_decayed(1e-3))
    data = Points(name="table", standardize=True, batch_size=256)
    training = Training(num_steps=10000, steps_per_dispatch=50, log_every=500, evaluate_every=1000, best_metric="nll")
    return Experiment(model=model, data=data, training=training)


def _digits(model, num_steps: int, preprocessing: str = "dequantize", **fields) -> Experiment:
    data = Images(name="digits", preprocessing=preprocessing, batch_size=128, **fields)
    # Convolutions inside of a scanned loop are slow on CPUs.
    training = Training(
        num_steps=num_steps,
        steps_per_dispatch=20 if data.flatten else 1,
        log_every=200,
        evaluate_every=500,
        best_metric="bits_per_dim",
    )
    return Experiment(model=model, data=data, training=training)


@register(
    "real_nvp_digits",
    source="Dinh et al. 2017, arXiv:1605.08803",
    shrunk={**_DIGITS, "model.couplings_per_mask": 1, "model.width": 4, "model.num_blocks": 1},
)
def real_nvp_digits() -> Experiment:
    """Multi-scale RealNVP on 8x8 digits of 17 levels.

    python -m experiments.train --experiment=real_nvp_digits --workdir=runs/real_nvp_digits

    About 4 minutes on two busy CPU cores.
    """
    optimizer = _decayed(1e-3, weight_decay=1e-2, ema_decay=0.99)
    return _digits(RealNVP(width=32, num_blocks=1, logit_alpha=0.05, optimizer=optimizer), num_steps=700)


@register(
    "glow_digits",
    source="Kingma & Dhariwal 2018, arXiv:1807.03039",
    shrunk={**_DIGITS, "model.num_steps_per_level": 1, "model.width": 4},
)
def glow_digits() -> Experiment:
    """Class-conditional Glow on 8x8 digits of 17 levels.

    python -m experiments.train --experiment=glow_digits --workdir=runs/glow_digits
    python -m experiments.sample --workdir=runs/glow_digits --label=3,7 --model.temperature=0.7

    About 2 minutes on two busy CPU cores.
    """
    model = Glow(
        num_levels=2,
        num_steps_per_level=4,
        width=64,
        class_conditional=True,
        logit_alpha=0.05,
        optimizer=_decayed(1e-3, weight_decay=1e-2, ema_decay=0.99),
    )
    return _digits(model, num_steps=1500)


@register(
    "glow_variational_digits",
    source="Ho et al. 2019, Flow++, arXiv:1902.00275 (variational dequantisation)",
    shrunk={
        **_DIGITS,
        "model.num_steps_per_level": 1,
        "model.width": 4,
        "model.dequantization.hidden_dims": (8,),
    },
)
def glow_variational_digits() -> Experiment:
    """Glow with learned dequantisation noise on 8x8 digits; the model sees levels and dequantises by itself.

    python -m experiments.train --experiment=glow_variational_digits --workdir=runs/glow_variational_digits

    About 2 minutes on two busy CPU cores.
    """
    model = Glow(
        num_levels=2,
        num_steps_per_level=4,
        width=64,
        dequantization=Variational(),
        logit_alpha=0.05,
        optimizer=_decayed(1e-3, weight_decay=1e-2, ema_decay=0.99),
    )
    return _digits(model, num_steps=1500, preprocessing="unit")


@register(
    "maf_digits",
    source="Papamakarios et al. 2017, arXiv:1705.07057",
    shrunk={**_DIGITS, "model.num_layers": 2, "model.hidden_dims": (8,)},
)
def maf_digits() -> Experiment:
    """MAF(5) on 8x8 digits of 17 levels as vectors in logit space.

    python -m experiments.train --experiment=maf_digits --workdir=runs/maf_digits

    About 40 s on two busy CPU cores.
    """
    model = MAF(num_layers=5, hidden_dims=(256,), optimizer=_decayed(1e-3, weight_decay=1e-2, ema_decay=0.99))
    return _digits(model, num_steps=600, preprocessing="logit", logit_alpha=0.05, flatten=True)


@register(
    "nice_mnist",
    source="Dinh et al. 2014, arXiv:1410.8516",
    shrunk={**_DIGITS, "model.num_couplings": 2, "model.hidden_dims": (8,)},
)
def nice_mnist() -> Experiment:
    """NICE on dequantised MNIST as vectors: four additive couplings of five layers of 1000.

    python -m experiments.train --experiment=nice_mnist --data.dir=... --workdir=runs/nice_mnist

    For a GPU.
    """
    model = NICE(dequantization=Uniform(), optimizer=Adam(learning_rate=1e-3, eps=1e-4, b2=0.99, clip_norm=50.0))
    data = Images(name="mnist", preprocessing="unit", flatten=True, batch_size=200)
    training = Training(num_steps=150000, log_every=500, evaluate_every=5000, best_metric="bits_per_dim")
    return Experiment(model=model, data=data, training=training)


@register(
    "real_nvp_mnist",
    source="Dinh et al. 2017, arXiv:1605.08803",
    shrunk={**_DIGITS, "model.couplings_per_mask": 1, "model.width": 4, "model.num_blocks": 1},
)
def real_nvp_mnist() -> Experiment:
    """Multi-scale RealNVP on MNIST.

    python -m experiments.train --experiment=real_nvp_mnist --data.dir=... --workdir=runs/real_nvp_mnist

    For a GPU.
    """
    model = RealNVP(num_levels=3, width=64, num_blocks=4, logit_alpha=0.05, optimizer=_decayed(1e-3, ema_decay=0.999))
    data = Images(name="mnist", preprocessing="dequantize", batch_size=128)
    training = Training(num_steps=100000, log_every=200, evaluate_every=5000, best_metric="bits_per_dim")
    return Experiment(model=model, data=data, training=training)


@register(
    "glow_mnist",
    source="Kingma & Dhariwal 2018, arXiv:1807.03039",
    shrunk={**_DIGITS, "model.num_steps_per_level": 2, "model.width": 4},
)
def glow_mnist() -> Experiment:
    """Glow on MNIST: two levels of 16 steps, compiled as a scan over depth, activations recomputed.

    python -m experiments.train --experiment=glow_mnist --data.dir=... --workdir=runs/glow_mnist

    For a GPU.
    """
    model = Glow(
        num_levels=2,
        num_steps_per_level=16,
        width=512,
        scan=True,
        recompute=True,
        logit_alpha=0.05,
        optimizer=_decayed(5e-4, ema_decay=0.999),
    )
    data = Images(name="mnist", preprocessing="dequantize", batch_size=128)
    training = Training(num_steps=100000, log_every=200, evaluate_every=5000, best_metric="bits_per_dim")
    return Experiment(model=model, data=data, training=training)


@register(
    "maf_mnist",
    source="Papamakarios et al. 2017, arXiv:1705.07057",
    shrunk={**_DIGITS, "model.num_layers": 2, "model.hidden_dims": (8,)},
)
def maf_mnist() -> Experiment:
    """MAF(5) with one hidden layer of 1024 on MNIST in logit space.

    python -m experiments.train --experiment=maf_mnist --data.dir=... --workdir=runs/maf_mnist

    About 30 minutes on two busy CPU cores; better than 1300 nats on the validation split after 2000 of 9000 steps.  The
    dequantisation noise is drawn anew at every step, which the paper's fixed data did not have.
    """
    model = MAF(num_layers=5, hidden_dims=(1024,), optimizer=_decayed(3e-4, weight_decay=1e-2))
    data = Images(name="mnist", preprocessing="logit", logit_alpha=1e-6, flatten=True, batch_size=100)
    training = Training(num_steps=9000, log_every=200, evaluate_every=1000, best_metric="nll")
    return Experiment(model=model, data=data, training=training)


def _flow_vae_digits(posterior_flow: str, **fields) -> Experiment:
    model = FlowVAE(
        posterior_flow=posterior_flow,
        latent_dim=16,
        network=MLPNetwork(hidden_dims=(256, 256), activation="silu"),
        num_importance_samples=500,
        optimizer=Adam(learning_rate=2e-3, schedule=Cosine(warmup_steps=200), clip_norm=100.0),
        **fields,
    )
    data = Images(name="digits", preprocessing="binarize_dynamic", batch_size=128)
    training = Training(
        num_steps=20000, steps_per_dispatch=50, log_every=1000, evaluate_every=5000, best_metric="nll_bound"
    )
    return Experiment(model=model, data=data, training=training)


_FLOW_VAE = {
    **_DIGITS,
    "model.latent_dim": 2,
    "model.network.hidden_dims": (8,),
    "model.num_flow_layers": 2,
    "model.context_dim": 2,
    "model.num_importance_samples": 2,
    "model.optimizer.schedule.warmup_steps": 0,
}


@register(
    "iaf_vae_digits",
    source="Kingma et al. 2016, arXiv:1606.04934",
    shrunk={**_FLOW_VAE, "model.flow_hidden_dims": (8,)},
)
def iaf_vae_digits() -> Experiment:
    """vae_digits with four inverse autoregressive maps as posterior.

    python -m experiments.train --experiment=iaf_vae_digits --workdir=runs/iaf_vae_digits

    About 3 minutes on two busy CPU cores.
    """
    return _flow_vae_digits("iaf")


@register(
    "planar_vae_digits",
    source="Rezende & Mohamed 2015, arXiv:1505.05770",
    shrunk=_FLOW_VAE,
)
def planar_vae_digits() -> Experiment:
    """vae_digits with eight planar maps as posterior.

    python -m experiments.train --experiment=planar_vae_digits --workdir=runs/planar_vae_digits

    About 3 minutes on two busy CPU cores.
    """
    return _flow_vae_digits("planar", num_flow_layers=8)
