"""What all methods of alignment stand on: log-probabilities of tokens, means over tokens, and the reference."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import decoding
from genjax.batch import DEVICE_AXIS
from genjax.config import ConfigError
from genjax.families.alignment.reference import answer_log_probs, reference_params, with_reference
from genjax.families.language.encoder_decoder import EncoderDecoder
from genjax.families.language.gpt import GPT
from genjax.families.language.networks import translation_network
from genjax.model import HasTokenLogProbs
from genjax.nn.lora import LoRA
from genjax.nn.tokens import token_weights, with_token_mean
from genjax.nn.transformer import Transformer
from genjax.optimizers import SGD
from genjax.training.checkpoints import Checkpoints
from genjax.training.warm_start import warm_start
from tests.tools.untrained import untrained

TINY = Transformer(num_layers=1, width=8, num_heads=2, mlp_dim=16, max_length=12, init_std=0.5, dropout=0.3)
POLICY = GPT(
    vocab_size=7, sequence_length=7, start_token=0, end_token=6, network=TINY, optimizer=SGD(learning_rate=0.1)
)
STACK = translation_network(1, 8, 2, mlp_dim=16, max_length=12, init_std=0.5, dropout=0.0)
ANSWERER = EncoderDecoder(
    vocab_size=7, sequence_length=7, start_token=0, end_token=6, encoder=STACK, decoder=STACK,
    optimizer=SGD(learning_rate=0.1), label_smoothing=0.0,
)  # fmt: skip
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def batch():
    """Eight rows of prompts and answers of different lengths."""
    rng = np.random.default_rng(0)
    ends, starts = rng.integers(4, 9, 8), rng.integers(1, 4, 8)
    places = np.arange(8)[None]
    return {
        "tokens": jnp.asarray(rng.integers(0, 7, (8, 8)), jnp.int32),
        "mask": jnp.asarray(places < ends[:, None]),
        "loss_mask": jnp.asarray(places >= starts[:, None]),
        "source": jnp.asarray(rng.integers(0, 7, (8, 5)), jnp.int32),
    }


@pytest.mark.parametrize("model", [POLICY, ANSWERER], ids=["gpt", "encoder_decoder"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_of_tokens_are_those_of_the_sampler(model, temperature, batch):
    assert isinstance(model, HasTokenLogProbs)
    state = jax.jit(model.init)(KEY, batch)
    sampling = decoding.Sampling(temperature=temperature)
    if model is POLICY:
        prompts, source = batch["tokens"][:, :1], {}
        generate = lambda state: model.generate(state, KEY, prompts, 7, sampling=sampling, end_token=None)
    else:
        prompts, source = jnp.full((8, 1), model.answer_start), {"source": batch["source"]}
        generate = lambda state: model.generate(state, KEY, batch["source"], sampling=sampling, end_token=None)
    drawn = jax.jit(generate)(state)
    rows = {**source, "tokens": jnp.concatenate([prompts, drawn.tokens], axis=1)}
    scored = jax.jit(model.token_log_probs, static_argnums=2)(state.params, rows, temperature)
    assert scored.dtype == jnp.float32
    np.testing.assert_allclose(scored, drawn.log_probs, atol=2e-6)


@pytest.mark.parametrize("model", [POLICY, ANSWERER], ids=["gpt", "encoder_decoder"])
def test_the_mean_over_tokens_depends_neither_on_microbatches_nor_on_devices_nor_on_padding(model, batch):
    # trl 3021, 3187, 3716: normalisation under accumulation.
    if model is POLICY:
        model = dataclasses.replace(model, network=dataclasses.replace(TINY, dropout=0.0))
    state = jax.jit(model.init)(KEY, batch)

    def step(accumulation_steps):
        tuned = dataclasses.replace(model, optimizer=SGD(learning_rate=0.1, accumulation_steps=accumulation_steps))
        return lambda state, batch: tuned.train_step(state, with_token_mean(batch), KEY)

    whole, metrics = jax.jit(step(1))(state, batch)
    weights = token_weights(batch)
    expected = -(jax.jit(model.token_log_probs)(state.params, batch) * weights).sum() / weights.sum()
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["nll_per_token"].value(), expected, rtol=1e-6)

    parts = jax.tree.map(lambda a: a.reshape(4, 2, *a.shape[1:]), batch)
    on_devices = jax.pmap(step(2), DEVICE_AXIS, in_axes=(None, 0))(state, parts)
    wide = {name: jnp.pad(a, ((0, 0), (0, 3))) if name != "source" else a for name, a in batch.items()}
    for new, other in (
        jax.jit(step(2))(state, batch),
        jax.jit(step(4))(state, batch),
        jax.tree.map(lambda a: a[0], on_devices),
        jax.jit(step(1))(state, wide),
    ):
        np.testing.assert_allclose(other["loss"], metrics["loss"], rtol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), new.params, whole.params)


@pytest.mark.parametrize(
    "change", [{}, {"lora": LoRA(rank=2)}, {"frozen": ("embedding",)}], ids=["whole", "lora", "frozen"]
)
def test_the_reference_is_what_the_run_starts_from_and_stays(change, batch):
    model = dataclasses.replace(POLICY, **change)
    state = jax.jit(lambda: with_reference(model, model.init(KEY, batch)))()
    # The loop puts the parameters of another run in place of those of `init`; they may have low-rank updates.
    start = jax.tree.map(lambda a: a + 0.1, state.params)
    state = state.replace(params=start)

    @jax.jit
    def step(state):
        params, kept = reference_params(state)
        state, _ = model.train_step(state, batch, KEY)
        return state.replace(extra={**state.extra, "reference": kept}), params, kept

    for _ in range(2):
        state, params, kept = step(state)
        jax.tree.map(np.testing.assert_array_equal, params, start)
    assert (set(kept) == {"lora"}) == ("lora" in change) and ("embedding" in kept) == (not change)
    score = jax.jit(lambda params: answer_log_probs(model, params, batch))
    (before, count), (after, _) = score(start), score(state.params)
    assert (after != before).any() and (count == token_weights(batch).sum(1)).all()


def test_a_whole_network_starts_from_low_rank_updates_added_to_what_they_update(tmp_path):
    changes = {"model.network.num_layers": 1, "model.network.width": 8, "model.network.num_heads": 2}
    run = untrained("gpt_reviews", tmp_path / "run", {**changes, "model.lora": "lora", "data.vocab_size": 300})
    noise = lambda a: a + jax.random.normal(jax.random.key(a.size), a.shape)
    params = {**run.state.params, "lora": jax.tree.map(noise, run.state.params["lora"])}
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(1, run.state.replace(params=params, step=jnp.asarray(1, jnp.int32)))
    checkpoints.close()
    whole = {name: value for name, value in run.state.params.items() if name != "lora"}
    taken = warm_start(whole, str(tmp_path / "run"), ())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), taken, run.model.merged_params(params))
    # Updates that go on stay updates.
    jax.tree.map(np.testing.assert_array_equal, warm_start(run.state.params, str(tmp_path / "run"), ()), params)


def test_low_rank_updates_begin_at_zero_on_a_whole_network_of_another_run(tmp_path):
    changes = {"model.network.num_layers": 1, "model.network.width": 8, "model.network.num_heads": 2}
    source = untrained("gpt_reviews", tmp_path / "run", {**changes, "data.vocab_size": 300})
    model = dataclasses.replace(source.model, lora=LoRA(rank=2))
    fresh = jax.jit(model.init)(jax.random.key(3), {"tokens": jnp.zeros((1, 4), jnp.int32)}).params
    taken = warm_start(fresh, str(tmp_path / "run"), ())
    jax.tree.map(np.testing.assert_array_equal, model.merged_params(taken), source.state.params)
    jax.tree.map(np.testing.assert_array_equal, taken["lora"], fresh["lora"])
    with pytest.raises(ConfigError, match="has no parameter lora/.*; name what to take with init_prefix"):
        warm_start(fresh, str(tmp_path / "run"), ("lora",))


def test_low_rank_updates_of_an_encoder_decoder_train_alone(batch):
    model = dataclasses.replace(ANSWERER, lora=LoRA(rank=2))
    state = jax.jit(model.init)(KEY, batch)
    plain = jax.jit(ANSWERER.token_log_probs)({n: v for n, v in state.params.items() if n != "lora"}, batch)
    np.testing.assert_array_equal(jax.jit(model.token_log_probs)(state.params, batch), plain)
    new, _ = jax.jit(model.train_step)(state, batch, KEY)
    same = lambda name: all(map(np.array_equal, jax.tree.leaves(new.params[name]), jax.tree.leaves(state.params[name])))
    assert [name for name in state.params if not same(name)] == ["lora"]
