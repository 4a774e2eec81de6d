"""Discrete diffusion, consistency models and editing against exact answers."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import config
from genjax.data import Points
from genjax.families.diffusion import ode, samplers
from genjax.families.diffusion.consistency import ConsistencyDistillation, ConsistencyModel, ConsistencySampler
from genjax.families.diffusion.diffusion import Diffusion
from genjax.families.diffusion.discrete import D3PM, MaskedDiffusion
from genjax.families.diffusion.editing import image_to_image, inpaint, resampling_steps
from genjax.families.diffusion.edm import EDM
from genjax.families.diffusion.image_to_image import ImageToImage, hole_mask
from genjax.families.diffusion.networks import ResidualMLP
from genjax.families.diffusion.processes import Karras, VariancePreserving
from genjax.families.diffusion.samplers import Estimate
from genjax.gradients import value_and_gradient
from genjax.optimizers import Adam, Cosine
from genjax.training import Experiment, Training, train

MLP = ResidualMLP(hidden_dim=16, num_blocks=1)
MEAN, SCALE = 0.7, 0.5


# Tokens.

TOKENS = {"vocab_size": 3, "sequence_length": 4, "hidden_dim": 8, "num_layers": 1, "num_heads": 2}
PROBABILITIES = jnp.array([0.2, 0.5, 0.3])


def independent(cls):
    """A model that knows the distribution of independent tokens."""

    class Exact(cls):
        def log_probs(self, params, z, t, dropout_keys=None):
            shape = (*z.shape, self.vocab_size)
            prior = jnp.broadcast_to(PROBABILITIES, shape)
            if getattr(self, "noise", "absorbing") == "absorbing":
                return jnp.log(prior)
            alpha = self.keep_probability(t)[:, None, None]
            likelihood = alpha * jax.nn.one_hot(z, self.vocab_size) + (1 - alpha) / self.vocab_size
            return jax.nn.log_softmax(jnp.log(prior * likelihood))

    return Exact


def test_masked_diffusion_with_the_true_conditionals_has_the_true_likelihood():
    model = independent(MaskedDiffusion)(**TOKENS, num_bound_samples=256, num_steps_sampling=8)
    tokens = jnp.array(list(itertools.product(range(3), repeat=4)))
    state = MaskedDiffusion(**TOKENS).init(jax.random.key(0), {"tokens": tokens})
    value = jax.jit(model.log_prob_bound)(state, {"tokens": tokens}, jax.random.key(1))
    exact = jnp.log(PROBABILITIES)[tokens].sum(-1)
    np.testing.assert_allclose(value.mean(), exact.mean(), rtol=0.03)
    samples = jax.jit(lambda s, k: model.sample(s, k, 2000))(state, jax.random.key(2))
    frequency = np.bincount(np.asarray(samples).ravel(), minlength=4) / samples.size
    np.testing.assert_allclose(frequency, [*PROBABILITIES, 0.0], atol=0.02)


@pytest.mark.parametrize("noise", ["uniform", "absorbing"])
def test_d3pm_posterior_is_bayes_rule(noise):
    model = D3PM(**TOKENS, noise=noise, num_timesteps=10)
    size = 4 if noise == "absorbing" else 3
    keep = lambda t: float(model.keep_probability(jnp.array(t)))

    def transition(ratio):
        matrix = ratio * np.eye(size)
        if noise == "absorbing":
            matrix[:, 3] += 1 - ratio
        else:
            matrix += (1 - ratio) / 3
        return matrix

    to_s, s_to_t = transition(keep(0.5)), transition(keep(0.6) / keep(0.5))
    for x, z in itertools.product(range(3), range(size)):
        joint = to_s[x] * s_to_t[:, z]
        if joint.sum() == 0.0:
            continue
        ours = model.log_posterior(
            jnp.array([[z]]), jax.nn.one_hot(jnp.array([[x]]), 3), *jnp.array([[keep(0.6)], [keep(0.5)]])
        )
        np.testing.assert_allclose(jnp.exp(ours[0, 0, :size]), joint / joint.sum(), atol=1e-5)


@pytest.mark.parametrize("noise", ["uniform", "absorbing"])
def test_d3pm_with_the_true_conditionals_is_close_to_the_true_likelihood(noise):
    model = independent(D3PM)(**TOKENS, noise=noise, num_timesteps=200, num_bound_samples=400)
    tokens = jnp.array(list(itertools.product(range(3), repeat=4)))
    tokens = jnp.concatenate([tokens] * 4)
    weight = jnp.exp(jnp.log(PROBABILITIES)[tokens].sum(-1)) / 4
    state = MaskedDiffusion(**TOKENS).init(jax.random.key(0), {"tokens": tokens})
    value = jax.jit(model.log_prob_bound)(state, {"tokens": tokens}, jax.random.key(1))
    entropy = -4 * float((PROBABILITIES * jnp.log(PROBABILITIES)).sum())
    # Averaged over the data, a bound; tight for independent tokens and many steps.
    assert abs(float(-(value * weight).sum()) - entropy) < 0.15
    samples = jax.jit(lambda s, k: model.sample(s, k, 2000))(state, jax.random.key(2))
    frequency = np.bincount(np.asarray(samples).ravel(), minlength=3) / samples.size
    np.testing.assert_allclose(frequency, PROBABILITIES, atol=0.03)


@pytest.mark.parametrize("model", [MaskedDiffusion(**TOKENS, num_steps_sampling=3), D3PM(**TOKENS, num_timesteps=5)])
def test_token_models_train_and_sample(model):
    batch = {"tokens": jax.random.randint(jax.random.key(0), (4, 4), 0, 3)}
    state = model.init(jax.random.key(1), batch)
    state, metrics = jax.jit(model.train_step)(state, batch, jax.random.key(2))
    assert np.isfinite(metrics["loss"])
    samples = model.sample(state, jax.random.key(3), 5)
    assert samples.shape == (5, 4) and int(samples.min()) >= 0 and int(samples.max()) < 3
    # Sequences of other lengths: nats a token are those of all tokens, and microbatches add up to the batch.
    ragged = {**batch, "mask": jnp.arange(4)[None] < jnp.array([1, 4, 1, 3])[:, None]}
    update = jax.jit(
        lambda count: value_and_gradient(model.loss, state.params, ragged, jax.random.key(2), count)[:2],
        static_argnums=0,
    )
    (gradient, whole), (other, parts) = update(1), update(2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient, other)
    means = [m["nll_bound_per_token"].value() for m in (whole, parts)]
    values = jax.jit(model.evaluate)(state, ragged, jax.random.key(2))
    np.testing.assert_allclose(means[0], means[1], rtol=1e-5)
    share = jax.tree.map(jnp.mean, values["nll_bound_per_token"]).value()
    np.testing.assert_allclose(share, values["nll_bound"].sum() / 9, rtol=1e-5)


def test_prompts_stay_and_bad_ones_are_refused():
    model = MaskedDiffusion(**TOKENS, num_steps_sampling=3)
    state = model.init(jax.random.key(0), {"tokens": jnp.zeros((1, 4), jnp.int32)})
    prompt = jnp.array([[2, -1, -1, 1]])
    samples = model.sample(state, jax.random.key(1), 1, prompt=prompt)
    assert samples[0, 0] == 2 and samples[0, 3] == 1
    with pytest.raises(ValueError, match="prompt has shape"):
        model.sample(state, jax.random.key(1), 2, prompt=prompt)
    for wrong, message in (
        (dataclasses.replace(model, num_heads=3), "must divide"),
        (dataclasses.replace(model, num_bound_samples=0), "num_bound_samples=0"),
        (dataclasses.replace(model, temperature=0.0), "temperature=0.0"),
        (D3PM(**TOKENS, num_timesteps=0), "num_timesteps=0"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong.module()


# Consistency.


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

    state, _ = jax.jit(lambda s: jax.lax.scan(body, s, jax.random.split(jax.random.key(1), 1000)))(state)
    samples = model.sample(state, jax.random.key(2), 4000)
    # Training without a teacher starts with few levels, which shrink the samples.
    assert abs(float(samples.mean()) - MEAN) < 0.25 and abs(float(samples.std()) - SCALE) < 0.3
    # A second step starts at less noise, from where the map is learned better.
    twice = dataclasses.replace(model, sampler=ConsistencySampler(num_steps=2)).sample(state, jax.random.key(2), 4000)
    wrong = lambda a: abs(float(a.mean()) - MEAN) + abs(float(a.std()) - SCALE)
    assert wrong(twice) < 0.9 * wrong(samples), (wrong(twice), wrong(samples))
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


class AlreadyTrained(EDM):
    """The exact denoiser of N(0, 1), whose steps change nothing."""

    def init_params(self, key, batch):
        return {"nothing": jnp.zeros(())}

    def estimate(self, params, z, t, condition, x0_before=None):
        return Estimate(z / (1.0 + jnp.square(t)[:, None]))

    def train_step(self, state, batch, key):
        return state.replace(step=state.step + 1), {"loss": jnp.zeros(())}


def test_a_sampler_that_gives_up_on_schedule_costs_a_warning_and_no_run(tmp_path, capsys):
    experiment = Experiment(
        model=AlreadyTrained(data_shape=(2,), network=MLP, sampler=ode.AdaptiveODE(num_steps=1)),
        data=Points(name="two_moons", num_train=16, num_held_out=8, batch_size=8),
        training=Training(
            num_steps=2, sample_every=1, evaluate_every=None, num_samples=4, tensorboard=False, compilation_cache=""
        ),
    )
    with jax.debug_nans(False):
        train(experiment, tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert [line.partition(": ")[0] for line in lines] == ["step 1", "step 2"]
    assert all("the samples are not finite and are not written" in line for line in lines)
    assert not list((tmp_path / "samples").iterdir())


# Editing.


class ExactGaussian(Diffusion):
    """Two correlated values: N(0, [[1, .8], [.8, 1]])."""

    def estimate(self, params, z, t, condition, x0_before=None):
        covariance = jnp.array([[1.0, 0.8], [0.8, 1.0]])
        alpha, sigma = self.process.alpha(t[0]), self.process.sigma(t[0])
        gain = alpha * covariance @ jnp.linalg.inv(alpha**2 * covariance + sigma**2 * jnp.eye(2))
        return Estimate(z @ gain.T)


def paper_schedule(num_steps, jump_length, num_resamples):
    """Algorithm of Lugmayr et al., figure 9: times from num_steps down to -1, which are the data."""
    jumps = dict.fromkeys(range(0, num_steps - jump_length, jump_length), num_resamples - 1)
    times, t = [], num_steps
    while t >= 1:
        t -= 1
        times.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            for _ in range(jump_length):
                t += 1
                times.append(t)
    return [*times, -1]


@pytest.mark.parametrize(("num_steps", "num_resamples", "jump_length"), [(5, 3, 1), (20, 2, 5), (23, 3, 10), (4, 2, 6)])
def test_repaint_goes_back_and_forth_as_its_paper_does(num_steps, num_resamples, jump_length):
    nodes = [0]
    for before, back in resampling_steps(num_steps, num_resamples, jump_length):
        assert before == nodes[-1]
        nodes += range(before + 1, back - 1, -1) if back <= before else [back]
    assert [num_steps - 1 - t for t in paper_schedule(num_steps, jump_length, num_resamples)] == nodes


@pytest.fixture(scope="module")
def correlated():
    model = ExactGaussian(
        data_shape=(2,), network=MLP, process=VariancePreserving(), sampler=samplers.DPMSolver(num_steps=20)
    )
    return model, model.init(jax.random.key(0), {"x": jnp.zeros((1, 2))})


def test_repaint_samples_the_conditional_of_a_gaussian(correlated):
    model, state = correlated
    x = jnp.broadcast_to(jnp.array([1.5, 99.0]), (2000, 2))
    fill = jax.jit(lambda k: inpaint(model, state, k, x, jnp.array([[1, 0]]), num_steps=200, num_resamples=10))
    samples = fill(jax.random.key(1))
    np.testing.assert_array_equal(samples[:, 0], 1.5)
    assert abs(float(samples[:, 1].mean()) - 1.2) < 0.1
    assert abs(float(samples[:, 1].std()) - 0.6) < 0.1
    with pytest.raises(ValueError, match="the mask has shape"):
        inpaint(model, state, jax.random.key(1), x, jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="examples have the shape"):
        inpaint(model, state, jax.random.key(1), jnp.ones((1, 3)), jnp.ones((1, 3)))


def test_repaint_takes_the_spacing_of_the_sampler(correlated):
    model = dataclasses.replace(correlated[0], process=Karras(), sampler=samplers.Heun())
    state = correlated[1]
    x = jnp.broadcast_to(jnp.array([1.5, 99.0]), (2000, 2))
    arguments = (model, state, jax.random.key(1), x, jnp.array([[1, 0]]), 40, 10, 4)
    fill = jax.jit(lambda spacing: inpaint(*arguments, spacing=spacing)[:, 1], static_argnums=0)
    samples = fill(None)
    assert abs(float(samples.mean()) - 1.2) < 0.1 and abs(float(samples.std()) - 0.6) < 0.1
    assert abs(float(fill("uniform").mean()) - 1.2) > 0.2
    with pytest.raises(ValueError, match="jump_length=0"):
        inpaint(model, state, jax.random.key(1), x, jnp.array([[1, 0]]), jump_length=0)


def test_image_to_image_stays_close_for_little_noise(correlated):
    model, state = correlated
    x = jax.random.normal(jax.random.key(0), (50, 2))
    near = image_to_image(model, state, jax.random.key(1), x, strength=0.1)
    far = image_to_image(model, state, jax.random.key(1), x, strength=1.0)
    assert float(jnp.abs(near - x).mean()) < 0.2 < float(jnp.abs(far - x).mean())
    with pytest.raises(ValueError, match="strength"):
        image_to_image(model, state, jax.random.key(1), x, strength=0.0)


def test_degraded_pictures_are_the_conditions_of_image_to_image_models():
    x = jax.random.uniform(jax.random.key(0), (2, 4, 4, 3))
    model = ImageToImage(data_shape=(4, 4, 3), network=MLP, sampler=samplers.Heun(num_steps=2))
    small = model.degrade(x)
    np.testing.assert_allclose(small[0, 1, 1], x[0, :2, :2].mean((0, 1)), rtol=1e-6)
    hole = dataclasses.replace(model, degradation="hole")
    assert hole.image_shape() == (4, 4, 4)
    assert float(hole_mask(4, 4, 2).sum()) == 12 and np.all(hole.degrade(x)[:, 1:3, 1:3] == 0)
    grey = dataclasses.replace(model, degradation="grey")
    np.testing.assert_allclose(grey.degrade(x), x.mean(-1, keepdims=True))
    state = model.init(jax.random.key(1), {"x": x})
    assert model.reconstruct(state, {"x": x}, jax.random.key(2)).shape == x.shape
    assert model.sample(state, jax.random.key(2), 2).shape == x.shape
    with pytest.raises(ValueError, match="does not fit"):
        model.sample(state, jax.random.key(2), 2, image=jnp.ones((2, 5, 5, 3)))
    with pytest.raises(ValueError, match="does not fit"):
        model.sample(state, jax.random.key(2), 2, image=jnp.ones((2, 4, 4, 1)))
    with pytest.raises(ValueError, match="does not divide"):
        dataclasses.replace(model, factor=3).degrade(x)
    with pytest.raises(ValueError, match="factor=0 must be at least 1"):
        dataclasses.replace(model, factor=0).degrade(x)
    assert isinstance(model, EDM)
