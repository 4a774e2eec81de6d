"""GPT: the contract, caches, low-rank updates, frozen parameters, speculation, and what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import decoding
from genjax.families.language.gpt import GPT, num_parameters
from genjax.families.language.networks import gpt2_network, llama_network
from genjax.model import ContinuesText, GenerativeModel, HasLogProb
from genjax.nn.lora import LoRA
from genjax.nn.mixture_of_experts import MixtureOfExperts
from genjax.nn.transformer import Transformer, unrolled
from genjax.optimizers import Adam

TINY = Transformer(num_layers=2, width=8, num_heads=2, mlp_dim=16, max_length=12, init_std=0.5)
MODEL = GPT(vocab_size=7, sequence_length=9, start_token=0, network=TINY, optimizer=Adam(learning_rate=1e-2))


@pytest.fixture(scope="module")
def batch():
    return {"tokens": jax.random.randint(jax.random.key(3), (4, 10), 0, 7)}


@pytest.fixture(scope="module")
def state(batch):
    return jax.jit(MODEL.init)(jax.random.key(0), batch)


def test_the_contract(state, batch):
    assert isinstance(MODEL, GenerativeModel) and isinstance(MODEL, ContinuesText) and isinstance(MODEL, HasLogProb)
    step = jax.jit(MODEL.train_step)
    first = None
    for t in range(20):
        state, metrics = step(state, batch, jax.random.key(t))
        first = metrics["loss"] if first is None else first
    assert metrics["loss"] < 0.9 * first and state.step == 20
    values = MODEL.evaluate(state, batch, jax.random.key(0))
    assert all(v.shape == (4,) for v in jax.tree.leaves(values))
    np.testing.assert_allclose(values["nll"], -MODEL.log_prob(state, batch), rtol=1e-5)
    samples = jax.jit(MODEL.sample, static_argnums=2)(state, jax.random.key(1), 3)
    assert samples.shape == (3, 10) and (samples[:, 0] == 0).all() and ((samples >= 0) & (samples < 7)).all()


def test_probabilities_of_all_sequences_sum_to_one(state):
    tokens = jnp.stack(jnp.meshgrid(jnp.array([2]), *[jnp.arange(7)] * 3, indexing="ij"), -1).reshape(-1, 4)
    total = jnp.exp(MODEL.log_prob(state, {"tokens": tokens})).sum()
    np.testing.assert_allclose(total, 1.0, rtol=1e-5)


def test_masked_and_packed_targets_do_not_count(state, batch):
    tokens = batch["tokens"][:2]
    segments = jnp.array([[1] * 4 + [2] * 6] * 2)
    packed = -MODEL.log_prob(state, {"tokens": tokens, "segment_ids": segments})
    parts = [-MODEL.log_prob(state, {"tokens": tokens[:, part]}) for part in (slice(0, 4), slice(4, 10))]
    np.testing.assert_allclose(packed, parts[0] + parts[1], rtol=1e-5)
    mask = jnp.array([[1] * 4 + [0] * 6] * 2)
    np.testing.assert_allclose(-MODEL.log_prob(state, {"tokens": tokens, "mask": mask}), parts[0], rtol=1e-5)
    values = MODEL.evaluate(state, {"tokens": tokens, "mask": mask, "num_characters": jnp.array([3, 3])}, None)
    means = MODEL.summarize({name: float(values[name].mean()) for name in ("nll", "num_tokens", "num_characters")})
    assert means["num_tokens"] == 3
    np.testing.assert_allclose(means["bits_per_character"] * np.log(2), means["nll_per_token"], rtol=1e-6)
    np.testing.assert_allclose(np.log(means["perplexity"]), means["nll_per_token"], rtol=1e-6)


@pytest.mark.parametrize("positions", ["none", "learned", "sinusoidal", "rotary", "alibi", "t5"])
def test_cached_logits_equal_uncached_ones(positions, batch):
    model = dataclasses.replace(
        MODEL, network=dataclasses.replace(TINY, positions=positions, scan_layers=positions == "rotary", num_kv_heads=1)
    )
    state = model.init(jax.random.key(0), batch)
    tokens = batch["tokens"]
    full = jax.jit(model.logits)(state, tokens)
    decoder = model.token_decoder(state)
    logits, memory, _ = decoding.prefill(decoder, tokens[:, :4], None, 7)
    np.testing.assert_allclose(logits, full[:, 3], atol=1e-5)
    extend = jax.jit(decoder.extend)
    for t in range(4, 10):
        memory = decoder.grow(memory, 10) if t == 7 else memory
        step = extend(memory, tokens[:, t : t + 1])
        memory = step.memory
        np.testing.assert_allclose(step.logits[:, 0], full[:, t], atol=1e-5)


def test_a_window_decodes_the_same_from_a_ring_as_from_all_places(state, batch, monkeypatch):
    model = dataclasses.replace(MODEL, network=dataclasses.replace(TINY, window=3, num_layers=1, max_length=16))
    params, draft = (model.init(jax.random.key(seed), batch) for seed in (0, 1))
    prompts, lengths = batch["tokens"][:3, :8], jnp.array([8, 2, 5])

    @jax.jit
    def found(state, draft):
        decoder, key = model.token_decoder(state), jax.random.key(2)
        arguments = (prompts, 8)
        return (
            decoding.generate(decoder, key, *arguments),
            decoding.beam_search(decoder, *arguments, num_beams=3, end_token=2, lengths=lengths),
            decoding.speculative(
                decoder, model.token_decoder(draft), key, *arguments, num_proposals=4, lengths=lengths
            ),
        )

    of_ring = found(params, draft)
    shapes = jax.eval_shape(lambda: model.token_decoder(params).init(3, 15, True))
    assert {a.keys.shape for a in shapes.layers} == {(3, 2, 3, 4)}
    monkeypatch.setattr(Transformer, "init_cache", functools.partialmethod(Transformer.init_cache, whole=True))
    found.clear_cache()
    of_all = found(params, draft)

    def compare(ring, whole):
        same = np.testing.assert_array_equal if ring.dtype == jnp.int32 else functools.partial(np.allclose, atol=1e-5)
        assert same(ring, whole) is not False

    jax.tree.map(compare, of_ring, of_all)


def test_low_rank_updates_start_at_the_network_and_train_alone(state, batch):
    model = dataclasses.replace(MODEL, lora=LoRA(rank=2, targets=("query", "down")))
    low = model.init(jax.random.key(0), batch)
    np.testing.assert_allclose(model.logits(low, batch["tokens"]), MODEL.logits(state, batch["tokens"]), atol=1e-6)
    new, _ = jax.jit(model.train_step)(low, batch, jax.random.key(1))
    new, metrics = jax.jit(model.train_step)(new, batch, jax.random.key(2))
    for name in ("embedding", "stack"):
        jax.tree.map(np.testing.assert_array_equal, new.params[name], low.params[name])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), new.params["lora"], low.params["lora"])
    assert all(jax.tree.leaves(moved)) and jnp.isfinite(metrics["loss"])
    assert len(jax.tree.leaves(new.opt_state)) < len(jax.tree.leaves(state.opt_state))
    with pytest.raises(ValueError, match="name no linear map"):
        dataclasses.replace(MODEL, lora=LoRA(targets=("qeury",))).init(jax.random.key(0), batch)


def test_frozen_parameters_stay(batch):
    model = dataclasses.replace(
        MODEL, frozen=("embedding", "stack/layer_0"), optimizer=Adam(learning_rate=1e-2, ema_decay=0.9)
    )
    old = model.init(jax.random.key(0), batch)
    new, _ = jax.jit(model.train_step)(old, batch, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, new.params["embedding"], old.params["embedding"])
    jax.tree.map(np.testing.assert_array_equal, new.params["stack"]["layer_0"], old.params["stack"]["layer_0"])
    assert (
        new.params["stack"]["layer_1"]["mlp"]["up"]["kernel"] != old.params["stack"]["layer_1"]["mlp"]["up"]["kernel"]
    ).any()
    # What stays has no average, and is evaluated beside the averages of what is trained.
    assert "embedding" not in new.ema_params and "layer_0" not in new.ema_params["stack"]
    moved = lambda params: params["stack"]["layer_1"]["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(moved(new.eval_params), moved(new.ema_params))
    frozen = {"embedding": new.eval_params["embedding"], "layer_0": new.eval_params["stack"]["layer_0"]}
    kept = {"embedding": old.params["embedding"], "layer_0": old.params["stack"]["layer_0"]}
    jax.tree.map(np.testing.assert_array_equal, frozen, kept)
    assert jax.tree.structure(new.eval_params) == jax.tree.structure(new.params)


def test_greedy_speculation_writes_what_is_likeliest_to_the_end_of_the_context(batch):
    greedy = decoding.Sampling(temperature=0.0)
    model = dataclasses.replace(MODEL, network=dataclasses.replace(TINY, num_layers=1))
    init = jax.jit(model.init)
    state, draft = (init(jax.random.key(seed), batch) for seed in (0, 1))
    prompts, lengths, key = batch["tokens"][:, :4], jnp.array([4, 2, 3, 1]), jax.random.key(0)
    # 4 + 9 - 1 tokens fill the context, beyond which proposals then reach.
    wanted = jax.jit(lambda: model.generate(state, key, prompts, 9, lengths, sampling=greedy))().tokens
    decoders, options = (
        (model.token_decoder(state), model.token_decoder(draft)),
        {"num_proposals": 3, "sampling": greedy},
    )
    out, passes = jax.jit(lambda: decoding.speculative(*decoders, key, prompts, 9, lengths=lengths, **options))()
    np.testing.assert_array_equal(out.tokens, wanted)
    assert passes <= 9


@pytest.mark.parametrize(
    "frozen, scan, message",
    [
        (
            ("embedding", "stack/layer_2"),
            False,
            "names stack/layer_2, which is no parameter: stack has .*layer_0, layer_1",
        ),
        (
            ("embeding", "stack/layer_0"),
            False,
            "names embeding, which is no parameter: the network has embedding, stack",
        ),
        (("stack/layer_0",), True, "scan_layers=false"),
        (("embedding", "stack"), False, "leaves no parameter to train"),
    ],
)
def test_every_frozen_path_must_name_parameters(frozen, scan, message, batch):
    model = dataclasses.replace(MODEL, frozen=frozen, network=dataclasses.replace(TINY, scan_layers=scan))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), batch)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary", "alibi"])
def test_more_tokens_than_the_context_has_places_are_refused_and_not_guessed(positions, batch):
    model = dataclasses.replace(MODEL, network=dataclasses.replace(TINY, positions=positions))
    state = jax.eval_shape(model.init, jax.random.key(0), batch)
    long = {"tokens": jnp.zeros((2, 14), jnp.int32)}
    calls = (
        lambda s: model.logits(s, long["tokens"]),
        lambda s: model.log_prob(s, long),
        lambda s: model.evaluate(s, long, jax.random.key(0)),
        lambda s: model.attention_weights(s, long),
    )
    for call in calls:
        if positions == "alibi":
            jax.eval_shape(call, state)
            continue
        with pytest.raises(ValueError, match="longest context is model.network.max_length=12"):
            jax.eval_shape(call, state)


def test_gpt2_of_the_experiment_scans_and_recomputes_layers_without_another_result(batch):
    experiment = pytest.importorskip("experiments.configs.language").gpt2_124m()
    network = experiment.model.network
    assert network.scan_layers and network.remat and experiment.model.compute_dtype == "bfloat16"
    sizes = {"num_layers": 2, "width": 8, "num_heads": 2, "max_length": 12, "dropout": 0.1, "init_std": 0.5}
    network = dataclasses.replace(network, **sizes)
    changes = {"vocab_size": 7, "compute_dtype": "float32", "optimizer": MODEL.optimizer, "network": network}
    lean = dataclasses.replace(experiment.model, **changes)
    plain = dataclasses.replace(lean, network=dataclasses.replace(network, scan_layers=False, remat=False))
    params = jax.jit(lean.init)(jax.random.key(0), batch).params
    loss = lambda p, model: model.loss(p, batch, jax.random.key(1))[0]
    value, gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, lean)
    unrolled_params = {**params, "stack": unrolled(params["stack"], network)}
    expected, expected_gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)(unrolled_params, plain)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    gradient = {**gradient, "stack": unrolled(gradient["stack"], network)}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, expected_gradient)


def test_bad_input_is_one_clear_sentence(state, batch):
    with pytest.raises(ValueError, match="longest context"):
        MODEL.init(jax.random.key(0), {"tokens": jnp.zeros((1, 20), jnp.int32)})
    with pytest.raises(ValueError, match="longest context"):
        MODEL.generate(state, jax.random.key(0), batch["tokens"], 10)
    with pytest.raises(ValueError, match="lets a GPT see what it predicts"):
        dataclasses.replace(MODEL, network=dataclasses.replace(TINY, causal=False))
    with pytest.raises(ValueError, match="the prompt has 12 tokens"):
        MODEL.sample(state, jax.random.key(0), 1, prompt=jnp.zeros(12, jnp.int32))
    with pytest.raises(ValueError, match="the prompt has the token 7, which lies outside the vocabulary of 7 tokens"):
        MODEL.generate(state, jax.random.key(0), jnp.array([[1, 7]]), 2)
    for method in (MODEL.log_prob, lambda state, batch: MODEL.evaluate(state, batch, jax.random.key(0))):
        with pytest.raises(ValueError, match="the batch has the token -1"):
            method(state, {"tokens": jnp.array([[1, -1]])})
    with pytest.raises(ValueError, match="the text has the token 9"):
        MODEL.logits(state, jnp.array([[1, 9]]))
    with pytest.raises(ValueError, match="token -1"):
        MODEL.sample(state, jax.random.key(0), 1, prompt=jnp.array([-1]))


@pytest.mark.parametrize("tie_embeddings", [True, False])
def test_logits_are_float32_whatever_the_network_computes_in(tie_embeddings, batch):
    model = dataclasses.replace(MODEL, tie_embeddings=tie_embeddings, compute_dtype="bfloat16")
    params = jax.jit(model.init)(jax.random.key(0), batch).params
    logits, out = jax.jit(lambda p: model.module().apply({"params": p}, batch["tokens"]))(params)
    map_ = params["embedding"]["token"]["embedding"].T if tie_embeddings else params["head"]["kernel"]
    exact = out.x.astype(jnp.float32) @ map_.astype(jnp.bfloat16).astype(jnp.float32)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, exact, rtol=1e-5, atol=1e-5)


def test_padding_does_not_balance_experts(batch):
    experts = MixtureOfExperts(num_experts=4, balance_weight=1.0)
    model = dataclasses.replace(MODEL, network=dataclasses.replace(TINY, num_layers=1, experts=experts))
    state = jax.jit(model.init)(jax.random.key(0), batch)
    mask = jnp.broadcast_to(jnp.arange(10) < 5, (4, 10))
    auxiliary = jax.jit(lambda tokens: model.loss(state.params, {"tokens": tokens, "mask": mask}, jax.random.key(0))[1])
    fills = [jnp.where(mask, batch["tokens"], fill) for fill in (0, batch["tokens"])]
    np.testing.assert_allclose(*(auxiliary(tokens)["auxiliary"] for tokens in fills), rtol=1e-6)


@pytest.mark.parametrize("experts", [None, MixtureOfExperts(num_experts=4)])
@pytest.mark.parametrize("name", ["mask", "loss_mask"])
def test_a_prompt_that_is_not_counted_is_read_all_the_same(experts, name, batch):
    model = dataclasses.replace(MODEL, network=dataclasses.replace(TINY, num_layers=1, experts=experts))
    state, tokens = jax.jit(model.init)(jax.random.key(0), batch), batch["tokens"]
    counted = jnp.arange(10)[None] >= jnp.array([[3], [4], [5], [6]])
    # The chain rule: the answer's nats are those of the whole text at its places.
    log_probs = jax.nn.log_softmax(model.logits(state, tokens[:, :-1]))
    own = jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=2)[..., 0]
    found = model.log_prob(state, {"tokens": tokens, name: counted})
    np.testing.assert_allclose(found, (own * counted[:, 1:]).sum(1), rtol=1e-5)


def test_sizes_are_those_published():
    gpt2 = GPT(vocab_size=50257, network=gpt2_network())
    assert num_parameters(gpt2) == 124439808
    llama = GPT(vocab_size=32000, network=llama_network(32, 4096, 32, mlp_dim=11008), tie_embeddings=False)
    assert num_parameters(llama) == 6738415616
