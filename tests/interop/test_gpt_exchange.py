"""GPT-2, Llama, Mistral, Qwen2, Qwen3 and Gemma of the library transformers, tiny and random, beside ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import decoding
from tests.interop.exchange import (
    LENGTHS,
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
COMMON = {
    "vocab_size": VOCAB,
    "pad_token_id": PADDING,
    "bos_token_id": 0,
    "eos_token_id": END,
    "initializer_range": 0.3,
}
LLAMA = {
    **COMMON,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 8}
CASES = {
    "gpt2": ("GPT2LMHeadModel", {**COMMON, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2,
                                 "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    "llama": ("LlamaForCausalLM", {**LLAMA, "rope_parameters": LLAMA3, "attention_bias": True}),
    "llama_tied": ("LlamaForCausalLM", {**LLAMA, "tie_word_embeddings": True, "head_dim": 6, "mlp_bias": True,
                                        "num_key_value_heads": 4,
                                        "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "mistral": ("MistralForCausalLM", {**LLAMA, "num_key_value_heads": 1, "sliding_window": 3}),
    "qwen2": ("Qwen2ForCausalLM", {**LLAMA, "tie_word_embeddings": True, "rope_parameters": YARN}),
    "qwen3": ("Qwen3ForCausalLM", {**LLAMA, "head_dim": 8, "use_sliding_window": True, "sliding_window": 4,
                                   "max_window_layers": 0}),
    "gemma": ("GemmaForCausalLM", {**LLAMA, "head_dim": 6, "num_key_value_heads": 1}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_logits_loss_gradients_and_round_trip(case, tmp_path):
    cls, settings = CASES[case]
    config = getattr(transformers, cls.replace("LMHeadModel", "Config").replace("ForCausalLM", "Config"))(**settings)
    theirs, pretrained = build(cls, config, tmp_path / "theirs")
    model = pretrained.model
    (left, left_mask), (right, right_mask) = padded("left"), padded("right")
    both, mask = np.concatenate([left, right]), np.concatenate([left_mask, right_mask])
    places = np.maximum(np.cumsum(mask, 1) - 1, 0)
    out = theirs(torch.tensor(both), attention_mask=torch.tensor(mask), position_ids=torch.tensor(places))
    whole = torch.tensor(left[:1].repeat(2, 0))
    loss = theirs(whole, labels=whole).loss
    loss.backward()

    @jax.jit
    def ours(params):
        state = pretrained.state.replace(params=params)
        batch = {"tokens": jnp.asarray(whole.numpy())}
        value, gradients = jax.value_and_grad(lambda p: model.loss(p, batch, jax.random.key(0))[0])(params)
        return model.logits(state, jnp.asarray(both), mask=jnp.asarray(mask)), value, gradients

    logits, value, gradients = ours(pretrained.params)
    close(logits[mask], out.logits[torch.tensor(mask)])
    close(value, loss)
    check_gradients(model, gradients, theirs)
    check_round_trip(pretrained, theirs, tmp_path / "ours")


@pytest.mark.parametrize("case, ends", [("gpt2", END), ("llama", [2, *range(9, 15)])])
def test_greedy_and_beam_tokens(case, ends, tmp_path):
    cls, settings = CASES[case]
    settings = {**settings, "eos_token_id": ends}
    config = getattr(transformers, cls.replace("LMHeadModel", "Config").replace("ForCausalLM", "Config"))(**settings)
    theirs, pretrained = build(cls, config, tmp_path, seed=3)
    model, (left, left_mask), (right, _) = pretrained.model, padded("left"), padded("right")
    for row, length in enumerate(LENGTHS):
        right[row, :length] = left[row, 7 - length :]
    inputs = {"attention_mask": torch.tensor(left_mask), "max_new_tokens": 6, "do_sample": False}
    greedy = theirs.generate(torch.tensor(left), **inputs)
    beam = theirs.generate(torch.tensor(left), **inputs, num_beams=3, length_penalty=0.0, early_stopping=False)

    @jax.jit
    def ours(state, prompts, lengths):
        first = model.generate(
            state, jax.random.key(0), prompts, 6, lengths, sampling=decoding.Sampling(temperature=0.0)
        ).tokens
        best = decoding.beam_search(
            model.token_decoder(state), prompts, 6, num_beams=3, end_token=model.end_token, lengths=lengths
        )
        return first, best.tokens[:, 0]

    first, best = ours(pretrained.state, jnp.asarray(right), jnp.asarray(LENGTHS))
    assert model.end_token == (END if ends == END else tuple(ends))
    ends = decoding.end_tokens(model.end_token)
    assert new_tokens(first, 0, *ends) == new_tokens(greedy, 7, *ends)
    assert new_tokens(best, 0, *ends) == new_tokens(beam, 7, *ends)
