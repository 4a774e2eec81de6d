"""Every recurrent cell against a loop in float64 that is written from its paper alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.families.recurrent.attention import AttentionCell
from genjax.nn.recurrent import Recurrent, RecurrentStack

B, T, C, H = 2, 4, 3, 5
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, T, C))


def sigmoid(a):
    return 1.0 / (1.0 + np.exp(-a))


def norm(a, gain):
    return gain * (a - a.mean(-1, keepdims=True)) / a.std(-1, keepdims=True)


def softmax(a):
    a = np.exp(a - a.max(-1, keepdims=True))
    return a / a.sum(-1, keepdims=True)


def linear(p, x):
    return x @ p["kernel"] + p.get("bias", 0.0)


def drawn(shapes):
    """Parameters without a first value that could hide a term."""
    return jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape), shapes)


def rnn(p, x, h, options):
    """Elman 1990; with norms Ba et al. 2016, eq. 4: the norm is that of the summed inputs."""
    if options.get("layer_norm"):
        return np.tanh(norm(linear(p["input"], x) + h @ p["recurrent"], p["recurrent_norm"]) + p["bias"])
    return np.tanh(linear(p["input"], x) + h @ p["recurrent"])


def gru(p, x, h, options):
    """Cho et al. 2014 with the reset gate behind the product; with norms Ba et al. 2016, eqs. 23 to 25."""
    of_x, of_h = linear(p["input"], x), h @ p["recurrent"]
    if options.get("layer_norm"):
        gates, candidate = slice(0, 2 * H), slice(2 * H, 3 * H)
        of_x, of_h = (
            np.concatenate([norm(a[:, part], gain[part]) for part in (gates, candidate)], -1)
            for a, gain in ((of_x, p["input_norm"]), (of_h, p["recurrent_norm"]))
        )
        of_x = of_x + p["bias"]
    r, z = (sigmoid(of_x[:, i * H : (i + 1) * H] + of_h[:, i * H : (i + 1) * H]) for i in (0, 1))
    n = np.tanh(of_x[:, 2 * H :] + r * (of_h[:, 2 * H :] + p["recurrent_bias"]))
    return (1 - z) * n + z * h


def lstm(p, x, state, options):
    """Gers et al. 2000, peepholes Gers & Schmidhuber 2000; with norms Ba et al. 2016, eqs. 20 to 22."""
    h, c = state
    if options.get("layer_norm"):
        a = norm(linear(p["input"], x), p["input_norm"]) + norm(h @ p["recurrent"], p["recurrent_norm"]) + p["bias"]
    else:
        a = linear(p["input"], x) + h @ p["recurrent"]
    i, f, g, o = np.split(a, 4, -1)
    seen = p.get("peepholes", np.zeros((3, H)))
    new = sigmoid(f + seen[1] * c) * c + sigmoid(i + seen[0] * c) * np.tanh(g)
    out = norm(new, p["cell_norm"]) + p["cell_bias"] if options.get("layer_norm") else new
    return sigmoid(o + seen[2] * new) * np.tanh(out), new


def min_gru(p, x, h, options):
    """Feng et al. 2024, arXiv:2410.01201, section 3.1."""
    z = sigmoid(linear(p["gates"], x))
    return (1 - z) * h + z * linear(p["candidate"], x)


def min_lstm(p, x, h, options):
    """Feng et al. 2024, section 3.2, gates normalised to a sum of 1."""
    f, i = np.split(sigmoid(linear(p["gates"], x)), 2, -1)
    return f / (f + i) * h + i / (f + i) * linear(p["candidate"], x)


def lru(p, x, s, options):
    """Orvieto et al. 2023, arXiv:2303.06349, eqs. 2, 5 and 7: the state is complex."""
    eigenvalues = np.exp(-np.exp(p["nu_log"]) + 1j * np.exp(p["theta_log"]))
    real, imaginary = np.split(linear(p["input"], x), 2, -1)
    return eigenvalues * s + np.sqrt(1 - np.abs(eigenvalues) ** 2) * (real + 1j * imaginary)


def lru_output(p, x, s):
    c = p["output"]["kernel"][:H] - 1j * p["output"]["kernel"][H:]
    return (s @ c).real + p["output"]["bias"] + linear(p["skip"], x)


CASES = [
    *[(kind, {}) for kind in ("rnn", "gru", "lstm", "min_gru", "min_lstm", "lru")],
    *[(kind, {"layer_norm": True}) for kind in ("rnn", "gru", "lstm")],
    ("lstm", {"peepholes": True, "layer_norm": True, "zoneout": 0.3}),
    ("gru", {"zoneout": 0.2}),
]


@pytest.mark.parametrize("kind, options", CASES)
def test_cells_are_those_of_their_papers(kind, options):
    config = Recurrent(cell=kind, hidden_dim=H, **options)
    stack = RecurrentStack(config)
    x = jnp.asarray(X, jnp.float32)
    params = drawn(jax.eval_shape(stack.init, jax.random.key(0), x))["params"]
    carry = jax.tree.map(lambda a: RNG.normal(size=a.shape), jax.eval_shape(lambda: config.init_carry(B)))
    as_float32 = lambda tree: jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)
    outputs, last = jax.jit(stack.apply)({"params": as_float32(params)}, x, as_float32(carry))

    p, ((state,),) = params["layer_0_forward"], carry
    state = state[0] + 1j * state[1] if kind == "lru" else state
    # In evaluation zoneout takes the expectation (Krueger et al. 2017, section 3.1), of cell and output alike.
    keep = options.get("zoneout", 0.0)
    for t in range(T):
        new = globals()[kind](p, X[:, t], state, options)
        state = jax.tree.map(lambda old, n: keep * old + (1 - keep) * n, state, new)
        h = lru_output(p, X[:, t], state) if kind == "lru" else state[0] if kind == "lstm" else state
        np.testing.assert_allclose(outputs[:, t], h, rtol=1e-4, atol=1e-4)
    ((ours,),) = last
    expected = (state.real, state.imag) if kind == "lru" else state
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, expected)


@pytest.mark.parametrize("score", ["additive", "multiplicative"])
def test_attention_scores_are_those_of_their_papers(score):
    """additive: Bahdanau et al. 2015, eqs. 5 and 6; multiplicative: Luong et al. 2015, eqs. 5, 7 and 8 (general)."""
    source, dim = 6, 4
    state, fed, y = RNG.normal(size=(B, H)), RNG.normal(size=(B, H)), RNG.normal(size=(B, C))
    memory, map_of_keys = RNG.normal(size=(B, source, dim)), RNG.normal(size=(dim, H))
    keys, mask = memory @ map_of_keys, np.arange(source) < np.array([[6], [4]])
    arrays = [jnp.asarray(a, jnp.float32) for a in (state, fed, y, memory, keys)]
    inputs = ((arrays[0], arrays[1]), *arrays[2:], jnp.asarray(mask))
    module = AttentionCell(H, score)
    p = drawn(jax.eval_shape(module.init, jax.random.key(0), *inputs))["params"]
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), p)
    (new_state, new_fed), (features, weights) = jax.jit(module.apply)({"params": params}, *inputs)

    def step(x):
        of_x, of_h = linear(p["input"], x), linear(p["recurrent"], state)
        r, z = (sigmoid(of_x[:, i * H : (i + 1) * H] + of_h[:, i * H : (i + 1) * H]) for i in (0, 1))
        return (1 - z) * np.tanh(of_x[:, 2 * H :] + r * of_h[:, 2 * H :]) + z * state

    expected = np.zeros((B, source))
    new = None if score == "additive" else step(np.concatenate([y, fed], -1))
    for b in range(B):
        real = int(mask[b].sum())
        if score == "additive":
            query = linear(p["query"], state[b])
            e = [np.tanh(query + memory[b, j] @ map_of_keys) @ p["score"]["kernel"][:, 0] for j in range(real)]
        else:
            e = [new[b] @ map_of_keys.T @ memory[b, j] for j in range(real)]
        expected[b, :real] = softmax(np.array(e))
    context = np.einsum("bs,bsc->bc", expected, memory)
    np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-5)
    if score == "additive":
        new = step(np.concatenate([y, context], -1))
        np.testing.assert_allclose(features, np.concatenate([new, context, y], -1), rtol=1e-4, atol=1e-4)
    else:
        attentional = np.tanh(linear(p["combine"], np.concatenate([context, new], -1)))
        np.testing.assert_allclose(features, attentional, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(new_fed, attentional, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(new_state, new, rtol=1e-4, atol=1e-4)


def test_the_first_forget_bias_is_that_of_the_gate_behind_the_norms():
    stack = RecurrentStack(Recurrent(hidden_dim=H, layer_norm=True, forget_bias=2.5))
    params = jax.jit(stack.init)(jax.random.key(0), jnp.asarray(X, jnp.float32))["params"]["layer_0_forward"]
    np.testing.assert_array_equal(params["bias"], np.repeat([0.0, 2.5, 0.0, 0.0], H))


def test_variational_dropout_hides_the_same_states_at_all_times():
    config = Recurrent(num_layers=2, hidden_dim=8, dropout=0.5, variational_dropout=True)
    stack, x = RecurrentStack(config), jnp.zeros((B, T, C))
    params = jax.tree.map(lambda a: np.zeros(a.shape, np.float32), jax.eval_shape(stack.init, jax.random.key(0), x))
    for layer in params["params"].values():
        # A unit sees its own last state alone, through the candidate; all gates are half open.
        layer["recurrent"][:, 16:24] = np.eye(8)
    carry = jax.tree.map(jnp.ones_like, config.init_carry(B))
    run = jax.jit(lambda mask, keys: jax.tree.leaves(stack.apply(params, x, carry, mask, keys)[1]))
    once, always = np.arange(T) < np.array([[1]] * B), np.ones((B, T), bool)
    keys = jax.random.split(jax.random.key(1), B)
    patterns = []
    for first, last, plain_first, plain_last in zip(
        run(once, keys), run(always, keys), run(once, None), run(always, None)
    ):
        # A hidden state gives its unit less than it would get, a shown one twice as much.
        patterns.append(np.asarray(first > plain_first))
        np.testing.assert_array_equal(patterns[-1], last > plain_last)
    assert 0.2 < np.mean(patterns) < 0.8
    assert (patterns[0] != patterns[-1]).any() and (patterns[0][0] != patterns[0][1]).any()
