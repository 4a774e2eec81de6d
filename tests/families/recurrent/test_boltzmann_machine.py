"""Claims about the RNN-RBM: likelihood, gradient and samples against enumeration of all notes and hidden bits."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.families.recurrent.boltzmann_machine import RecurrentBoltzmannMachine
from genjax.model import GenerativeModel, HasLogProb, TrainState
from genjax.nn.recurrent import Recurrent

T, D, H = 2, 3, 4
FRAMES = np.array(list(itertools.product((0.0, 1.0), repeat=D)), np.float32)
ROLLS = np.array(list(itertools.product(FRAMES, repeat=T)))


@pytest.fixture(scope="module")
def built():
    model = RecurrentBoltzmannMachine(
        data_shape=(T, D), network=Recurrent(cell="rnn", hidden_dim=3), num_hidden=H, num_gibbs_steps=20,
        num_sampling_steps=20, partition="enumerated", num_temperatures=100, num_importance_chains=64,
    )  # fmt: skip
    batch = {"x": jnp.asarray(ROLLS), "mask": jnp.ones((len(ROLLS), T)).at[3, 1].set(0.0)}
    params = jax.eval_shape(model.init, jax.random.key(0), batch).params
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(0.0, 0.8, a.shape), jnp.float32), params)
    return model, batch, TrainState.create(params), jax.jit(model.evaluate)


def enumerated_log_p(model, state):
    """log p of every frame that follows each of ROLLS' beginnings, by all notes and hidden bits: [roll, T, frame]."""
    parameters = np.asarray(jax.jit(model.parameters)(state.params, ROLLS), np.float64)
    b, c = parameters[..., None, :D], parameters[..., None, D:]
    kernel = np.asarray(state.params["kernel"], np.float64)
    log_p = np.stack([
        np.logaddexp.reduce([((v * b).sum(-1) + (h * c).sum(-1) + v @ kernel @ h)[..., 0]
                             for h in itertools.product((0.0, 1.0), repeat=H)])
        for v in FRAMES
    ], axis=-1)  # fmt: skip
    return log_p - np.logaddexp.reduce(log_p, axis=-1)[..., None]


def test_the_enumerated_likelihood_is_exact_and_annealing_estimates_it(built):
    model, batch, state, evaluate = built
    assert isinstance(model, GenerativeModel) and not isinstance(model, HasLogProb)
    index = ROLLS.astype(int) @ (2 ** np.arange(D - 1, -1, -1))
    frames = -np.take_along_axis(enumerated_log_p(model, state), index[..., None], -1)[..., 0]
    exact = (frames * np.asarray(batch["mask"])).sum(1)
    values = evaluate(state, batch, jax.random.key(0))
    np.testing.assert_allclose(values["nll"], exact, rtol=1e-5)
    assert values["num_frames"].sum() == T * len(ROLLS) - 1
    np.testing.assert_allclose(np.exp(-frames.sum(1)).sum(), 1.0, rtol=1e-6)

    annealed = dataclasses.replace(model, partition="annealed")
    values = jax.jit(annealed.evaluate)(state, batch, jax.random.key(1))
    bias = np.asarray(values["nll_ais_bias"])
    assert 0.0 < bias.max() < 0.01
    # The variance of a frame's estimate is twice its bias.
    assert np.all(np.abs(values["nll_ais"] - exact) < 4 * np.sqrt(2 * bias) + 1e-3)
    assert abs(float(values["nll_ais"].mean()) - exact.mean()) < 0.02
    means = annealed.summarize({name: float(v.mean()) for name, v in values.items()})
    np.testing.assert_allclose(means["nll_ais_per_frame"], float(values["nll_ais"].sum()) / (T * len(ROLLS) - 1), 1e-5)


def test_the_gradient_of_the_loss_is_that_of_the_likelihood_but_for_the_noise_of_the_chains(built):
    model, batch, state, _ = built
    x, mask = batch["x"], batch["mask"].reshape(-1)
    many = jax.tree.map(lambda a: jnp.repeat(a, 100, axis=0), batch)

    def exact(params):
        machines = model.machines(params, model.parameters(params, x).reshape(T * len(x), -1))
        return (model.frame_nll(machines, x.reshape(-1, D), None)["nll"] * mask).mean()

    # Chains of 20 rounds come near their equilibrium; where they start is forgotten.
    loss = lambda params: model.loss(params, many, jax.random.key(2))[0]
    gradients = jax.jit(lambda params: [jax.tree.leaves(jax.grad(f)(params)) for f in (exact, loss)])
    expected, found = gradients(state.params)
    assert max(float(jnp.abs(leaf).max()) for leaf in expected) > 0.3
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, atol=0.02)


def test_biases_are_told_by_the_frames_before(built):
    model, batch, state, _ = built
    # The first example is silent, in each other one frame is not.
    x = np.zeros((5, 4, D), np.float32)
    x[np.arange(1, 5), np.arange(4)] = 1.0
    biases = np.asarray(jax.jit(model.parameters)(state.params, x))
    differs = np.abs(biases[1:] - biases[:1]).max(-1) > 1e-4
    np.testing.assert_array_equal(differs, np.arange(4)[None] > np.arange(4)[:, None])


def test_samples_are_the_models(built):
    model, batch, state, evaluate = built
    log_p = -evaluate(state, {"x": batch["x"], "mask": jnp.ones_like(batch["mask"])}, jax.random.key(0))["nll"]
    draws = jax.jit(model.sample, static_argnums=2)(state, jax.random.key(3), 10_000)
    codes = np.asarray(draws).reshape(-1, T * D).astype(int) @ (2 ** np.arange(T * D - 1, -1, -1))
    assert np.abs(np.bincount(codes, minlength=len(ROLLS)) / 10_000 - np.exp(log_p)).max() < 0.015
    with pytest.raises(ValueError, match="num_hidden=13 are too many"):
        dataclasses.replace(model, num_hidden=13)
