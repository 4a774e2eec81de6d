"""Long contexts: attention in blocks, kernels for TPUs and logits in chunks give the same in less memory."""

import functools
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import devices
from genjax.families.language.gpt import GPT
from genjax.families.language.networks import llama_network
from genjax.nn import attention as A
from genjax.nn import positions as P
from genjax.nn import scores as S
from genjax.nn.splash import _num_pairs, splash
from genjax.nn.transformer import Transformer
from genjax.training.engine import build_mesh


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_examples_that_devices_cannot_share_are_attended_to_without_the_kernel(monkeypatch):
    kernel = lambda q, k, v, **_: jnp.full_like(q, 7.0)  # XLA refuses to split the real one
    monkeypatch.setattr(A, "splash", kernel)
    monkeypatch.setattr(A, "splash_possible", lambda q, k: True)
    q = normal(0, 8, 4, 1, 2)
    with devices.compiled_for(build_mesh("data:8", jax.devices())):
        assert (jax.jit(A.attend)(q, q, q) == 7.0).all()
        shared = jax.jit(A.attend)(q[:3], q[:3], q[:3])
    monkeypatch.undo()
    np.testing.assert_allclose(shared, A.attend(q[:3], q[:3], q[:3]), atol=1e-6)


def value_and_gradients(function, *arguments):
    weighted = lambda *arguments: (function(*arguments) * normal(9, *function(*arguments).shape)).sum()
    return jax.jit(jax.value_and_grad(weighted, argnums=tuple(range(len(arguments)))))(*arguments)


def assert_close(found, expected, tolerance=2e-5):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


PADDED = jnp.arange(10)[None] < jnp.array([[10], [6]])
SEGMENTS = jnp.array([[0] * 5 + [1] * 5, [3] * 10])
INDEX = {"query_index": jnp.arange(10)[None], "key_index": jnp.arange(10)}


@pytest.mark.parametrize(
    ("sight", "bias"),
    [
        ({"causal": True, "query_segments": SEGMENTS, "key_segments": SEGMENTS}, None),
        ({"causal": True, "prefix_lengths": jnp.array([3, 7])}, normal(4, 1, 4, 10, 10)),
        (
            {"window": 3, "key_mask": jnp.arange(10)[None] < jnp.array([[10], [6]])},
            P.BucketBias(normal(5, 8, 4), 9, True),
        ),
    ],
)
def test_attention_in_blocks_equals_attention_to_all_keys_at_once(sight, bias, monkeypatch):
    # Blocks of four queries, the last one half empty.
    monkeypatch.setattr(A, "FEWEST_QUERIES", 4)
    monkeypatch.setattr(A, "LARGEST_WHOLE", 1)
    sight = A.Sight(**INDEX, **sight)
    q, k, v = normal(0, 2, 4, 10, 8), normal(1, 2, 2, 10, 8), normal(2, 2, 2, 10, 8)

    def in_blocks(q, k, v, bias):
        return A._in_blocks(q, k, v, bias, sight, 0.3, 0.0, None)

    def at_once(q, k, v, bias):
        return A._heads_first(q, k, v, sight.bias(bias), sight.mask(), 0.3, 0.0, None)[0]

    assert_close(*(value_and_gradients(f, q, k, v, bias) for f in (in_blocks, at_once)))


def test_dropout_in_blocks_keeps_the_mean_and_depends_on_the_place():
    q = jnp.zeros((1, 1, 512, 2))
    sight = A.Sight(query_index=jnp.arange(512)[None], key_index=jnp.arange(4096))
    keys = jax.random.split(jax.random.key(0), 1)
    kept = A._in_blocks(q, jnp.zeros((1, 1, 4096, 2)), jnp.ones((1, 1, 4096, 2)), None, sight, 1.0, 0.5, keys)
    # Of 4096 keys with weights 0 and 2 / 4096 the sum has deviation 1/64.
    assert abs(kept.mean() - 1.0) < 5 / 64 / 512**0.5 and 0.014 < kept[0, 0, :, 0].std() < 0.018
    assert not np.allclose(kept[:, :, :256], kept[:, :, 256:])


@pytest.mark.parametrize(
    "options",
    [
        {"causal": True, "query_segments": True},
        {"window": 100, "key_mask": True},
    ],
)
def test_splash_attention_equals_plain_attention(options):
    q, k, v = normal(0, 2, 256, 2, 128), normal(1, 2, 256, 1, 128), normal(2, 2, 256, 1, 128)
    index = jnp.arange(256)
    if options.pop("query_segments", False):
        options["query_segments"] = options["key_segments"] = jnp.stack([index // 100, index // 256])
    if "key_mask" in options:
        options["key_mask"] = index[None] < jnp.array([[256], [200]])
    sight = A.Sight(query_index=index[None], key_index=index, **options)
    # A query at padding whose window has padding alone finds a mean of other values.
    counted = (index[None] < 256 if "key_mask" not in options else options["key_mask"])[:, :, None, None]

    def kernel(q, k, v):
        return splash(q, k, v, scale=0.1, interpret=True, **options) * counted

    def plain(q, k, v):
        first = (a.swapaxes(1, 2) for a in (q, k, v))
        return A._mixed(*first, None, sight, 0.1, 0.0, None)[0].swapaxes(1, 2) * counted

    assert_close(*(value_and_gradients(f, q, k, v) for f in (kernel, plain)))


def test_the_kernel_computes_the_tiles_that_are_seen():
    # Tiles of 128: of 3 x 3 the diagonal and what lies below it; with a window of 129 places the neighbours alone.
    assert _num_pairs(384, 384, True, None) == 6 * 128**2
    assert _num_pairs(384, 384, True, 129) == 5 * 128**2
    assert _num_pairs(384, 384, False, 129) == 7 * 128**2
    assert _num_pairs(384, 384, False, None) == 9 * 128**2


def test_scores_in_chunks_equal_scores_of_all_logits(monkeypatch):
    x, matrix = normal(0, 2, 7, 5), normal(1, 5, 11)
    targets = jnp.asarray(np.random.default_rng(2).integers(0, 11, size=(2, 7)))

    def scores(x, matrix, path):
        found = S.scores_of(x, matrix if path[0] == "head" else matrix.T, targets, path, jnp.float32)
        return jnp.stack([found.nll, found.log_normalizer, found.mean, found.best.astype(jnp.float32)])

    expected = value_and_gradients(functools.partial(scores, path=("head", "kernel")), x, matrix)
    # Three chunks of three tokens, the last one with two of padding.
    monkeypatch.setattr(S, "LARGEST_LOGITS", 4 * 2 * 7 * 11 // 3 + 1)
    for path in (("head", "kernel"), ("token", "embedding")):
        assert_close(value_and_gradients(functools.partial(scores, path=path), x, matrix), expected)


def step_text(network, length, place):
    """The compiled gradient of a small language model's loss on one device of a platform."""
    model = GPT(vocab_size=61, sequence_length=length, network=network, tie_embeddings=False, compute_dtype="bfloat16")
    batch = {"tokens": jax.ShapeDtypeStruct((1, length + 1), jnp.int32, sharding=place)}
    params = jax.eval_shape(lambda: model.module().init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])
    params = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), params)
    gradient = jax.grad(lambda params, batch: model.loss(params, batch, jax.random.key(0))[0])
    platform = "cpu" if place is None else "tpu"
    with devices.compiled_for(platform):
        return jax.jit(gradient).lower(params, batch)


@pytest.mark.parametrize("positions", ["rotary", "alibi", "t5"])
def test_no_array_of_all_pairs_of_tokens_is_in_a_training_step(positions):
    network = Transformer(num_layers=1, width=8, num_heads=2, positions=positions, max_length=2048)
    text = step_text(network, 2048, None).compile().as_text()
    assert "2048,8" in text and not re.search(r"\b2048,2048\b", text)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="compiles for a TPU, which needs libtpu")
def test_a_tpu_attends_by_a_kernel(monkeypatch):
    from genjax.tools.plan.chips import target

    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    place = jax.sharding.SingleDeviceSharding(target("v5e:1x1").devices[0])
    lowered = step_text(llama_network(1, 128, 1, max_length=1024), 1024, place)
    compiled = lowered.compile()
    # Forward, by queries, and by keys and values.
    assert lowered.as_text().count("tpu_custom_call") == 3
    assert compiled.memory_analysis().temp_size_in_bytes < 1024 * 1024 * 4
