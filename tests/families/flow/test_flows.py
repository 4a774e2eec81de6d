"""Claims about flows as models: densities that integrate to 1, samples, bookkeeping of bits per dimension, errors."""

import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.batch import example_keys
from genjax.data.images import Images
from genjax.data.points import Points
from genjax.families.diffusion.edm import EDM
from genjax.families.flow.base import GaussianMixture, StandardLogistic, StandardNormal
from genjax.families.flow.dequantization import Uniform, Variational
from genjax.families.flow.glow import Glow
from genjax.families.flow.maf import IAF, MAF
from genjax.families.flow.neural_spline import NeuralSplineFlow
from genjax.families.flow.nice import NICE
from genjax.families.flow.planar import PlanarFlow
from genjax.families.flow.real_nvp import RealNVP
from genjax.families.gan.gan import GAN
from genjax.families.vae.conditional_vae import ConditionalVAE
from genjax.model import GenerativeModel, HasLatents, HasLogProb, takes
from genjax.optimizers import Adam
from genjax.tools import conditions
from genjax.tools import latents as latent_tables
from genjax.tools.likelihood import log_likelihoods, scores_of_examples
from genjax.training.experiment import Experiment, resolve

POINTS = {"data_shape": (2,), "optimizer": Adam(learning_rate=5e-3)}
IMAGES = {"data_shape": (4, 4, 1), "optimizer": Adam(learning_rate=5e-3)}

POINT_MODELS = {
    "nice": NICE(num_couplings=4, hidden_dims=(16,), **POINTS),
    "real_nvp": RealNVP(num_couplings=4, hidden_dims=(16,), **POINTS),
    "real_nvp_mixture": RealNVP(num_couplings=2, hidden_dims=(16,), base=GaussianMixture(num_components=3), **POINTS),
    "maf": MAF(num_layers=2, hidden_dims=(16,), **POINTS),
    "iaf": IAF(num_layers=2, hidden_dims=(16,), **POINTS),
    "spline_coupling": NeuralSplineFlow(num_layers=2, hidden_dims=(16,), num_bins=5, **POINTS),
    "spline_ar": NeuralSplineFlow(num_layers=2, hidden_dims=(16,), num_bins=5, steering="autoregressive", **POINTS),
    "planar": PlanarFlow(num_layers=4, **POINTS),
    "radial": PlanarFlow(kind="radial", num_layers=4, **POINTS),
    "conditional": RealNVP(num_couplings=2, hidden_dims=(16,), num_classes=3, class_conditional=True, **POINTS),
    "given_vector": RealNVP(num_couplings=2, hidden_dims=(16,), condition_dim=2, **POINTS),
}
IMAGE_MODELS = {
    "nice": NICE(num_couplings=2, hidden_dims=(16,), dequantization=Uniform(num_levels=4), **IMAGES),
    "real_nvp": RealNVP(
        width=4, num_blocks=1, couplings_per_mask=1, dequantization=Uniform(num_levels=4), logit_alpha=0.05, **IMAGES
    ),
    "glow": Glow(width=4, num_steps_per_level=2, dequantization=Variational(num_levels=4), logit_alpha=0.05, **IMAGES),
    "glow_conditional": Glow(
        width=4,
        num_steps_per_level=2,
        scan=True,
        recompute=True,
        num_classes=3,
        class_conditional=True,
        dequantization=Uniform(num_levels=4),
        logit_alpha=0.05,
        **IMAGES,
    ),
}


def point_batch(size=256):
    """Two bent arms: far from normal."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, np.pi, size)
    label = rng.integers(0, 3, size)
    side = np.where(label == 0, 1.0, -1.0)
    x = np.stack([np.cos(angle) + 0.5 * side, side * np.sin(angle)], -1) + 0.1 * rng.standard_normal((size, 2))
    condition = jnp.asarray(np.stack([side, angle], -1), jnp.float32)
    return {"x": jnp.asarray(x, jnp.float32), "label": jnp.asarray(label, jnp.int32), "condition": condition}


def image_batch(size=16):
    levels = np.random.default_rng(0).binomial(3, np.linspace(0.1, 0.9, 16).reshape(4, 4, 1), (size, 4, 4, 1))
    return {"x": jnp.asarray(levels / 3, jnp.float32), "label": jnp.arange(size) % 3}


@functools.cache
def trained(name, points=True, steps=20):
    """A briefly trained model, and the losses on the way."""
    model, batch = (POINT_MODELS[name], point_batch()) if points else (IMAGE_MODELS[name], image_batch())

    @jax.jit
    def run(key):
        state = model.init(key, batch)
        return jax.lax.scan(lambda s, k: model.train_step(s, batch, k), state, jax.random.split(key, steps))

    state, metrics = run(jax.random.key(0))
    return model, state, metrics


@pytest.mark.parametrize("name", POINT_MODELS)
def test_density_of_points_learns_and_integrates_to_one(name):
    model, state, metrics = trained(name)
    assert isinstance(model, GenerativeModel) and isinstance(model, HasLogProb) and isinstance(model, HasLatents)
    assert metrics["loss"][-1] < metrics["loss"][0]
    edges = np.linspace(-9.0, 9.0, 401)
    cell = (edges[1] - edges[0]) ** 2
    grid = jnp.asarray(np.stack(np.meshgrid(edges, edges, indexing="ij"), -1).reshape(-1, 2), jnp.float32)
    batch = {"x": grid, "label": jnp.ones(len(grid), jnp.int32), "condition": jnp.ones((len(grid), 2))}
    total = float(jnp.exp(jax.jit(model.log_prob)(state, batch)).sum()) * cell
    assert abs(total - 1.0) < 1e-3


@pytest.mark.parametrize("name", POINT_MODELS)
def test_samples_are_the_decoded_noise_and_encoding_undoes_it(name):
    model, state, _ = trained(name)
    label = jnp.arange(64) % 3

    @jax.jit
    def round_trip(key):
        x = model.sample(state, key, 64)
        z = model.base.sample(state.params.get("base", {}), key, 64, 2, 1.0)
        return x, z, model.encode(state, {"x": x, "label": label, "condition": jnp.zeros((64, 2))})

    x, z, back = round_trip(jax.random.key(1))
    assert x.shape == (64, 2)
    np.testing.assert_allclose(back, z, atol=2e-3)


def test_a_lower_temperature_gives_likelier_samples():
    model, state, _ = trained("real_nvp")
    sample = jax.jit(lambda t: model.sample(state, jax.random.key(0), 256, temperature=t))
    cold, warm = (model.log_prob(state, {"x": sample(t)}).mean() for t in (0.5, 1.0))
    assert cold > warm


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_picture_flows_learn_and_their_samples_are_levels(name):
    model, state, metrics = trained(name, points=False)
    assert metrics["loss"][-1] < metrics["loss"][0]
    samples = jax.jit(lambda k: model.sample(state, k, 5))(jax.random.key(0))
    assert samples.shape == (5, 4, 4, 1)
    np.testing.assert_allclose(samples * 3, np.round(samples * 3), atol=1e-5)
    values = jax.jit(model.evaluate)(state, image_batch(), jax.random.key(1))
    assert values["nll"].shape == (16,)
    np.testing.assert_allclose(values["bits_per_dim"], values["nll"] / (16 * math.log(2)), rtol=1e-5)


def test_decoding_an_encoded_picture_gives_it_back():
    model, state, _ = trained("real_nvp", points=False)
    batch = image_batch()
    np.testing.assert_allclose(model.decode(state, model.encode(state, batch)), batch["x"], atol=1e-5)


def test_bits_per_dim_of_an_untrained_flow_on_uniform_noise_is_that_of_numpy():
    model = RealNVP(data_shape=(3,), num_couplings=1, actnorm=False, hidden_dims=(4,))
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    log_abs_det = np.asarray([-1.0, 0.0, 1.0, 2.0], np.float32)
    batch = {"x": jnp.asarray(x), "log_abs_det": jnp.asarray(log_abs_det)}
    values = model.evaluate(model.init(jax.random.key(0), batch), batch, jax.random.key(0))
    log_normal = -0.5 * (x**2 + np.log(2 * np.pi)).sum(-1)
    np.testing.assert_allclose(values["nll"], -log_normal, rtol=1e-5)
    np.testing.assert_allclose(values["bits_per_dim"], -(log_normal + log_abs_det) / (3 * np.log(2)), rtol=1e-5)


def test_bits_per_dim_of_an_untrained_picture_flow_are_those_of_numpy():
    model = RealNVP(
        num_levels=1,
        couplings_per_mask=0,
        width=4,
        num_blocks=0,
        actnorm=False,
        dequantization=Uniform(num_levels=4),
        logit_alpha=0.05,
        **IMAGES,
    )
    batch, key = image_batch(4), jax.random.key(1)
    state = jax.jit(model.init)(jax.random.key(0), batch)
    bits = jax.jit(model.evaluate)(state, batch, key)["bits_per_dim"]
    u = np.stack([jax.random.uniform(k, (4, 4, 1)) for k in example_keys(key, batch)])
    y = np.asarray((3 * batch["x"] + u) / 4, np.float64).reshape(4, 16)
    # The couplings start as the identity, so that only the logit is left.
    inner = 0.05 + 0.9 * y
    z, slope = np.log(inner / (1 - inner)), 0.9 / (inner * (1 - inner))
    log_density = (-0.5 * (z**2 + np.log(2 * np.pi)) + np.log(slope)).sum(1)
    np.testing.assert_allclose(bits, (16 * np.log(4) - log_density) / (16 * np.log(2)), rtol=1e-4)


def test_the_dequantised_bound_of_one_uniform_level_set_is_exact():
    # A logistic flow through the logit without margin is uniform on [0, 1], so every level has probability 1 / L.
    model = NICE(
        data_shape=(3,), num_couplings=1, hidden_dims=(4,), logit_alpha=1e-6, dequantization=Uniform(num_levels=4)
    )
    batch = {"x": jnp.asarray(np.random.default_rng(0).integers(0, 4, (8, 3)) / 3, jnp.float32)}
    values = model.evaluate(model.init(jax.random.key(0), batch), batch, jax.random.key(1))
    np.testing.assert_allclose(values["bits_per_dim"], np.full(8, 2.0), atol=1e-4)


@pytest.mark.parametrize("dequantization", [Uniform(num_levels=4), Variational(num_levels=4, hidden_dims=(8,))])
def test_dequantised_values_stay_in_their_level_and_the_noise_has_its_density(dequantization):
    batch = image_batch(64)
    params = dequantization.init(jax.random.key(0), batch["x"])
    keys = jax.random.split(jax.random.key(1), 64)
    y, correction = dequantization(params, batch["x"], keys)
    np.testing.assert_allclose(dequantization.quantize(y), batch["x"], atol=1e-6)
    # The learned noise starts as uniform too.
    np.testing.assert_allclose(correction, np.full(64, -16 * math.log(4)), rtol=1e-5)


def moved(params, scale):
    """Parameters away from their start, at which couplings are the identity."""
    leaves, tree = jax.tree.flatten(params)
    noise = [scale * jax.random.normal(jax.random.key(i), p.shape) for i, p in enumerate(leaves)]
    return tree.unflatten([p + n for p, n in zip(leaves, noise)])


def test_learned_noise_of_every_pixel_depends_on_the_levels_and_has_the_density_that_it_says():
    dequantization = Variational(num_levels=4, hidden_dims=(8,))
    black, white = jnp.zeros((20000, 6)), jnp.ones((20000, 6))
    params = moved(jax.jit(dequantization.init)(jax.random.key(0), black), 0.2)
    dequantize, keys = jax.jit(dequantization), jax.random.split(jax.random.key(1), len(black))
    dark, correction = dequantize(params, black, keys)
    light, _ = dequantize(params, white, keys)
    assert (jnp.abs(4 * dark - (4 * light - 3)).max(0) > 1e-2).all()
    # E_q [1 / q(u)] is the volume that u can lie in.
    inverse = np.exp(correction + 6 * math.log(4))
    assert inverse.std() > 0.05 and abs(inverse.mean() - 1.0) < 4.0 * inverse.std() / len(black) ** 0.5


def test_the_bound_of_many_draws_is_the_log_of_their_mean_and_tighter_than_one():
    model, state, _ = trained("real_nvp", points=False)
    batch, key = image_batch(), jax.random.key(0)
    many = jax.jit(lambda: model.log_prob_bound(state, batch, key, 8))()
    evaluate = jax.jit(model.evaluate)
    each = -np.stack([evaluate(state, batch, k)["nll"] for k in jax.random.split(key, 8)])
    np.testing.assert_allclose(many, np.log(np.exp(each).mean(0)), rtol=1e-4)
    assert (many > each.mean(0)).all()


def test_levels_are_dequantised_once_and_no_others():
    model, batch, key = IMAGE_MODELS["nice"], image_batch(), jax.random.key(0)
    state = model.init(key, batch)
    between = {**batch, "x": batch["x"].at[1, 0, 0, 0].set(0.5)}
    with pytest.raises(ValueError, match="none of the 4 levels that dequantization has"):
        model.diagnose(state, between, key)
    with jax.debug_nans(False):
        nll = jax.jit(model.evaluate)(state, between, key)["nll"]
    np.testing.assert_array_equal(np.isnan(nll), np.arange(len(nll)) == 1)


def test_levels_that_nobody_dequantises_are_refused_before_anything_is_computed():
    for model, preprocessing in ((Glow(), "unit"), (Glow(), "binarize_static"), (Glow(), "dequantize"),
                                 (Glow(dequantization=Uniform()), "unit"), (RealNVP(), None)):  # fmt: skip
        data = Points() if preprocessing is None else Images(name="digits", preprocessing=preprocessing)
        experiment = Experiment(model=model, data=data)
        if model.dequantization is None and preprocessing in ("unit", "binarize_static"):
            with pytest.raises(ValueError, match="would grow without end; change data.preprocessing to dequantize"):
                resolve(experiment)
        else:
            assert resolve(experiment).model.data_shape


def test_likelihoods_are_of_the_data_before_their_transform_too_and_bounds_have_noise_of_their_own():
    model = RealNVP(num_couplings=2, hidden_dims=(4,), **POINTS)
    batch = {"x": point_batch()["x"], "log_abs_det": jnp.arange(len(point_batch()["x"]), dtype=jnp.float32)}
    state = model.init(jax.random.key(0), batch)
    log_prob, raw = log_likelihoods(model, state, batch, jax.random.key(0))
    np.testing.assert_allclose(raw, model.log_prob(state, batch) + batch["log_abs_det"], rtol=1e-6)
    np.testing.assert_allclose(log_prob, model.log_prob(state, batch), rtol=1e-6)
    draw = lambda batch, key: jax.vmap(jax.random.uniform)(example_keys(key, batch))
    data = types.SimpleNamespace(transform=lambda batch, key: {**batch, "x": draw(batch, key)})
    bounded = types.SimpleNamespace(log_prob_bound=lambda state, batch, key: draw(batch, key))
    noise, _, x = scores_of_examples(bounded, data, None, {"x": jnp.zeros(8)}, jax.random.key(0))
    assert (noise != x).all()


@pytest.mark.parametrize("base", [StandardNormal(), StandardLogistic(), GaussianMixture(num_components=3)])
def test_base_samples_follow_the_base_density(base):
    params = base.init(jax.random.key(0), 1)
    edges = jnp.linspace(-30.0, 30.0, 20001)[:, None]
    density = np.exp(base.log_prob(params, edges)) * 0.003
    z = np.asarray(base.sample(params, jax.random.key(1), 50000, 1, 1.0))
    assert abs(density.sum() - 1.0) < 1e-3
    mean = (density * edges[:, 0]).sum()
    deviation = np.sqrt((density * (edges[:, 0] - mean) ** 2).sum())
    assert abs(z.mean() - mean) < 0.03 and abs(z.std() - deviation) < 0.03


def test_bad_input_is_one_clear_error():
    batch, key = point_batch(), jax.random.key(0)
    with pytest.raises(ValueError, match="base distribution has 3 dimensions but the data have 2"):
        RealNVP(data_shape=(2,), base=StandardNormal(dim=3)).init(key, batch)
    with pytest.raises(ValueError, match=r"shape \(2,\), but model.data_shape is \(3,\)"):
        RealNVP(data_shape=(3,)).init(key, batch)
    with pytest.raises(ValueError, match="data_shape is None"):
        RealNVP().init(key, batch)
    with pytest.raises(ValueError, match="even height and width"):
        Glow(data_shape=(6, 6, 1), num_levels=2).init(key, {"x": jnp.zeros((2, 6, 6, 1))})
    with pytest.raises(ValueError, match=r"\[0, 1\], but reach"):
        RealNVP(data_shape=(2,), logit_alpha=0.05).init(key, batch)
    with pytest.raises(ValueError, match=r"\[0, 1\], but reach"):
        RealNVP(data_shape=(2,), dequantization=Uniform(num_levels=4)).init(key, batch)
    with pytest.raises(ValueError, match="num_levels is None"):
        RealNVP(data_shape=(4, 4, 1), dequantization=Uniform()).init(key, image_batch())
    with pytest.raises(ValueError, match="PlanarFlow computes in float32 alone, not in bfloat16"):
        PlanarFlow(data_shape=(2,), compute_dtype="bfloat16").init(key, batch)
    with pytest.raises(ValueError, match="needs labels"):
        RealNVP(data_shape=(2,), num_classes=3, class_conditional=True).init(key, {"x": batch["x"]})
    with pytest.raises(ValueError, match="condition_dim=3, but the batch's condition has 2 numbers"):
        RealNVP(data_shape=(2,), condition_dim=3).init(key, batch)
    with pytest.raises(ValueError, match="num_couplings=1 must be at least 2"):
        Variational(num_levels=4, num_couplings=1).init(key, batch["x"])
    with pytest.raises(ValueError, match="log_prob_bound"):
        model = NICE(data_shape=(2,), hidden_dims=(4,), dequantization=Uniform(num_levels=4))
        model.log_prob(model.init(key, {"x": jnp.zeros((2, 2))}), {"x": jnp.zeros((2, 2))})


def test_labels_and_conditions_are_checked():
    conditional, state, _ = trained("conditional")
    plain, plain_state, _ = trained("real_nvp")
    key = jax.random.key(0)
    conditional.check_labels(np.array([0, 2]))
    shape = jax.eval_shape(lambda s, k: conditional.sample(s, k, 3, label=1), state, key).shape
    assert shape[0] == 3, "one class for all"
    for label in (-1, 3):
        with pytest.raises(ValueError, match="labels must lie between 0 and 2"):
            conditional.sample(state, key, 2, label=np.array([0, label]))
        wrong = {"x": jnp.zeros((2, 2)), "label": jnp.array([0, label])}
        with pytest.raises(ValueError, match="labels must lie between 0 and 2"):
            conditional.log_prob(state, wrong)
        with jax.debug_nans(False):
            log_prob = jax.jit(conditional.log_prob)(state, wrong)
        np.testing.assert_array_equal(np.isnan(log_prob), [False, True])
    with pytest.raises(ValueError, match="not conditional on classes"):
        plain.sample(plain_state, key, 2, label=np.array([0, 1]))
    with pytest.raises(ValueError, match="not conditional on vectors"):
        plain.sample(plain_state, key, 2, condition=np.zeros((2, 1)))
    with pytest.raises(ValueError, match="needs labels"):
        conditional.decode(state, jnp.zeros((2, 2)))


def test_the_latent_tools_decode_codes_given_the_classes_of_a_conditional_flow():
    model, state, _ = trained("conditional")
    batch, run = point_batch(), types.SimpleNamespace(model=model, state=state)
    codes = np.asarray(model.encode(state, batch))
    assert takes(model, "label")
    again = latent_tables.decode(run, codes, np.asarray(batch["label"]))
    np.testing.assert_allclose(again, batch["x"], atol=1e-4)
    for other in (ConditionalVAE(), EDM(condition_on=("label",)), GAN(conditioning="projection")):
        assert takes(other, "label")
    plain = POINT_MODELS["real_nvp"]
    assert not any(takes(m, "label") for m in (plain, ConditionalVAE(condition_keys=("context",)), EDM(), GAN()))
    assert conditions.has_exact_log_prob(plain) and not conditions.has_exact_log_prob(IMAGE_MODELS["nice"])


def test_diagnosis_names_the_layer_that_broke():
    model, state, _ = trained("real_nvp")
    params = jax.tree.map(lambda p: p, state.params)
    params["bijection"]["00_chain"]["02_actnorm"]["log_scale"] = jnp.full(2, jnp.inf)
    with jax.debug_nans(False), pytest.raises(ValueError, match="layer 00_chain/02_actnorm is not"):
        model.diagnose(state.replace(params=params), point_batch(), jax.random.key(0))


def test_diagnosis_names_level_and_repetition_of_a_picture_flow():
    model, state, _ = trained("glow_conditional", points=False)
    params = jax.tree.map(lambda p: p, state.params)
    step = params["bijection"]["01_chain"]["00_multiscale"]["level_1"]["01_repeat"]["00_actnorm"]
    step["log_scale"] = step["log_scale"].at[1].set(jnp.inf)
    path = "01_chain/00_multiscale/level_1/01_repeat/01/00_actnorm"
    with jax.debug_nans(False), pytest.raises(ValueError, match=f"layer {path} is not finite"):
        model.diagnose(state.replace(params=params), image_batch(), jax.random.key(0))
