"""Stacks of blocks: what a token sees, caches, packed documents, scanned layers, and encoders with decoders."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.nn.mixture_of_experts import MixtureOfExperts
from genjax.nn.transformer import TokenEmbedding, Transformer, TransformerStack, scanned, unrolled

POSITIONS = ["none", "learned", "sinusoidal", "rotary", "alibi", "t5"]
TINY = Transformer(num_layers=2, width=8, num_heads=2, mlp_dim=16, max_length=16, init_std=0.5)
# So few slots that training drops tokens.
EXPERTS = MixtureOfExperts(num_experts=4, capacity_factor=0.5)


def build(config, tokens, **inputs):
    embedding, stack = TokenEmbedding(11, config), TransformerStack(config)
    keys = jax.random.split(jax.random.key(0))
    embedding_params = embedding.init(keys[0], tokens)
    stack_params = stack.init(keys[1], jnp.ones((*tokens.shape, config.width)), **inputs)

    def apply(tokens, cache=None, segment_ids=None, embedded=None, **more):
        start = None if cache is None else cache.length
        if embedded is None:
            embedded = embedding.apply(embedding_params, tokens, start=start, segment_ids=segment_ids)
        return stack.apply(stack_params, embedded, cache=cache, segment_ids=segment_ids, **more)

    return apply, stack_params


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(3), (2, 6), 0, 11)


@pytest.mark.parametrize("positions", POSITIONS)
def test_outputs_ignore_future_tokens(positions, tokens):
    config = dataclasses.replace(TINY, positions=positions, num_layers=1)
    apply, _ = build(config, tokens)
    x = jax.random.normal(jax.random.key(1), (1, 6, 8))
    jacobian = jax.jit(jax.jacobian(lambda x: apply(None, embedded=x).x))(x)[0, :, :, 0]  # [T, C, T, C]
    size = np.abs(jacobian).max((1, 3))
    np.testing.assert_array_equal(np.triu(size, 1), 0)
    assert (np.diag(size) > 0).all()


@pytest.mark.parametrize("training", [False, True])
def test_experts_of_a_causal_stack_ignore_future_tokens(training):
    config = dataclasses.replace(TINY, num_layers=1, experts=EXPERTS)
    stack = TransformerStack(config)
    keys = jax.random.split(jax.random.key(2), 41) if training else None
    x = jax.random.normal(jax.random.key(1), (1, 6, 8))
    params = jax.jit(stack.init)(jax.random.key(0), x)
    # Which tokens are dropped is a step function, which a Jacobian does not see.
    stops, changes = jnp.repeat(jnp.arange(1, 6), 8), jax.random.normal(jax.random.key(3), (40, 6, 8))
    changed = jnp.where(jnp.arange(6)[None, :, None] < stops[:, None, None], x, changes)
    full, *rest = jax.jit(lambda x: stack.apply(params, x, dropout_keys=keys).x)(jnp.concatenate([x, changed]))
    for stop, row in zip(stops, rest):
        np.testing.assert_allclose(row[:stop], full[:stop], atol=1e-6)


@pytest.mark.parametrize(
    "positions, ragged, experts",
    [*itertools.product(POSITIONS, (False, True), [None]), ("rotary", True, EXPERTS)],
)
def test_cached_equals_full(positions, ragged, experts):
    tokens = jax.random.randint(jax.random.key(3), (2, 13), 0, 11)
    config = dataclasses.replace(TINY, positions=positions, num_kv_heads=1, window=3, experts=experts)
    apply, _ = build(config, tokens)
    full = apply(tokens).x
    step = jax.jit(apply)
    cache = config.init_cache(2, 13, ragged=ragged)
    assert cache.layers[0].keys.shape == (2, 1, 3, 4)
    parts, at = [], 0
    # More tokens than the ring has slots, one at a time all around it, and several at once.
    for count in (5, 1, 1, 1, 1, 2, 2):
        out, cache = step(tokens[:, at : at + count], cache)[:2]
        parts.append(out)
        at += count
    np.testing.assert_allclose(jnp.concatenate(parts, 1), full, atol=2e-5)


def test_memory_that_a_gradient_moves_grows_as_the_number_of_layers():
    def moved(num_layers):
        stack, x = TransformerStack(dataclasses.replace(TINY, num_layers=num_layers)), jnp.ones((4, 16, 8))
        gradient = jax.jit(jax.grad(lambda params, x: jnp.square(stack.apply(params, x).x).sum()))
        program = gradient.lower(jax.eval_shape(stack.init, jax.random.key(0), x), x)
        return program.compile().cost_analysis()["bytes accessed"]

    one, two, four = (moved(n) for n in (1, 2, 4))
    np.testing.assert_allclose(four - two, 2 * (two - one), rtol=0.02)


def test_rows_of_a_cache_may_stand_at_different_places(tokens):
    config = dataclasses.replace(TINY, positions="rotary")
    apply, _ = build(config, tokens)
    cache = config.init_cache(2, 8, ragged=True)
    cache = apply(tokens[:, :4], cache).cache.replace(length=jnp.array([2, 4]))
    following = jnp.stack([tokens[0, 2:4], tokens[1, 4:6]])
    out = apply(following, cache).x
    np.testing.assert_allclose(out[0], apply(tokens[:1, :4]).x[0, 2:], atol=2e-5)
    np.testing.assert_allclose(out[1], apply(tokens[1:]).x[0, 4:], atol=2e-5)


@pytest.mark.parametrize("positions, experts", [*((p, None) for p in POSITIONS), ("rotary", EXPERTS)])
def test_packed_equals_separate(positions, experts, tokens):
    config = dataclasses.replace(TINY, positions=positions, experts=experts)
    apply, _ = build(config, tokens)
    segments = jnp.array([[1, 1, 2, 2, 2, 3]] * 2)
    packed = apply(tokens, segment_ids=segments).x
    for start, stop in ((0, 2), (2, 5), (5, 6)):
        np.testing.assert_allclose(packed[:, start:stop], apply(tokens[:, start:stop]).x, atol=2e-5)


@pytest.mark.parametrize("remat", [False, True])
def test_scanned_equals_unrolled_with_dropout_and_experts(remat, tokens):
    config = dataclasses.replace(
        TINY,
        norm="rms",
        activation="silu",
        gated=True,
        use_bias=False,
        dropout=0.2,
        attention_dropout=0.1,
        mlp_dropout=0.1,
        experts=MixtureOfExperts(num_experts=2, capacity_factor=2.0),
        remat=remat,
    )
    _, params = build(config, tokens)
    x = jax.random.normal(jax.random.key(1), (2, 6, 8))
    keys = jax.random.split(jax.random.key(2), 2)

    def loss(params, config):
        out = TransformerStack(config).apply({"params": params}, x, dropout_keys=keys)
        return (out.x**2).mean() + out.auxiliary.sum()

    scan = dataclasses.replace(config, scan_layers=True)
    value, gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params["params"], config)
    stacked = scanned(params["params"], config)
    value2, gradient2 = jax.jit(jax.value_and_grad(loss), static_argnums=1)(stacked, scan)
    np.testing.assert_allclose(value, value2, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, unrolled(gradient2, config))
    out = TransformerStack(scan).apply({"params": stacked}, x, return_weights=True)
    assert out.weights[1][0].shape == (2, 2, 6, 6)


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_tokens_of_a_prefix_see_it_whole_and_others_only_what_came_before(positions, tokens):
    config = dataclasses.replace(TINY, positions=positions, num_layers=1)
    apply, params = build(config, tokens)
    x = jax.random.normal(jax.random.key(1), (2, 6, 8))
    lengths = jnp.array([3, 6])
    out = jax.jit(lambda x: apply(None, embedded=x, prefix_lengths=lengths).x)
    size = np.abs(jax.jit(jax.jacobian(lambda x: out(x)[..., 0]))(x)).max(-1)  # [B, T, B, T]
    for row, length in enumerate(lengths.tolist()):
        places = np.arange(6)
        seen = (places[None] <= places[:, None]) | (places[None] < length)
        np.testing.assert_array_equal(size[row, :, row] > 0, seen)
    # A causal stack whose prefix is the whole sequence is a stack that is not causal.
    both = TransformerStack(dataclasses.replace(config, causal=False)).apply(params, x)
    np.testing.assert_allclose(out(x)[1], both.x[1], atol=1e-5)


def test_a_cache_that_reads_features_in_place_of_tokens_and_a_prefix_equals_the_full_pass(tokens):
    embedding, stack = TokenEmbedding(11, TINY, scale=3.0), TransformerStack(TINY)
    table = embedding.init(jax.random.key(0), tokens)
    features = jax.random.normal(jax.random.key(5), (2, 6, 8))
    replaced = jnp.array([[True, True, False, False, False, False], [False, True, True, False, False, False]])
    lengths = jnp.array([3, 4])
    embed = lambda at, **more: embedding.apply(
        table, tokens[:, at], features=features[:, at], replaced=replaced[:, at], **more
    )
    whole = embed(slice(None))
    plain = embedding.apply(table, tokens)
    positions = embedding.apply(table, tokens, features=jnp.zeros_like(features), replaced=jnp.ones_like(replaced))
    np.testing.assert_array_equal(whole, jnp.where(replaced[..., None], features + positions, plain))
    params = stack.init(jax.random.key(1), whole)
    full = stack.apply(params, whole, prefix_lengths=lengths).x
    cache = TINY.init_cache(2, 6, ragged=True)
    first = stack.apply(params, embed(slice(0, 4), start=cache.length), cache=cache, prefix_lengths=lengths)
    rest = stack.apply(params, embed(slice(4, 6), start=first.cache.length), cache=first.cache)
    np.testing.assert_allclose(jnp.concatenate([first.x, rest.x], 1), full, atol=1e-5)


def test_padding_is_not_seen(tokens):
    config = dataclasses.replace(TINY, causal=False, positions="t5", norm_placement="post")
    apply, _ = build(config, tokens)
    mask = jnp.array([[1, 1, 1, 1, 0, 0]] * 2)
    out = apply(tokens, key_mask=mask).x[:, :4]
    np.testing.assert_allclose(out, apply(tokens[:, :4]).x, atol=2e-5)


def test_encoder_decoder_from_a_cache_equals_the_full_pass(tokens):
    config = dataclasses.replace(TINY, cross_attention=True, positions="sinusoidal")
    context = jax.random.normal(jax.random.key(5), (2, 4, 8))
    mask = jnp.array([[1, 1, 1, 0], [1, 1, 1, 1]])
    apply, _ = build(config, tokens, context=context)
    full = apply(tokens, context=context, context_mask=mask, return_weights=True)
    assert full.weights[0][1].shape == (2, 2, 6, 4)
    cache = config.init_cache(2, 6)
    first = apply(tokens[:, :2], cache, context=context, context_mask=mask)
    second = apply(tokens[:, 2:], first.cache)
    np.testing.assert_allclose(jnp.concatenate([first.x, second.x], 1), full.x, atol=2e-5)


def test_a_stack_says_what_it_cannot_serve(tokens):
    cross = dataclasses.replace(TINY, cross_attention=True)
    with pytest.raises(ValueError, match="needs a context"):
        build(cross, tokens)
    encoder = dataclasses.replace(TINY, causal=False)
    apply, _ = build(encoder, tokens)
    with pytest.raises(ValueError, match="causal stacks"):
        apply(tokens, encoder.init_cache(2, 8))
