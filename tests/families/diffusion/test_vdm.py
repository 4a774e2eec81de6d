"""Variational diffusion: the bound, the learned schedule, and what the model refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.batch import example_keys
from genjax.families.diffusion import samplers
from genjax.families.diffusion.consistency import ConsistencyModel
from genjax.families.diffusion.networks import ResidualMLP
from genjax.families.diffusion.times import spread_uniforms
from genjax.families.diffusion.vdm import VDM, MonotoneSchedule

MLP = ResidualMLP(hidden_dim=16, num_blocks=1)
MEAN, SCALE = 0.7, 0.5


class ExactVDM(VDM):
    """A VDM whose network is the exact noise of N(MEAN, SCALE^2)."""

    def apply(self, params, z, t, condition, x0_before=None, dropout_keys=None, process=None):
        process = process or self.process_of(params)
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        return sigma * (z - alpha * MEAN) / (alpha**2 * SCALE**2 + sigma**2)


def test_the_continuous_bound_of_the_exact_network_is_the_likelihood():
    model = ExactVDM(data_shape=(1,), network=MLP, gamma_min=-9.0, gamma_max=9.0, schedule_dim=4, num_bound_samples=64)
    x = MEAN + SCALE * jax.random.normal(jax.random.key(0), (2048, 1))
    state = model.init(jax.random.key(1), {"x": x})
    metrics = jax.jit(model.evaluate)(state, {"x": x}, jax.random.key(2))
    exact = 0.5 * ((x - MEAN) / SCALE) ** 2 + 0.5 * np.log(2 * np.pi * SCALE**2)
    assert abs(float(metrics["nll_bound"].mean() - exact.mean())) < 0.05
    total = metrics["prior"] + metrics["diffusion"] + metrics["reconstruction"]
    np.testing.assert_allclose(metrics["nll_bound"], total, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def scheduled():
    model = ExactVDM(data_shape=(1,), network=MLP, gamma_min=-9.0, gamma_max=9.0, schedule_dim=8)
    batch = {"x": MEAN + SCALE * jax.random.normal(jax.random.key(0), (512, 1))}
    return model, batch, model.init(jax.random.key(1), batch).params["schedule"]


def test_the_ends_of_a_schedule_follow_the_bound_and_its_inside_the_square_of_the_diffusion_term(scheduled):
    model, batch, schedule = scheduled

    def plainly(schedule):
        # The same noise, without what the model does to gradients.
        keys = jax.vmap(jax.random.split)(example_keys(jax.random.key(2), batch))
        t = spread_uniforms(jax.random.key(2), batch)
        gamma, slope = model._gamma_and_slope(schedule, t)
        alpha, sigma = (jnp.sqrt(jax.nn.sigmoid(s * gamma))[:, None] for s in (-1, 1))
        epsilon = jax.vmap(lambda k: jax.random.normal(k, (1,)))(keys[:, 0])
        z = alpha * batch["x"] + sigma * epsilon
        guess = sigma * (z - alpha * MEAN) / (alpha**2 * SCALE**2 + sigma**2)
        return 0.5 * slope * jnp.square(epsilon - guess)[:, 0] / np.log(2.0)

    def gradients(schedule):
        ours = jax.grad(lambda s: model.loss({"network": {}, "schedule": s}, batch, jax.random.key(2), 0)[0])
        square, plain = (jax.grad(lambda s, power=p: (plainly(s) ** power).mean()) for p in (2, 1))
        return ours(schedule), square(schedule), plain(schedule)

    ours, square, diffusion = jax.jit(gradients)(schedule)
    for name in ("slope", "inward", "shift", "outward"):
        np.testing.assert_allclose(ours[name], square[name], rtol=1e-3, atol=1e-4)
    # Reconstruction and prior also depend on the ends: log(scale) of the first, and the deviation at the last.
    first = -0.5 / np.log(2.0)
    signal, variance = jax.nn.sigmoid(-9.0), jax.nn.sigmoid(9.0)
    last = 0.5 * float((variance * signal * (1.0 - jnp.square(batch["x"]).mean()) - signal) / np.log(2.0))
    np.testing.assert_allclose(ours["low"] - diffusion["low"], -first + last, rtol=1e-2, atol=1e-2)


def test_the_inside_of_a_schedule_learns_to_make_the_bound_vary_less(scheduled):
    model, batch, schedule = scheduled
    ends = ("low", "width")

    def step(schedule, key):
        gradient = jax.grad(lambda s: model.loss({"network": {}, "schedule": s}, batch, key, 0)[0])(schedule)
        moved = {n: v - 0.1 * gradient[n] / (1e-6 + jnp.abs(gradient[n]).max()) for n, v in schedule.items()}
        return {n: schedule[n] if n in ends else v for n, v in moved.items()}, None

    def moments(schedule):
        run = lambda k: model.bound_terms_of({"network": {}, "schedule": schedule}, batch, k, {})["diffusion"]
        terms = jax.lax.map(run, jax.random.split(jax.random.key(7), 40))
        return terms.mean(), terms.var(0).mean()

    learn = jax.jit(lambda s: jax.lax.scan(step, s, jax.random.split(jax.random.key(3), 300))[0])
    before, after = (jax.jit(moments)(s) for s in (schedule, learn(schedule)))
    np.testing.assert_allclose(before[0], after[0], rtol=0.05)
    assert after[1] < 0.7 * before[1], (before, after)


def test_a_vdm_drops_its_conditions_while_training_and_refuses_what_it_does_not_use():
    class Seen(VDM):
        def bound_terms_of(self, params, batch, key, condition, dropout_keys=None):
            return dict.fromkeys(("total", "prior"), condition["label"].astype(jnp.float32))

    model = Seen(num_classes=7, condition_on=("label",), condition_dropout=0.5)
    batch = {"x": jnp.ones((200, 1)), "label": jnp.full((200,), 2)}
    labels = model.example_losses({}, batch, jax.random.key(1), training=True)[1]["prior"]
    assert set(np.asarray(labels)) == {2, 7} and abs(float((labels == 7).mean()) - 0.5) < 0.15
    labels = model.example_losses({}, batch, jax.random.key(1), training=False)[1]["prior"]
    np.testing.assert_array_equal(labels, 2)
    for model in (VDM(self_conditioning=True), ConsistencyModel(self_conditioning=True), VDM(likelihood_steps=2)):
        with pytest.raises(ValueError, match="self_conditioning"):
            model.check()
    with pytest.raises(ValueError, match="clip_x0 would change a VDM's samples and not its bound"):
        VDM(clip_x0=True).check()


@pytest.mark.parametrize("hidden_dim", [0, 8])
def test_learned_schedules_rise_between_their_ends(hidden_dim):
    schedule = MonotoneSchedule(-6.0, 4.0, hidden_dim)
    t = jnp.linspace(0.0, 1.0, 50)
    gamma, _ = schedule.init_with_output(jax.random.key(0), t)
    assert np.all(np.diff(gamma) > 0)
    np.testing.assert_allclose(gamma[jnp.array([0, -1])], [-6.0, 4.0], atol=1e-3)


def test_a_vdm_trains_its_schedule_and_counts_levels():
    model = VDM(data_shape=(3,), num_levels=5, network=MLP, schedule_dim=4, num_bound_samples=2,
                sampler=samplers.Ancestral(num_steps=4))  # fmt: skip
    batch = {"x": jnp.round(2 * jax.random.uniform(jax.random.key(0), (8, 3)) * 2) / 2 - 1}
    state = model.init(jax.random.key(1), batch)
    gradient = jax.grad(lambda p: model.loss(p, batch, jax.random.key(2), 0)[0])(state.params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
    assert float(jnp.abs(gradient["schedule"]["low"])) > 0
    assert np.isfinite(model.sample(state, jax.random.key(3), 2)).all()
    seen = dataclasses.replace(model, fourier_exponents=(1, 2)).network_input(batch["x"], None)
    assert seen.shape == (8, 15)
    np.testing.assert_allclose(seen[:, 9:12], np.sin(4 * np.pi * batch["x"]), atol=1e-5)
    # Hardly any noise at the end: every level is certain.
    assert float(model.evaluate(state, batch, jax.random.key(2))["reconstruction"].max()) < 0.01


def test_times_of_a_batch_are_uniform_and_evenly_spread_and_the_same_in_parts_of_it():
    batch = {"x": jnp.zeros((64, 1))}
    times = np.asarray(jax.jit(jax.vmap(lambda k: spread_uniforms(k, batch)))(jax.random.split(jax.random.key(0), 500)))
    assert times.min() >= 0.0 and times.max() < 1.0
    for place in (
        0,
        1,
        37,
    ):  # each alone: 500 uniforms, whose empirical distribution is this close in 999 cases of 1000
        assert np.abs(np.sort(times[:, place]) - np.arange(500) / 500).max() < 0.09
    # Together: no gap is larger than 2 / 64 here, where 64 independent ones have gaps of 4.7 / 64 on average.
    assert np.diff(np.sort(times, axis=1), axis=1).max() < 2.0 / 64
    # The mean of t over a batch deviates by .036 with independent times.
    assert times.mean(1).std() < 0.009
    part = {"x": jnp.zeros((2, 1)), "example_index": jnp.array([37, 5])}
    key = jax.random.key(3)
    np.testing.assert_array_equal(spread_uniforms(key, part), spread_uniforms(key, batch)[jnp.array([37, 5])])
