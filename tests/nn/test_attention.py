"""Attention: against loops and other libraries, from caches, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import devices
from genjax.nn import attention as A
from genjax.nn import positions as P
from genjax.nn.dropout import dropout, keep_mask
from genjax.nn.mixture_of_experts import ExpertLayer, MixtureOfExperts, choose, places_at_slots, tokens_at_slots


def reference_attention(q, k, v, mask, bias, scale):
    """Loops over rows, heads and queries; q [B, T, H, D], k and v [B, S, K, D]."""
    out = np.zeros_like(q)
    groups = q.shape[2] // k.shape[2]
    for b, t, h in np.ndindex(*q.shape[:3]):
        logits = scale * k[b, :, h // groups] @ q[b, t, h] + bias[b, h, t]
        logits = np.where(mask[b, t], logits, -np.inf)
        weights = np.exp(logits - logits.max())
        out[b, t, h] = (weights / weights.sum()) @ v[b, :, h // groups]
    return out


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_grouped_heads_equal_a_loop(kv_heads):
    rng = np.random.default_rng(0)
    q = rng.normal(size=(2, 5, 4, 3)).astype(np.float32)
    k, v = rng.normal(size=(2, 2, 7, kv_heads, 3)).astype(np.float32)
    mask = rng.random((2, 5, 7)) < 0.6
    mask[..., 0] = True
    bias = rng.normal(size=(2, 4, 5, 7)).astype(np.float32)
    swap = lambda a: jnp.asarray(a).swapaxes(1, 2)
    ours, _ = A._heads_first(swap(q), swap(k), swap(v), jnp.asarray(bias), jnp.asarray(mask)[:, None], 0.3, 0.0, None)
    np.testing.assert_allclose(ours.swapaxes(1, 2), reference_attention(q, k, v, mask, bias, 0.3), atol=1e-5)
    fused = jax.nn.dot_product_attention(
        jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), jnp.asarray(bias), jnp.asarray(mask)[:, None], scale=0.3
    )
    np.testing.assert_allclose(ours.swapaxes(1, 2), fused, atol=1e-5)


def test_masks_say_who_sees_whom():
    index = jnp.arange(4)[None]
    mask = A.attention_mask(index, jnp.arange(4), causal=True, window=2)
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    np.testing.assert_array_equal(mask[0, 0], expected)
    segments = jnp.array([[1, 1, 2, 2]])
    mask = A.attention_mask(index, jnp.arange(4), query_segments=segments, key_segments=segments)
    np.testing.assert_array_equal(mask[0, 0], np.kron(np.eye(2), np.ones((2, 2))))
    mask = A.attention_mask(index, jnp.arange(4), key_mask=jnp.array([[1, 1, 0, 0]]))
    np.testing.assert_array_equal(mask[0, 0], [[1, 1, 0, 0]] * 1 if mask.shape[2] == 1 else [[1, 1, 0, 0]] * 4)
    assert A.attention_mask(index, jnp.arange(4)) is None


def test_the_mask_of_a_prefix_equals_a_loop():
    lengths, size = np.array([0, 2, 5]), 5
    mask = A.attention_mask(jnp.arange(size)[None], jnp.arange(size), causal=True, prefix_lengths=jnp.asarray(lengths))
    for row, length in zip(np.asarray(mask)[:, 0], lengths):
        for query, key in np.ndindex(size, size):
            assert row[query, key] == (key <= query or (query < length and key < length))


def test_a_query_that_sees_nothing_stays_finite():
    q = jnp.ones((1, 1, 2, 2))
    out, _ = A._heads_first(q, q, q, None, jnp.zeros((1, 1, 2, 2), bool), 1.0, 0.0, None)
    assert jnp.isfinite(out).all()


MASKED = {"key_mask": jnp.array([[1, 1, 1, 0], [1, 1, 1, 1]])}
SEGMENTED = {"segment_ids": jnp.array([[1, 1, 2, 2], [1, 1, 1, 1]])}
BIASED = {"bias": jnp.arange(16.0).reshape(1, 1, 4, 4)}


@pytest.mark.parametrize(
    "settings, inputs, fused",
    [
        ({}, MASKED, True),
        ({"causal": True}, MASKED, True),
        ({"causal": True}, {"prefix_lengths": jnp.array([2, 4])}, True),
        ({"causal": True, "window": 2}, SEGMENTED, True),
        ({}, {**MASKED, **BIASED}, True),
        (
            {"cross": True},
            {"context": jnp.ones((2, 6, 16)), "key_mask": jnp.array([[1] * 6, [1, 1, 0, 0, 0, 0]])},
            True,
        ),
        ({"cross": True}, {"context": jnp.ones((2, 5, 16)), "key_mask": jnp.array([[1] * 5, [1, 1, 0, 0, 0]])}, False),
        ({"cross": True}, {"context": jnp.ones((2, 5, 16))}, True),
        ({"window": 2}, {}, False),
        ({"causal": True}, {**MASKED, "return_weights": True}, False),
    ],
)
def test_the_fused_attention_gets_what_it_takes(settings, inputs, fused, monkeypatch):
    calls = []

    def cudnn(q, k, v, bias, mask, *, scale, is_causal, local_window_size, implementation):
        # What JAX's check_layout and check_is_flash_attention demand (jax/_src/cudnn/fused_attention_stablehlo.py).
        assert implementation == "cudnn" and q.dtype == k.dtype == v.dtype == jnp.bfloat16
        for extra in (bias, mask):
            assert extra is None or extra.shape[2:] == (q.shape[1], k.shape[1])
        assert mask is None or mask.dtype == bool
        assert bias is None or bias.dtype == q.dtype
        assert bias is None and mask is None or q.shape[1] % 2 == k.shape[1] % 2 == 0
        assert local_window_size is None or is_causal and local_window_size[1] == 0
        calls.append(q.shape)
        options = {"scale": scale, "is_causal": is_causal, "local_window_size": local_window_size}
        return plain_attention(q, k, v, bias, mask, **options, implementation="xla")

    plain_attention = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", cudnn)
    module = A.Attention(num_heads=2, num_kv_heads=1, dtype=jnp.bfloat16, **settings)
    x = jax.random.normal(jax.random.key(0), (2, 4, 16))
    init = functools.partial(module.init, jax.random.key(1), x, inputs.get("context"))
    shapes = jax.eval_shape(init)
    apply = functools.partial(module.apply, x=x, **inputs)
    with devices.compiled_for("gpu"):
        assert jax.eval_shape(apply, shapes)[0].shape == x.shape and bool(calls) == fused
    if "window" in settings and fused:
        params = jax.jit(init)()
        expected, _, _ = jax.jit(apply)(params)
        with devices.compiled_for("gpu"):
            ours, _, _ = jax.jit(apply)(params)
        np.testing.assert_allclose(ours.astype(jnp.float32), expected.astype(jnp.float32), atol=0.03)


def test_cross_attention_from_a_cache_equals_that_from_the_context():
    module = A.Attention(num_heads=2, cross=True)
    x, context = jax.random.normal(jax.random.key(0), (2, 3, 8)), jax.random.normal(jax.random.key(1), (2, 5, 8))
    params = module.init(jax.random.key(2), x, context)
    full, cache, weights = module.apply(params, x, context, return_weights=True)
    assert weights.shape == (2, 2, 3, 5)
    again, _, _ = module.apply(params, x, cache=cache)
    np.testing.assert_allclose(full, again, atol=1e-6)
    with pytest.raises(ValueError, match="needs a context"):
        module.apply(params, x)


def test_rows_write_to_their_own_place_in_the_cache_and_overflow_is_dropped():
    cache = A.KVCache.zeros(2, 1, 4, 1)
    new = jnp.arange(1.0, 5.0).reshape(2, 1, 2, 1)
    cache = cache.write(new, new, jnp.array([1, 3]))
    np.testing.assert_array_equal(cache.keys[:, 0, :, 0], [[0, 1, 2, 0], [0, 0, 0, 3]])
    np.testing.assert_array_equal(cache.write(new + 2, new, jnp.array(2)).keys[0, 0, :, 0], [0, 1, 3, 4])


def test_a_loop_of_steps_writes_its_cache_in_place():
    module = A.Attention(num_heads=2, causal=True)
    x, cache = jnp.ones((3, 1, 8)), A.KVCache.zeros(3, 2, 64, 4)
    params = module.init(jax.random.key(0), x)

    def steps(params, cache, x, count):
        def step(place, carry):
            out, cache, _ = module.apply(params, carry[0], cache=carry[1], start=place)
            return out, cache

        return jax.lax.fori_loop(0, count, step, (x, cache))

    # The entry stands last; before the loop it may copy what it was given.
    program, _ = jax.jit(steps).lower(params, cache, x, 9).compile().as_text().split("\nENTRY ")
    copies = [line for line in program.splitlines() if "f32[3,2,64,4]" in line.split("(")[0] and " copy(" in line]
    assert "dynamic-update-slice" in program and not copies, copies


def test_heads_that_do_not_divide_and_empty_windows_are_refused():
    with pytest.raises(ValueError, match="num_kv_heads=3 must divide"):
        A.Attention(num_heads=4, num_kv_heads=3).init(jax.random.key(0), jnp.ones((1, 2, 8)))
    with pytest.raises(ValueError, match="must divide the width 9"):
        A.Attention(num_heads=4).init(jax.random.key(0), jnp.ones((1, 2, 9)))
    with pytest.raises(ValueError, match="window=0 of an attention must be at least 1"):
        A.Attention(num_heads=4, causal=True, window=0).init(jax.random.key(0), jnp.ones((1, 2, 8)))


def test_rotary_logits_depend_on_the_distance_alone():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

    def logit(i, j):
        turned = [P.rotate(a, *P.rotary_angles(jnp.array([[p]]), 8)) for a, p in ((q, i), (k, j))]
        return float((turned[0] * turned[1]).sum())

    assert logit(9, 5) == pytest.approx(logit(104, 100), abs=1e-4)
    assert logit(9, 5) != pytest.approx(logit(9, 6), abs=1e-2)


def test_sinusoidal_table_and_segment_positions():
    table = P.sinusoidal_table(5, 4)
    np.testing.assert_allclose(table[3], [np.sin(3), np.sin(0.03), np.cos(3), np.cos(0.03)], rtol=1e-6)
    with pytest.raises(ValueError, match="even width"):
        P.sinusoidal_table(5, 3)
    segments = jnp.array([[7, 7, 7, 2, 2, 0]])
    np.testing.assert_array_equal(P.segment_positions(segments), [[0, 1, 2, 0, 1, 0]])


def test_alibi_slopes_are_those_of_the_paper():
    np.testing.assert_allclose(P.alibi_slopes(8), 2.0 ** -np.arange(1, 9))
    assert len(P.alibi_slopes(6)) == 6
    bias = P.SlopeBias(jnp.asarray(P.alibi_slopes(8)))(jnp.array([[3]]), jnp.arange(4))
    np.testing.assert_allclose(bias[0, 0, 0], [-1.5, -1.0, -0.5, 0.0])


@pytest.mark.parametrize("bidirectional", [True, False])
def test_t5_buckets_equal_those_of_transformers(bidirectional):
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    torch = pytest.importorskip("torch")
    relative = np.arange(-300, 300)
    theirs = t5.T5Attention._relative_position_bucket(torch.tensor(relative), bidirectional, 32, 128)
    np.testing.assert_array_equal(P.t5_bucket(jnp.asarray(relative), 32, 128, bidirectional), theirs.numpy())


@pytest.mark.parametrize(
    "scaling, theirs",
    [
        (P.LinearScaling(factor=4.0), {"rope_type": "linear", "factor": 4.0}),
        (
            P.Llama3Scaling(factor=8.0, original_length=64),
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        ),
        (
            P.YarnScaling(factor=4.0, original_length=64),
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        ),
    ],
)
def test_rotary_scalings_equal_those_of_transformers(scaling, theirs):
    utils = pytest.importorskip("transformers.modeling_rope_utils")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        max_position_embeddings=256,
        rope_parameters={"rope_theta": 10000.0, **theirs},
    )
    frequencies, factor = utils.ROPE_INIT_FUNCTIONS[theirs["rope_type"]](config, "cpu")
    ours = scaling.frequencies(10000.0 ** (-np.arange(0, 32, 2) / 32), 10000.0)
    np.testing.assert_allclose(ours, frequencies.numpy(), rtol=1e-5)
    assert scaling.attention_factor == pytest.approx(factor)


@pytest.mark.parametrize("buckets, distance, bidirectional", [(2, 128, True), (1, 128, False), (32, 8, True)])
def test_t5_buckets_of_no_distance_are_refused(buckets, distance, bidirectional):
    with pytest.raises(ValueError, match=f"relative_buckets={buckets} and relative_max_distance={distance} make"):
        P.t5_bucket(jnp.arange(4), buckets, distance, bidirectional)


@pytest.mark.parametrize("dim", [2, 4, 8])
def test_a_larger_base_keeps_the_fastest_angle_and_divides_the_slowest(dim):
    frequencies = 10000.0 ** (-np.arange(0, dim, 2) / dim)
    scaled = P.NTKScaling(factor=4.0).frequencies(frequencies, 10000.0)
    # Of two features the only angle is the fastest one.
    np.testing.assert_allclose(scaled[0], 1.0)
    np.testing.assert_allclose(scaled[1:][-1:], frequencies[1:][-1:] / 4.0)


def test_dropout_belongs_to_the_example_and_keeps_the_mean():
    keys = jax.random.split(jax.random.key(0), 4)
    x = jnp.ones((4, 50, 40))
    out = dropout(x, 0.3, keys)
    np.testing.assert_array_equal(out[1:3], dropout(x[1:3], 0.3, keys[1:3]))
    assert float(out.mean()) == pytest.approx(1.0, abs=0.03)
    assert float(keep_mask(keys, 0.3, (50, 40)).mean()) == pytest.approx(0.7, abs=0.02)
    shared = dropout(x, 0.5, keys, broadcast_axes=(1,))
    np.testing.assert_array_equal(shared, jnp.broadcast_to(shared[:, :1], shared.shape))
    np.testing.assert_array_equal(dropout(x, 0.3, None), x)
    for rate in (1.0, 1.5, -0.1):
        with pytest.raises(ValueError, match=f"must be at least 0 and less than 1, and it is {rate}"):
            dropout(x, rate, keys)


def test_experts_with_room_equal_the_weighted_sum_of_the_chosen():
    settings = MixtureOfExperts(num_experts=4, num_selected=2, capacity_factor=4.0)
    layer = ExpertLayer(settings, 8, jax.nn.silu, gated=True)
    x = jax.random.normal(jax.random.key(0), (2, 6, 4))
    params = layer.init(jax.random.key(1), x)
    out, auxiliary = layer.apply(params, x)
    p = {name: np.asarray(value) for name, value in params["params"].items()}
    probabilities = np.asarray(jax.nn.softmax(x @ p["router"]))
    for b, t in np.ndindex(2, 6):
        chosen = np.argsort(-probabilities[b, t])[:2]
        gates = probabilities[b, t, chosen] / probabilities[b, t, chosen].sum()
        expected = 0.0
        for gate, e in zip(gates, chosen):
            h = np.asarray(jax.nn.silu(x[b, t] @ p["gate"][e])) * np.asarray(x[b, t] @ p["up"][e])
            expected = expected + gate * h @ p["down"][e]
        np.testing.assert_allclose(out[b, t], expected, atol=1e-5)
    assert auxiliary.shape == (2,)


def test_capacity_drops_the_last_tokens_and_padding_takes_none():
    probabilities = jnp.broadcast_to(jnp.array([0.9, 0.1]), (1, 4, 2))
    gates, chosen = choose(probabilities, 1)
    # One chosen expert is weighted by its probability (Switch, eq. 2).
    np.testing.assert_allclose(gates[0, :, 0], [0.9] * 4, rtol=1e-6)
    # Two experts of two slots: 0, 1 are the first expert's, 4 is none.
    slots = places_at_slots(chosen, 2, 2, causal=False)
    np.testing.assert_array_equal(slots[0, :, 0], [0, 1, 4, 4])
    np.testing.assert_array_equal(tokens_at_slots(slots, 4), [[0, 1, 4, 4]])
    slots = places_at_slots(choose(probabilities, 1, jnp.array([[0, 1, 1, 1]]))[1], 2, 2, causal=False)
    np.testing.assert_array_equal(slots[0, :, 0], [4, 0, 1, 4])
    np.testing.assert_array_equal(tokens_at_slots(slots, 4), [[1, 2, 4, 4]])
    # Even routing has the least balance loss, which is 1.
    settings = MixtureOfExperts(num_experts=2, num_selected=1, balance_weight=1.0, router_z_weight=0.0)
    layer = ExpertLayer(settings, 4)
    x = jnp.array([[[1.0, -1.0], [-1.0, 1.0]]])
    params = layer.init(jax.random.key(0), x)
    params["params"]["router"] = 100.0 * jnp.eye(2)
    np.testing.assert_allclose(layer.apply(params, x)[1], [1.0], rtol=1e-5)


@pytest.mark.parametrize("num_selected", [1, 2])
def test_the_loss_teaches_the_router(num_selected):
    layer = ExpertLayer(
        MixtureOfExperts(num_experts=3, num_selected=num_selected, capacity_factor=3.0), 8, init_std=0.5
    )
    x = jax.random.normal(jax.random.key(0), (2, 6, 4))
    params = layer.init(jax.random.key(1), x)
    for training in (True, False):
        loss = lambda p: (layer.apply(p, x, training=training)[0] ** 2).sum()  # noqa: B023
        assert jnp.abs(jax.grad(loss)(params)["params"]["router"]).max() > 1e-3


def test_experts_that_there_are_not_cannot_be_chosen():
    with pytest.raises(ValueError, match="num_selected=3 must lie between 1 and experts.num_experts=2"):
        MixtureOfExperts(num_experts=2, num_selected=3)


@pytest.mark.parametrize("causal", [False, True])
def test_slots_are_filled_in_order_of_choice_or_of_place(causal):
    # The first token's second choice is what the second token likes best.
    probabilities = jnp.array([[[0.7, 0.3], [0.4, 0.6]]])
    slots = places_at_slots(choose(probabilities, 2)[1], 2, 1, causal)
    np.testing.assert_array_equal(slots[0], [[0, 1], [2, 2]] if causal else [[0, 2], [1, 2]])


def test_training_with_room_equals_evaluation():
    settings = MixtureOfExperts(num_experts=4, num_selected=2, capacity_factor=4.0)
    layer = ExpertLayer(settings, 8)
    x = jax.random.normal(jax.random.key(0), (2, 6, 4))
    mask = jnp.array([[1] * 6, [1] * 4 + [0] * 2])
    params = jax.jit(layer.init)(jax.random.key(1), x)
    apply = jax.jit(layer.apply, static_argnames="training")
    trained, evaluated = (apply(params, x, mask, training=training) for training in (True, False))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), trained, evaluated)
