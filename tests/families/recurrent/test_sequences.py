"""Attention between sequences, and mixture densities of series and strokes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import decoding
from genjax.data import DataError, Pipeline, TimeSeries, TokenPairs
from genjax.families.recurrent.attention import AttentionSequenceModel
from genjax.families.recurrent.mixture_density import MixtureDensityModel, Parameters, draw_frame, mixture_log_prob
from genjax.model import GenerativeModel
from genjax.nn.recurrent import Recurrent
from genjax.optimizers import Adam


@pytest.mark.parametrize("score", ["additive", "multiplicative"])
def test_attention_learns_decodes_as_it_was_taught_and_ignores_padding(score):
    data = TokenPairs(name="copy", num_symbols=5, max_length=3, batch_size=32)
    model = AttentionSequenceModel(
        **data.spec(),
        embedding_dim=8,
        encoder=Recurrent(cell="gru", hidden_dim=8, bidirectional=True),
        hidden_dim=16,
        score=score,
        optimizer=Adam(learning_rate=1e-2),
    )
    assert isinstance(model, GenerativeModel)
    batch = {name: jnp.asarray(a) for name, a in Pipeline(data, "train", 0).batch(0).items()}
    state = jax.jit(model.init)(jax.random.key(0), batch)
    step = jax.jit(model.train_step)
    for t in range(60):
        state, metrics = step(state, batch, jax.random.key(t))
    assert metrics["nll_per_token"].value() < 1.0
    weights = model.alignment(state, batch)
    np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)
    assert (np.asarray(weights)[np.broadcast_to(~np.asarray(batch["source_mask"])[:, None], weights.shape)] == 0).all()
    wide = {**batch, "source": jnp.pad(batch["source"], ((0, 0), (0, 2)))}
    wide["source_mask"] = jnp.pad(batch["source_mask"], ((0, 0), (0, 2)))
    for name, value in model.evaluate(state, batch, None).items():
        np.testing.assert_allclose(model.evaluate(state, wide, None)[name], value, atol=1e-4)
    decoder = model.answer_decoder(state, batch["source"], batch["source_mask"])
    out = decoding.generate(
        decoder, jax.random.key(0), batch["tokens"][:, :1], 4, sampling=decoding.Sampling(temperature=0.0)
    )
    text = jnp.concatenate([batch["tokens"][:, :1], out.tokens], 1)
    taught, _ = model._forward(state.params, {**batch, "tokens": text})
    np.testing.assert_array_equal(taught.argmax(-1), out.tokens)
    assert model.translate(state, batch["source"], batch["source_mask"]).shape == (32, 4)
    with pytest.raises(ValueError, match="the source has the token 1[0-9][0-9], which lies outside the vocabulary"):
        model.translate(state, batch["source"] + 100, batch["source_mask"])
    assert jax.jit(model.sample, static_argnums=2)(state, jax.random.key(0), 3).shape == (3, 5)


def test_mixtures_are_normalised_and_learn_the_spread():
    grid = jnp.linspace(-12.0, 12.0, 4001).reshape(-1, 1)
    parameters = Parameters(
        jnp.log(jnp.array([[0.3, 0.7]])),
        jnp.array([[[-1.0], [2.0]]]),
        jnp.array([[[0.0], [0.5]]]),
        None,
        jnp.zeros((1, 0)),
    )
    total = jnp.exp(mixture_log_prob(parameters, grid)).sum() * 24 / 4000
    np.testing.assert_allclose(total, 1.0, rtol=1e-4)
    model = MixtureDensityModel(
        data_shape=(4, 1),
        network=Recurrent(cell="gru", hidden_dim=8),
        num_components=2,
        optimizer=Adam(learning_rate=0.02),
    )
    assert isinstance(model, GenerativeModel)
    sign = jax.random.rademacher(jax.random.key(0), (256, 4, 1), jnp.float32)
    batch = {"x": 2.0 * sign + 0.3 * jax.random.normal(jax.random.key(1), (256, 4, 1))}
    state = jax.jit(model.init)(jax.random.key(2), batch)
    step = jax.jit(model.train_step)
    for t in range(250):
        state, _ = step(state, batch, jax.random.key(t))
    exact = np.log(2) + 0.5 * np.log(2 * np.pi * np.e * 0.09)
    values = model.evaluate(state, batch, None)
    assert abs(float(values["nll"].mean()) / 4 - exact) < 0.1
    draws = jax.jit(model.sample, static_argnums=2)(state, jax.random.key(3), 2000)
    assert abs(float((draws**2).mean()) - 4.09) < 0.4
    future = model.forecast(state, jax.random.key(4), batch["x"][:3, :2], 2, num_samples=500)
    assert future.shape == (500, 3, 2, 1)
    assert (np.quantile(future, 0.95, axis=0) > 1.5).all() and (np.quantile(future, 0.05, axis=0) < -1.5).all()
    median, bounds = model.intervals(state, jax.random.key(4), batch["x"][:3, :2], 2, (0.9,), num_samples=500)
    np.testing.assert_allclose(bounds[0], np.quantile(future, [0.05, 0.95], axis=0), rtol=1e-4, atol=1e-4)
    assert median.shape == (3, 2, 1)
    # A temperature is for samples: intervals stay those that were learned.
    cold = dataclasses.replace(model, temperature=1e-6)
    np.testing.assert_array_equal(
        cold.forecast(state, jax.random.key(4), batch["x"][:3, :2], 2, num_samples=500), future
    )
    with pytest.raises(ValueError, match="cannot read from the end"):
        dataclasses.replace(model, network=Recurrent(bidirectional=True))


def test_strokes_have_the_density_of_scipy_and_are_drawn_from_it(tmp_path):
    stats = pytest.importorskip("scipy.stats")
    weights, means = np.array([0.3, 0.7]), np.array([[0.0, 1.0], [-1.0, 0.5]])
    scales, rho, logit = np.array([[1.0, 0.5], [0.3, 2.0]]), np.array([0.8, -0.5]), np.array([0.4])
    parameters = Parameters(
        *(jnp.asarray(a, jnp.float32) for a in (np.log(weights), means, np.log(scales), rho, logit))
    )
    covariances = [np.array([[a * a, r * a * b], [r * a * b, b * b]]) for (a, b), r in zip(scales, rho)]
    density = lambda x: sum(w * stats.multivariate_normal(m, c).pdf(x) for w, m, c in zip(weights, means, covariances))
    x = np.array([[0.2, 0.7, 1.0], [-1.0, 2.0, 0.0]])
    p = 1 / (1 + np.exp(-logit[0]))
    expected = np.log(density(x[:, :2]) * np.where(x[:, 2] == 1, p, 1 - p))
    log_probs = jax.vmap(lambda row: mixture_log_prob(parameters, row))(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(log_probs, expected, rtol=1e-5)
    draws = np.asarray(jax.vmap(lambda k: draw_frame(k, parameters))(jax.random.split(jax.random.key(0), 40_000)))
    mean = weights @ means
    second = sum(w * (c + np.outer(m, m)) for w, m, c in zip(weights, means, covariances))
    np.testing.assert_allclose(draws.mean(0), [*mean, p], atol=0.03)
    np.testing.assert_allclose(draws[:, :2].T @ draws[:, :2] / len(draws), second, atol=0.06)
    data = TimeSeries(name="strokes", sequence_length=20, batch_size=8)
    batch = {"x": jnp.asarray(Pipeline(data, "train", 0).batch(0)["x"])}
    model = MixtureDensityModel(**data.spec(), network=Recurrent(hidden_dim=8), num_components=3, correlated=True)
    state = jax.jit(model.init)(jax.random.key(0), batch)
    _, metrics = jax.jit(model.train_step)(state, batch, jax.random.key(1))
    samples = jax.jit(model.sample, static_argnums=2)(state, jax.random.key(2), 3)
    assert jnp.isfinite(metrics["loss"]) and set(np.unique(samples[..., 2])) <= {0.0, 1.0}
    assert data.write_samples(np.asarray(samples), tmp_path / "s")[0].is_file()
    with pytest.raises(ValueError, match="with model.correlated two"):
        MixtureDensityModel(data_shape=(4, 3), correlated=True).module()


def test_series_that_cannot_be_used_are_refused(tmp_path):
    path = tmp_path / "series.csv"
    path.write_text("\n".join(["1.0"] * 50 + ["nan"] + ["2.0"] * 50))
    with pytest.raises(DataError, match="row 51"):
        TimeSeries(name="table", dir=str(path)).spec()
    path.write_text("\n".join(str(float(i % 7)) for i in range(100)))
    with pytest.raises(DataError, match="fewer than"):
        TimeSeries(name="table", dir=str(path)).load("test")
    data = TimeSeries(name="table", dir=str(path), sequence_length=8)
    assert data.spec() == {"data_shape": (8, 1), "num_binary": 0} and len(data.load("train")) == 73
    assert data.write_samples(data.load("train").gather(np.arange(3))["x"], tmp_path / "s")[0].is_file()
