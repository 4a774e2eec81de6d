"""Claims about autoregressive emissions, hidden keys, and restarts that predict together, against enumeration."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.families.markov.hidden_key import HiddenKeyModel
from genjax.nn.emissions import AutoregressiveBernoulli

T, D, K, S, R = 3, 3, 2, 3, 2
MODEL = HiddenKeyModel(
    num_states=K, num_keys=S, num_restarts=R, emission=AutoregressiveBernoulli(), data_shape=(T, D),
    initial_pseudo_count=0.0, transition_pseudo_count=0.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def trained():
    rng = np.random.default_rng(0)
    x = (rng.random((12, T, D)) < np.array([0.8, 0.4, 0.1])).astype(np.float32)
    mask = np.arange(T)[None] < rng.integers(1, T + 1, (12, 1))
    batch = {"x": jnp.asarray(x), "mask": jnp.asarray(mask)}
    state = MODEL.init(jax.random.key(0), batch)
    step, losses = jax.jit(MODEL.train_step), []
    for i in range(5):
        state, metrics = step(state, batch, jax.random.key(i))
        losses.append(metrics["mean_loss"].value())
    return state, batch, losses


def brute_force(params, x):
    """p of a roll [T, D] by sums over keys and paths, in numpy."""
    normalize = lambda a: np.exp(a) / np.exp(a).sum(-1, keepdims=True)
    initial, transition = normalize(np.float64(params["initial"])), normalize(np.float64(params["transition"]))
    start, go_on = np.split(1 / (1 + np.exp(-np.float64(params["emission"]["logits"]))), 2, 1)
    total = 0.0
    for shift in np.arange(S) - S // 2:
        roll = np.roll(x, shift, 1)
        before = np.concatenate([np.zeros((1, D)), roll[:-1]])
        p_on = np.where(before[:, None] > 0, go_on[None], start[None])
        p_frame = np.where(roll[:, None] > 0, p_on, 1 - p_on).prod(-1)  # [T, K]
        for path in itertools.product(range(K), repeat=len(x)):
            p = initial[path[0]] * np.prod([transition[a, b] for a, b in itertools.pairwise(path)])
            total += p * np.prod([p_frame[t, k] for t, k in enumerate(path)]) / S
    return total


def test_probabilities_are_sums_over_keys_and_paths_and_restarts_predict_frame_by_frame(trained):
    state, batch, _ = trained
    frames = np.asarray(jax.jit(MODEL.frame_log_prob)(state, batch))
    together = np.asarray(MODEL.log_prob(state, batch))
    params = [jax.tree.map(lambda a, i=i: a[i], state.params) for i in range(R)]
    for i in range(3):
        x = np.asarray(batch["x"][i])[: int(batch["mask"][i].sum())]
        expected = np.array([[brute_force(p, x[: t + 1]) for t in range(len(x))] for p in params])
        np.testing.assert_allclose(frames[:, i, : len(x)].cumsum(-1), np.log(expected), atol=1e-4)
        np.testing.assert_allclose(frames[:, i, len(x) :], 0.0, atol=1e-5)
        steps = expected / np.concatenate([np.ones((R, 1)), expected[:, :-1]], 1)
        np.testing.assert_allclose(together[i], np.log(steps.mean(0)).sum(), atol=1e-4)


def test_rolls_of_all_lengths_have_probability_one_together(trained):
    state, _, _ = trained
    every = np.array(list(itertools.product((0.0, 1.0), repeat=2 * D)), np.float32).reshape(-1, 2, D)
    np.testing.assert_allclose(np.exp(MODEL.log_prob(state, {"x": jnp.asarray(every)})).sum(), 1.0, rtol=1e-4)


def test_samples_are_drawn_from_what_is_evaluated(trained):
    state, _, _ = trained
    every = np.array(list(itertools.product((0.0, 1.0), repeat=2 * D)), np.float32).reshape(-1, 2, D)
    p = np.exp(MODEL.log_prob(state, {"x": jnp.asarray(every)}))
    count = 20000
    samples = jax.jit(lambda key: MODEL.sample(state, key, count, 2))(jax.random.key(3))
    places = np.asarray(samples).reshape(count, -1) @ 2.0 ** np.arange(2 * D)[::-1]
    frequencies = np.bincount(places.astype(int), minlength=len(every)) / count
    assert (np.abs(frequencies - p) < 4.5 * np.sqrt(p / count) + 1e-4).all()
    alone = dataclasses.replace(MODEL, average=False).sample(state, jax.random.key(0), 2)
    assert alone.shape == (2, T, D)


def test_learning_with_hidden_keys_raises_the_likelihood_whatever_the_key(trained):
    state, batch, losses = trained
    # The pooled frames are a prior, so the likelihood need not rise to the last digit.
    assert losses[-1] < losses[0] and (np.diff(losses) < 0.02).all(), losses
    whole = HiddenKeyModel(num_states=K, num_keys=D, num_restarts=1, emission=MODEL.emission, data_shape=(T, D))
    other = whole.init(jax.random.key(1), batch)
    shifted = {**batch, "x": jnp.roll(batch["x"], 1, -1)}
    np.testing.assert_allclose(whole.log_prob(other, batch), whole.log_prob(other, shifted), atol=1e-4)
    assert MODEL.sample(state, jax.random.key(0), 4).shape == (4, T, D)
    with pytest.raises(ValueError, match="hidden keys"):
        HiddenKeyModel(algorithm="gibbs")
    # So are the states.
    paths, shifted_paths = whole.decode_states(other, batch), whole.decode_states(other, shifted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), paths, shifted_paths)
    assert (paths[1] <= whole.log_prob(other, batch)).all()
