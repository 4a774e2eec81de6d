"""Exact assignment inside of compiled programs, and the pairs of flow matching by optimal transport and of reflow."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy.optimize import linear_sum_assignment

from genjax.families.diffusion import samplers
from genjax.families.diffusion.assignment import assign
from genjax.families.diffusion.edm import EDM
from genjax.families.diffusion.flow_matching import FlowMatching
from genjax.families.diffusion.networks import ResidualMLP
from genjax.families.diffusion.processes import Trigonometric
from genjax.families.diffusion.reflow import Reflow, straightness
from genjax.families.diffusion.samplers import Estimate
from genjax.optimizers import Adam, Cosine

ASSIGN = jax.jit(assign)


def check(cost):
    found, cost = np.asarray(ASSIGN(cost)), np.asarray(cost, np.float64)
    assert sorted(found) == list(range(len(cost)))
    least, spread = cost[linear_sum_assignment(cost)].sum(), cost.std() * len(cost)
    assert cost[np.arange(len(cost)), found].sum() - least <= 1e-6 * spread


@pytest.mark.parametrize("kind", ["uniform", "integers", "equal", "points"])
def test_assignments_are_those_of_scipy(kind):
    for seed in range(3):
        keys = jax.random.split(jax.random.key(seed))
        match kind:
            case "uniform":
                cost = jax.random.uniform(keys[0], (40, 40))
            case "integers":
                cost = jax.random.randint(keys[0], (40, 40), 0, 5).astype(jnp.float32)
            case "equal":
                cost = jnp.full((40, 40), 3.0)
            case "points":
                # An offset far larger than what decides.
                a, b = (jax.random.normal(k, (40, 1)) for k in keys)
                cost = jnp.square(a - b.T) + 100.0 * a
        check(cost)


def test_costs_of_all_kinds_give_permutations():
    check(jnp.zeros((1, 1)))
    with jax.debug_nans(False):
        for bad in (jnp.nan, jnp.inf, -jnp.inf):
            cost = jax.random.normal(jax.random.key(0), (40, 40)).at[3].set(bad).at[:, 5].set(bad)
            assert sorted(np.asarray(ASSIGN(cost))) == list(range(40))
    with pytest.raises(ValueError, match="a column of its own"):
        assign(jnp.zeros((2, 3)))


def test_pictures_are_paired_with_noise_at_the_least_cost_and_each_noise_once():
    model = FlowMatching(data_shape=(32, 32, 3), coupling="optimal_transport")
    independent = FlowMatching(data_shape=(32, 32, 3))
    # Smooth pictures of different contrast, as those of a data set are.
    coarse = jax.random.uniform(jax.random.key(0), (64, 4, 4, 3), minval=-1.0)
    x = jax.image.resize(coarse, (64, 32, 32, 3), "linear")
    draw = jax.jit(lambda model, x, key: model.draw({"x": x}, key, model.process)[1], static_argnums=0)
    noise, paired = draw(independent, x, jax.random.key(1)), draw(model, x, jax.random.key(1))
    x, noise, paired = (np.asarray(a, np.float64).reshape(64, -1) for a in (x, noise, paired))
    np.testing.assert_array_equal(np.sort(noise[:, 0]), np.sort(paired[:, 0]))
    cost = np.square(x).sum(1)[:, None] + np.square(noise).sum(1)[None] - 2.0 * x @ noise.T
    least = cost[linear_sum_assignment(cost)].sum()
    assert abs(np.square(x - paired).sum() - least) < 1e-3
    # About a hundredth of the cost depends on the pairs, which an entropy of a fiftieth would hide.
    assert np.trace(cost) - least > 100.0


class TwoModes(Reflow):
    """Reflow of the exact flow between N(0, 1) and the modes -1 and 1 of deviation 0.2."""

    def teacher_denoiser(self, teacher, batch):
        def denoise(z, t, x0):
            alpha, sigma = self.process.alpha(t), self.process.sigma(t)
            variance = 0.04 * alpha**2 + sigma**2
            share = jax.nn.sigmoid(2 * alpha * z / variance)
            mean = lambda mode: mode + 0.04 * alpha / variance * (z - alpha * mode)
            return Estimate(share * mean(1.0) + (1.0 - share) * mean(-1.0))

        return denoise


def test_reflow_makes_paths_straight_and_one_step_enough():
    model = TwoModes(
        data_shape=(1,), network=ResidualMLP(hidden_dim=32, num_blocks=2),
        sampler=samplers.Euler(num_steps=1, variable="time"),
        optimizer=Adam(learning_rate=3e-3, schedule=Cosine(num_steps=600), ema_decay=0.99),
    )  # fmt: skip
    batch = {"x": jnp.zeros((256, 1))}

    def run(key):
        first = model.init(key, batch)
        body = lambda state, key: model.train_step(state, batch, key)
        state = jax.lax.scan(body, first, jax.random.split(key, 600))[0]
        return first, state, model.evaluate(state, batch, key), model.sample(state, key, 4000)

    first, state, after, samples = jax.jit(run)(jax.random.key(0))
    for a, b in zip(jax.tree.leaves(state.extra["teacher"]), jax.tree.leaves(first.params), strict=True):
        np.testing.assert_array_equal(a, b)
    noise = jax.random.normal(jax.random.key(1), (4000, 1))
    teacher, process = model.teacher_denoiser({}, batch), model.process
    before = jax.jit(lambda z: straightness(model.teacher_sampler, teacher, process, z, jax.random.key(2)))(noise)
    assert float(after["straightness"].mean()) < 0.1 * float(before.mean())
    # One step of the teacher goes to the mean of both modes.
    one = model.sampler.run(teacher, process, noise, jax.random.key(3))
    assert float(jnp.abs(one).mean()) < 0.05
    assert abs(float(jnp.abs(samples).mean()) - 1.0) < 0.1 and abs(float((samples > 0).mean()) - 0.5) < 0.05
    # The measure of a straight path is 0, and of one at changing speed the variance of the speed.
    still = straightness(model.teacher_sampler, lambda z, t, x0: Estimate(0.0 * z), process, noise, jax.random.key(2))
    np.testing.assert_allclose(still, 0.0, atol=1e-6)
    for wrong, message in (
        ({"coupling": "optimal_transport"}, "pairs of its own"),
        ({"process": Trigonometric()}, "needs process=linear"),
        ({"teacher_sampler": samplers.DDIM(num_steps=5, eta=1.0)}, "must follow the ODE"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(model, **wrong).check()
    teacher = FlowMatching(data_shape=(1,), network=dataclasses.replace(model.network, dropout_rate=0.1))
    model.check_start(teacher)
    for source, message in (
        (None, "needs a teacher"),
        (EDM(), "is a EDM"),
        (dataclasses.replace(teacher, network=ResidualMLP()), "same model.network"),
        (dataclasses.replace(teacher, scale_input=True), "--model.scale_input=True"),
    ):
        with pytest.raises(ValueError, match=message):
            model.check_start(source)


def test_pairs_are_the_same_on_one_device_and_on_eight():
    sharding = NamedSharding(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)), PartitionSpec("data"))
    model = FlowMatching(data_shape=(30,), coupling="optimal_transport")
    x = jax.random.normal(jax.random.key(0), (16, 30))
    draw = lambda x: model.draw({"x": x}, jax.random.key(1), model.process)[1]
    eight = jax.jit(draw, in_shardings=sharding, out_shardings=sharding)(jax.device_put(x, sharding))
    np.testing.assert_allclose(jax.jit(draw)(x), eight, rtol=1e-6)


def test_padding_is_paired_with_noise_of_padding():
    model = FlowMatching(data_shape=(2,), coupling="optimal_transport")
    x = jax.random.normal(jax.random.key(0), (7, 2))
    draw = jax.jit(lambda batch: model.draw(batch, jax.random.key(1), model.process)[1])
    filled = {"x": x.at[4:].set(30.0), "padding": jnp.arange(7) > 3}
    np.testing.assert_array_equal(draw(filled)[:4], draw({"x": x[:4]}))
