"""Claims about energy-based models: an RBM against enumeration, and Langevin samples of a learned energy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.batch import DEVICE_AXIS
from genjax.families.energy.boltzmann_machine import RestrictedBoltzmannMachine
from genjax.families.energy.energy_based_model import EnergyBasedModel
from genjax.optimizers import SGD, Adam

D, H = 6, 3
EVERY = np.array(list(itertools.product((0.0, 1.0), repeat=D)), np.float32)


@pytest.fixture(scope="module")
def machine():
    model = RestrictedBoltzmannMachine(
        num_hidden=H, num_chains=256, num_temperatures=200, num_importance_chains=512, num_sampling_steps=50,
        data_shape=(2, 3), optimizer=SGD(learning_rate=0.1),
    )  # fmt: skip
    state = model.init(jax.random.key(0), {"x": jnp.asarray(EVERY[:32]).reshape(-1, 2, 3)})
    params = jax.tree.map(lambda a: a + jax.random.normal(jax.random.key(a.size), a.shape), state.params)
    return model, state.replace(params=params)


def probabilities(model, params):
    log_p = -np.asarray(model.free_energy(params, jnp.asarray(EVERY)), np.float64)
    return np.exp(log_p - np.logaddexp.reduce(log_p)), np.logaddexp.reduce(log_p)


def test_the_partition_function_is_that_of_enumeration_and_annealing_finds_it(machine):
    model, state = machine
    p, log_partition = probabilities(model, state.params)
    np.testing.assert_allclose(model.log_partition(state.params), log_partition, rtol=1e-6)
    batch = {"x": jnp.asarray(EVERY)}
    values = jax.jit(model.evaluate)(state, batch, jax.random.key(1))
    error = float(values["log_partition_error"][0])
    assert error < 0.1
    np.testing.assert_allclose(values["log_partition"][0], log_partition, atol=4 * error + 1e-3)
    np.testing.assert_allclose(values["nll_ais"], -np.log(p), atol=4 * error + 1e-3)
    samples = jax.jit(model.sample, static_argnums=2)(state, jax.random.key(2), 4000).reshape(-1, D)
    np.testing.assert_allclose(samples.mean(0), p @ EVERY, atol=0.04)
    with pytest.raises(ValueError, match="too many"):
        RestrictedBoltzmannMachine(num_hidden=21).log_partition(state.params)


def test_the_gradient_of_the_loss_is_that_of_the_likelihood_where_the_chains_are_exact(machine):
    model, state = machine
    p, _ = probabilities(model, state.params)
    x = jnp.asarray(EVERY[::5])

    def exact(params):
        log_p = -model.free_energy(params, jnp.asarray(EVERY))
        return model.free_energy(params, x).mean() + jax.nn.logsumexp(log_p)

    def contrast(params):
        return model.free_energy(params, x).mean() - jnp.asarray(p, jnp.float32) @ model.free_energy(params, EVERY)

    for one, other in zip(*(jax.tree.leaves(jax.grad(f)(state.params)) for f in (exact, contrast))):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("num_chains", [0, 256])
def test_contrastive_divergence_learns_what_the_bits_have_in_common(machine, num_chains):
    rng = np.random.default_rng(0)
    x = np.repeat(rng.integers(0, 2, (256, 2)), 3, axis=1).astype(np.float32)  # two free bits, each three times
    model = RestrictedBoltzmannMachine(
        num_hidden=H, num_chains=num_chains, num_gibbs_steps=2, optimizer=SGD(learning_rate=0.2)
    )
    batch = {"x": jnp.asarray(x)}
    state = model.init(jax.random.key(3), batch)
    state = jax.jit(
        lambda s: jax.lax.scan(lambda s, k: model.train_step(s, batch, k), s, jax.random.split(jax.random.key(4), 1500))
    )(state)[0]
    nll = float(model.free_energy(state.params, batch["x"]).mean() + model.log_partition(state.params))
    assert nll < 2 * np.log(2) + 0.5, nll
    assert state.extra["chains"].shape == (num_chains, D)


def test_langevin_samples_of_a_learned_energy_lie_where_the_data_do():
    x = 0.4 + 0.1 * np.random.default_rng(0).normal(size=(128, 2)).astype(np.float32)
    model = EnergyBasedModel(
        hidden_dims=(32, 32), buffer_size=256, num_langevin_steps=10, step_size=0.05, noise_scale=0.02,
        gradient_clip=1.0, num_sampling_steps=100, optimizer=Adam(learning_rate=1e-3, b1=0.0),
    )  # fmt: skip
    batch = {"x": jnp.asarray(x)}
    state = model.init(jax.random.key(0), batch)
    state = jax.jit(
        lambda s: jax.lax.scan(lambda s, k: model.train_step(s, batch, k), s, jax.random.split(jax.random.key(1), 400))
    )(state)[0]
    samples = np.asarray(model.sample(state, jax.random.key(2), 200))
    np.testing.assert_allclose(np.median(samples, 0), [0.4, 0.4], atol=0.2)
    values = model.evaluate(state, batch, jax.random.key(3))
    assert values["energy"].mean() < values["noise_energy"].mean()
    assert model.score(state, batch["x"]).shape == batch["x"].shape
    # Pictures of odd sizes are halved too.
    picture = EnergyBasedModel(hidden_dims=(2, 2, 2)).init(jax.random.key(0), {"x": jnp.zeros((2, 7, 5, 1))})
    assert EnergyBasedModel(hidden_dims=(2, 2, 2)).energy(picture.params, jnp.zeros((2, 7, 5, 1))).shape == (2,)
    with pytest.raises(ValueError, match="low < high"):
        EnergyBasedModel(low=1.0, high=0.0)


SMALL_ENERGY = EnergyBasedModel(
    hidden_dims=(4,), buffer_size=16, restart_rate=0.5, num_langevin_steps=2, step_size=0.1, gradient_clip=1.0,
    noise_scale=0.1, data_noise=0.1, optimizer=SGD(learning_rate=0.1),
)  # fmt: skip


@pytest.mark.parametrize("model", [SMALL_ENERGY, RestrictedBoltzmannMachine(num_hidden=H, num_chains=0)])
def test_chains_on_two_devices_are_those_of_one(model):
    x = np.random.default_rng(0).integers(0, 2, (8, D)).astype(np.float32)
    batch, key = {"x": jnp.asarray(x), "example_index": jnp.arange(8)}, jax.random.key(1)
    state = model.init(jax.random.key(0), batch)
    whole, metrics = jax.jit(model.train_step)(state, batch, key)
    split = jax.tree.map(lambda a: a.reshape(2, 4, *a.shape[1:]), batch)
    step = jax.pmap(model.train_step, axis_name=DEVICE_AXIS, in_axes=(None, 0, None), devices=jax.devices()[:2])
    parts, part_metrics = step(state, split, key)
    close = lambda a, b: np.testing.assert_allclose(a, b[0], rtol=1e-4, atol=1e-5)
    jax.tree.map(close, (whole.params, whole.extra, metrics["loss"]), (parts.params, parts.extra, part_metrics["loss"]))
    jax.tree.map(lambda a: np.testing.assert_array_equal(a[0], a[1]), parts.extra)


def test_values_out_of_range_and_bits_that_are_none_are_not_scored(machine):
    batch = {"x": jnp.full((4, 2), 0.5).at[1, 0].set(3.0)}
    state = SMALL_ENERGY.init(jax.random.key(0), batch)
    with jax.debug_nans(False):
        assert np.isnan(SMALL_ENERGY.train_step(state, batch, jax.random.key(1))[1]["loss"])
    with pytest.raises(ValueError, match="from 0.5 to 3, but the range of the chains declares -1 to"):
        SMALL_ENERGY.diagnose(state, batch, jax.random.key(0))
    model, state = machine
    grey = {"x": jnp.asarray(EVERY[:4]).at[2, 1].set(0.25)}
    with jax.debug_nans(False):
        nll = jax.jit(model.evaluate)(state, grey, jax.random.key(1))["nll_ais"]
    np.testing.assert_array_equal(np.isnan(nll), np.arange(4) == 2)


def test_the_energy_of_noise_does_not_depend_on_how_the_examples_are_divided():
    batch = {"x": jnp.zeros((6, 2)), "example_index": jnp.arange(6)}
    state = SMALL_ENERGY.init(jax.random.key(0), batch)
    whole = SMALL_ENERGY.evaluate(state, batch, jax.random.key(1))["noise_energy"]
    parts = [jax.tree.map(lambda a, r=rows: a[r], batch) for rows in (slice(0, 4), slice(4, 6))]
    divided = [SMALL_ENERGY.evaluate(state, part, jax.random.key(1))["noise_energy"] for part in parts]
    np.testing.assert_allclose(jnp.concatenate(divided), whole, rtol=1e-6)
    assert len(np.unique(whole)) == 6


def test_energies_are_told_apart_in_float32_where_the_network_computes_in_bfloat16():
    model = EnergyBasedModel(hidden_dims=(8,), compute_dtype="bfloat16")
    x = jax.random.normal(jax.random.key(0), (64, 2))
    energy = model.energy(model.init(jax.random.key(1), {"x": x}).params, x)
    assert (energy != energy.astype(jnp.bfloat16).astype(jnp.float32)).mean() > 0.9
