"""Models of piano rolls: frames have probabilities that sum to one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.families.recurrent.piano_roll import PianoRollModel
from genjax.model import GenerativeModel, HasLogProb
from genjax.nn.recurrent import Recurrent
from genjax.optimizers import Adam

ROLLS = jnp.asarray(list(itertools.product([0.0, 1.0], repeat=6))).reshape(64, 2, 3)


def build(output):
    network = Recurrent(cell="gru", hidden_dim=5)
    model = PianoRollModel(
        data_shape=(2, 3), network=network, output=output, nade_dim=4, optimizer=Adam(learning_rate=0.03)
    )
    batch = {"x": ROLLS[jnp.array([0, 21, 42, 63])], "mask": jnp.array([[1, 1], [1, 1], [1, 1], [1, 0]])}
    return model, batch, jax.jit(model.init)(jax.random.key(0), batch)


@pytest.mark.parametrize("output", ["bernoulli", "nade"])
def test_probabilities_sum_to_one_and_samples_have_them(output):
    model, batch, state = build(output)
    assert isinstance(model, GenerativeModel) and isinstance(model, HasLogProb)
    step = jax.jit(model.train_step)
    before = model.evaluate(state, batch, None)
    for t in range(30):
        state, metrics = step(state, batch, jax.random.key(t))
    after = model.evaluate(state, batch, None)
    assert after["nll"].sum() < before["nll"].sum() and after["num_frames"].tolist() == [2, 2, 2, 1]
    p = np.exp(model.log_prob(state, {"x": ROLLS}))
    np.testing.assert_allclose(p.sum(), 1.0, rtol=1e-5)
    draws = jax.jit(model.sample, static_argnums=2)(state, jax.random.key(0), 20_000)
    codes = np.asarray(draws).reshape(-1, 6) @ (2 ** np.arange(5, -1, -1))
    counts = np.bincount(codes.astype(int), minlength=64)
    assert np.abs(counts / 20_000 - p).max() < 0.015
    means = model.summarize({name: float(v.mean()) for name, v in after.items()})
    np.testing.assert_allclose(means["nll_per_frame"], float(after["nll"].sum()) / 7, rtol=1e-5)


def test_padding_does_not_count():
    model, batch, state = build("nade")
    changed = {**batch, "x": batch["x"].at[3, 1].set(0.0)}
    np.testing.assert_allclose(model.log_prob(state, batch), model.log_prob(state, changed), rtol=1e-6)
    with pytest.raises(ValueError, match="frames have 4 notes"):
        model.init(jax.random.key(0), {"x": jnp.zeros((1, 2, 4))})
