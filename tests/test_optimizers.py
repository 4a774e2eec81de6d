"""Schedules have the values of their formulas; weight decay leaves norms and biases alone."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import optimizers
from genjax.families.flow.bijections import ActNorm, Chain, InvertibleLinear, Repeat
from genjax.nn.recurrent import Recurrent, RecurrentStack


def values(schedule, steps, learning_rate=2.0):
    build = schedule.build(learning_rate)
    return [float(build(jnp.asarray(step))) for step in steps]


def test_warmup_rises_in_equal_parts_to_the_peak():
    got = values(optimizers.Constant(warmup_steps=4), range(6))
    np.testing.assert_allclose(got, [0.5, 1.0, 1.5, 2.0, 2.0, 2.0], rtol=1e-6)


def test_cosine_is_half_a_period_down_to_its_final_scale():
    got = values(optimizers.Cosine(num_steps=110, warmup_steps=10, final_scale=0.1), [10, 35, 60, 110, 500])
    expected = [2 * (0.9 * 0.5 * (1 + math.cos(math.pi * t)) + 0.1) for t in (0, 0.25, 0.5, 1, 1)]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_linear_is_a_line():
    np.testing.assert_allclose(values(optimizers.Linear(num_steps=10), [0, 5, 10]), [2, 1, 0], atol=1e-6)
    late = optimizers.Linear(num_steps=12, warmup_steps=2, constant_share=0.5)
    np.testing.assert_allclose(values(late, [0, 1, 2, 7, 8, 12]), [1, 2, 2, 2, 1.6, 0], atol=1e-6)
    with pytest.raises(ValueError, match="constant_share"):
        optimizers.Linear(num_steps=2, constant_share=1.0).after_warmup()


def test_a_share_of_the_steps_is_not_cut_by_the_rounding_of_its_float():
    line = optimizers.Linear(num_steps=100, constant_share=0.29)
    np.testing.assert_allclose(values(line, [29, 30], 1.0), [1.0, 70 / 71], rtol=1e-6)
    piecewise = optimizers.Piecewise(num_steps=100, boundaries=(0.29,))
    np.testing.assert_allclose(values(piecewise, [28, 29], 1.0), [1.0, 0.1], rtol=1e-6)


def test_inverse_square_root_is_that_of_the_transformer_paper():
    steps = np.array([3, 99, 100, 400, 10000])
    got = values(optimizers.InverseSquareRoot(warmup_steps=100), steps)
    # Vaswani et al. 2017, eq. 3, scaled to peak at 1 when step + 1 = warmup_steps.
    expected = [2 * min((s + 1) / 100, (100 / max(s, 100)) ** 0.5) for s in steps]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_piecewise_drops_at_fractions_of_the_run():
    got = values(optimizers.Piecewise(num_steps=8, boundaries=(0.25, 0.5), scale=0.1), [0, 1, 3, 5])
    np.testing.assert_allclose(got, [2, 2, 0.2, 0.02], rtol=1e-5)


def test_piecewise_drops_once_for_each_of_its_boundaries_that_fall_into_one_step():
    got = values(optimizers.Piecewise(num_steps=2, boundaries=(0.5, 0.75), scale=0.1), [0, 1])
    np.testing.assert_allclose(got, [2, 0.02], rtol=1e-5)


@pytest.mark.parametrize("schedule", [optimizers.Cosine(), optimizers.Linear(), optimizers.Piecewise()])
def test_a_length_that_nobody_gave_is_an_error(schedule):
    with pytest.raises(ValueError, match="num_steps is None"):
        schedule.build(1.0)


def test_a_run_may_end_before_its_warmup_does():
    schedule = optimizers.Cosine(num_steps=5, warmup_steps=10).build(1.0)
    rates = [float(schedule(step)) for step in range(5)]
    assert np.isfinite(rates).all() and rates == sorted(rates) and rates[-1] < 1.0


def test_weight_decay_leaves_norms_and_biases_alone():
    params = {
        "Dense_0": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)},
        "layers": {"LayerNorm_0": {"scale": jnp.ones((3, 2)), "bias": jnp.ones((3, 2))}},
    }
    optimizer = optimizers.AdamW(learning_rate=0.5, weight_decay=0.1).build()
    zero = {
        "Dense_0": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)},
        "layers": {"LayerNorm_0": {"scale": jnp.zeros((3, 2)), "bias": jnp.zeros((3, 2))}},
    }
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    np.testing.assert_allclose(updates["Dense_0"]["kernel"], -0.05 * np.ones((2, 2)), rtol=1e-6)
    assert not np.any(updates["Dense_0"]["bias"])
    assert not np.any(updates["layers"]["LayerNorm_0"]["scale"])
    assert not np.any(updates["layers"]["LayerNorm_0"]["bias"])


def test_weight_decay_leaves_the_norms_of_repeated_layers_alone():
    step = Chain(layers=(ActNorm(), InvertibleLinear()))
    params = Repeat(bijection=step, count=2).init(jax.random.key(0), jnp.zeros((4, 3)))
    decays = jax.tree_util.tree_map_with_path(optimizers.decays_weight, params)
    assert decays == {
        "00_actnorm": {"shift": False, "log_scale": False},
        "01_invertiblelinear": {"lower": True, "upper": True, "log_diagonal": False},
    }


@pytest.mark.parametrize("name", ["class_scale", "class_bias", "output_bias", "peepholes"])
def test_weight_decay_leaves_scales_and_offsets_alone_that_have_two_axes(name):
    assert not optimizers.decays_weight((jax.tree_util.DictKey(name),), jnp.ones((3, 2)))


@pytest.mark.parametrize("stack", ["layers", "00_repeat"])
def test_weight_decay_leaves_vectors_of_stacked_layers_alone(stack):
    path = tuple(jax.tree_util.DictKey(name) for name in ("decoder", stack, "attention", "direction"))
    assert not optimizers.decays_weight(path, jnp.ones((3, 2)))
    assert optimizers.decays_weight(path, jnp.ones((3, 2, 2)))


def five_steps(optimizer, gradient):
    """Where an optimizer takes parameters from 0 in five steps of one gradient."""
    rule, start = optimizer.build(), jax.tree.map(jnp.zeros_like, gradient)

    def step(_, carry):
        params, state = carry
        updates, state = rule.update(gradient, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    return jax.jit(lambda: jax.lax.fori_loop(0, 5, step, (start, rule.init(start)))[0])()


def test_rmsprop_takes_steps_of_the_learning_rate_however_small_the_gradient_is():
    gradient = np.array([1e-5, 1e-7], np.float32)
    means = [1.0 - 0.9**t for t in range(1, 6)]  # of squares, as multiples of the gradient's
    expected = -0.01 * sum(gradient / (np.sqrt(mean) * gradient + 1e-8) for mean in means)
    np.testing.assert_allclose(expected, [-0.1062, -0.0869], atol=1e-4)  # torch.optim.RMSprop
    got = five_steps(optimizers.RMSProp(learning_rate=0.01, decay=0.9), jnp.asarray(gradient))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_adafactor_takes_each_stacked_layer_for_a_matrix_of_its_own():
    # Three layers: more than a kernel has rows, so that the layers would be one of the two factored axes.
    rng = np.random.default_rng(0)
    shapes = {"kernel": (3, 2, 4), "bias": (3, 4)}
    layers = {name: (rng.normal(size=s) ** 3).astype(np.float32) for name, s in shapes.items()}
    layers = {
        name: a * np.array([1.0, 1e-3, 10.0], np.float32).reshape(3, *[1] * (a.ndim - 1)) for name, a in layers.items()
    }
    apart = {f"layer_{i}": {name: a[i] for name, a in layers.items()} for i in range(3)}
    optimizer = optimizers.Adafactor(learning_rate=1.0, min_dim_size_to_factor=2, clipping_threshold=0.5)
    got = five_steps(optimizer, {"layers": layers, **apart})
    for i in range(3):
        for name in layers:
            np.testing.assert_allclose(got["layers"][name][i], got[f"layer_{i}"][name], rtol=1e-5)


def test_weight_decay_leaves_the_rates_of_s4d_layers_alone():
    stack = RecurrentStack(Recurrent(cell="s4d", hidden_dim=3, state_dim=2))
    params = jax.eval_shape(stack.init, jax.random.key(0), jnp.zeros((1, 1, 3)))["params"]["layer_0_forward"]
    decays = jax.tree_util.tree_map_with_path(optimizers.decays_weight, params)
    # All of a state's rate and step; not the maps before and behind it.
    assert not (decays["log_real"] or decays["imaginary"] or decays["log_step"])
    assert decays["input"]["kernel"] and decays["weights"]
