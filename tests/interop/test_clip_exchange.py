"""CLIP of the library transformers, tiny and random, beside ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.interop.exchange import VOCAB, build, check_gradients, check_round_trip, close, torch, transformers

PART = {
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "attention_dropout": 0.0,
    "projection_dim": 6,
}


@pytest.mark.parametrize("end", [2, VOCAB - 1])
def test_embeddings_logits_loss_gradients_and_round_trip(end, tmp_path):
    text = {**PART, "hidden_size": 8, "vocab_size": VOCAB, "max_position_embeddings": 9, "eos_token_id": end}
    vision = {**PART, "hidden_size": 10, "image_size": 8, "patch_size": 4}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)
    theirs, pretrained = build("CLIPModel", config, tmp_path / "theirs")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 8, 8, 3)).astype(np.float32)
    tokens = rng.integers(3, VOCAB - 1, (3, 7))
    tokens[[0, 1, 2], [6, 4, 2]] = VOCAB - 1
    out = theirs(input_ids=torch.tensor(tokens), pixel_values=torch.tensor(x.transpose(0, 3, 1, 2)), return_loss=True)
    out.loss.backward()
    hidden = theirs.vision_model(torch.tensor(x.transpose(0, 3, 1, 2)), output_hidden_states=True).hidden_states
    model = pretrained.model
    batch = {"x": jnp.asarray(x), "tokens": jnp.asarray(tokens)}

    @jax.jit
    def ours(params):
        state = pretrained.state.replace(params=params)
        value, gradients = jax.value_and_grad(lambda p: model.loss(p, batch, jax.random.key(0))[0])(params)
        embedded = model.encode_text(state, batch["tokens"]), model.encode_image(state, batch["x"])
        return model.logits(state, batch), value, gradients, embedded

    logits, value, gradients, embedded = ours(pretrained.params)
    close(logits, out.logits_per_image)
    close(value, out.loss)
    for own, other in zip(embedded, (out.text_embeds, out.image_embeds)):
        close(own, other)
    state = pretrained.state
    close(model.image_features(state, batch["x"], layer=-1), hidden[-1][:, 1:])
    close(model.image_features(state, batch["x"], layer=-1, class_token=True), hidden[-1])
    check_gradients(model, gradients, theirs)
    check_round_trip(pretrained, theirs, tmp_path / "ours")
