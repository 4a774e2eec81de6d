"""Diffusion models against exact answers on Gaussian data, and what they refuse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from genjax.data import transforms
from genjax.families.diffusion import samplers
from genjax.families.diffusion.consistency import ConsistencyModel, ConsistencySampler
from genjax.families.diffusion.ddpm import DDPM, bound_strata, discretized_gaussian_log_prob
from genjax.families.diffusion.diffusion import Diffusion
from genjax.families.diffusion.dit import DiT, patchify, unpatchify
from genjax.families.diffusion.edm import EDM
from genjax.families.diffusion.flow_matching import FlowMatching
from genjax.families.diffusion.guidance import Guidance, with_classifier
from genjax.families.diffusion.networks import ResidualMLP
from genjax.families.diffusion.processes import Discrete, LinearInterpolant, VariancePreserving
from genjax.families.diffusion.samplers import Estimate
from genjax.families.diffusion.score_sde import ScoreSDE
from genjax.families.diffusion.unet import UNet
from genjax.families.diffusion.vdm import VDM
from genjax.model import HasLogProb, HasLogProbBound
from genjax.nn.convolution import Doubling
from genjax.nn.group_norm import GroupNorm, num_groups_for
from genjax.optimizers import Adam

MLP = ResidualMLP(hidden_dim=32, num_blocks=2)
MEAN, SCALE = 0.7, 0.5


def gaussian_estimate(process, z, t):
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    return (SCALE**2 * alpha * z + sigma**2 * MEAN) / (alpha**2 * SCALE**2 + sigma**2)


class ExactDDPM(DDPM):
    """A DDPM whose network is the exact denoiser of N(MEAN, SCALE^2)."""

    def estimate(self, params, z, t, condition, x0_before=None):
        return Estimate(gaussian_estimate(self.process, z, t))


def test_the_bound_of_the_exact_denoiser_is_the_likelihood_and_its_terms_sum():
    model = ExactDDPM(data_shape=(1,), network=MLP, clip_x0=False, bound_terms=999, variance="large")
    x = MEAN + SCALE * jax.random.normal(jax.random.key(0), (256, 1))
    terms = jax.jit(lambda x, key: model.bound_terms_of({}, {"x": x}, key))(x, jax.random.key(1))
    np.testing.assert_allclose(terms["total"], terms["prior"] + terms["diffusion"] + terms["reconstruction"], rtol=1e-6)
    exact = 0.5 * ((x - MEAN) / SCALE) ** 2 + 0.5 * np.log(2 * np.pi * SCALE**2)
    # The noise of 999 steps remains, and the bound is loose by the chain's finite steps.
    assert abs(float(terms["total"].mean() - exact.mean())) < 0.06
    few = dataclasses.replace(model, bound_terms=50)
    estimates = jax.jit(lambda x, key: few.bound_terms_of({}, {"x": x}, key))(x, jax.random.key(2))
    assert abs(float(estimates["diffusion"].mean() - terms["diffusion"].mean())) < 0.6
    for count, terms in ((1000, 20), (1000, 5000), (3, 2), (2, 1)):
        edges = bound_strata(count, terms)
        assert edges[0] == 2 and edges[-1] == count + 1 and np.all(np.diff(edges) > 0) and len(edges) <= terms + 1


@pytest.mark.parametrize("log_variance", [-8.0, -2.0, 1.0])
def test_the_mass_of_all_levels_is_one(log_variance):
    levels = jnp.linspace(-1.0, 1.0, 17)
    for mean in (-1.3, -0.2, 0.0, 0.9):
        log_prob = discretized_gaussian_log_prob(levels, jnp.array(mean), jnp.array(log_variance), 17)
        np.testing.assert_allclose(jnp.exp(log_prob).sum(), 1.0, atol=2e-5)


def test_discretized_gaussian_has_finite_gradients_far_from_the_mean():
    levels = jnp.linspace(-1.0, 1.0, 17)
    gradient = jax.grad(lambda v: discretized_gaussian_log_prob(levels, jnp.array(0.9), v, 17).sum())(jnp.array(-9.0))
    assert np.isfinite(gradient)


NETWORKS = {
    "mlp": (MLP, (3,)),
    "unet": (UNet(channels=8, channel_multipliers=(1, 2), num_blocks=1, attention_levels=(1,), num_heads=2), (5, 5, 2)),
    "unet_1d": (UNet(channels=8, channel_multipliers=(1,), num_blocks=1, attention_levels=(), num_heads=2), (10, 2)),
    "unet_video": (
        UNet(channels=8, channel_multipliers=(1,), num_blocks=1, attention_levels=(0,), num_heads=2, video=True),
        (3, 4, 4, 1),
    ),
    "dit": (DiT(patch_size=2, hidden_dim=16, num_layers=1, num_heads=2), (4, 4, 2)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_take_every_condition_and_reach_every_parameter(name):
    network, shape = NETWORKS[name]
    known = tuple(c for c in network.conditions)
    model = Diffusion(
        data_shape=shape, num_classes=4, network=network, condition_on=known, sampler=samplers.DDIM(num_steps=2),
        self_conditioning=name == "mlp", optimizer=Adam(learning_rate=1e-2),
    )  # fmt: skip
    keys = jax.random.split(jax.random.key(0), 4)
    batch = {
        "x": jax.random.normal(keys[0], (4, *shape)),
        "label": jnp.arange(4) % 4,
        "vector": jnp.ones((4, 3)),
        "context": jax.random.normal(keys[1], (4, 2, 6)),
        "image": jnp.ones((4, *shape)),
    }
    state = model.init(keys[2], batch)
    step = jax.jit(model.train_step)
    first = state.params
    # Output layers start at zero and let gradients through from the second step on.
    for i in range(4):
        state, metrics = step(state, batch, jax.random.fold_in(keys[3], i))
    assert np.isfinite(metrics["loss"])
    still = [
        jax.tree_util.keystr(path)
        for (path, new), old in zip(jax.tree_util.tree_leaves_with_path(state.params), jax.tree.leaves(first))
        if np.array_equal(new, old)
    ]
    assert not still, still
    conditions = {k: v for k, v in batch.items() if k in known and k != "label"}
    empty = model.sampling_condition(state, 3, None, {})
    assert {k: v.shape[1:] for k, v in empty.items()} == {k: batch[k].shape[1:] for k in known}
    assert not any(np.any(v) for k, v in empty.items() if k != "label")
    with pytest.raises(ValueError, match=r"vector has shape \(3, 2\), which does not fit \(3, 3\)"):
        model.sampling_condition(state, 3, None, {"vector": jnp.ones((3, 2))})
    if name != "mlp":
        shapes = jax.eval_shape(lambda s, k: model.sample(s, k, 4, **conditions), state, keys[0])
        assert shapes.shape == (4, *shape)
    else:
        samples = jax.jit(lambda s, k: model.sample(s, k, 4, **conditions))(state, keys[0])
        assert samples.shape == (4, *shape) and np.isfinite(samples).all()


def test_group_norm_equals_that_of_flax_and_its_gradients():
    keys = jax.random.split(jax.random.key(0), 4)
    x = 3.0 + jax.random.normal(keys[0], (2, 4, 3, 12))
    params = {"scale": jax.random.normal(keys[1], (12,)), "bias": jnp.arange(12.0)}
    scale, shift = jax.random.normal(keys[2], (2, 2, 12))

    def theirs(params, x, scale, shift):
        y = nn.GroupNorm(num_groups=3).apply({"params": params}, x)
        return y * (1.0 + scale[:, None, None]) + shift[:, None, None]

    ours = lambda params, *rest: GroupNorm(num_groups=3).apply({"params": params}, *rest)
    assert [num_groups_for(c, 8) for c in (2, 12, 32, 64)] == [1, 3, 8, 8]
    y, gradients = jax.vjp(ours, params, x, scale, shift)
    expected, expected_gradients = jax.vjp(theirs, params, x, scale, shift)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    cotangent = jax.random.normal(keys[3], x.shape)
    for a, b in zip(jax.tree.leaves(gradients(cotangent)), jax.tree.leaves(expected_gradients(cotangent))):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_doubling_is_a_convolution_of_repeated_pixels_with_the_same_parameters():
    x = jax.random.normal(jax.random.key(0), (1, 2, 3, 4))
    y, variables = Doubling(jnp.float32).init_with_output(jax.random.key(1), x)
    expected = nn.Conv(4, (3, 3)).apply(variables, x.repeat(2, 1).repeat(2, 2))
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_patches_put_together_are_the_data():
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    tokens = patchify(x, (2, 3))
    assert tokens.shape == (2, 4, 18)
    np.testing.assert_array_equal(unpatchify(tokens, (4, 6), (2, 3)), x)
    np.testing.assert_array_equal(tokens[0, 0].reshape(2, 3, 3), x[0, :2, :3])


def trained(model, steps=600, batch_size=256, conditional=False):
    """A model trained on N(MEAN, SCALE^2), or with labels on N(+-1, 0.3^2)."""

    def batch_of(key):
        keys = jax.random.split(key)
        noise = jax.random.normal(keys[0], (batch_size, 2))
        if not conditional:
            return {"x": MEAN + SCALE * noise}
        label = jax.random.randint(keys[1], (batch_size,), 0, 2)
        return {"x": (2.0 * label - 1.0)[:, None] + 0.3 * noise, "label": label}

    def body(state, key):
        return model.train_step(state, batch_of(key), jax.random.fold_in(key, 1))

    key = jax.random.key(0)
    state = model.init(key, batch_of(key))
    return jax.jit(lambda s: jax.lax.scan(body, s, jax.random.split(key, steps)))(state)[0]


OPTIMIZER = Adam(learning_rate=3e-3, ema_decay=0.99)


@pytest.mark.parametrize(
    "model",
    [
        DDPM(network=MLP, process=Discrete(num_timesteps=100, beta_min=1e-3, beta_max=0.2), clip_x0=False,
             variance="large", sampler=samplers.Ancestral(num_steps=100), bound_terms=99),
        ScoreSDE(network=MLP, sampler=samplers.PredictorCorrector(num_steps=200), likelihood_steps=50),
        EDM(network=MLP, likelihood_steps=50),
        FlowMatching(network=MLP, coupling="optimal_transport", likelihood_steps=50),
    ],
    ids=lambda m: type(m).__name__,
)  # fmt: skip
def test_named_methods_learn_a_gaussian_and_its_likelihood(model):
    model = dataclasses.replace(model, data_shape=(2,), optimizer=OPTIMIZER, likelihood_trace="exact")
    # Transport among few is quicker, and an exact coupling too.
    state = trained(model, batch_size=64 if isinstance(model, FlowMatching) else 256)
    samples = jax.jit(lambda s, k: model.sample(s, k, 4000))(state, jax.random.key(5))
    np.testing.assert_allclose(samples.mean(0), MEAN, atol=0.1)
    np.testing.assert_allclose(samples.std(0), SCALE, atol=0.1)
    x = MEAN + SCALE * jax.random.normal(jax.random.key(3), (512, 2))
    metrics = jax.jit(model.evaluate)(state, {"x": x}, jax.random.key(4))
    exact = (0.5 * ((x - MEAN) / SCALE) ** 2 + 0.5 * np.log(2 * np.pi * SCALE**2)).sum(1).mean()
    name = "nll_bound" if isinstance(model, DDPM) else "nll"
    assert metrics[name].shape == (512,)
    assert abs(float(metrics[name].mean() - exact)) < 0.2
    if name == "nll":
        np.testing.assert_allclose(-model.log_prob(state, {"x": x}), metrics["nll"], rtol=1e-4, atol=1e-4)


def test_learned_variances_train_through_the_bound_alone():
    model = DDPM(
        data_shape=(2,), network=MLP, process=Discrete(num_timesteps=20, beta_min=0.01, beta_max=0.5),
        variance="learned", sampler=samplers.Ancestral(num_steps=20, variance="learned"), clip_x0=False, bound_terms=19,
    )  # fmt: skip
    batch = {"x": MEAN + SCALE * jax.random.normal(jax.random.key(0), (64, 2))}
    state = model.init(jax.random.key(1), batch)
    off = dataclasses.replace(model, hybrid_weight=0.0)
    gradient = lambda m: jax.grad(lambda p: m.loss(p, batch, jax.random.key(2), 0)[0])(state.params)
    hybrid, simple = gradient(model)["output"]["bias"], gradient(off)["output"]["bias"]
    np.testing.assert_allclose(hybrid[:2], simple[:2], rtol=1e-5)
    assert np.all(simple[2:] == 0.0) and np.all(hybrid[2:] != 0.0)
    assert np.isfinite(model.sample(state, jax.random.key(3), 4)).all()
    assert np.isfinite(model.evaluate(state, batch, jax.random.key(3))["nll_bound"]).all()


def test_the_bound_as_objective_trains_the_mean_too_and_its_expectation_is_the_bound():
    model = DDPM(
        data_shape=(2,), network=ResidualMLP(hidden_dim=8, num_blocks=1), variance="learned", objective="bound",
        clip_x0=False, process=Discrete(num_timesteps=10, beta_min=0.01, beta_max=0.5), bound_terms=9,
    )  # fmt: skip
    simple = dataclasses.replace(model, objective="simple", hybrid_weight=1.0)
    batch = {"x": MEAN + SCALE * jax.random.normal(jax.random.key(0), (2048, 2))}

    @jax.jit
    def run(key):
        params = model.init(key, batch).params
        bias = lambda m: jax.grad(lambda p: m.loss(p, batch, key, 0)[0])(params)["output"]["bias"]
        terms, losses = model.bound_terms_of(params, batch, key), model.example_losses(params, batch, key, False)[0]
        return losses, terms["total"] - terms["prior"], bias(model), bias(simple)

    losses, terms, of_bound, of_hybrid = run(jax.random.key(1))
    error = 5 * float(losses.std()) / 2048**0.5
    np.testing.assert_allclose(losses.mean(), terms.mean() / 2, atol=error)
    assert error < 0.25 * float(losses.mean())
    # Both have the same gradient by the variances, and another one by the means.
    np.testing.assert_allclose(of_bound[2:], of_hybrid[2:], rtol=1e-4)
    assert np.all(np.abs(of_bound[:2] - of_hybrid[:2]) > 1e-3)
    with pytest.raises(ValueError, match="weighs the steps itself"):
        dataclasses.replace(model, weighting="x0").check()


def test_levels_have_no_density_and_dequantised_ones_have():
    network = ResidualMLP(hidden_dim=8, num_blocks=1)
    model = EDM(data_shape=(3,), network=network, num_levels=17, likelihood_steps=2, likelihood_trace="exact")
    levels = jnp.array([[0, 8, 16], [3, 4, 5]])
    keys = jax.random.split(jax.random.key(0), 2)
    batches = {}
    for name in ("signed", "dequantize_signed"):
        x, log_abs_det = transforms.apply(name, levels, keys, 17, 0.0)
        batches[name] = {"x": x} if log_abs_det is None else {"x": x, "log_abs_det": log_abs_det}
    state = jax.eval_shape(model.init, keys[0], batches["dequantize_signed"])
    for call in (model.log_prob, lambda s, b: model.evaluate(s, b, keys[0])):
        with pytest.raises(ValueError, match="data.preprocessing=dequantize_signed"):
            jax.eval_shape(call, state, batches["signed"])

    def both(batch):
        state = model.init(keys[0], batch)
        return model.evaluate(state, batch, keys[0])["bits_per_dim"], model.log_prob(state, batch)

    # The mass of a level is the density of x times 2 / L in every dimension.
    bits, density = jax.jit(both)(batches["dequantize_signed"])
    expected = -(np.asarray(density, np.float64) + 3 * np.log(2 / 17)) / (3 * np.log(2))
    np.testing.assert_allclose(bits, expected, rtol=1e-5)


def test_a_ddpm_counts_levels_where_x_has_them_and_gives_the_density_of_what_was_dequantised():
    model = DDPM(data_shape=(3,), network=MLP, num_levels=17, process=Discrete(num_timesteps=4), variance="large")
    x = jnp.array([[-1.0, 0.0, 1.0]])
    assert model.levels_of({"x": x}) == 17 and model.levels_of({"x": x, "log_abs_det": jnp.zeros(1)}) is None
    of_levels, density = (
        jax.jit(lambda x, levels=levels: model._reconstruction_log_prob(Estimate(0.5 * x), x, levels))(x)
        for levels in (17, None)
    )
    np.testing.assert_allclose(
        density, scipy.stats.norm(0.5 * x, model.process.betas[0] ** 0.5).logpdf(x).sum(), rtol=1e-3
    )
    assert of_levels[0] < 0.0


def test_what_has_only_a_bound_is_not_taken_to_have_a_likelihood():
    for model in (DDPM(), VDM()):
        assert isinstance(model, HasLogProbBound) and not isinstance(model, HasLogProb)
    assert not isinstance(ConsistencyModel(), HasLogProb | HasLogProbBound) and isinstance(EDM(), HasLogProb)
    with pytest.raises(ValueError, match="nor a likelihood"):
        ConsistencyModel(likelihood_steps=5).check()


@pytest.fixture(scope="module")
def conditional():
    model = EDM(
        data_shape=(2,), num_classes=2, network=MLP, condition_on=("label",), optimizer=OPTIMIZER,
        sampler=samplers.Heun(num_steps=10),
    )  # fmt: skip
    return model, trained(model, conditional=True)


def test_guidance_0_is_conditional_sampling_and_more_of_it_goes_further(conditional):
    model, state = conditional
    label = jnp.arange(200) % 2
    key = jax.random.key(0)
    plain = model.sample(state, key, 200, label=label)

    @jax.jit
    def traced(scale):
        # Scales that are traced evaluate both estimates.
        return dataclasses.replace(model, guidance=Guidance(scale=scale)).sample(state, key, 200, label=label)

    np.testing.assert_allclose(plain, traced(0.0), atol=1e-5)
    outside = dataclasses.replace(model, guidance=Guidance(scale=3.0, start=2.0)).sample(state, key, 200, label=label)
    np.testing.assert_allclose(plain, outside, atol=1e-3)
    guided = traced(1.0)
    sign = (2.0 * label - 1.0)[:, None]
    assert float((plain * sign).min(1).mean()) > 0.6
    assert float((guided * sign).mean()) > float((plain * sign).mean()) + 0.01
    np.testing.assert_array_equal(model.sample(state, key, 200), plain)


def test_autoguidance_goes_away_from_the_weaker_model(conditional):
    model, state = conditional
    model = dataclasses.replace(model, guidance=Guidance(scale=2.0))
    label, z, t = jnp.arange(4) % 2, jax.random.normal(jax.random.key(1), (4, 2)), jnp.array(1.5)
    weak_params = jax.tree.map(lambda p: 0.9 * p, state.eval_params)
    x0, weak = (
        model.estimate(params, z, jnp.full((4,), t), {"label": label}).x0 for params in (state.eval_params, weak_params)
    )
    denoise = model.denoiser(state.eval_params, {"label": label}, weak_params=weak_params)
    np.testing.assert_allclose(denoise(z, t, jnp.zeros_like(z)).x0, x0 + 2.0 * (x0 - weak), atol=1e-5)
    assert float(jnp.abs(x0 - weak).max()) > 0.01
    by = lambda params: state.replace(extra={"weak_params": params})
    plain = dataclasses.replace(model, guidance=Guidance()).sample(state, jax.random.key(0), 20)
    np.testing.assert_allclose(model.sample(by(state.eval_params), jax.random.key(0), 20), plain, atol=1e-4)
    assert float(jnp.abs(model.sample(by(weak_params), jax.random.key(0), 20) - plain).max()) > 0.05


def test_guidance_is_the_same_in_every_target():
    conditional, unconditional = jnp.array([[1.0, 2.0]]), jnp.array([[0.5, 2.5]])
    process, t, z = VariancePreserving(), jnp.array(0.4), jnp.array([[0.3, -1.0]])
    guided = Guidance(scale=2.0).combine(conditional, unconditional, t, 1.0)
    epsilon = lambda x0: (z - process.alpha(t) * x0) / process.sigma(t)
    expected = epsilon(conditional) + 2.0 * (epsilon(conditional) - epsilon(unconditional))
    np.testing.assert_allclose(epsilon(guided), expected, rtol=1e-5)


def test_guidance_rescales_to_the_deviation_of_the_conditional_and_rests_outside_its_interval():
    keys = jax.random.split(jax.random.key(0))
    conditional, unconditional = (jax.random.normal(k, (3, 5)) for k in keys)
    guidance = Guidance(scale=2.0, start=0.2, stop=0.6, rescale=1.0)
    guided = guidance.combine(conditional, unconditional, jnp.array(3.0), 10.0)
    np.testing.assert_allclose(guided.std(1), conditional.std(1), rtol=1e-5)
    plain = dataclasses.replace(guidance, rescale=0.0).combine(conditional, unconditional, jnp.array(3.0), 10.0)
    ratio = plain.std(1, keepdims=True) / conditional.std(1, keepdims=True)
    np.testing.assert_allclose(guided * ratio, plain, rtol=1e-5)
    half = dataclasses.replace(guidance, rescale=0.5).combine(conditional, unconditional, jnp.array(3.0), 10.0)
    np.testing.assert_allclose(half, 0.5 * (guided + plain), rtol=1e-5)
    for t in (1.0, 7.0):
        np.testing.assert_allclose(
            guidance.combine(conditional, unconditional, jnp.array(t), 10.0), conditional, rtol=1e-6
        )


def test_the_same_latents_give_the_same_samples_on_one_device_and_on_eight(conditional):
    model, state = conditional
    churned = dataclasses.replace(model, sampler=samplers.Heun(num_steps=10, churn=5.0))
    sharded = NamedSharding(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)), PartitionSpec("data"))
    draw = lambda state, key: churned.sample(state, key, 16)
    one = jax.jit(draw)(state, jax.random.key(0))
    eight = jax.jit(draw, out_shardings=sharded)(state, jax.random.key(0))
    assert len(eight.sharding.device_set) == 8
    np.testing.assert_allclose(one, eight, atol=1e-5)


def test_classifier_guidance_samples_the_posterior_of_a_gaussian():
    process = VariancePreserving()
    prior = lambda z, t, x0: Estimate(process.alpha(t) * z / (process.alpha(t) ** 2 + process.sigma(t) ** 2))

    def log_likelihood(z, t):
        # y = x + N(0, 1) was seen to be 1; x | z ~ N(alpha z, sigma^2) for x ~ N(0, 1).
        variance = process.sigma(t) ** 2 + 1.0
        return -0.5 * jnp.square(1.0 - process.alpha(t) * z).sum(1) / variance

    denoise = with_classifier(prior, process, log_likelihood)
    z = jax.random.normal(jax.random.key(0), (4000, 1))
    samples = samplers.DPMSolver(num_steps=40).run(denoise, process, z, jax.random.key(1))
    assert abs(float(samples.mean()) - 0.5) < 0.03 and abs(float(samples.std()) - 0.5**0.5) < 0.03


def test_the_noise_of_an_example_does_not_depend_on_its_batch():
    model = DDPM(data_shape=(2,), network=MLP, bound_terms=3)
    batch = {"x": jax.random.normal(jax.random.key(0), (4, 2)), "example_index": jnp.arange(4)}
    state = model.init(jax.random.key(1), batch)
    whole = model.evaluate(state, batch, jax.random.key(2))
    part = model.evaluate(state, jax.tree.map(lambda a: a[2:], batch), jax.random.key(2))
    for name in whole:
        np.testing.assert_allclose(whole[name][2:], part[name], rtol=1e-4, atol=1e-4)


def test_trajectories_run_from_the_noise_to_the_samples():
    model = EDM(data_shape=(2,), network=MLP, sampler=samplers.Heun(num_steps=4))
    state = model.init(jax.random.key(0), {"x": jnp.ones((2, 2))})
    path = model.sample(state, jax.random.key(1), 3, trajectory=True)
    assert path.shape == (5, 3, 2)
    np.testing.assert_array_equal(path[-1], model.sample(state, jax.random.key(1), 3))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Diffusion(process=LinearInterpolant(), target="epsilon"), "pure noise"),
        (lambda: FlowMatching(sampler=samplers.Heun()), "variable=time"),
        (lambda: FlowMatching(sampler=samplers.PredictorCorrector()), "infinite"),
        (lambda: EDM(sampler=samplers.Heun(num_steps=0)), "at least one step"),
        (lambda: Diffusion(network=MLP, condition_on=("context",)), "ResidualMLP takes"),
        (lambda: Diffusion(network=UNet(attention_levels=()), condition_on=("context",)), "UNet with attention_levels"),
        (lambda: EDM(sampler=ConsistencySampler()), "would blur"),
        (lambda: DDPM(sampler=samplers.Ancestral(variance="learned")), "variance=learned"),
        (lambda: UNet(channel_multipliers=(1, 2), attention_levels=(2,)), "none of the 2 levels"),
        (lambda: Discrete(num_timesteps=0), "at least 1"),
        (lambda: Discrete(beta_min=0.5, beta_max=0.1), "betas must satisfy"),
    ],
)
def test_configurations_that_cannot_work_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        check = build()
        if isinstance(check, UNet):
            check.build(1, None, jnp.float32)
        elif isinstance(check, Discrete):
            _ = check.betas
        else:
            check.check()


def test_bad_requests_are_refused(conditional):
    model, state = conditional
    with pytest.raises(ValueError, match="between 0 and 1"):
        model.sample(state, jax.random.key(0), 2, label=jnp.array([0, 5]))
    with pytest.raises(ValueError, match="has 3 rows"):
        model.sample(state, jax.random.key(0), 2, label=jnp.array([0, 1, 1]))
    for count, label in ((3, 1), (2, jnp.array([0, 1]))):
        given = model.sampling_condition(state, count, label, {})["label"]
        np.testing.assert_array_equal(given, np.broadcast_to(label, count))
    with pytest.raises(ValueError, match="not conditional on image"):
        model.sample(state, jax.random.key(0), 2, image=jnp.ones((2, 2)))
    # What entry points ask before they compile, as traced labels have no values.
    model.check_labels(jnp.array([0, 1, 2]))
    for label in (-1, 3):
        with pytest.raises(ValueError, match="between 0 and 1"):
            model.check_labels(np.array([label]))
    plain = EDM(data_shape=(2,), network=MLP)
    with pytest.raises(ValueError, match="not conditional on classes"):
        plain.check_labels(jnp.array([0, 1]))
    with pytest.raises(ValueError, match="not conditional on classes"):
        plain.sample(state, jax.random.key(0), 2, label=jnp.array([0, 1]))
    with pytest.raises(ValueError, match="data_shape is"):
        plain.init(jax.random.key(0), {"x": jnp.ones((2, 3))})
