"""Whisper of the library transformers, tiny and random, beside ours; and its features of sound."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from genjax import decoding
from genjax.data.log_mel import log_mel, mel_filters
from genjax.pretrained import load_pretrained
from tests.interop.exchange import (
    VOCAB,
    build,
    check_gradients,
    check_round_trip,
    close,
    new_tokens,
    torch,
    transformers,
)

START, END = 3, 2
CONFIG = {
    "vocab_size": VOCAB,
    "num_mel_bins": 6,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 10,
    "max_source_positions": 7,
    "max_target_positions": 9,
    "decoder_start_token_id": START,
    "bos_token_id": END,
    "eos_token_id": END,
    "pad_token_id": END,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "init_std": 0.3,
    "dropout": 0.0,
}


def test_features_are_those_of_their_extractor():
    rng = np.random.default_rng(0)
    time = np.arange(16000) / 16000
    clips = [0.3 * np.sin(2 * np.pi * (200 + 1500 * time) * time), rng.normal(size=9000) * 0.1]
    extractor = transformers.WhisperFeatureExtractor(feature_size=80, chunk_length=1)
    theirs = extractor(clips, sampling_rate=16000, return_tensors="np").input_features  # [2, 80, 100]
    np.testing.assert_allclose(mel_filters(80, 400, 16000), extractor.mel_filters, atol=1e-6)
    padded = np.stack([np.pad(clip, (0, 16000 - len(clip))) for clip in clips]).astype(np.float32)
    np.testing.assert_allclose(log_mel(jnp.asarray(padded), 80, 16000), theirs.swapaxes(1, 2), atol=1e-4)


def test_states_logits_loss_gradients_tokens_and_round_trip(tmp_path):
    config = transformers.WhisperConfig(**CONFIG)
    theirs, pretrained = build("WhisperForConditionalGeneration", config, tmp_path / "theirs")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 14, 6)).astype(np.float32)
    targets = rng.integers(4, VOCAB, (2, 5))
    features = torch.tensor(x.swapaxes(1, 2).copy())
    out = theirs(input_features=features, labels=torch.tensor(targets))
    out.loss.backward()

    model = pretrained.model
    assert model.data_shape == (14, 6) and model.sequence_length == 9 and model.start_token == START
    tokens = np.concatenate([np.full((2, 1), START), targets], 1)
    batch = {"x": jnp.asarray(x), "tokens": jnp.asarray(tokens, jnp.int32)}

    @jax.jit
    def ours(params):
        state = pretrained.state.replace(params=params)
        value, gradients = jax.value_and_grad(lambda p: model.loss(p, batch, jax.random.key(0))[0])(params)
        encoded = model.module().apply({"params": params}, batch["x"], method="encode")
        logits = model.module().apply({"params": params}, batch["x"], batch["tokens"][:, :-1])
        greedy = model.describe(state, batch["x"], num_beams=1)
        beam = model.describe(state, batch["x"], num_beams=3)
        return encoded, logits, value, gradients, greedy, beam

    encoded, logits, value, gradients, greedy, beam = ours(pretrained.params)
    close(encoded, out.encoder_last_hidden_state)
    close(logits, out.logits)
    close(value, out.loss)
    check_gradients(model, gradients, theirs)
    # Without their own rules for languages, tasks and time stamps.
    generate = transformers.generation.GenerationMixin.generate
    options = {"input_features": features, "max_new_tokens": 8, "do_sample": False}
    start = {"decoder_input_ids": torch.full((2, 1), START)}
    assert new_tokens(greedy, 0, END) == new_tokens(generate(theirs, **options, **start), 1, END)
    search = {"num_beams": 3, "length_penalty": 0.0, "early_stopping": False}
    assert new_tokens(beam, 0, END) == new_tokens(generate(theirs, **options, **start, **search), 1, END)
    check_round_trip(pretrained, theirs, tmp_path / "ours")


def test_the_bare_model_and_prompts_of_tasks(tmp_path):
    theirs, pretrained = build("WhisperModel", transformers.WhisperConfig(**CONFIG), tmp_path / "theirs", seed=1)
    model, x = pretrained.model, np.random.default_rng(1).normal(size=(2, 14, 6)).astype(np.float32)
    prompts = np.array([[START, 5, 6], [START, 5, 7]])
    with torch.no_grad():
        out = theirs(torch.tensor(x.swapaxes(1, 2).copy()), decoder_input_ids=torch.tensor(prompts))
    network = model.module()
    encoded = network.apply({"params": pretrained.params}, jnp.asarray(x), method="encode")
    close(encoded, out.encoder_last_hidden_state)
    logits, hidden = network.apply({"params": pretrained.params}, jnp.asarray(prompts), encoded, method="decode")
    close(hidden.x, out.last_hidden_state)
    # What is written after a task's tokens begins with the likeliest token after them.
    short = dataclasses.replace(model, max_new_tokens=1)
    greedy = decoding.Sampling(temperature=0.0)
    written = short.generate(pretrained.state, jax.random.key(0), x, jnp.asarray(prompts), sampling=greedy).tokens
    np.testing.assert_array_equal(written[:, 0], logits[:, -1].argmax(-1))
    assert load_pretrained(tmp_path / "theirs").model == model
