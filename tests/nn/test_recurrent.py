"""Recurrent layers: against torch and their own steps, states that carry on, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn.recurrent import LINEAR, Recurrent, RecurrentStack, linear_scan, lstm_scan

B, T, C, H = 2, 5, 3, 4
X = jax.random.normal(jax.random.key(0), (B, T, C))


def build(config):
    module = RecurrentStack(config)
    params = jax.jit(module.init)(jax.random.key(1), X)
    return params, jax.jit(lambda x, carry=None, mask=None, keys=None: module.apply(params, x, carry, mask, keys))


def ported(weights, gates, kind):
    """Parameters of torch's layer, as ours."""
    w, u, b, c = (np.asarray(weights[name].detach()) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    params = {"input": {"kernel": w.T, "bias": b + c}, "recurrent": u.T}
    if kind == "gru":
        both = b + np.concatenate([c[: 2 * H], np.zeros(H, np.float32)])
        params = {**params, "input": {"kernel": w.T, "bias": both}, "recurrent_bias": c[2 * H :]}
    return params


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
def test_layers_equal_those_of_torch(kind, bidirectional):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layer = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[kind]
    theirs = layer(C, H, num_layers=2, batch_first=True, bidirectional=bidirectional)
    named = dict(theirs.named_parameters())
    params = {}
    for i in range(2):
        for suffix, direction in (("", "forward"), ("_reverse", "backward"))[: 1 + bidirectional]:
            weights = {n: named[f"{n}_l{i}{suffix}"] for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
            params[f"layer_{i}_{direction}"] = ported(weights, None, kind)
    config = Recurrent(cell=kind, num_layers=2, hidden_dim=H, bidirectional=bidirectional)
    x = torch.tensor(np.asarray(X), requires_grad=True)
    expected, last = theirs(x)
    (expected**2).sum().backward()
    apply = lambda p, x: RecurrentStack(config).apply({"params": p}, x)
    ours, carry = apply(params, X)
    np.testing.assert_allclose(ours, expected.detach(), atol=1e-5)
    h = last[0] if kind == "lstm" else last
    mine = [c[0] if kind == "lstm" else c for layer in carry for c in layer]
    np.testing.assert_allclose(np.stack(mine), h.detach(), atol=1e-5)
    gradient = jax.grad(lambda p, x: (apply(p, x)[0] ** 2).sum(), argnums=(0, 1))(params, X)
    np.testing.assert_allclose(gradient[1], x.grad, atol=1e-4)
    np.testing.assert_allclose(
        gradient[0]["layer_0_forward"]["recurrent"], named["weight_hh_l0"].grad.numpy().T, atol=1e-4
    )


def test_the_lstm_has_the_gradient_of_its_loop():
    keys = jax.random.split(jax.random.key(2), 4)
    x, weight = jax.random.normal(keys[0], (T, B, 4 * H)), jax.random.normal(keys[1], (H, 4 * H))
    h, c = jax.random.normal(keys[2], (2, B, H))

    def loop(x, weight, h, c):
        outputs = []
        for t in range(T):
            i, f, g, o = jnp.split(x[t] + h @ weight, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            outputs.append(h)
        return jnp.stack(outputs), (h, c)

    def loss(function):
        def value(*arguments):
            outputs, (h, c) = function(*arguments)
            return (outputs * jnp.cos(jnp.arange(outputs.size)).reshape(outputs.shape)).sum() + (h * c).sum()

        return jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2, 3)))

    ours, expected = loss(lstm_scan)(x, weight, h, c), loss(loop)(x, weight, h, c)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, expected)


@pytest.mark.parametrize("complex_", [False, True])
def test_parallel_scan_equals_the_sequential_one(complex_):
    keys = jax.random.split(jax.random.key(0), 3)
    draw = lambda k, shape: jax.random.normal(k, shape, jnp.complex64 if complex_ else jnp.float32)
    a, b, start = draw(keys[0], (9, 2, 3)), draw(keys[1], (9, 2, 3)), draw(keys[2], (2, 3))
    np.testing.assert_allclose(linear_scan(a, b, start), linear_scan(a, b, start, parallel=False), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", LINEAR)
def test_linear_recurrences_equal_their_steps(kind):
    config = Recurrent(cell=kind, num_layers=2, hidden_dim=H, residual=True, mlp_dim=6)
    params, apply = build(config)
    full, _ = apply(X)
    steps = RecurrentStack(dataclasses.replace(config, parallel=False)).apply(params, X)
    np.testing.assert_allclose(full, steps[0], atol=1e-5)


def test_s4d_is_the_convolution_with_its_kernel():
    config = Recurrent(cell="s4d", hidden_dim=H, state_dim=3)
    params, apply = build(config)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params["params"]["layer_0_forward"])
    rates = -np.exp(p["log_real"]) + 1j * p["imaginary"]
    np.testing.assert_allclose(rates, -0.5 + 1j * np.pi * np.tile(np.arange(3), (H, 1)), rtol=1e-6)
    step = np.exp(p["log_step"])[:, None]
    weights = (p["weights"][0] + 1j * p["weights"][1]) * (np.exp(step * rates) - 1) / rates
    kernel = 2 * np.einsum("hn,thn->th", weights, np.exp(step * rates * np.arange(T)[:, None, None])).real
    u = np.asarray(X, np.float64) @ p["input"]["kernel"]
    y = np.stack([sum(kernel[k] * u[:, t - k] for k in range(t + 1)) for t in range(T)], 1) + p["skip"] * u
    np.testing.assert_allclose(apply(X)[0], jax.nn.gelu(y), atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        *[Recurrent(cell=kind, num_layers=2, hidden_dim=H) for kind in ("rnn", "gru", "lstm", *LINEAR)],
        Recurrent(cell="lstm", hidden_dim=H, zoneout=0.2, layer_norm=True),
    ],
)
def test_states_carry_on_and_stay_at_padding(config):
    _, apply = build(config)
    full, last = apply(X)
    first, carry = apply(X[:, :2])
    second, end = apply(X[:, 2:], carry)
    np.testing.assert_allclose(jnp.concatenate([first, second], 1), full, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), end, last)
    _, padded = apply(X, None, jnp.array([[1, 1, 0, 0, 0]] * B))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), padded, carry)


@pytest.mark.parametrize(
    "config",
    [
        Recurrent(cell="lstm", num_layers=2, hidden_dim=H, bidirectional=True),
        *[Recurrent(cell=kind, hidden_dim=H, bidirectional=True) for kind in ("gru", *LINEAR)],
    ],
)
def test_packed_documents_equal_separate_ones(config):
    module = RecurrentStack(config)
    params = module.init(jax.random.key(1), X)
    packed, (last, *_) = jax.jit(module.apply)(params, X, segment_ids=jnp.array([[3, 3, 4, 4, 4]] * B))
    first, _ = module.apply(params, X[:, :2])
    second, (end, *_) = module.apply(params, X[:, 2:])
    np.testing.assert_allclose(packed, jnp.concatenate([first, second], 1), atol=1e-5)
    # Each direction's state is that of the document that it read last.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), last[0], end[0])


def test_zoneout_keeps_units_at_its_rate_and_gradients_are_finite():
    config = Recurrent(cell="gru", hidden_dim=200, zoneout=0.3, dropout=0.1, variational_dropout=True)
    module = RecurrentStack(config)
    params = module.init(jax.random.key(1), X)
    keys = jax.random.split(jax.random.key(2), B)
    out, _ = module.apply(params, X, None, None, keys)
    kept = (out[:, 1:] == out[:, :-1]).mean()
    assert abs(float(kept) - 0.3) < 0.03
    gradient = jax.grad(lambda p: module.apply(p, X, None, None, keys)[0].sum())(params)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"cell": "gru", "peepholes": True}, "cell=gru have no peepholes; it is for lstm"),
        ({"cell": "min_gru", "zoneout": 0.1}, "cell=min_gru have no zoneout"),
        ({"cell": "lru", "layer_norm": True}, "cell=lru have no layer_norm"),
        ({"mlp_dim": 8}, "set residual=true"),
    ],
)
def test_options_that_a_cell_would_ignore_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Recurrent(**options)
