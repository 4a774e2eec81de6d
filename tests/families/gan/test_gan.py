"""Objectives of GANs against closed forms, penalties against finite differences, and the step's contract."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from genjax.data import Points
from genjax.families.gan.augmentation import DiffAugment
from genjax.families.gan.gan import GAN
from genjax.families.gan.networks import PlainNetwork
from genjax.families.gan.objectives import (
    Objective,
    discriminator_objective,
    generator_objective,
    score_boundary,
    squared_gradient_norm,
)
from genjax.families.gan.style_gan2 import group_deviation
from genjax.nn.encoder_decoder import MLPNetwork
from genjax.optimizers import SGD, Adam, Cosine, Linear, tree_norm
from genjax.training import Evaluation, Experiment, Training, resolve
from genjax.training.engine import Engine

KEY = jax.random.key(7)
P, Q = np.array([0.5, 0.3, 0.2], np.float32), np.array([0.2, 0.2, 0.6], np.float32)


def best_scores(objective, start):
    def value(d):
        real, fake = discriminator_objective(objective, d, 0 * d), discriminator_objective(objective, 0 * d, d)
        return jnp.sum(P * real + Q * fake)

    step = jax.jit(lambda d: d - 0.5 * jax.grad(value)(d))
    for _ in range(300):
        start = step(start)
    return np.asarray(start)


def test_best_logistic_discriminator_is_the_log_density_ratio():
    for objective in ("minimax", "non_saturating"):
        np.testing.assert_allclose(best_scores(objective, jnp.zeros(3)), np.log(P / Q), atol=1e-4)


def test_value_of_the_best_logistic_discriminator_is_the_jensen_shannon_divergence():
    d = jnp.log(P / Q)
    zero = float(jnp.log(2.0))
    loss = jnp.sum(P * (discriminator_objective("minimax", d, 0 * d) - zero))
    loss += jnp.sum(Q * (discriminator_objective("minimax", 0 * d, d) - zero))
    m = (P + Q) / 2
    divergence = 0.5 * np.sum(P * np.log(P / m)) + 0.5 * np.sum(Q * np.log(Q / m))
    np.testing.assert_allclose(loss, 2 * np.log(2) - 2 * divergence, rtol=1e-5)


def test_best_least_squares_discriminator_is_the_share_of_data():
    np.testing.assert_allclose(best_scores("least_squares", jnp.zeros(3)), P / (P + Q), atol=1e-4)


NAMES = ("real_score", "fake_score")
TANH = MLPNetwork(hidden_dims=(5,), activation="tanh")


def outputs(leaves, x):
    """What the discriminator of `TANH` with these parameters gives, [B, outputs], in double precision."""
    hidden_bias, hidden_kernel, bias, kernel = leaves
    return np.tanh(x @ hidden_kernel + hidden_bias) @ kernel + bias


def slopes(function, leaves, step):
    """Central differences of a function of arrays by each of their elements."""
    result = []
    for leaf in leaves:
        slope = np.zeros_like(leaf)
        for index in np.ndindex(*leaf.shape):
            kept = leaf[index]
            ends = []
            for leaf[index] in (kept + step, kept - step):
                ends.append(function(leaves))
            leaf[index] = kept
            slope[index] = (ends[0] - ends[1]) / (2 * step)
        result.append(slope)
    return result


def doubles(params):
    return [np.array(leaf, np.float64) for leaf in jax.tree.leaves(params)]


@pytest.mark.parametrize("penalty", ["wgan_gp", "r1", "r2", "r1_r2"])
def test_penalties_and_their_gradients_are_those_of_finite_differences(penalty):
    model = GAN(data_shape=(3,), latent_dim=2, network=TANH, penalty=penalty, penalty_weight=4.0)
    x, fake = np.asarray(jax.random.normal(jax.random.key(0), (2, 4, 3)))
    e = np.array([0.1, 0.3, 0.6, 0.9], np.float32)
    params = model.init(jax.random.key(1), {"x": x}).params["discriminator"]

    def norms(leaves, points):
        moved = 1e-4 * np.eye(3)
        slope = [(outputs(leaves, points + d) - outputs(leaves, points - d))[:, 0] / 2e-4 for d in moved]
        return np.sqrt(np.sum(np.square(slope), axis=0))

    def expected(leaves):
        if penalty == "wgan_gp":
            between = e[:, None] * x + (1 - e[:, None]) * fake
            return 4.0 * np.mean((norms(leaves, between) - 1) ** 2)
        points = {"r1": [x], "r2": [fake], "r1_r2": [x, fake]}[penalty]
        return sum(2.0 * np.mean(norms(leaves, p) ** 2) for p in points)

    leaves = doubles(params)
    value, gradient = jax.jit(jax.value_and_grad(lambda p: model.gradient_penalty(p, x, fake, e)))(params)
    np.testing.assert_allclose(value, expected(leaves), rtol=1e-4)
    for ours, theirs in zip(jax.tree.leaves(gradient), slopes(expected, leaves, 1e-4)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


class _Halved(DiffAugment):
    def __call__(self, x, keys, probability):
        return 0.5 * x


def test_losses_with_classes_and_consistency_and_their_gradients_are_their_formulas():
    sgd = SGD(learning_rate=1.0)
    model = GAN(
        data_shape=(3,),
        num_classes=2,
        latent_dim=2,
        network=TANH,
        conditioning="auxiliary",
        class_weight=0.7,
        objective="least_squares",
        consistency="balanced",
        consistency_weight=3.0,
        consistency_augmentation=_Halved(),
        generator_optimizer=sgd,
        discriminator_optimizer=sgd,
    )
    x, label = np.asarray(jax.random.normal(jax.random.key(0), (4, 3))), np.array([0, 1, 1, 0])
    batch = {"x": jnp.asarray(x), "label": jnp.asarray(label)}
    state = model.init(jax.random.key(1), batch)
    # G(z) = c whatever z is.
    c = np.array([0.3, -0.2, 0.5])
    generator = jax.tree.map(lambda p: c.astype(np.float32) if p.shape == (3,) else 0.0 * p, state.params["generator"])
    state = state.replace(params={**state.params, "generator": generator})

    def class_entropy(logits):
        return np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(4), label])

    def discriminator_loss(leaves):
        real, fake, real_half, fake_half = (outputs(leaves, y) for y in (x, 0 * x + c, x / 2, 0 * x + c / 2))
        scores = np.mean(0.5 * (real[:, 0] - 1) ** 2 + 0.5 * fake[:, 0] ** 2)
        consistency = np.mean((real_half - real)[:, 0] ** 2) + np.mean((fake_half - fake)[:, 0] ** 2)
        return scores + 0.7 * (class_entropy(real[:, 1:]) + class_entropy(fake[:, 1:])) + 3.0 * consistency

    leaves = doubles(state.params["discriminator"])
    new, metrics = jax.jit(model.discriminator_update)(state, batch, jax.random.key(2))
    np.testing.assert_allclose(metrics["discriminator_loss"], discriminator_loss(leaves), rtol=1e-5)
    for after, before, slope in zip(
        jax.tree.leaves(new.params["discriminator"]), leaves, slopes(discriminator_loss, leaves, 1e-5)
    ):
        np.testing.assert_allclose(after, before - slope, rtol=1e-4, atol=1e-5)

    def generator_loss(constant):
        fake = outputs(leaves, 0 * x + constant[0])
        return np.mean(0.5 * (fake[:, 0] - 1) ** 2) + 0.7 * class_entropy(fake[:, 1:])

    new, metrics = jax.jit(model.generator_update)(state, batch, jax.random.key(2))
    np.testing.assert_allclose(metrics["loss"], generator_loss([c]), rtol=1e-5)
    (after,) = (leaf for leaf in jax.tree.leaves(new.params["generator"]) if leaf.shape == (3,))
    np.testing.assert_allclose(after, c - slopes(generator_loss, [c.copy()], 1e-5)[0], rtol=1e-4, atol=1e-5)


def test_squared_gradient_norm_of_a_known_function():
    x = jax.random.normal(jax.random.key(0), (4, 2, 3))
    got = squared_gradient_norm(lambda y: jnp.sum(y**3, axis=(1, 2)), x)
    np.testing.assert_allclose(got, jnp.sum((3 * x**2) ** 2, axis=(1, 2)), rtol=1e-5)


def softplus(v):
    return np.log1p(np.exp(v))


FORMULAS = {
    "minimax": lambda r, f: (softplus(-r) + softplus(f), -softplus(f)),
    "non_saturating": lambda r, f: (softplus(-r) + softplus(f), softplus(-f)),
    "least_squares": lambda r, f: (0.5 * (r - 1) ** 2 + 0.5 * f**2, 0.5 * (f - 1) ** 2),
    "hinge": lambda r, f: (np.maximum(1 - r, 0) + np.maximum(1 + f, 0), -f),
    "wasserstein": lambda r, f: (f - r, -f),
    "relativistic": lambda r, f: (softplus(f - r), softplus(r - f)),
    "relativistic_average": lambda r, f: (
        softplus(f.mean() - r) + softplus(f - r.mean()),
        softplus(r.mean() - f) + softplus(r - f.mean()),
    ),
}


def test_objectives_are_their_formulas():
    assert set(FORMULAS) == set(Objective.__args__)
    real, fake = np.array([1.5, 0.2, -0.7, 2.0], np.float32), np.array([0.5, 3.0, -1.2, -0.4], np.float32)
    for name, formula in FORMULAS.items():
        expected = formula(real, fake)
        np.testing.assert_allclose(discriminator_objective(name, real, fake), expected[0], rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(generator_objective(name, fake, real), expected[1], rtol=1e-5, err_msg=name)


def test_the_boundary_between_data_and_samples_is_that_of_the_best_discriminator():
    density, other = np.array([0.9, 0.3, 0.2], np.float32), np.array([0.1, 0.3, 0.8], np.float32)
    best = {
        "minimax": np.log(density / other),
        "non_saturating": np.log(density / other),
        "hinge": np.sign(density - other),
        "least_squares": density / (density + other),
    }
    for name in Objective.__args__:
        scores = best.get(name, np.log(density / other) + 5.0)
        boundary = score_boundary(name, scores[:1], -scores[:1] + (0.0 if name in best else 10.0))
        np.testing.assert_allclose(np.sign(scores - boundary), np.sign(density - other), err_msg=name)


def test_a_step_keeps_clipped_weights_and_samples_have_the_data_shape():
    model = GAN(
        data_shape=(2,),
        latent_dim=2,
        network=MLPNetwork(hidden_dims=(8,)),
        objective="wasserstein",
        clip_weights=0.05,
        num_discriminator_steps=2,
        generator_optimizer=Adam(ema_decay=0.9),
        discriminator_optimizer=SGD(learning_rate=1.0),
    )
    batch = {"x": jax.random.normal(jax.random.key(0), (6, 2))}
    state = jax.jit(model.init)(jax.random.key(1), batch)
    state, metrics = jax.jit(model.train_step)(state, batch, jax.random.key(2))
    assert int(state.step) == 1 and np.isfinite(float(metrics["loss"]))
    assert all(float(jnp.abs(leaf).max()) <= 0.05 + 1e-6 for leaf in jax.tree.leaves(state.params["discriminator"]))
    assert model.sample(state, jax.random.key(3), 4).shape == (4, 2)
    assert all(value.shape == (6,) for value in model.evaluate(state, batch, jax.random.key(4)).values())


def test_schedule_of_the_discriminator_counts_steps_and_not_its_updates():
    model = GAN(
        data_shape=(2,),
        latent_dim=2,
        network=MLPNetwork(hidden_dims=(4,)),
        num_discriminator_steps=5,
        discriminator_optimizer=SGD(learning_rate=0.1, schedule=Linear(num_steps=10)),
    )
    batch = {"x": jax.random.normal(jax.random.key(0), (6, 2))}
    state = model.init(jax.random.key(1), batch)
    update = jax.jit(model.discriminator_update)
    for steps in (0, 5, 10):
        updates = jax.tree.map(lambda count, n=5 * steps: jnp.full_like(count, n), state.opt_state["discriminator"])
        state = state.replace(opt_state={**state.opt_state, "discriminator": updates})
        after, metrics = update(state, batch, KEY)
        change = jax.tree.map(jnp.subtract, after.params["discriminator"], state.params["discriminator"])
        rate = float(tree_norm(change) / metrics["discriminator_gradient_norm"])
        np.testing.assert_allclose(rate, 0.1 * (1 - steps / 10), rtol=1e-3, atol=1e-6)


def test_updates_that_were_skipped_are_told_apart():
    skipping = SGD(learning_rate=0.1, skip_nonfinite=True)
    model = GAN(
        data_shape=(2,),
        num_classes=3,
        latent_dim=2,
        conditioning="concatenation",
        network=MLPNetwork(hidden_dims=(4,)),
        num_discriminator_steps=2,
        generator_optimizer=skipping,
        discriminator_optimizer=skipping,
    )
    batch = {"x": jnp.ones((6, 2)), "label": jnp.zeros(6, jnp.int32)}
    state = model.init(jax.random.key(1), batch)
    step = jax.jit(model.train_step)
    with jax.debug_nans(False):
        for changes, discriminator, generator in (({}, 0, 0), ({"x": jnp.full((6, 2), jnp.nan)}, 1, 0)):
            metrics = step(state, {**batch, **changes}, KEY)[1]
            assert metrics["discriminator_skipped"] == discriminator and metrics["generator_skipped"] == generator
            assert metrics["skipped"] == discriminator
        metrics = step(state, {**batch, "label": batch["label"] + 3}, KEY)[1]
    (warning,) = model.warnings({name: float(value) for name, value in metrics.items()})
    assert "labels that are not between 0 and 2" in warning
    for metrics in ({}, {"discriminator_skipped": 1.0, "generator_skipped": 0.5, "skipped": 1.0}):
        assert not model.warnings({"loss": 1.0, **metrics}), "not every update"


class _Compares(nn.Module):
    """A discriminator that is nothing but the deviation of its group."""

    @nn.compact
    def __call__(self, x, condition=None, training=False, keys=None, counted=None):
        return group_deviation(x[:, None, None] * self.param("factor", nn.initializers.ones, ()), 4, counted)[
            :, 0, 0, -1:
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Comparing(PlainNetwork):
    def discriminator(self, conditioning, dtype):
        return _Compares()


def test_evaluation_of_a_discriminator_that_compares_examples_leaves_padding_out():
    model = GAN(data_shape=(2,), latent_dim=2, network=_Comparing(network=TANH))
    x = jax.random.normal(KEY, (7, 2))
    state = jax.jit(model.init)(KEY, {"x": x})
    filled = jax.jit(model.evaluate)(state, {"x": x.at[5:].set(9.0), "padding": jnp.arange(7) > 4}, KEY)
    deviation = np.sqrt(np.asarray(x)[:5].var(0) + 1e-8).mean()
    np.testing.assert_allclose(filled["real_score"][:5], deviation, rtol=1e-5)


def test_evaluation_in_batches_of_5_of_7_examples_takes_means_over_examples_alone():
    model = GAN(data_shape=(2,), latent_dim=2, network=TANH, objective="relativistic_average")
    data, training = Points(eval_batch_size=5), Training(mesh="data:1")
    experiment = Experiment(model=model, data=data, training=training, evaluation=Evaluation(num_examples=7))
    engine = Engine(resolve(experiment))
    state = engine.init()
    means = engine.evaluate(state, "test")
    scores, _ = engine.map(lambda *arguments: [model.evaluate(*arguments)[n] for n in NAMES], state, "test")
    # Two batches, of 5 and of 2 examples.
    real, fake = (np.split(np.asarray(s, np.float64), [5]) for s in scores)
    expected = np.concatenate([FORMULAS["relativistic_average"](r, f) for r, f in zip(real, fake)], axis=1).mean(1)
    found = [means["discriminator_objective"], means["generator_objective"]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_wrong_shape_is_named():
    with pytest.raises(ValueError, match="data_shape"):
        GAN(data_shape=(3,)).init(jax.random.key(0), {"x": jnp.zeros((2, 2))})


def test_relativistic_objectives_look_at_differences_alone():
    real, fake = jnp.array([1.0, 2.0, 4.0]), jnp.array([0.5, 3.0, -1.0])
    for name in ("relativistic", "relativistic_average"):
        for objective in (discriminator_objective, lambda n, r, f: generator_objective(n, f, r)):
            np.testing.assert_allclose(objective(name, real + 7.0, fake + 7.0), objective(name, real, fake), rtol=1e-5)
    with pytest.raises(ValueError, match="scores of data"):
        generator_objective("relativistic", fake)


@pytest.mark.parametrize(("mean", "scale"), [(2.0, 0.5), (3.0, 2.0)])
def test_critic_approaches_the_wasserstein_distance_of_two_gaussians(mean, scale):
    # W1 of N(0, 1) and N(m, s^2) is E|m + (s - 1) z|, as quantiles differ by that; the penalty of weight w adds about
    # W1 / w / 2.
    model = GAN(
        data_shape=(1,),
        latent_dim=1,
        network=MLPNetwork(hidden_dims=(32,)),
        objective="wasserstein",
        penalty="wgan_gp",
        penalty_weight=200.0,
        discriminator_optimizer=Adam(learning_rate=3e-2, b1=0.5, b2=0.9, schedule=Cosine(num_steps=1000)),
    )
    state = jax.jit(model.init)(jax.random.key(0), {"x": jnp.zeros((256, 1))})
    # The generator s z + m = s relu(z) - s relu(-z) + m.
    fill = {(1, 32): [1.0, -1.0], (32, 1): [scale, -scale], (1,): [mean], (32,): []}
    generator = jax.tree.map(
        lambda leaf: jnp.array((fill[leaf.shape] + [0.0] * 32)[: leaf.size]).reshape(leaf.shape),
        state.params["generator"],
    )
    state = state.replace(params={**state.params, "generator": generator})

    def step(state, i):
        key = jax.random.key(i)
        data = {"x": jax.random.normal(jax.random.fold_in(key, 1), (256, 1))}
        return model.discriminator_update(state, data, key)[0], None

    state = jax.jit(lambda s: jax.lax.scan(step, s, jnp.arange(1000)))(state)[0]
    z = jax.random.normal(jax.random.key(1), (20000, 1))
    critic = state.params["discriminator"]
    value = float(jnp.mean(model.score(critic, z) - model.score(critic, model.generate(generator, z))))
    np.testing.assert_allclose(value, float(jnp.abs(mean + (scale - 1.0) * z).mean()), rtol=0.015)
