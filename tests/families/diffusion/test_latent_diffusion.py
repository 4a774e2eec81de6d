"""Latent diffusion: codes and their scale, frozen parts, texts, and what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.batch import example_keys
from genjax.errors import UserError
from genjax.families.diffusion import code_editing
from genjax.families.diffusion.diffusion import Diffusion
from genjax.families.diffusion.guidance import Guidance
from genjax.families.diffusion.latent_diffusion import LatentDiffusion
from genjax.families.diffusion.networks import ResidualMLP
from genjax.families.diffusion.samplers import DDIM
from genjax.families.diffusion.stable_diffusion import StableDiffusion
from genjax.families.diffusion.unet import UNet
from genjax.families.multimodal.clip_text import TextEncoder
from genjax.families.multimodal.networks import clip_network
from genjax.families.vae.autoencoder_kl import AutoencoderKL
from genjax.families.vae.picture_autoencoder import PictureNetwork
from genjax.families.vae.vae import VAE
from genjax.nn.lora import LoRA
from genjax.optimizers import SGD, AdamW

CODER = AutoencoderKL(network=PictureNetwork(channels=(4, 4), num_groups=2))
OPTIMIZER = AdamW(learning_rate=1e-2, weight_decay=0.1, ema_decay=0.5)
MODEL = LatentDiffusion(
    data_shape=(8, 8, 3),
    autoencoder=CODER,
    diffusion=Diffusion(
        network=ResidualMLP(hidden_dim=8, num_blocks=1), sampler=DDIM(num_steps=2), optimizer=OPTIMIZER
    ),
)
X = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 8, 8, 3)), jnp.float32)
BATCH = {"x": X}


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda p, q: bool((p == q).all()), a, b)))


@pytest.fixture(scope="module")
def steps():
    state = jax.jit(MODEL.init)(jax.random.key(0), BATCH)
    step = jax.jit(MODEL.train_step)
    first, metrics = step(state, BATCH, jax.random.key(1))
    second, _ = step(first, {"x": 3.0 * X}, jax.random.key(2))
    return state, first, second, metrics


def test_the_first_batch_fixes_the_scale_of_codes(steps):
    state, first, second, metrics = steps

    @jax.jit
    def by_hand(params, scale):
        keys = example_keys(jax.random.fold_in(jax.random.key(1), 1), BATCH)
        z = MODEL.codes(params, X, keys)
        inner = {"x": z * scale}
        return z, MODEL.code_model().loss(params["diffusion"], inner, jax.random.key(1), jnp.zeros(()))[0]

    z, expected = by_hand(state.params, first.learned["scale"])
    np.testing.assert_allclose(first.learned["scale"], 1.0 / z.std(), rtol=1e-5)
    assert float(second.learned["scale"]) == float(first.learned["scale"])
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
    found = jax.jit(MODEL.evaluate)(first, BATCH, jax.random.key(3))
    assert 0.8 < float(found["code_std"].mean()) < 1.3 and found["loss"].shape == (4,)


def test_the_autoencoder_and_its_average_stay_as_they_are(steps):
    state, _, second, _ = steps
    assert same(state.params["autoencoder"], second.params["autoencoder"])
    assert same(state.params["autoencoder"], second.eval_params["autoencoder"])
    assert not same(second.params["diffusion"], second.eval_params["diffusion"])
    assert set(second.ema_params) == {"diffusion"}


def test_the_scale_leaves_the_round_trip_unchanged(steps):
    first = steps[1]

    def trips(model):
        def both(state):
            codes = model.encode_pictures(state, X)
            z = model.codes(state.params, X, None)
            return codes, z, model.decode_codes(state, codes), model.reconstruct(state, BATCH, jax.random.key(0))

        return jax.jit(both)

    _, _, again, expected = trips(MODEL)(first)
    np.testing.assert_allclose(again, expected, atol=5e-6)
    known = dataclasses.replace(MODEL, autoencoder=dataclasses.replace(CODER, scaling_factor=0.2, shift_factor=0.5))
    assert jax.eval_shape(known.init, jax.random.key(0), BATCH).learned == {}
    codes, z, again, expected = trips(known)(first.replace(learned={}))
    np.testing.assert_allclose(codes, (z - 0.5) * 0.2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(again, expected, atol=5e-6)


def test_samples_are_decoded_codes(steps):
    first = steps[1]

    @jax.jit
    def both(state):
        codes = MODEL.code_model().sample(MODEL.diffusion_state(state), jax.random.key(5), 3)
        return MODEL.sample(state, jax.random.key(5), 3), MODEL.decode_codes(state, codes)

    own, expected = both(first)
    assert own.shape == (3, 8, 8, 3)
    np.testing.assert_allclose(own, expected, atol=1e-5)


def test_a_start_without_a_trained_autoencoder_is_refused():
    with pytest.raises(UserError, match="codes of a trained AutoencoderKL; give its run by"):
        MODEL.check_start(None)
    with pytest.raises(UserError, match="VAE is none"):
        MODEL.check_start(VAE())
    with pytest.raises(UserError, match=r"latent_channels=4, but the codes of training.init_from have 8"):
        MODEL.check_start(dataclasses.replace(CODER, latent_channels=8))
    MODEL.check_start(CODER)
    dataclasses.replace(MODEL, untrained_autoencoder=True).check_start(None)
    with pytest.raises(UserError, match="multiples of 2"):
        dataclasses.replace(MODEL, data_shape=(7, 8, 3)).code_model()


# ----------------------------------------------------------------------------------------------------------------------
# Texts

EMPTY = (1, 2, 2, 2)
TEXT = TextEncoder(vocab_size=9, end_token=2, network=clip_network(2, 8, 2, max_length=4))
WITH_TEXT = StableDiffusion(
    data_shape=(8, 8, 3),
    autoencoder=dataclasses.replace(CODER, scaling_factor=0.5),
    text=TEXT,
    empty_tokens=EMPTY,
    diffusion=Diffusion(
        network=UNet(
            channels=4,
            channel_multipliers=(1,),
            num_blocks=1,
            attention_levels=(0,),
            num_heads=2,
            transformer_depths=(1,),
            scale_shift_norm=False,
        ),
        condition_on=("context",),
        sampler=DDIM(num_steps=2),
        guidance=Guidance(scale=2.0),
        optimizer=OPTIMIZER,
    ),
    lora=LoRA(rank=2),
)
TOKENS = jnp.array([[1, 5, 2, 2], [1, 6, 7, 2], [1, 8, 2, 2], [1, 3, 4, 2]])


@pytest.fixture(scope="module")
def texts():
    state = jax.jit(WITH_TEXT.init)(jax.random.key(0), {"x": X, "tokens": TOKENS})
    moved = jax.tree.map(
        lambda p: p + 0.1 * jnp.sin(jnp.arange(p.size, dtype=jnp.float32)).reshape(p.shape), state.params
    )
    return state.replace(params=moved, ema_params=None)


def test_low_rank_updates_of_the_diffusion_model_alone_are_trained(texts):
    batch = {"x": X, "tokens": TOKENS}
    state = texts.replace(ema_params={"lora": texts.params["lora"]})
    new, _ = jax.jit(WITH_TEXT.train_step)(state, batch, jax.random.key(1))
    assert not same(state.params["lora"], new.params["lora"])
    assert set(state.params["lora"]) == {"diffusion"}
    for name in ("autoencoder", "diffusion", "text"):
        assert same(state.params[name], new.params[name])


def test_dropped_texts_are_the_empty_text(texts):
    batch = {"x": X, "tokens": TOKENS}
    empty = {"x": X, "tokens": jnp.broadcast_to(jnp.array(EMPTY), TOKENS.shape)}
    change = lambda rate: dataclasses.replace(
        WITH_TEXT, diffusion=dataclasses.replace(WITH_TEXT.diffusion, condition_dropout=rate)
    )

    def coded(rate, batch):
        run = jax.jit(lambda p: change(rate).coded(p, {}, batch, jax.random.key(2), training=True)["context"])
        return run(texts.params)

    np.testing.assert_allclose(coded(1.0, batch), coded(0.0, empty), atol=1e-6)
    some = coded(0.5, batch)
    kept = jnp.abs(some - coded(0.0, batch)).max((1, 2)) < 1e-6
    dropped = jnp.abs(some - coded(0.0, empty)).max((1, 2)) < 1e-6
    assert bool((kept ^ dropped).all()) and 0 < int(kept.sum()) < 4


def test_guidance_leads_away_from_the_negative_text(texts):
    sample = jax.jit(lambda tokens, negative: WITH_TEXT.sample(
        texts, jax.random.key(3), 4, tokens=tokens, negative_tokens=negative
    ))  # fmt: skip
    other = jnp.roll(TOKENS, 1, 0)
    plain = dataclasses.replace(WITH_TEXT, diffusion=dataclasses.replace(WITH_TEXT.diffusion, guidance=Guidance()))
    expected = jax.jit(lambda tokens: plain.sample(texts, jax.random.key(3), 4, tokens=tokens))(TOKENS)
    np.testing.assert_allclose(sample(TOKENS, TOKENS), expected, atol=1e-5)
    # The network is not trained, so its texts change little.
    assert float(jnp.abs(sample(TOKENS, other) - expected).max()) > 2e-4


def test_texts_are_filled_up_with_the_encoders_padding():
    mask = jnp.array([[True, True, False]])
    padded = WITH_TEXT.padded_tokens(jnp.array([[1, 5, 0]]), mask, None)
    np.testing.assert_array_equal(padded, [[1, 5, 2, 2]])
    with pytest.raises(UserError, match="5 tokens, and the encoder reads 4"):
        WITH_TEXT.padded_tokens(jnp.zeros((1, 5), jnp.int32), None, None)
    with pytest.raises(UserError, match="pictures with texts, and the batch has only x"):
        WITH_TEXT.with_conditions({}, BATCH, jax.random.key(0))


def test_edits_start_at_the_code_of_a_picture_and_keep_what_is_known(texts):
    rng = np.random.default_rng(1)
    noise, code_noise = (jnp.asarray(rng.normal(size=(4, 4, 4, 4)), jnp.float32) for _ in range(2))
    given = {"tokens": TOKENS, "noise": noise, "code_noise": code_noise}

    @jax.jit
    def all_of_them(state):
        edited = lambda **options: code_editing.edit(WITH_TEXT, state, jax.random.key(0), X, **given, **options)
        code = code_editing.code_of(WITH_TEXT, state, state.params, X, code_noise)
        # The last of two steps of DDIM ends at the estimate of the data.
        model = WITH_TEXT.code_model()
        params = WITH_TEXT.merged_params(state.params)
        condition = WITH_TEXT.text_condition(params, TOKENS)
        denoise = model.denoiser(params["diffusion"], condition, empty=WITH_TEXT.empty_condition(params, 4))
        t = jnp.asarray(0.5)
        z = model.process.alpha(t) * code + model.process.sigma(t) * noise
        decoded = lambda codes: WITH_TEXT.decode_codes(state, codes)
        by_hand = decoded(denoise(z, t, jnp.zeros_like(z)).x0)
        kept = edited(strength=1.0, known=jnp.ones((1, 8, 8, 1)))
        return (edited(strength=0.5), by_hand), (kept, decoded(code))

    for found, expected in all_of_them(texts):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_of_a_new_word_its_embedding_alone_is_trained(texts):
    frozen = ("autoencoder", "text", "diffusion")
    model = dataclasses.replace(WITH_TEXT, lora=None, new_tokens=2, new_tokens_from=5, frozen=frozen)
    params = {name: texts.params[name] for name in ("autoencoder", "text", "diffusion")}
    params |= model.first_new_tokens(params["text"])
    table = params["text"]["text_embedding"]["token"]["embedding"]
    np.testing.assert_array_equal(params["new_tokens"]["embedding"], table[jnp.array([5, 5])])
    # Numbers 9 and 10 follow the vocabulary of 9; the second is in no text.
    batch = {"x": X, "tokens": TOKENS.at[:, 1].set(9)}
    trained = model.trained_params(params)
    assert set(trained) == {"new_tokens"}
    state = texts.replace(params=params, ema_params=None, opt_state=SGD(learning_rate=1.0).build().init(trained))
    model = dataclasses.replace(model, diffusion=dataclasses.replace(model.diffusion, optimizer=SGD(learning_rate=1.0)))
    new, metrics = jax.jit(model.train_step)(state, batch, jax.random.key(1))
    for name in ("autoencoder", "diffusion", "text"):
        assert same(params[name], new.params[name])
    moved = new.params["new_tokens"]["embedding"] - params["new_tokens"]["embedding"]
    assert float(jnp.abs(moved[0]).max()) > 1e-6 and not moved[1].any()
    # A word that starts at another is that word, whose loss is known.
    plain = dataclasses.replace(WITH_TEXT, lora=None)
    known = jax.jit(lambda p, b, k: plain.loss(p, b, k, {})[0])
    same_word = {**batch, "tokens": TOKENS.at[:, 1].set(5)}
    np.testing.assert_allclose(metrics["loss"], known(params, same_word, jax.random.key(1)), rtol=1e-5)

    # DreamBooth's loss is the sum of two, the second weighted.
    weighted = dataclasses.replace(plain, prior_weight=0.3)
    prior = {"x": -X, "tokens": TOKENS}
    both = {**same_word, **{f"prior_{name}": value for name, value in prior.items()}}
    key = jax.random.key(2)
    loss, metrics = jax.jit(lambda p, b: weighted.loss(p, b, key, {}))(params, both)
    second = known(params, prior, jax.random.fold_in(key, 4))
    np.testing.assert_allclose(metrics["prior_loss"], second, rtol=1e-5)
    np.testing.assert_allclose(loss, known(params, same_word, key) + 0.3 * second, rtol=1e-5)
    for change, given, words in (
        (
            {"prior_weight": 0.3},
            same_word,
            "give the batch prior_x and prior_tokens, as --data=subject .* or prior_weight=0",
        ),
        ({"new_tokens": 1, "new_tokens_from": 9}, None, "new_tokens_from=9 is no token of the vocabulary of 9"),
        ({"new_tokens": 1, "second_text": TEXT}, None, "SDXL has two; give 0"),
    ):
        refused = dataclasses.replace(plain, **change)
        with pytest.raises(UserError, match=words):
            refused.first_new_tokens(params["text"]) if given is None else refused.loss(params, given, key, {})
