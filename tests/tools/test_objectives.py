"""Runs of several seeds side by side are those of each seed alone, and operations count every update."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from genjax import config
from genjax.data import Pipeline
from genjax.nn.encoder_decoder import MLPNetwork
from genjax.tools import objectives as objective_runs


def small(method):
    config.import_experiments()
    experiment = objective_runs.experiment_of(method, "eight_gaussians", None, None)
    model = dataclasses.replace(experiment.model, latent_dim=2, network=MLPNetwork(hidden_dims=(8,)))
    data = dataclasses.replace(experiment.data, batch_size=16 * model.num_discriminator_steps)
    return dataclasses.replace(experiment, model=model, data=data)


def test_seeds_side_by_side_are_those_of_each_alone():
    experiment = small("non_saturating_r1")
    model, data = experiment.model, experiment.data
    states = objective_runs.first_states(experiment, 2)
    alone = jax.tree.map(lambda leaf: leaf[1], states)
    together = objective_runs.train(experiment, states, num_steps=3, chunk=2)
    pipeline, key = Pipeline(data, "train", 1), jax.random.split(jax.random.key(1), 2)[1]
    step = jax.jit(model.train_step)
    for i in range(3):
        alone, _ = step(alone, {"x": jnp.asarray(pipeline.batch(i)["x"])}, jax.random.fold_in(key, i))
    for a, b in zip(jax.tree.leaves(together.params), jax.tree.leaves(alone.params)):
        np.testing.assert_allclose(a[1], b, rtol=1e-4, atol=1e-4)
    samples = list(objective_runs.samples_of(experiment, together, 7))
    assert [s.shape for s in samples] == [(7, 2), (7, 2)] and not np.allclose(*samples)


def test_every_update_of_a_critic_sees_fresh_examples():
    config.import_experiments()
    for method, name, count in (
        ("wasserstein_gp", "digits", 2 * 64),
        ("wasserstein_gp", "grid_gaussians", 5 * 256),
        ("non_saturating_r1", "eight_gaussians", 256),
    ):
        experiment = objective_runs.experiment_of(method, name, None, None)
        assert experiment.model.fresh_examples and experiment.data.batch_size == count


def test_operations_count_every_update():
    plain, critic, penalized = (small(m) for m in ("non_saturating", "wasserstein_clipped", "relativistic_r1_r2"))
    count = lambda e: objective_runs.operations(e, objective_runs.first_states(e, 1))
    assert 2.5 < count(critic) / count(plain) < 5.0
    assert 1.3 < count(penalized) / count(plain) < 3.0
