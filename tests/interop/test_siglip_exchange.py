"""SigLIP of the library transformers, tiny and random, beside ours."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.interop.exchange import VOCAB, build, check_gradients, check_round_trip, close, torch, transformers

PART = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "hidden_size": 8,
    "attention_dropout": 0.0,
}


def test_embeddings_features_logits_loss_gradients_and_round_trip(tmp_path):
    text = {**PART, "vocab_size": VOCAB, "max_position_embeddings": 7, "projection_size": 8}
    vision = {**PART, "image_size": 8, "patch_size": 4}
    config = transformers.SiglipConfig(text_config=text, vision_config=vision)
    theirs, pretrained = build("SiglipModel", config, tmp_path / "theirs")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 8, 8, 3)).astype(np.float32)
    tokens = rng.integers(3, VOCAB, (3, 7))
    pixels = torch.tensor(x.transpose(0, 3, 1, 2))
    out = theirs(input_ids=torch.tensor(tokens), pixel_values=pixels, return_loss=True)
    out.loss.backward()
    hidden = theirs.vision_model(pixels, output_hidden_states=True).hidden_states[-2]
    model = pretrained.model
    batch = {"x": jnp.asarray(x), "tokens": jnp.asarray(tokens)}

    @jax.jit
    def ours(params):
        state = pretrained.state.replace(params=params)
        value, gradients = jax.value_and_grad(lambda p: model.loss(p, batch, jax.random.key(0))[0])(params)
        embedded = model.encode_text(state, batch["tokens"]), model.encode_image(state, batch["x"])
        return model.logits(state, batch), value, gradients, embedded, model.image_features(state, batch["x"])

    logits, value, gradients, embedded, features = ours(pretrained.params)
    close(logits, out.logits_per_image)
    close(value, out.loss)
    close(features, hidden)
    for own, other in zip(embedded, (out.text_embeds, out.image_embeds)):
        close(own, other)
    check_gradients(model, gradients, theirs)
    check_round_trip(pretrained, theirs, tmp_path / "ours")
