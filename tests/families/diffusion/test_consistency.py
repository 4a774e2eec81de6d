"""Consistency models, trained and distilled, against the exact paths of Gaussian data."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import config
from genjax.families.diffusion import samplers
from genjax.families.diffusion.consistency import ConsistencyDistillation, ConsistencyModel, ConsistencySampler
from genjax.families.diffusion.diffusion import Diffusion
from genjax.families.diffusion.edm import EDM
from genjax.families.diffusion.networks import ResidualMLP
from genjax.families.diffusion.processes import Karras
from genjax.families.diffusion.samplers import Estimate
from genjax.optimizers import Adam, Cosine
from genjax.training import train
from tests.compiled import OPTIMIZED

MLP = ResidualMLP(hidden_dim=16, num_blocks=1)
MEAN, SCALE = 0.7, 0.5


def test_a_consistency_model_is_the_identity_at_the_smallest_noise_and_approaches_a_gaussian():
    model = ConsistencyModel(
        data_shape=(1,), network=ResidualMLP(hidden_dim=32, num_blocks=2), num_steps=1000, max_levels=80,
        optimizer=Adam(learning_rate=2e-3, ema_decay=0.99),
    )  # fmt: skip
    x = jnp.array([[0.3], [-2.0]])
    state = model.init(jax.random.key(0), {"x": x})
    same = model.estimate(state.params, x, jnp.full((2,), model.process.t_min), {}).x0
    np.testing.assert_allclose(same, x, atol=1e-6)
    counts = [float(model.num_levels_at(jnp.array(float(s)))) for s in (0, 400, 1000)]
    assert counts[0] == 11 and counts[1] == 21 and counts[2] == 81

    def body(state, key):
        batch = {"x": MEAN + SCALE * jax.random.normal(key, (256, 1))}
        return model.train_step(state, batch, jax.random.fold_in(key, 1))

    def samples_of(key):
        """Samples in one step and in two, of a run on its own data."""
        trained, _ = jax.lax.scan(body, state, jax.random.split(key, 1000))
        twice = dataclasses.replace(model, sampler=ConsistencySampler(num_steps=2))
        return model.sample(trained, jax.random.key(2), 2000), twice.sample(trained, jax.random.key(2), 2000)

    runs = jax.jit(jax.vmap(samples_of), compiler_options=OPTIMIZED)
    once, twice = runs(jax.random.split(jax.random.key(1), 8))
    # One run alone depends on its data, and on the last bits of a machine.
    wrong = lambda x: np.array([abs(x.mean((1, 2)) - MEAN).mean(), abs(x.std((1, 2)) - SCALE).mean()])
    # Training without a teacher starts with few levels, which shrink the samples.
    assert np.all(wrong(once) < [0.25, 0.3]), wrong(once)
    # A second step starts at less noise, from where the map is learned better.
    assert wrong(twice).sum() < 0.9 * wrong(once).sum(), (wrong(twice), wrong(once))
    with pytest.raises(ValueError, match="min_levels=0"):
        dataclasses.replace(model, min_levels=0).check()
    with pytest.raises(ValueError, match="consistency_sampler"):
        dataclasses.replace(model, sampler=samplers.Heun()).check()


def test_the_levels_of_consistency_sampling_leave_out_the_one_where_nothing_is_mapped():
    for num_steps in (1, 2, 4):
        grid = ConsistencySampler(num_steps=num_steps).grid(Karras())
        expected = (80 ** (1 / 7) + np.arange(num_steps + 1) / num_steps * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
        np.testing.assert_allclose(grid.t, expected, rtol=1e-4)


class TaughtByTheTruth(ConsistencyDistillation):
    """Distillation from the exact denoiser of N(MEAN, SCALE^2)."""

    def teacher_denoise(self, teacher, z, sigma, condition):
        gain = (SCALE**2 / (SCALE**2 + sigma**2))[:, None]
        return MEAN + gain * (z - MEAN)


@dataclasses.dataclass(frozen=True, kw_only=True)
class IdealStudent(TaughtByTheTruth):
    """A student that follows the teacher's steps down to the smallest level, `stretch` times as far."""

    stretch: float = 1.0

    def estimate(self, params, z, t, condition, x0_before=None, dropout_keys=None):
        levels = self._level(jnp.arange(self.num_distillation_levels), float(self.num_distillation_levels))
        start = z
        for low, high in zip(levels[-2::-1], levels[:0:-1]):
            step = self.teacher_step(None, z, jnp.full_like(t, high), jnp.full_like(t, low), {})
            z = jnp.where((t > 0.5 * (low + high))[:, None], step, z)
        return Estimate(start + self.stretch * (z - start))


def test_distillation_is_perfect_for_the_map_that_the_teachers_steps_compose_to_and_for_no_other():
    ideal = IdealStudent(data_shape=(1,), network=MLP, num_distillation_levels=12, process=Karras(t_max=10.0))
    batch = {"x": MEAN + SCALE * jax.random.normal(jax.random.key(0), (256, 1))}
    loss = jax.jit(
        lambda model, key: model._pair_losses({}, batch, key, 0, training=False, teacher={}), static_argnums=0
    )
    assert float(loss(ideal, jax.random.key(1)).max()) < 1e-5
    assert float(loss(dataclasses.replace(ideal, stretch=0.99), jax.random.key(1)).mean()) > 1e-3


def exact_path(z, high, low):
    """Where the ODE leads from z at one level to another."""
    return MEAN + (z - MEAN) * np.sqrt((SCALE**2 + low**2) / (SCALE**2 + high**2))


def test_a_distilled_model_follows_its_teacher_to_the_second_order_and_learns_the_map():
    model = TaughtByTheTruth(
        data_shape=(1,), network=ResidualMLP(hidden_dim=32, num_blocks=2), num_steps=800, num_distillation_levels=12,
        target_decay=0.5,
        process=Karras(t_max=10.0), optimizer=Adam(learning_rate=2e-3, schedule=Cosine(num_steps=800), ema_decay=0.99),
    )  # fmt: skip
    z, high = jnp.array([[2.0], [-1.0]]), jnp.ones(2)
    errors = []
    for width in (0.2, 0.1, 0.05):
        step = model.teacher_step(None, z, high, high - width, {})
        errors.append(float(jnp.abs(step - exact_path(z, 1.0, 1.0 - width)).max()))
    # One step of a second-order method errs by the third power of its length; in float32 the last is near rounding.
    assert abs(np.log2(errors[0] / errors[1]) - 3) < 0.4

    def body(state, key):
        batch = {"x": MEAN + SCALE * jax.random.normal(key, (256, 1))}
        return model.train_step(state, batch, jax.random.fold_in(key, 1))

    first = model.init(jax.random.key(0), {"x": z})
    state, _ = jax.jit(lambda s: jax.lax.scan(body, s, jax.random.split(jax.random.key(1), 800)))(first)
    for a, b in zip(jax.tree.leaves(state.extra["teacher"]), jax.tree.leaves(first.params)):
        np.testing.assert_array_equal(a, b)
    ends = model.estimate(state.eval_params, z * 5, jnp.full((2,), 5.0), {}).x0
    np.testing.assert_allclose(ends, exact_path(z * 5, 5.0, model.process.t_min), atol=0.2)
    samples = model.sample(state, jax.random.key(2), 4000)
    assert abs(float(samples.mean()) - MEAN) < 0.15 and abs(float(samples.std()) - SCALE) < 0.1
    assert model.evaluate(state, {"x": z}, jax.random.key(3))["loss"].shape == (2,)
    with pytest.raises(ValueError, match="at least 2"):
        dataclasses.replace(model, num_distillation_levels=1).check()
    with pytest.raises(ValueError, match="target_decay=1.0"):
        dataclasses.replace(model, target_decay=1.0).check()


def test_the_target_of_distillation_follows_the_student():
    model = TaughtByTheTruth(data_shape=(1,), network=MLP, num_steps=2, target_decay=0.75)
    batch = {"x": jnp.array([[0.3], [-2.0]])}
    first = model.init(jax.random.key(0), batch)
    # A teacher is put into the state after `init`.
    taken = first.replace(params=jax.tree.map(lambda a: a + 0.1, first.params))
    state, _ = jax.jit(model.train_step)(taken, batch, jax.random.key(1))
    expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, taken.params, state.params)
    for a, b in zip(jax.tree.leaves(state.extra["target"]), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, atol=1e-6)
    # The student is drawn to what the target says, not to itself.
    loss = jax.jit(
        lambda target: model._pair_losses(
            state.params, batch, jax.random.key(2), 1, training=False, teacher={}, target_params=target
        )
    )
    assert np.any(loss(first.params) != loss(state.params))
    assert "target" not in dataclasses.replace(model, target_decay=0.0).init(jax.random.key(0), batch).extra


def test_distillation_is_evaluated_against_the_target_and_the_teacher_that_it_is_trained_with():
    optimizer = Adam(learning_rate=0.01, ema_decay=0.5)
    model = ConsistencyDistillation(data_shape=(1,), network=MLP, num_steps=2, target_decay=0.75, optimizer=optimizer)
    batch, key = {"x": jnp.array([[0.3], [-2.0]])}, jax.random.key(2)
    first = model.init(jax.random.key(0), batch)
    moved = lambda by: jax.tree.map(lambda a: a + by, first.params)
    pair_losses = jax.jit(
        lambda student, teacher, target: model._pair_losses(student, batch, key, 1, False, teacher, target)
    )
    evaluate = jax.jit(lambda state: model.evaluate(state, batch, key)["loss"])
    extra = {"teacher": moved(0.3), "target": moved(0.1)}
    state = first.replace(step=jnp.array(5), params=moved(0.4), ema_params=moved(0.2), extra=extra)
    np.testing.assert_allclose(evaluate(state), pair_losses(moved(0.2), moved(0.3), moved(0.1)), rtol=1e-5)
    # Before the first step both are the parameters that the run starts from, whatever `init` drew.
    start = first.replace(params=moved(0.3), ema_params=moved(0.3))
    np.testing.assert_allclose(evaluate(start), pair_losses(moved(0.3), moved(0.3), moved(0.3)), rtol=1e-5)


def test_distillation_starts_from_a_run_of_edm_alone():
    model = ConsistencyDistillation(data_shape=(1,), network=MLP, num_steps=2)
    teacher = EDM(network=dataclasses.replace(MLP, dropout_rate=0.1))
    model.check_start(teacher)
    for source, message in (
        (None, "give --training.init_from"),
        (Diffusion(network=MLP), "Diffusion and not EDM"),
        (model, "ConsistencyDistillation and not EDM"),
        (dataclasses.replace(teacher, sigma_data=1.0), "--model.sigma_data=1.0"),
        (EDM(network=dataclasses.replace(MLP, num_blocks=2)), "same model.network"),
    ):
        with pytest.raises(ValueError, match=message):
            model.check_start(source)
    dataclasses.replace(model, untrained_teacher=True).check_start(None)


def test_a_run_without_a_teacher_is_refused(tmp_path):
    config.import_experiments()
    experiment = config.find_experiment("consistency_distillation_points").build()
    with pytest.raises(ValueError, match="distillation needs a teacher"):
        train(config.apply_overrides(experiment, {"training.compilation_cache": ""}), tmp_path, quiet=True)
