"""Exact assignment inside of compiled programs, and the pairs of flow matching by optimal transport."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from genjax.families.diffusion.assignment import assign
from genjax.families.diffusion.flow_matching import FlowMatching

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
