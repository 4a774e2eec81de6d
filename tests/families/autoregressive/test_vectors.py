"""Claims about FVSBN, NADE and MADE: masks by the Jacobian, probabilities that sum to 1, fast and slow samplers
alike.
"""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import config
from genjax.families.autoregressive.fvsbn import FVSBN
from genjax.families.autoregressive.made import MADE
from genjax.families.autoregressive.nade import NADE
from genjax.model import GenerativeModel, HasLogProb, TrainState
from genjax.nn.distributions import Categorical
from genjax.training import resolve

SHAPE = {"data_shape": (2, 3, 1)}
CLASSES = {"class_conditional": True, "num_classes": 3}
TERNARY = {"output": Categorical(num_levels=3)}
MODELS = {
    "fvsbn": FVSBN(**SHAPE),
    "fvsbn_conditional": FVSBN(**SHAPE, **CLASSES, **TERNARY),
    "nade": NADE(hidden_dim=5, **SHAPE),
    "nade_conditional": NADE(hidden_dim=5, **SHAPE, **CLASSES, **TERNARY),
    "made": MADE(hidden_dims=(3,), direct=True, **SHAPE),
    "made_deep": MADE(hidden_dims=(16, 13), **SHAPE),
    "made_conditional": MADE(hidden_dims=(16, 13), direct=True, **SHAPE, **CLASSES, **TERNARY),
    "made_agnostic": MADE(
        hidden_dims=(16, 12), order_agnostic=True, connectivity_agnostic=True, num_masks=3, mask_seed=5, **SHAPE
    ),
}
each_model = pytest.mark.parametrize("name", MODELS)


@functools.cache
def prepared(name):
    """Model, a state with random parameters, a batch."""
    model = MODELS[name]
    levels = model.output.num_levels if isinstance(model.output, Categorical) else 2
    rng = np.random.default_rng(0)
    x = rng.integers(0, levels, (8, *model.data_shape)) / (levels - 1)
    batch = {"x": jnp.asarray(x, jnp.float32), "label": jnp.arange(8) % 3}
    state = jax.jit(model.init)(jax.random.key(0), batch)
    leaves, tree = jax.tree.flatten(state.params)
    noise = [jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves]
    return model, state.replace(params=jax.tree.unflatten(tree, noise)), batch


@each_model
def test_contract(name):
    model, state, batch = prepared(name)
    assert isinstance(model, GenerativeModel) and isinstance(model, HasLogProb)
    new, metrics = jax.jit(model.train_step)(state, batch, jax.random.key(1))
    assert int(new.step) == 1 and np.isfinite(metrics["loss"])


@each_model
def test_parameters_ignore_values_at_or_after_their_place(name):
    model, state, batch = prepared(name)
    x, label = batch["x"][:1].reshape(1, -1), model.labels({"label": batch["label"][:1]})
    jacobian = jax.jit(jax.jacobian(lambda x: model.parameters(state.params, x, label)[0].sum(-1)))(x)[:, 0]
    place = np.argsort(model.order())
    later = place[None, :] >= place[:, None]
    np.testing.assert_array_equal(np.asarray(jacobian)[later], 0.0)
    # And every earlier value is seen by somebody, unless random degrees left it out.
    assert name == "made_agnostic" or np.all(np.abs(jacobian).sum(0)[place < model.dim - 1] > 0)


@each_model
def test_probabilities_of_all_vectors_sum_to_one(name):
    model, state, _ = prepared(name)
    levels = model.output.num_levels if isinstance(model.output, Categorical) else 2
    x = np.array(list(itertools.product(np.arange(levels) / (levels - 1), repeat=6)), np.float32)
    batch = {"x": jnp.asarray(x.reshape(-1, 2, 3, 1)), "label": jnp.ones(len(x), jnp.int32)}
    log_prob = jax.jit(model.log_prob)(state, batch)
    assert float(jax.nn.logsumexp(log_prob)) == pytest.approx(0.0, abs=1e-4)


@each_model
def test_fast_sampler_draws_what_the_slow_one_draws(name):
    """Given some values, at another temperature than 1."""
    model, state, batch = prepared(name)
    known = jax.random.bernoulli(jax.random.key(4), 0.3, batch["x"].shape)
    complete = jax.jit(model.complete, static_argnames="cached")
    arguments = (state, jax.random.key(3), batch["x"], known, model.labels(batch), jnp.float32(0.7))
    fast, slow = (complete(*arguments, cached=cached) for cached in (True, False))
    np.testing.assert_array_equal(fast, slow)
    np.testing.assert_array_equal(fast[known], batch["x"][known])
    assert np.any(fast != batch["x"])


def test_a_made_without_hidden_layers_samples_too():
    model = MADE(hidden_dims=(), **SHAPE)
    state = model.init(jax.random.key(0), prepared("made")[2])
    fast, slow = (model.sample(state, jax.random.key(1), 3, cached=cached) for cached in (True, False))
    np.testing.assert_array_equal(fast, slow)


def test_samples_have_the_frequencies_of_the_model():
    model, state, _ = prepared("made_deep")
    count = 20000
    x = jax.jit(model.sample, static_argnames="num_samples")(state, jax.random.key(0), count)
    index = np.asarray(x.reshape(count, -1)) @ 2.0 ** np.arange(6)
    frequency = np.bincount(index.astype(int), minlength=64) / count
    vectors = (np.arange(64)[:, None] >> np.arange(6)) & 1
    probability = np.exp(model.log_prob(state, {"x": jnp.asarray(vectors.reshape(64, 2, 3, 1), jnp.float32)}))
    assert np.all(np.abs(frequency - probability) < 5 * np.sqrt(probability / count) + 1e-4)


def test_completion_keeps_what_is_known():
    model, state, batch = prepared("made_conditional")
    again = jax.jit(model.reconstruct)(state, batch, jax.random.key(0))
    np.testing.assert_array_equal(again[:, 0], batch["x"][:, 0])
    assert np.any(np.asarray(again[:, 1]) != np.asarray(batch["x"][:, 1]))


def test_temperature_sharpens():
    model, state, _ = prepared("nade")
    sample = jax.jit(model.sample, static_argnames="num_samples")
    log_prob = [
        model.log_prob(state, {"x": sample(state, jax.random.key(0), 200, temperature=jnp.float32(t))}).mean()
        for t in (0.2, 1.0, 5.0)
    ]
    assert log_prob[0] > log_prob[1] > log_prob[2]


def test_bits_per_dimension_are_nats_over_dimensions_and_log_2():
    model, state, batch = prepared("fvsbn")
    logits = np.asarray(model.parameters(state.params, batch["x"].reshape(8, 6), None))[..., 0]
    x = np.asarray(batch["x"]).reshape(8, 6)
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    nll = -np.log(np.where(x > 0, probability, 1 - probability)).sum(-1)
    metrics = model.evaluate(state, batch, jax.random.key(0))
    np.testing.assert_allclose(metrics["nll"], nll, rtol=1e-5)
    np.testing.assert_allclose(metrics["bits_per_dim"], nll / 6 / math.log(2), rtol=1e-5)


def test_nade_is_the_recursion_of_the_paper():
    model, state, batch = prepared("nade")
    p = jax.tree.map(np.asarray, state.params)
    x = np.asarray(batch["x"]).reshape(8, 6)
    for d in range(6):
        hidden = 1 / (1 + np.exp(-(p["hidden_bias"] + x[:, :d] @ p["input_kernel"][:d])))
        logit = hidden @ p["output_kernel"][d, :, 0] + p["output_bias"][d, 0]
        np.testing.assert_allclose(
            model.parameters(state.params, jnp.asarray(x), None)[:, d, 0], logit, rtol=1e-4, atol=1e-5
        )


def test_an_agnostic_made_is_a_mixture_over_its_masks():
    model, state, batch = prepared("made_agnostic")
    parts = np.stack([model.component_log_likelihood(state.params, batch["x"], None, m) for m in range(3)])
    assert np.ptp(parts, axis=0).max() > 0.1
    np.testing.assert_allclose(
        model.log_prob(state, batch), np.log(np.mean(np.exp(parts.astype(np.float64)), 0)), rtol=1e-5
    )


def conditionals(model, params, x, places, degrees):
    """log p(x_d | x before it) of vectors x [B, D] under given masks, [B, D]."""
    return model.output.log_prob(model.masked_parameters(params, x, None, places, degrees), x)


def test_samples_of_an_agnostic_made_have_the_frequencies_of_its_mixture():
    model, state, _ = prepared("made_agnostic")
    count = 20000
    vectors = jnp.asarray(list(itertools.product((0.0, 1.0), repeat=6)))
    sample = jax.jit(model.complete)
    x = sample(state, jax.random.key(0), jnp.zeros((count, 2, 3, 1)), jnp.zeros((2, 3, 1), bool))
    weights = 2.0 ** np.arange(6)[::-1]
    frequency = np.bincount((np.asarray(x.reshape(count, 6)) @ weights).astype(int), minlength=64) / count
    probability = np.exp(model.log_prob(state, {"x": vectors.reshape(64, 2, 3, 1)}))
    assert np.all(np.abs(frequency - probability) < 5 * np.sqrt(probability / count) + 1e-4)

    # Completions see all that is known, wherever it comes in the orders of the components; here two halves, known
    # apart.
    masks = np.array([[0, 1, 0, 1, 1, 0], [1, 0, 1, 0, 0, 1]], bool)
    known = np.repeat(masks, count // 2, axis=0)
    given = np.tile([1.0, 0.0, 0.0, 1.0, 0.0, 1.0], (count, 1))
    x = sample(state, jax.random.key(1), jnp.asarray(given.reshape(x.shape), jnp.float32), known.reshape(x.shape))
    x = np.asarray(x).reshape(count, 6)
    np.testing.assert_array_equal(x[known], given[known])
    for part, mask in enumerate(masks):
        probability = np.zeros(64)
        fitting = np.all(np.asarray(vectors)[:, mask] == given[0, mask], axis=1)
        # The joint of component and known values weighs the components.
        for component in range(model.num_masks):
            places, degrees = model.masks(component)
            order = sorted(range(6), key=lambda d: (not mask[d], int(places[d])))
            log_prob = conditionals(model, state.params, vectors, np.argsort(order) + 1, degrees)
            probability += fitting * np.exp(np.asarray(log_prob, np.float64).sum(1))
        probability /= probability.sum()
        assert probability.sum() == pytest.approx(1.0, abs=1e-4)
        half = x[part * count // 2 : (part + 1) * count // 2]
        frequency = np.bincount((half @ weights).astype(int), minlength=64) / len(half)
        assert np.all(np.abs(frequency - probability) < 5 * np.sqrt(probability / len(half)) + 1e-4)


def test_completions_of_an_ensemble_follow_its_joint():
    model = MADE(hidden_dims=(4,), data_shape=(3,), connectivity_agnostic=True, num_masks=3)
    vectors = jnp.asarray(list(itertools.product((0.0, 1.0), repeat=3)))
    rng = np.random.default_rng(0)
    params = jax.eval_shape(model.init, jax.random.key(2), {"x": vectors}).params
    params = jax.tree.map(lambda a: jnp.asarray(2.0 * rng.normal(size=a.shape), jnp.float32), params)
    parts = np.exp([model.component_log_likelihood(params, vectors, None, m) for m in range(3)]).reshape(3, 2, 2, 2)
    of_mixture, of_components = parts.mean(0)[0, 1], (parts / parts.sum(-1, keepdims=True)).mean(0)[0, 1]
    expected = of_mixture[1] / of_mixture.sum()
    assert abs(expected - of_components[1]) > 0.1, "components with equal weights would not be told apart"
    x = jnp.repeat(vectors[2:3], 4000, axis=0)
    drawn = jax.jit(model.complete)(TrainState.create(params), jax.random.key(0), x, jnp.array([True, True, False]))
    assert drawn[:, 2].mean() == pytest.approx(expected, abs=0.03)


def test_temperature_of_the_model_is_that_of_its_samples():
    model, state, _ = prepared("nade")
    sample = jax.jit(lambda model, t: model.sample(state, jax.random.key(0), 8, temperature=t), static_argnums=(0, 1))
    colder = dataclasses.replace(model, temperature=0.2)
    np.testing.assert_array_equal(sample(colder, None), sample(model, 0.2))
    assert np.any(np.asarray(sample(colder, None)) != np.asarray(sample(model, None)))
    with pytest.raises(ValueError, match="temperature=0.0 must be positive"):
        dataclasses.replace(model, temperature=0.0)


@pytest.mark.parametrize("name", ["fvsbn_conditional", "nade_conditional", "made_conditional"])
def test_labels_that_are_no_class_are_refused_and_nan_where_they_are_compiled(name):
    model, state, batch = prepared(name)
    for label in (3, -1):
        wrong = {**batch, "label": batch["label"].at[2].set(label)}
        with pytest.raises(ValueError, match="labels must lie between 0 and 2"):
            model.log_prob(state, wrong)
        with jax.debug_nans(False):
            log_prob = jax.jit(model.log_prob)(state, wrong)
        np.testing.assert_array_equal(np.isnan(log_prob), np.arange(8) == 2)


@pytest.mark.parametrize(
    ("name", "value"), [("made", 0.5), ("made", 2.0), ("made", np.nan), ("nade_conditional", 0.75)]
)
def test_values_off_the_lattice_have_no_probability(name, value):
    model, state, batch = prepared(name)
    wrong = {**batch, "x": batch["x"].at[3, 0, 1, 0].set(value)}
    with jax.debug_nans(False):
        log_prob = jax.jit(model.log_prob)(state, wrong)
        np.testing.assert_array_equal(np.isnan(log_prob), np.arange(8) == 3)
        assert np.isnan(jax.jit(model.loss)(state.params, wrong, jax.random.key(0), state.step)[0])
    model.diagnose(state, batch, jax.random.key(0))
    with pytest.raises(
        ValueError, match="declares 0 to 1" if value == 2.0 else f"such as {value:g}, which is none of the"
    ):
        model.diagnose(state, wrong, jax.random.key(0))


def test_levels_that_are_not_given_are_those_of_the_data():
    experiment = config.find_experiment("gated_pixel_cnn_digits").build()
    assert resolve(experiment).model.output.num_levels == 17
    coarse = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, num_levels=5))
    assert resolve(coarse).model.output.num_levels == 5
    with pytest.raises(ValueError, match="Categorical.num_levels is None"):
        dataclasses.replace(MODELS["made"], output=Categorical()).network()


def test_errors_say_what_would_be_right():
    model = MODELS["made"]
    with pytest.raises(ValueError, match="values from 0 to 255"):
        model.support().check_spec({"range": (0, 255), "num_levels": 256})
    with pytest.raises(ValueError, match="model.data_shape"):
        model.init(jax.random.key(0), {"x": jnp.zeros((2, 3, 3, 1))})
    with pytest.raises(ValueError, match="data_shape is None"):
        MADE().init(jax.random.key(0), {"x": jnp.zeros((2, 3, 3, 1))})
    _, state, _ = prepared("made")
    with pytest.raises(ValueError, match="temperature"):
        model.sample(state, jax.random.key(0), 2, temperature=0.0)
    with pytest.raises(ValueError, match="no label"):
        model.sample(state, jax.random.key(0), 2, label=jnp.zeros(2, jnp.int32))
    one = MODELS["nade_conditional"]
    jax.eval_shape(
        lambda k: one.sample(
            one.init(k, {"x": jnp.zeros((1, *one.data_shape)), "label": jnp.zeros(1, int)}), k, 3, label=1
        ),
        jax.random.key(0),
    )
    for label in (-1, 3):
        with pytest.raises(ValueError, match="labels must lie between 0 and 2"):
            MODELS["nade_conditional"].check_labels(np.array([label]))
    with pytest.raises(ValueError, match="needs num_classes"):
        MADE(class_conditional=True, **SHAPE).init(jax.random.key(0), {"x": jnp.zeros((2, 2, 3, 1))})
