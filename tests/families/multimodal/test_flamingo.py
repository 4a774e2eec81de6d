"""Flamingo: bit-equal to its language model at the start, what sees which picture, caches, films, and bad input."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import decoding
from genjax.errors import UserError
from genjax.families.language.gpt import GPT
from genjax.families.multimodal.flamingo import Flamingo
from genjax.families.multimodal.flamingo_layers import PerceiverResampler, Resampler
from genjax.nn.transformer import Transformer
from genjax.optimizers import AdamW

IMAGE = 8
STACK = {"width": 8, "num_heads": 2, "mlp_dim": 12, "init_std": 0.3}
MODEL = Flamingo(
    data_shape=(3, 8, 8, 3),
    vocab_size=9,
    sequence_length=8,
    start_token=6,
    end_token=7,
    image_token=IMAGE,
    decoder=Transformer(num_layers=2, max_length=12, **STACK),
    vision=Transformer(num_layers=1, **STACK),
    patch_size=4,
    resampler=Resampler(num_latents=2, num_layers=1, num_heads=2),
    first=1,
    optimizer=AdamW(learning_rate=1e-2),
)
#: Two pictures in the first row, at places 2 and 5; three in the second, at 0, 1 and 7.
TOKENS = np.array([[6, 1, 8, 2, 3, 8, 4, 5], [8, 8, 1, 2, 3, 4, 5, 8]])
NUMBERS = np.array([[0, 0, 1, 1, 1, 2, 2, 2], [1, 2, 2, 2, 2, 2, 2, 3]])


@pytest.fixture(scope="module")
def start():
    batch = {"x": jax.random.normal(jax.random.key(1), (2, 3, 8, 8, 3)), "tokens": jnp.asarray(TOKENS, jnp.int32)}
    return jax.jit(MODEL.init)(jax.random.key(0), batch), batch


@pytest.fixture(scope="module")
def opened(start):
    """The state with all gates open."""
    state, batch = start
    params = dict(state.params)
    params["gated_1"] = {**params["gated_1"], "cross_attention_gate": jnp.ones(1), "mlp_gate": jnp.full(1, -0.5)}
    return state.replace(params=params), batch


@jax.jit
def logits(params, x, tokens):
    return MODEL.module().apply({"params": params}, x, tokens, MODEL.picture_number(tokens))


def test_at_the_start_logits_are_those_of_the_language_model_to_the_bit(start, opened):
    state, batch = start
    gpt = GPT(vocab_size=9, network=MODEL.decoder)
    own = {name: state.params[name] for name in ("embedding", "stack")}
    expected = np.asarray(jax.jit(lambda p, t: gpt.module().apply({"params": p}, t)[0])(own, batch["tokens"]))
    assert np.asarray(logits(state.params, batch["x"], batch["tokens"])).tobytes() == expected.tobytes()
    assert np.abs(logits(opened[0].params, batch["x"], batch["tokens"]) - expected).max() > 0.1
    # Other parameters than the gates get no gradient of pictures yet, but the gates do.
    frozen = dataclasses.replace(MODEL, frozen=("embedding", "stack", "vision_encoder"))
    after, metrics = jax.jit(frozen.train_step)(frozen.start(jax.random.key(0), state.params), batch, jax.random.key(0))
    assert metrics["open_gates"] == 0.0 and np.abs(after.params["gated_1"]["cross_attention_gate"]) > 0
    for name in frozen.frozen:
        jax.tree.map(np.testing.assert_array_equal, after.params[name], state.params[name])


def test_the_encoder_learns_at_once_where_gates_begin_open(start):
    _, batch = start
    steepest = {}
    for gate in (0.0, 1.0):
        model = dataclasses.replace(MODEL, initial_gate=gate)
        params = jax.jit(model.init)(jax.random.key(0), batch).params
        assert params["gated_1"]["cross_attention_gate"] == params["gated_1"]["mlp_gate"] == gate
        loss = lambda p, model=model: model.loss(p, batch, jax.random.key(1))[0]
        found = jax.jit(jax.grad(loss))(params)
        steepest[gate] = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(found["vision_encoder"]))
    assert steepest[0.0] == 0.0 and steepest[1.0] > 1e-6


def test_each_place_sees_the_last_picture_alone_by_gradients(opened):
    state, batch = opened
    np.testing.assert_array_equal(MODEL.picture_number(batch["tokens"]), NUMBERS)
    module = MODEL.module()
    pictures = module.apply({"params": state.params}, batch["x"], method="encode")
    x = jax.random.normal(jax.random.key(2), (2, 8, 8))
    # A text that counts on after its last picture sees none.
    numbers = np.where(np.arange(8) == 7, [[2], [4]], NUMBERS)
    block = lambda params, pictures: module.bind({"params": params}).gated["1"](x, pictures, jnp.asarray(numbers))[0]
    # [B, T, B, N]: how each place depends on each picture.
    summed = jax.jit(jax.jacrev(lambda pictures: block(state.params, pictures).sum(-1)))
    reach = np.abs(summed(pictures)).max((-1, -2))
    seen = (numbers[:, :, None] == np.arange(1, 4)[None, None])[:, :, None] & np.eye(2, dtype=bool)[:, None, :, None]
    np.testing.assert_array_equal(reach > 0, seen)
    # Before the first picture the block adds what the hidden layer makes of the text, and of pictures exactly 0.
    zero = jax.tree.map(jnp.zeros_like, state.params["gated_1"]["mlp"])
    params = {**state.params, "gated_1": {**state.params["gated_1"], "mlp": zero}}
    silent, none = np.asarray(jax.jit(block)(params, pictures)), (numbers == 0) | (numbers > 3)
    np.testing.assert_array_equal(silent[none], x[none])
    assert np.abs(silent - x)[~none].max(-1).min() > 0


def test_text_sees_all_text_and_pictures_through_it(opened):
    state, batch = opened
    base = np.asarray(logits(state.params, batch["x"], batch["tokens"]))
    moved = lambda x, tokens: np.abs(np.asarray(logits(state.params, x, tokens)) - base).max(-1) > 1e-6
    # The second picture of the first row stands at place 5, the third picture of that row nowhere.
    np.testing.assert_array_equal(moved(batch["x"].at[:, 1].add(1.0), batch["tokens"])[0], np.arange(8) >= 5)
    np.testing.assert_array_equal(moved(batch["x"].at[:, 2].add(1.0), batch["tokens"])[0], False)
    # The first word reaches everything behind it, past both pictures.
    np.testing.assert_array_equal(moved(batch["x"], batch["tokens"].at[0, 1].set(5))[0], np.arange(8) >= 1)


def test_a_cache_carries_the_number_of_pictures(opened):
    state, batch = opened
    whole = np.asarray(logits(state.params, batch["x"], batch["tokens"]))
    decoder = MODEL.description_decoder(state, batch["x"])
    memory, found = decoder.init(2, 8, False), []
    for first, last in ((0, 4), (4, 6), (6, 8)):
        step = decoder.extend(memory, batch["tokens"][:, first:last])
        memory, found = step.memory, [*found, step.logits]
    np.testing.assert_allclose(jnp.concatenate(found, 1), whole, atol=2e-5)
    # Rows of different lengths, read too far and rewound, in a cache that grows.
    last, memory, _ = decoding.prefill(decoder, batch["tokens"][:, :6], lengths=jnp.array([5, 2]), capacity=6)
    np.testing.assert_allclose(last, whole[jnp.arange(2), jnp.array([4, 1])], atol=2e-5)
    memory, extend = decoder.grow(memory, 9), jax.jit(decoder.extend)
    for k in range(3):
        places = np.array([5, 2]) + k
        step = extend(memory, batch["tokens"][np.arange(2), places][:, None])
        np.testing.assert_allclose(step.logits[:, 0], whole[np.arange(2), places], atol=2e-5)
        memory = step.memory
    # A text that writes image tokens itself goes on counting.
    counts = extend(memory, jnp.full((2, 1), IMAGE)).memory["counts"]
    assert counts[0, 9] == 3 and counts[1, 6] == 3


def test_the_next_picture_is_seen_where_training_says_so(opened):
    state, batch = opened
    ahead = dataclasses.replace(MODEL, next_picture=1.0)
    number = np.minimum(NUMBERS + 1, NUMBERS[:, -1:])[:, :-1]
    expected = MODEL.module().apply({"params": state.params}, batch["x"], batch["tokens"][:, :-1], jnp.asarray(number))
    keys = jax.random.split(jax.random.key(0), 2)
    np.testing.assert_allclose(ahead._logits(state.params, batch, keys), expected, atol=1e-6)
    np.testing.assert_allclose(ahead._logits(state.params, batch), MODEL._logits(state.params, batch), atol=1e-6)


def test_films_are_pictures_in_time():
    module = PerceiverResampler(Resampler(num_latents=2, num_layers=1, num_heads=2, num_frames=3))
    features = jax.random.normal(jax.random.key(0), (1, 3, 4, 8))
    params = module.init(jax.random.key(1), features)
    out = module.apply(params, features)
    assert out.shape == (1, 2, 8)
    # The order of places is told by their features alone, the order of frames by the embeddings.
    np.testing.assert_allclose(module.apply(params, features[:, :, ::-1]), out, atol=1e-5)
    assert np.abs(module.apply(params, features[:, ::-1]) - out).max() > 1e-4
    still = {"params": {**params["params"], "times": jnp.zeros((3, 8))}}
    np.testing.assert_allclose(module.apply(still, features), module.apply(still, features[:, ::-1]), atol=1e-5)
    with pytest.raises(UserError, match="films of 4 frames are longer than model.resampler.num_frames=3"):
        module.apply(params, jnp.zeros((1, 4, 4, 8)))
    with pytest.raises(UserError, match="films of 3 frames need model.resampler.num_frames, which is 0"):
        PerceiverResampler(Resampler()).init(jax.random.key(0), features)


def test_what_cannot_be_is_refused_in_a_sentence(opened):
    state, batch = opened
    for fields, message in (
        ({"every": 0}, "model.every=0 put no gated block before any of the 2 layers"),
        ({"first": 2}, "model.first=2 and model.every=1 put no gated block"),
        ({"next_picture": 1.5}, "model.next_picture=1.5 must be a probability"),
    ):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(MODEL, **fields)
    for count, pictures in ((1, "1 picture"), (2, "2 pictures")):
        with pytest.raises(UserError, match=f"a prompt has 3 image tokens for {pictures}, each worth one token; give"):
            MODEL.describe(state, batch["x"][:, :count], batch["tokens"])
    with pytest.raises(UserError, match=r"of the shape \(8, 8, 3\), several a text, and not x of \(2, 8, 8, 3\)"):
        MODEL.describe(state, batch["x"][:, 0], batch["tokens"])
    with pytest.raises(UserError, match="blocks stand before single layers: take network.scan_layers=false"):
        scanned = dataclasses.replace(MODEL, decoder=dataclasses.replace(MODEL.decoder, scan_layers=True))
        jax.eval_shape(scanned.init, jax.random.key(0), batch)
    with pytest.raises(UserError, match="model.resampler.num_latents=0 must be at least 1"):
        Resampler(num_latents=0)
