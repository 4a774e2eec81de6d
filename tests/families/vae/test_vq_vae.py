"""VQ-VAE: codes, their averages and their gradients against what can be worked out by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits

from genjax.families.vae.vq_vae import VQVAE, nearest_codes, perplexity
from genjax.nn.distributions import Bernoulli, Categorical
from genjax.optimizers import SGD, Adam

SMALL = VQVAE(
    data_shape=(8, 8, 1),
    channels=(4,),
    num_residual_blocks=1,
    embedding_dim=3,
    num_codes=6,
    restart_below=0.0,
    optimizer=Adam(),
)


@pytest.fixture(scope="module")
def digits():
    return {"x": jnp.asarray(load_digits().images[:12, :, :, None] / 16.0, jnp.float32)}


@pytest.fixture(scope="module")
def started(digits):
    return SMALL.init(jax.random.key(0), digits)


def chosen_by(model, state, batch):
    """Vectors [N, D] and the index of the code that each chose, by brute force."""
    vectors = np.asarray(model.encode(state, batch), np.float64).reshape(-1, model.embedding_dim)
    codebook = np.asarray(model.codes_of(state.params, state.learned), np.float64)
    return vectors, cdist(vectors, codebook).argmin(1)


def test_the_nearest_code_is_the_one_of_least_distance():
    rng = np.random.default_rng(0)
    vectors, codebook = rng.normal(size=(50, 7, 4)), rng.normal(size=(20, 4))
    expected = cdist(vectors.reshape(-1, 4), codebook).argmin(1).reshape(50, 7)
    np.testing.assert_array_equal(nearest_codes(jnp.float32(vectors), jnp.float32(codebook)), expected)


def test_perplexity_counts_the_codes_in_use():
    assert perplexity(jnp.array([5.0, 5.0, 5.0, 5.0, 0.0])) == pytest.approx(4.0)
    assert perplexity(jnp.array([0.0, 3.0])) == pytest.approx(1.0)


def with_totals(model, state):
    shape = (model.num_codes, model.embedding_dim)
    totals = {"place_counts": jnp.zeros_like(state.learned["place_counts"]), "sums": jnp.zeros(shape)}
    return {**state.extra, **state.learned, "totals": totals}


def test_the_gradient_passes_straight_through_the_codes(digits, started):
    # Without commitment, the encoder's gradient is that of the decoder's input, pulled back through the encoder.
    model = dataclasses.replace(SMALL, commitment_weight=0.0)
    extra = with_totals(model, started)
    gradient = jax.grad(lambda p: model.loss(p, digits, jax.random.key(0), extra)[0])(started.params)["encoder"]
    codes = started.learned["codebook"][model.encode_codes(started, digits)]
    at_codes = jax.grad(lambda z: -model.log_likelihood_given(started.params, digits["x"], z).mean())(codes)
    _, pull_back = jax.vjp(lambda p: model.encode_vectors({"encoder": p}, digits["x"]), started.params["encoder"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), gradient, pull_back(at_codes)[0])


def test_averaged_codes_follow_their_recursion(digits, started):
    model = dataclasses.replace(SMALL, codebook_decay=0.7)
    counts, sums = np.asarray(started.learned["place_counts"]).sum(0), np.asarray(started.learned["sums"])
    state = started
    for step in range(2):
        vectors, index = chosen_by(model, state, digits)
        n = np.bincount(index, minlength=6)
        m = np.stack([vectors[index == k].sum(0) for k in range(6)])
        counts, sums = 0.7 * counts + 0.3 * n, 0.7 * sums + 0.3 * m
        state, metrics = jax.jit(model.train_step)(state, digits, jax.random.key(step))
        np.testing.assert_allclose(state.learned["place_counts"].sum(0), counts, rtol=1e-4)
        np.testing.assert_allclose(state.learned["codebook"], sums / counts[:, None], rtol=2e-3, atol=1e-4)
    share = n[n > 0] / n.sum()
    assert metrics["perplexity"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-4)


def test_learned_codes_move_towards_the_mean_of_the_vectors_that_chose_them(digits):
    model = dataclasses.replace(SMALL, codebook="gradient", optimizer=SGD(learning_rate=0.01, momentum=0.0))
    state = model.init(jax.random.key(0), digits)
    vectors, index = chosen_by(model, state, digits)
    old = np.asarray(state.params["codebook"])
    # d/de_k of the mean over 12 examples of |sg(z) - e|^2.
    expected = np.stack([2 * (old[k] - vectors[index == k]).sum(0) / 12 for k in range(6)])
    # The decoder's gradient does not reach the codes: they are copied straight through.
    new, _ = jax.jit(model.train_step)(state, digits, jax.random.key(0))
    np.testing.assert_allclose(new.params["codebook"], old - 0.01 * expected, rtol=1e-3, atol=1e-5)


def test_a_code_that_nobody_chooses_starts_anew_at_a_vector_of_the_batch(digits):
    model = dataclasses.replace(SMALL, restart_below=0.05, codebook_decay=0.0)
    state = model.init(jax.random.key(0), digits)
    far = state.learned["codebook"].at[2].set(1e3)
    state = state.replace(learned={**state.learned, "codebook": far})
    vectors, index = chosen_by(model, state, digits)
    unused = sorted(set(range(6)) - set(index))
    assert 2 in unused
    new, metrics = jax.jit(model.train_step)(state, digits, jax.random.key(3))
    assert metrics["restarted"] == len(unused)
    for k in unused:
        assert np.abs(vectors - np.asarray(new.learned["codebook"][k])).max(1).min() < 1e-4
    # It may be chosen now, and has the count of a code in use.
    assert new.learned["place_counts"].sum(0)[2] == pytest.approx(1.0)


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_accumulation_and_pmap_give_the_step_of_the_whole_batch(codebook, digits):
    model = dataclasses.replace(SMALL, codebook=codebook, restart_below=1.5, optimizer=SGD(learning_rate=1e-3))
    state = model.init(jax.random.key(0), digits)
    batch = {**digits, "example_index": jnp.arange(12)}
    whole, metrics = jax.jit(model.train_step)(state, batch, jax.random.key(1))
    parts = dataclasses.replace(model, optimizer=SGD(learning_rate=1e-3, accumulation_steps=3))
    accumulated, _ = jax.jit(parts.train_step)(state, batch, jax.random.key(1))
    split = jax.tree.map(lambda a: a.reshape(2, 6, *a.shape[1:]), batch)
    copies = jax.tree.map(lambda a: jnp.stack([a, a]), state)
    mapped, mapped_metrics = jax.pmap(
        model.train_step, axis_name="device", in_axes=(0, 0, None), devices=jax.devices()[:2]
    )(copies, split, jax.random.key(1))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, whole, accumulated)
    jax.tree.map(lambda a, b: close(a, b[0]), whole, mapped)
    assert metrics["perplexity"] == pytest.approx(float(mapped_metrics["perplexity"][0]), rel=1e-5)


def test_the_bound_is_reconstruction_and_length_of_the_code(digits, started):
    model = dataclasses.replace(SMALL, output=Bernoulli())
    state = model.init(jax.random.key(0), digits)
    metrics = jax.jit(model.evaluate)(state, digits, jax.random.key(0))
    np.testing.assert_allclose(metrics["nll_bound"], metrics["reconstruction"] + 16 * np.log(6), rtol=1e-5)
    # The density of dequantised pictures is that of the levels after the log-determinant.
    of_density = SMALL.evaluate(started, {**digits, "log_abs_det": jnp.full(12, 3.0)}, jax.random.key(0))
    expected = of_density["reconstruction"] + 16 * np.log(6) - 3.0
    np.testing.assert_allclose(of_density["nll_bound"], expected, rtol=1e-5)
    mean = np.asarray(model.reconstruct(state, digits, jax.random.key(0)), np.float64)
    x = np.asarray(digits["x"])
    np.testing.assert_allclose(metrics["mean_squared_error"], ((mean - x) ** 2).mean((1, 2, 3)), rtol=1e-4)
    entropy = -(x * np.log(mean) + (1 - x) * np.log1p(-mean)).sum((1, 2, 3))
    np.testing.assert_allclose(metrics["reconstruction"], entropy, rtol=1e-4)


def test_codes_are_exposed_for_a_prior(digits, started):
    codes = SMALL.encode_codes(started, digits)
    assert codes.shape == (12, 4, 4) and codes.dtype == jnp.int32 and codes.max() < 6
    pictures = SMALL.decode_codes(started, codes)
    np.testing.assert_array_equal(pictures, SMALL.reconstruct(started, digits, jax.random.key(0)))
    np.testing.assert_array_equal(pictures, SMALL.sample(started, jax.random.key(0), 12, codes=codes))
    np.testing.assert_allclose(pictures, SMALL.decode(started, SMALL.encode(started, digits)), atol=1e-6)


def test_samples_choose_codes_as_often_as_they_were_chosen_at_their_place(started):
    counts = jnp.zeros((16, 6)).at[:, 1].set(3.0).at[0, 1].set(0.0).at[0, 4].set(2.0)
    state = started.replace(learned={**started.learned, "place_counts": counts})
    codes = np.ones((2, 4, 4), np.int32)
    codes[:, 0, 0] = 4
    expected = SMALL.decode_codes(state, jnp.asarray(codes))
    np.testing.assert_allclose(SMALL.sample(state, jax.random.key(0), 2), expected, atol=1e-6)


def test_it_learns_to_reconstruct(digits):
    model = dataclasses.replace(SMALL, num_codes=32, restart_below=0.05, codebook_decay=0.9)
    state = model.init(jax.random.key(0), digits)
    step = jax.jit(model.train_step)
    before = model.evaluate(state, digits, jax.random.key(0))["mean_squared_error"].mean()
    for i in range(200):
        state, metrics = step(state, digits, jax.random.key(i))
    after = model.evaluate(state, digits, jax.random.key(0))["mean_squared_error"].mean()
    assert after < 0.3 * before and metrics["perplexity"] > 5


def test_levels_other_than_those_of_the_output_are_not_scored(digits, started):
    model = dataclasses.replace(SMALL, output=Categorical(num_levels=17))
    with pytest.raises(ValueError, match="declares 0 to 1"):
        model.diagnose(None, {"x": 2.0 * digits["x"] - 1.0}, jax.random.key(0))


def test_impossible_settings_are_errors(digits):
    for message, changes in {
        "at least 2": {"num_codes": 1},
        "below 1": {"codebook_decay": 1.0},
    }.items():
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(SMALL, **changes)
    with pytest.raises(ValueError, match="multiples of 16"):
        dataclasses.replace(SMALL, channels=(2, 2, 2, 2)).init(jax.random.key(0), digits)
