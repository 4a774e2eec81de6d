"""`gradient_step`: accumulation, clipping, averages, skipped updates, several networks."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from genjax import devices, optimizers
from genjax.batch import check_label_range, example_keys
from genjax.gradients import after_backward_pass, ema_update, gradient_step, gradient_update, value_and_gradient
from genjax.model import TrainState

pytestmark = pytest.mark.quick


def noisy_regression(params, batch, key):
    """A loss that draws noise for every example."""
    noise = jax.vmap(lambda k: jax.random.normal(k, (3,)))(example_keys(key, batch))
    prediction = batch["x"] @ params["kernel"] + params["bias"][None, :]
    loss = jnp.mean((prediction + noise) ** 2)
    return loss, {"noise": jnp.mean(noise)}


def batch_and_params(size=12):
    rng = np.random.default_rng(0)
    batch = {"x": jnp.asarray(rng.normal(size=(size, 5)), jnp.float32)}
    params = {"kernel": jnp.asarray(rng.normal(size=(5, 3)), jnp.float32), "bias": jnp.zeros(3)}
    return batch, params


@pytest.mark.parametrize("accumulation_steps", [2, 3, 12])
def test_accumulation_equals_the_full_batch(accumulation_steps):
    batch, params = batch_and_params()
    key = jax.random.key(1)
    full, full_metrics, _ = value_and_gradient(noisy_regression, params, batch, key)
    parts, parts_metrics, _ = value_and_gradient(noisy_regression, params, batch, key, accumulation_steps)
    chex.assert_trees_all_close(parts, full, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(parts_metrics, full_metrics, rtol=1e-5, atol=1e-6)


def test_accumulation_refuses_a_batch_that_it_cannot_divide():
    batch, params = batch_and_params(10)
    with pytest.raises(ValueError, match="10 examples cannot be divided into accumulation_steps=3"):
        value_and_gradient(noisy_regression, params, batch, jax.random.key(0), 3)


def test_accumulation_carries_extra_state_through_the_microbatches():
    batch, params = batch_and_params()

    def loss(params, batch, key, extra):
        value, metrics = noisy_regression(params, batch, key)
        return value, (metrics, {"seen": extra["seen"] + batch["x"].shape[0]})

    optimizer = optimizers.SGD(accumulation_steps=4)
    state = TrainState.create(params, optimizer, {"seen": jnp.zeros((), jnp.int32)})
    state, _ = gradient_step(loss, optimizer, with_extra=True)(state, batch, jax.random.key(0))
    assert int(state.extra["seen"]) == 12


@pytest.mark.parametrize("accumulation_steps", [1, 3])
def test_running_averages_decay_once_an_update_under_accumulation(accumulation_steps):
    batch, params = batch_and_params()

    def loss(params, batch, key, extra):
        value, metrics = noisy_regression(params, batch, key)
        return value, (metrics, {**extra, "mean": 0.9 * extra["mean"] + 0.1 * batch["x"].mean()})

    extra = {"mean": jnp.float32(2.0), "constant": jnp.float32(0.1)}
    *_, new = value_and_gradient(loss, params, batch, jax.random.key(0), accumulation_steps, extra, True)
    np.testing.assert_allclose(new["mean"], 1.8 + 0.1 * batch["x"].mean(), rtol=1e-5)
    assert new["constant"] == extra["constant"]


def test_noise_belongs_to_the_example_and_not_to_its_place():
    key = jax.random.key(3)
    whole = jax.random.key_data(example_keys(key, {"x": jnp.zeros(8)}))
    part = jax.random.key_data(example_keys(key, {"x": jnp.zeros(3), "example_index": jnp.array([5, 0, 7])}))
    np.testing.assert_array_equal(part, whole[np.array([5, 0, 7])])


def test_one_sgd_step_is_the_formula_with_clipping_to_the_global_norm():
    batch, params = batch_and_params()
    key = jax.random.key(0)
    gradients = jax.grad(lambda p: noisy_regression(p, batch, key)[0])(params)
    norm = float(jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradients))))
    clip = norm / 3
    optimizer = optimizers.SGD(learning_rate=0.1, clip_norm=clip)
    state, metrics = gradient_step(noisy_regression, optimizer)(TrainState.create(params, optimizer), batch, key)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g / 3, params, gradients)
    chex.assert_trees_all_close(state.params, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-5)
    assert int(state.step) == 1


def test_gradients_wait_for_the_norm_and_are_what_they_were():
    gradients = {"a": jnp.arange(3.0), "b": -jnp.ones((2, 2), jnp.bfloat16)}
    chex.assert_trees_all_equal(jax.jit(after_backward_pass)(gradients, jnp.float32(jnp.inf)), gradients)
    with jax.debug_nans(False):
        poisoned = jax.jit(after_backward_pass)(gradients, jnp.float32(jnp.nan))
        assert all(bool(jnp.isnan(g).all()) for g in jax.tree.leaves(poisoned)) == (devices.platform() == "cpu")


def test_ema_follows_its_recursion_and_is_what_is_evaluated():
    batch, params = batch_and_params()
    optimizer = optimizers.SGD(learning_rate=0.1, ema_decay=0.3)
    state = TrainState.create(params, optimizer)
    step = jax.jit(gradient_step(noisy_regression, optimizer))
    expected = params
    for t in range(4):
        state, _ = step(state, batch, jax.random.key(t))
        decay = min(0.3, (1 + t) / (10 + t))
        expected = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * p, expected, state.params)
    chex.assert_trees_all_close(state.ema_params, expected, rtol=1e-5)
    chex.assert_trees_all_equal(state.eval_params, state.ema_params)
    # What happens inside of training asks for the parameters of the step.
    assert state.with_params(state.params).eval_params is state.params


def test_ema_decay_warms_up():
    zero, one = {"w": jnp.zeros(())}, {"w": jnp.ones(())}
    np.testing.assert_allclose(ema_update(zero, one, 0.999, jnp.array(0))["w"], 0.9, rtol=1e-6)
    np.testing.assert_allclose(ema_update(zero, one, 0.999, jnp.array(10**6))["w"], 1e-3, rtol=1e-4)


def test_a_nonfinite_update_is_skipped_and_counted_where_asked():
    batch, params = batch_and_params()
    optimizer = optimizers.Adam(skip_nonfinite=True)

    def loss(params, batch, key):
        value, metrics = noisy_regression(params, batch, key)
        return value * batch["scale"][0], metrics

    step = jax.jit(gradient_step(loss, optimizer))
    state = TrainState.create(params, optimizer)
    with jax.debug_nans(False):
        bad, metrics = step(state, {**batch, "scale": jnp.full(12, jnp.inf)}, jax.random.key(0))
    chex.assert_trees_all_equal((bad.params, bad.opt_state), (state.params, state.opt_state))
    assert int(bad.step) == 1 and float(metrics["skipped"]) == 1.0
    good, metrics = step(state, {**batch, "scale": jnp.ones(12)}, jax.random.key(0))
    assert float(metrics["skipped"]) == 0.0
    assert not np.allclose(good.params["kernel"], state.params["kernel"])


def test_networks_with_their_own_optimizers_are_updated_apart():
    batch, params = batch_and_params()
    both = {"first": params, "second": params}
    chosen = {"first": optimizers.SGD(learning_rate=0.1), "second": optimizers.SGD(learning_rate=0.0, ema_decay=0.5)}
    state = TrainState.create(both, chosen)
    assert set(state.opt_state) == {"first", "second"} and set(state.ema_params) == {"second"}
    assert set(state.eval_params) == {"first", "second"}
    new = {}
    for name, optimizer in chosen.items():
        new[name], _, _, _ = gradient_update(
            noisy_regression, optimizer, both[name], state.opt_state[name], batch, jax.random.key(0)
        )
    assert not np.allclose(new["first"]["kernel"], params["kernel"])
    chex.assert_trees_all_equal(new["second"], params)


@pytest.mark.parametrize(
    "optimizer",
    [
        optimizers.Adam(),
        optimizers.AdamW(),
        optimizers.SGD(momentum=0.9, nesterov=True),
        optimizers.RMSProp(momentum=0.5),
        optimizers.Adafactor(learning_rate=3e-2),
        optimizers.Lion(learning_rate=1e-2),
    ],
    ids=lambda o: type(o).__name__,
)
def test_every_optimizer_solves_least_squares(optimizer):
    optimizer = dataclasses.replace(
        optimizer,
        learning_rate=0.03,
        schedule=optimizers.Cosine(num_steps=400),
        weight_decay=0.0,
    )
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(64, 4)), jnp.float32)
    target = x @ jnp.asarray(rng.normal(size=(4, 2)), jnp.float32)
    loss = lambda p, b, k: (jnp.mean((b["x"] @ p["kernel"] - b["y"]) ** 2), {})
    step = gradient_step(loss, optimizer)
    state = TrainState.create({"kernel": jnp.zeros((4, 2))}, optimizer)
    run = jax.jit(
        lambda s: jax.lax.fori_loop(0, 400, lambda i, s: step(s, {"x": x, "y": target}, jax.random.key(0))[0], s)
    )
    assert float(loss(run(state).params, {"x": x, "y": target}, None)[0]) < 1e-3 * float(jnp.mean(target**2))


def test_adam_is_optax_adam():
    batch, params = batch_and_params()
    ours, theirs = optimizers.Adam(learning_rate=0.01).build(), optax.adam(0.01)
    a, b = ours.init(params), theirs.init(params)
    for t in range(3):
        gradients = jax.grad(lambda p, t=t: noisy_regression(p, batch, jax.random.key(t))[0])(params)
        updates, a = ours.update(gradients, a, params)
        expected, b = theirs.update(gradients, b, params)
        chex.assert_trees_all_close(updates, expected, rtol=1e-6)


def test_labels_are_checked_wherever_their_values_are_known():
    inside = jax.jit(lambda: check_label_range(np.array([0, 3]), 3))
    for check in (inside, lambda: check_label_range(jnp.array([-1, 2]), 3)):
        with pytest.raises(ValueError, match="labels must lie between 0 and 2"):
            check()
    jax.jit(lambda label: check_label_range(label, 3))(np.array([3]))
    check_label_range(np.zeros(0, np.int32), 3)
    with pytest.raises(ValueError, match="num_classes is None"):
        check_label_range(np.array([0]), None)
