"""T5 in both forms and BART of the library transformers, tiny and random, beside ours."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import decoding
from genjax.pretrained import load_pretrained, save_pretrained
from tests.interop.exchange import (
    PADDING,
    VOCAB,
    build,
    check_gradients,
    check_round_trip,
    close,
    new_tokens,
    padded,
    torch,
    transformers,
)

END = 2
TOKENS = {"vocab_size": VOCAB, "pad_token_id": PADDING, "eos_token_id": END}
T5 = {
    **TOKENS,
    "d_model": 8,
    "d_kv": 6,
    "d_ff": 12,
    "num_layers": 2,
    "num_decoder_layers": 1,
    "num_heads": 2,
    "relative_attention_num_buckets": 4,
    "relative_attention_max_distance": 6,
    "dropout_rate": 0.0,
    "decoder_start_token_id": PADDING,
}
BART = {
    **TOKENS,
    "bos_token_id": 0,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 10,
    "max_position_embeddings": 16,
    "dropout": 0.0,
    "init_std": 0.3,
    "scale_embedding": True,
    "forced_eos_token_id": None,
}
CASES = {
    "t5": ("T5ForConditionalGeneration", transformers.T5Config, T5, "left"),
    "t5_gated": ("T5ForConditionalGeneration", transformers.T5Config,
                 {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, "right"),
    "bart": ("BartForConditionalGeneration", transformers.BartConfig, BART, "right"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_logits_loss_gradients_tokens_and_round_trip(case, tmp_path):
    cls, config, settings, side = CASES[case]
    theirs, pretrained = build(cls, config(**settings), tmp_path / "theirs", seed=1)
    if case == "bart":
        theirs.final_logits_bias.normal_()
        theirs.save_pretrained(tmp_path / "theirs")
        pretrained = load_pretrained(tmp_path / "theirs")
    source, mask = padded(side)
    targets = np.random.default_rng(1).integers(5, VOCAB, (2, 5))
    inputs = {"input_ids": torch.tensor(source), "attention_mask": torch.tensor(mask)}
    out = theirs(**inputs, labels=torch.tensor(targets))
    out.loss.backward()

    model = dataclasses.replace(pretrained.model, label_smoothing=0.0, sequence_length=6)
    start = model.special_tokens().start
    batch = {"source": source, "source_mask": mask, "tokens": np.concatenate([np.full((2, 1), start), targets], 1)}
    batch = {name: jnp.asarray(a) for name, a in batch.items()}

    @jax.jit
    def ours(params):
        state = pretrained.state.replace(params=params)
        value, gradients = jax.value_and_grad(lambda p: model.loss(p, batch, jax.random.key(0))[0])(params)
        logits = model.logits(state, batch["tokens"][:, :-1], batch["source"], batch["source_mask"])
        features = model.encode_source(state, batch["source"], batch["source_mask"])
        greedy = model.generate(
            state, jax.random.key(0), batch["source"], batch["source_mask"], sampling=decoding.Sampling(temperature=0.0)
        ).tokens
        beam = model.translate(state, batch["source"], batch["source_mask"], num_beams=3, alpha=0.0)
        return logits, features, value, gradients, greedy, beam

    logits, features, value, gradients, greedy, beam = ours(pretrained.params)
    close(features[mask], out.encoder_last_hidden_state[torch.tensor(mask)])
    close(logits, out.logits)
    close(value, out.loss)
    check_gradients(model, gradients, theirs)
    options = {**inputs, "max_new_tokens": 6, "do_sample": False}
    assert new_tokens(greedy, 0, END) == new_tokens(theirs.generate(**options), 1, END)
    best = theirs.generate(**options, num_beams=3, length_penalty=0.0, early_stopping=False)
    assert new_tokens(beam, 0, END) == new_tokens(best, 1, END)
    check_round_trip(pretrained, theirs, tmp_path / "ours")


def test_t5_with_an_output_map_of_its_own(tmp_path):
    cls, config, settings, _ = CASES["t5_gated"]
    _, pretrained = build(cls, config(**settings), tmp_path / "theirs", seed=1)
    model = dataclasses.replace(pretrained.model, tie_embeddings=False)
    head = jax.random.normal(jax.random.key(0), (8, VOCAB))
    params = {**pretrained.params, "head": {"kernel": head}}
    save_pretrained(tmp_path / "ours", model, params)
    theirs = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "ours").eval()
    again = load_pretrained(tmp_path / "ours")
    assert again.model == model
    source, mask = padded("right")
    with torch.no_grad():
        out = theirs(
            torch.tensor(source), attention_mask=torch.tensor(mask), decoder_input_ids=torch.tensor(source[:, :4])
        )
    logits = jax.jit(model.logits)(again.state, jnp.asarray(source[:, :4]), jnp.asarray(source), jnp.asarray(mask))
    close(logits, out.logits)
    # What their configuration cannot say would be computed otherwise there.
    sinusoidal = {n: dataclasses.replace(getattr(model, n), positions="sinusoidal") for n in ("encoder", "decoder")}
    for changes, named in (
        ({"embedding_scale": None}, "embedding_scale=2.8"),
        (sinusoidal, "encoder.positions='sinus"),
    ):
        with pytest.raises(ValueError, match=f"transformers has no t5 with {named}"):
            save_pretrained(tmp_path / "none", dataclasses.replace(model, **changes), params)
    assert not (tmp_path / "none").exists()
