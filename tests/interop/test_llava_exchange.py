"""LLaVA and PaliGemma of the library transformers, tiny and random, beside ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax import decoding
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

IMAGE, END = VOCAB - 1, 2
VISION = {
    "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 12, "image_size": 8,
    "patch_size": 4,
}  # fmt: skip
TEXT = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 48, "bos_token_id": 0, "eos_token_id": END, "pad_token_id": 1,
    "initializer_range": 0.3,
}  # fmt: skip


def llava(vision, **changes):
    text = transformers.LlamaConfig(**TEXT)
    return transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, **changes)


def paligemma():
    vision = transformers.SiglipVisionConfig(**VISION, vision_use_head=False)
    text = transformers.GemmaConfig(**TEXT, head_dim=6)
    own = {"image_token_index": IMAGE, "projection_dim": 16, "hidden_size": 16, "eos_token_id": END}
    return transformers.PaliGemmaConfig(vision_config=vision, text_config=text, **own)


#: Class, configuration, and number of features of a picture.
CASES = {
    "clip": ("LlavaForConditionalGeneration", lambda: llava(transformers.CLIPVisionConfig(**VISION)), 4),
    "class_token": (
        "LlavaForConditionalGeneration",
        lambda: llava(
            transformers.CLIPVisionConfig(**VISION), vision_feature_select_strategy="full", vision_feature_layer=-1
        ),
        5,
    ),
    "siglip": (
        "LlavaForConditionalGeneration",
        lambda: llava(
            transformers.SiglipVisionConfig(**VISION, vision_use_head=False),
            vision_feature_select_strategy="full",
            vision_feature_layer=2,
        ),
        4,
    ),
    "paligemma": ("PaliGemmaForConditionalGeneration", paligemma, 4),
}


class OnDisk:
    """Their model with the names that its parameters have in a file."""

    def __init__(self, model):
        self._model = model

    def named_parameters(self):
        for name, parameter in self._model.named_parameters():
            name = name.replace("model.language_model.", "language_model.model.")
            yield name.removeprefix("model.").replace("lm_head.", "language_model.lm_head."), parameter


@pytest.mark.parametrize("case", CASES)
def test_logits_loss_gradients_greedy_tokens_and_round_trip(case, tmp_path):
    cls, config, each = CASES[case]
    theirs, pretrained = build(cls, config(), tmp_path / "theirs")
    model = pretrained.model
    assert model.features_per_picture == each and model.image_token == IMAGE
    # LLaVA's rows have two pictures, of which the second stands inside of the text.
    rng, several = np.random.default_rng(0), case != "paligemma"
    words, first = rng.integers(3, IMAGE, (2, 7)), np.full((2, each), IMAGE)
    parts = [words[:, :2], first, words[:, 2:4]] if several else [first, words[:, :4]]
    prompt = np.concatenate([*parts, first, words[:, 4:5]] if several else parts, 1)
    tokens = np.concatenate([prompt, words[:, 5:]], 1)
    x = rng.normal(size=(2, 2, 8, 8, 3) if several else (2, 8, 8, 3)).astype(np.float32)
    pixels = torch.tensor(x.reshape(-1, 8, 8, 3).transpose(0, 3, 1, 2))
    length = prompt.shape[1]
    answer = np.arange(tokens.shape[1])[None].repeat(2, 0) >= length
    given = {"input_ids": torch.tensor(tokens), "pixel_values": pixels, "attention_mask": torch.ones(tokens.shape)}
    if case == "paligemma":
        given["token_type_ids"] = torch.tensor(answer.astype(int))
    out = theirs(**given, labels=torch.tensor(np.where(answer, tokens, -100)))
    out.loss.backward()
    batch = {"x": jnp.asarray(x), "tokens": jnp.asarray(tokens), "loss_mask": jnp.asarray(answer)}
    prefix = jnp.full((2,), length)

    @jax.jit
    def ours(params):
        state = pretrained.state.replace(params=params)
        value, gradients = jax.value_and_grad(lambda p: model.loss(p, batch, jax.random.key(0))[0])(params)
        # Their loss is the mean over the two tokens of an answer, ours is divided by the row's length.
        scale = (tokens.shape[1] - 1) / 2
        gradients = jax.tree.map(lambda g: scale * g, gradients)
        return model.logits(state, batch["tokens"], batch["x"], prefix), scale * value, gradients

    logits, value, gradients = ours(pretrained.params)
    close(logits, out.logits)
    close(value, out.loss)
    check_gradients(model, gradients, OnDisk(theirs))
    check_round_trip(pretrained, theirs, tmp_path / "ours")

    given = {"input_ids": torch.tensor(prompt), "pixel_values": pixels, "attention_mask": torch.ones(prompt.shape)}
    if case == "paligemma":
        given["token_type_ids"] = torch.zeros(prompt.shape, dtype=torch.int64)
    # Ours never writes the token of a picture, which would have no features.
    greedy = theirs.generate(**given, max_new_tokens=5, do_sample=False, suppress_tokens=[IMAGE])

    @jax.jit
    def written(state):
        options = {"sampling": decoding.Sampling(temperature=0.0)}
        decoder, prompts, _ = model.reader(state, batch["x"], jnp.asarray(prompt), None)
        return decoding.generate(decoder, jax.random.key(0), prompts, 5, end_token=END, **options).tokens

    assert new_tokens(written(pretrained.state), 0, END) == new_tokens(greedy, length, END)
