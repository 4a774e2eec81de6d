"""BLIP, GIT and VisionEncoderDecoderModel of the library transformers, tiny and random, beside ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.interop.safetensors import read_folder
from genjax.pretrained import load_pretrained, save_pretrained
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

START, END, PADDING, NEW = 0, 2, 1, 5
VISION = {
    "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
TEXT = {
    "vocab_size": VOCAB, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
    "max_position_embeddings": 24, "bos_token_id": START, "pad_token_id": PADDING,
}  # fmt: skip


def blip():
    text = {**TEXT, "encoder_hidden_size": 8, "sep_token_id": END, "eos_token_id": END, "label_smoothing": 0.1}
    return transformers.BlipConfig(text_config=text, vision_config=VISION)


def git():
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return transformers.GitConfig(vision_config=VISION, **TEXT, eos_token_id=END, **rates)


def pair():
    rates = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    text = {"vocab_size": VOCAB, "n_positions": 24, "n_embd": 12, "n_layer": 2, "n_head": 2, **rates}
    tokens = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": PADDING}
    decoder = transformers.GPT2Config(**text, **tokens)
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(**VISION), decoder
    )
    config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = START, END, PADDING
    return config


CASES = {
    "captions": ("BlipForConditionalGeneration", blip),
    "questions": ("BlipForQuestionAnswering", blip),
    "git": ("GitForCausalLM", git),
    "pair": ("VisionEncoderDecoderModel", pair),
}


def their_arguments(case, tokens, question, pixels):
    """Inputs that give their logits and loss of `tokens` [B, T], whose first one is the start."""
    if case == "questions":
        return {"input_ids": question, "pixel_values": pixels, "labels": tokens}
    if case == "pair":
        return {"pixel_values": pixels, "decoder_input_ids": tokens[:, :-1], "labels": tokens[:, 1:]}
    return {"input_ids": tokens, "pixel_values": pixels, "labels": tokens}


#: Parts of the names of a ViT's parameters in memory, and in a file.
RENAMED = (
    ("encoder.layers.", "encoder.encoder.layer."), ("attention.q_proj", "attention.attention.query"),
    ("attention.k_proj", "attention.attention.key"), ("attention.v_proj", "attention.attention.value"),
    ("attention.o_proj", "attention.output.dense"), ("mlp.fc1", "intermediate.dense"), ("mlp.fc2", "output.dense"),
)  # fmt: skip


class OnDisk:
    """Their model with the names that its parameters have in a file."""

    def __init__(self, model):
        self._model = model

    def named_parameters(self):
        for name, parameter in self._model.named_parameters():
            if name.startswith("encoder.layers."):
                for old, new in RENAMED:
                    name = name.replace(old, new)
            yield name, parameter


@pytest.mark.parametrize("case", CASES)
def test_loss_logits_gradients_greedy_and_beam_tokens_and_round_trip(case, tmp_path):
    cls, config = CASES[case]
    theirs, pretrained = build(cls, config(), tmp_path / "theirs", seed=4)
    model = pretrained.model
    assert (model.start_token, model.end_token) == (START, END)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    pixels = torch.tensor(x.transpose(0, 3, 1, 2))
    tokens, question = rng.integers(3, VOCAB, (2, 6)), rng.integers(3, VOCAB, (2, 4))
    tokens[:, 0] = START
    arguments = their_arguments(case, torch.tensor(tokens), torch.tensor(question), pixels)
    out = theirs(**arguments)
    out.loss.backward()
    rows, prompts = jnp.asarray(tokens), jnp.asarray(tokens[:, :1])
    batch = {"x": jnp.asarray(x), "tokens": rows}
    if case == "questions":
        prompts = jnp.asarray(question)
        rows = jnp.concatenate([prompts, rows[:, 1:]], axis=1)
        batch = {"x": jnp.asarray(x), "tokens": rows, "loss_mask": jnp.arange(rows.shape[1])[None].repeat(2, 0) >= 4}
    scale = (rows.shape[1] - 1) / 5

    @jax.jit
    def ours(params):
        value, gradients = jax.value_and_grad(lambda p: model.loss(p, batch, jax.random.key(0))[0])(params)
        return model._logits(params, batch), scale * value, jax.tree.map(lambda g: scale * g, gradients)

    # Their loss is the mean over the five tokens, and BLIP's is smoothed.
    assert model.label_smoothing == (0.1 if case in ("captions", "questions") else 0.0)
    logits, value, gradients = ours(pretrained.params)
    if case == "questions":
        logits, answers = logits[:, 3:], theirs.text_decoder
        states = theirs.vision_model(pixels).last_hidden_state
        read = theirs.text_encoder(input_ids=torch.tensor(question), encoder_hidden_states=states)[0]
        wanted = answers(input_ids=torch.tensor(tokens), encoder_hidden_states=read).logits[:, :-1]
    else:
        wanted = out.logits if case == "pair" else out.logits[:, -6:-1]
    close(logits, wanted)
    close(value, out.loss)
    check_gradients(model, gradients, OnDisk(theirs) if case == "pair" else theirs)
    if case == "pair":
        # Their pooling, which nothing uses, is not kept.
        save_pretrained(tmp_path / "ours", model, pretrained.params)
        before, after = read_folder(pretrained.folder), read_folder(tmp_path / "ours")
        assert set(before) - set(after) == {"encoder.pooler.dense.weight", "encoder.pooler.dense.bias"}
        assert all(before[name].view().tobytes() == after[name].view().tobytes() for name in after)
        assert load_pretrained(tmp_path / "ours").model == model
    else:
        check_round_trip(pretrained, theirs, tmp_path / "ours")

    given = {"pixel_values": pixels, "do_sample": False, "max_new_tokens": NEW}
    if case == "questions":
        given["input_ids"] = torch.tensor(question)
    elif case == "git":
        given["input_ids"] = torch.tensor(tokens[:, :1])
    greedy = theirs.generate(**given)
    beams = theirs.generate(**given, num_beams=3, length_penalty=0.0, early_stopping=False)
    model = type(model)(**{**vars(model), "max_new_tokens": NEW, "length_penalty": 0.0})
    for count, found in ((1, greedy), (3, beams)):
        written = jax.jit(lambda s: model.describe(s, batch["x"], prompts, num_beams=count))(pretrained.state)  # noqa: B023
        assert new_tokens(written, 0, END) == new_tokens(found, 1, END)
