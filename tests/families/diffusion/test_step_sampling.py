"""Importance sampling of DDPM's steps against a transcription and against the sum that it estimates."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from genjax.batch import DEVICE_AXIS
from genjax.families.diffusion.ddpm import DDPM
from genjax.families.diffusion.networks import ResidualMLP
from genjax.families.diffusion.processes import Discrete
from genjax.families.diffusion.step_sampling import LENGTH, StepHistory
from genjax.optimizers import SGD

STEPS = 5
MODEL = DDPM(
    data_shape=(2,), network=ResidualMLP(hidden_dim=4, num_blocks=1),
    process=Discrete(num_timesteps=STEPS, beta_min=0.1, beta_max=0.5),
    objective="bound", step_sampling="importance", variance="learned", clip_x0=False, optimizer=SGD(learning_rate=0.1),
)  # fmt: skip
ROOT_MEAN_SQUARES = np.array([3.0, 1.5, 1.0, 0.5, 2.0])
#: p_t of these, transcribed from eq. 18 with a thousandth drawn uniformly.
PROBABILITIES = 0.999 * ROOT_MEAN_SQUARES / 8.0 + 0.001 / STEPS


def known_history():
    signs = jnp.array([1.0, -1.0] * (LENGTH // 2))
    losses = jnp.asarray(ROOT_MEAN_SQUARES, jnp.float32)[:, None] * signs[None]
    return StepHistory(losses, jnp.full((STEPS,), LENGTH, jnp.int32))


@pytest.fixture(scope="module")
def stepped():
    """A batch of one example many times, the state that knows losses of all steps, and what a training step makes of
    it.
    """
    batch = {"x": jnp.broadcast_to(jnp.array([[0.4, -0.3]]), (4096, 2))}
    state = jax.jit(MODEL.init)(jax.random.key(1), batch).replace(extra={"step_history": known_history()})
    return batch, state, *jax.jit(MODEL.train_step)(state, batch, jax.random.key(3))


def test_probabilities_follow_the_last_ten_losses_of_every_step_once_each_has_ten():
    random = np.random.default_rng(0)
    last = [collections.deque(maxlen=LENGTH) for _ in range(STEPS)]
    history, renewed = StepHistory.empty(STEPS), jax.jit(StepHistory.with_losses)
    read = jax.jit(lambda h: (h.probabilities(), h.filled()))
    seen = set()
    for _ in range(12):
        # One step is drawn more than ten times at once, and one seldom.
        steps = random.choice(STEPS + 1, size=40, p=[0.1, 0.5, 0.06, 0.1, 0.12, 0.12])
        losses = random.exponential(size=40) * (steps + 1.0)
        for step, loss in zip(steps, losses):
            if step:
                last[step - 1].append(loss)
        history = renewed(history, jnp.asarray(steps), jnp.asarray(losses, jnp.float32))
        full = all(len(values) == LENGTH for values in last)
        seen.add(full)
        root = np.array([np.sqrt(np.mean(np.square(values))) if values else 0.0 for values in last])
        expected = 0.999 * root / root.sum() + 0.001 / STEPS if full else np.full(STEPS, 1 / STEPS)
        probabilities, filled = read(history)
        np.testing.assert_allclose(probabilities, expected, rtol=1e-5)
        np.testing.assert_allclose(filled, np.mean([len(values) == LENGTH for values in last]))
    assert seen == {False, True}


def test_the_weighted_term_is_in_expectation_the_sum_of_all(stepped):
    batch, state, _, _ = stepped
    probabilities = known_history().probabilities()
    np.testing.assert_allclose(probabilities, PROBABILITIES, rtol=1e-5)
    steps = jnp.arange(1, STEPS + 1)
    # The same example with the same noise at every step.
    x = jnp.broadcast_to(batch["x"][:1], (STEPS, 2))
    same = {"x": x, "example_index": jnp.zeros((STEPS,), jnp.int32), "step": steps, "step_probability": probabilities}

    @jax.jit
    def both(params, key):
        weighted = MODEL.example_losses(params, same, key, training=False)[0]
        t, epsilon, _ = MODEL.draw(same, key, MODEL.process)
        z = MODEL.process.alpha(t)[:, None] * x + MODEL.process.sigma(t)[:, None] * epsilon
        estimate = MODEL.estimate(params, z, t, {})
        first = -MODEL._reconstruction_log_prob(jax.tree.map(lambda a: a[:1], estimate), x[:1], None)
        return weighted, jnp.concatenate([first, MODEL._step_divergence(estimate, x, t)[1:]])

    weighted, terms = both(state.params, jax.random.key(2))
    np.testing.assert_allclose((PROBABILITIES * weighted).sum(), terms.sum() / 2, rtol=1e-5)


def test_a_step_draws_by_the_history_renews_it_and_estimates_the_bound(stepped):
    batch, state, new, metrics = stepped
    assert metrics["history_filled"] == 1.0
    terms = jax.jit(lambda p: MODEL.bound_terms_of(p, batch, jax.random.key(4)))(state.params)
    exact = (terms["diffusion"] + terms["reconstruction"]).mean() / 2
    np.testing.assert_allclose(metrics["loss"], exact, rtol=0.08)
    # What is kept are the terms themselves, without weights: those of the first step are the reconstruction's.
    first = new.extra["step_history"].losses[0]
    error = 5 * float(terms["reconstruction"].std()) / 2 / LENGTH**0.5
    np.testing.assert_allclose(first.mean(), terms["reconstruction"].mean() / 2, atol=error)


def test_accumulation_and_two_devices_keep_the_history_of_the_whole_batch(stepped):
    batch, state, whole, _ = stepped
    parts = dataclasses.replace(MODEL, optimizer=SGD(learning_rate=0.1, accumulation_steps=2))
    devices, key = jax.devices()[:2], jax.random.key(3)
    split = jax.tree.map(lambda a: a.reshape(2, 2048, *a.shape[1:]), {**batch, "example_index": jnp.arange(4096)})
    mapped, _ = jax.pmap(parts.train_step, axis_name=DEVICE_AXIS, in_axes=(None, 0, None), devices=devices)(
        state, split, key
    )
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    place = lambda tree, *axes: jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*axes)))
    sharded, _ = jax.jit(parts.train_step)(place(state), place(batch, "data"), place(key))
    for found in (jax.tree.map(lambda a: a[0], mapped), sharded):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole, found)
    assert np.any(whole.extra["step_history"].losses != state.extra["step_history"].losses)


def test_steps_are_drawn_by_importance_for_the_bound_alone():
    with pytest.raises(ValueError, match="it takes objective=bound and not simple"):
        dataclasses.replace(MODEL, objective="simple").check()
