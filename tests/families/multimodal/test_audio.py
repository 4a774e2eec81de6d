"""Log-mel features against sums by hand, Whisper's places, and a language model that hears: masks, caches, paths."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import decoding
from genjax.data.log_mel import log_mel, mel_filters
from genjax.errors import UserError
from genjax.families.language.networks import llama_network
from genjax.families.multimodal.audio_encoder import audio_network, places
from genjax.families.multimodal.audio_language_model import AudioLanguageModel
from genjax.families.multimodal.whisper import Whisper
from genjax.nn.transformer import Transformer
from genjax.optimizers import AdamW

RATE, MELS = 8000, 6


def test_features_are_logarithms_of_band_energies():
    x = np.random.default_rng(0).normal(size=(2, 1000)).astype(np.float32) * [[0.1], [0.01]]
    ours = np.asarray(log_mel(jnp.asarray(x), MELS, RATE))
    assert ours.shape == (2, 12, MELS)
    filters = mel_filters(MELS, 200, RATE)
    for clip, row in zip(x, ours):
        padded = np.concatenate([clip[100:0:-1], clip, clip[-2:-102:-1]])
        hann = np.sin(np.pi * np.arange(200) / 200) ** 2
        turns = np.exp(-2j * np.pi * np.outer(np.arange(101), np.arange(200)) / 200)
        energies = np.stack([np.abs(turns @ (hann * padded[80 * f : 80 * f + 200])) ** 2 for f in range(12)])
        levels = np.log10(np.maximum(energies @ filters, 1e-10))
        np.testing.assert_allclose(row, (np.maximum(levels, levels.max() - 8) + 4) / 4, atol=1e-5)
    # A pure tone is loudest in the band that has its frequency, and silence is the floor everywhere.
    tone = np.sin(2 * np.pi * 1000 * np.arange(2000) / RATE)
    band = np.argmax(filters[25])
    assert (np.asarray(log_mel(jnp.asarray(tone[None]), MELS, RATE))[0, 3:-3].argmax(1) == band).all()
    np.testing.assert_allclose(log_mel(jnp.zeros((1, 400)), MELS, RATE), -1.5)


def test_filters_have_area_one_and_slaneys_scale():
    filters = mel_filters(40, 2000, RATE)
    np.testing.assert_allclose(filters.sum(0) * 4, 1.0, atol=2e-2)
    # Below 1000 Hz, bands are equally wide: centres are equally far apart.
    centres = (filters * np.linspace(0, 4000, 1001)[:, None]).sum(0) / filters.sum(0)
    steps = np.diff(centres[centres < 900])
    np.testing.assert_allclose(steps, steps[0], rtol=2e-2)
    above = centres[centres > 1200]
    np.testing.assert_allclose(above[1:] / above[:-1], above[1] / above[0], rtol=1e-2)
    with pytest.raises(UserError, match="200 mel bands are too many for windows of 200 samples at 8000 Hz"):
        mel_filters(200, 200, RATE)
    with pytest.raises(UserError, match="clips of 90 samples are shorter than half a window of 200"):
        log_mel(jnp.zeros((1, 90)), MELS, RATE)


def test_places_turn_once_in_two_pi_and_a_myriad_times_that():
    table = places(100, 8)
    np.testing.assert_allclose(table[:, 0], np.sin(np.arange(100)), atol=1e-5)
    np.testing.assert_allclose(table[:, 7], np.cos(np.arange(100) * 1e-4), atol=1e-5)
    with pytest.raises(UserError, match="even width of at least 4, and the width is 5"):
        places(3, 5)


SMALL = {"mlp_dim": 12, "init_std": 0.3}
HEARING = AudioLanguageModel(
    data_shape=(13, MELS),
    vocab_size=9,
    sequence_length=6,
    start_token=7,
    end_token=8,
    encoder=audio_network(1, 8, 2, **SMALL),
    decoder=llama_network(2, 8, 2, max_length=16, **SMALL),
    frames_per_token=3,
    optimizer=AdamW(learning_rate=1e-2),
)


def started(model):
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 7, (2, 6))
    tokens[:, 0] = 7
    batch = {"x": jnp.asarray(rng.normal(size=(2, 13, MELS)), jnp.float32), "tokens": jnp.asarray(tokens, jnp.int32)}
    return model, jax.jit(model.init)(jax.random.key(0), batch), batch


@pytest.fixture(scope="module")
def heard():
    return started(HEARING)


def test_text_hears_everything_and_sees_no_later_text(heard):
    model, state, batch = heard
    # Seven features of 13 frames make three places.
    assert model.num_before == 3
    out = jax.jit(lambda x, tokens: model.module().apply({"params": state.params}, x, tokens))
    logits = out(batch["x"], batch["tokens"])
    # Every frame reaches the first letter, also the last one, which fills a place with silence.
    reach = jax.grad(lambda x: (out(x, batch["tokens"])[:, 0] ** 2).sum())(batch["x"])
    assert (np.abs(reach).max(2) > 0).all()
    changed = out(batch["x"], batch["tokens"].at[:, 3].set(1))
    np.testing.assert_array_equal(changed[:, :3], logits[:, :3])
    assert np.abs(changed[:, 3:] - logits[:, 3:]).max(2).min() > 0


@pytest.mark.parametrize("positions", ["rotary", "learned"])
def test_cached_and_uncached_logits_are_equal_and_rows_may_differ_in_length(positions, heard):
    if positions == "learned":
        decoder = Transformer(num_layers=1, width=8, num_heads=2, max_length=9, **SMALL)
        heard = started(dataclasses.replace(HEARING, decoder=decoder))
    model, state, batch = heard
    whole = model.module().apply({"params": state.params}, batch["x"], batch["tokens"])
    decoder = model.description_decoder(state, batch["x"])
    memory, found = decoder.init(2, 6, False), []
    for part in (batch["tokens"][:, :2], batch["tokens"][:, 2:3], batch["tokens"][:, 3:]):
        step = decoder.extend(memory, part)
        memory, found = step.memory, [*found, step.logits]
    np.testing.assert_allclose(jnp.concatenate(found, 1), whole, atol=2e-5)
    last, memory, _ = decoding.prefill(decoder, batch["tokens"][:, :4], lengths=jnp.array([4, 2]), capacity=6)
    np.testing.assert_allclose(last, whole[jnp.arange(2), jnp.array([3, 1])], atol=2e-5)
    step = decoder.extend(memory, jnp.array([[0], [batch["tokens"][1, 2]]]))
    np.testing.assert_allclose(step.logits[1, 0], whole[1, 2], atol=2e-5)


def test_a_step_moves_everything_but_the_places(heard):
    model, state, batch = heard
    after, _ = jax.jit(model.train_step)(state, batch, jax.random.key(0))
    moved = {path: bool((a != b).any()) for (path, a), (_, b) in zip(flat(state.params), flat(after.params))}
    assert [path for path, changed in moved.items() if not changed] == ["audio_encoder/places"]


def flat(params):
    return [("/".join(k.key for k in path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(params)]


def test_what_cannot_be_is_refused_in_a_sentence(heard):
    model, state, batch = heard
    for fields, message in (
        ({"frames_per_token": 0}, "model.frames_per_token=0 must be at least 1"),
        ({"decoder": Transformer(positions="sinusoidal")}, "has no places for sound"),
    ):
        with pytest.raises(UserError, match=message):
            dataclasses.replace(HEARING, **fields)
    with pytest.raises(UserError, match=r"sees log-mel features of sound of the shape \(13, 6\), and not \(12, 6\)"):
        model.describe(state, batch["x"][:, :12])
    long = {**batch, "tokens": jnp.zeros((2, 30), jnp.int32)}
    with pytest.raises(UserError, match="the texts, and the 3 features before them, take 32 places, but the longest"):
        model.init(jax.random.key(0), long)
    whisper = Whisper(encoder=audio_network(1, 8, 2), decoder=audio_network(1, 4, 2), vocab_size=9)
    with pytest.raises(UserError, match="model.decoder.width=4 must equal model.encoder.width=8"):
        whisper.module()
