"""Idefics of the library transformers, tiny and random, beside Flamingo; and the blocks of open_flamingo."""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UserError
from genjax.families.multimodal.flamingo_layers import GatedBlock, PerceiverResampler, Resampler
from genjax.nn.transformer import Transformer
from genjax.pretrained import save_pretrained
from tests.interop.exchange import VOCAB, build, close, torch, transformers

IMAGE = VOCAB - 1
CONFIG = {
    "vocab_size": VOCAB,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "alpha_initializer": "ones",
    "cross_layer_interval": 2,
    "use_resampler": True,
    "freeze_text_layers": False,
    "freeze_vision_layers": False,
    "max_position_embeddings": 16,
    "vision_config": {
        "embed_dim": 12,
        "image_size": 8,
        "patch_size": 4,
        "intermediate_size": 20,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    },
    "perceiver_config": {
        "use_resampler": True,
        "resampler_n_latents": 3,
        "resampler_depth": 2,
        "resampler_n_heads": 2,
        "resampler_head_dim": 5,
    },
}


def test_logits_loss_gradients_and_cached_greedy_tokens_of_idefics(tmp_path):
    theirs, pretrained = build("IdeficsForVisionText2Text", transformers.IdeficsConfig(**CONFIG), tmp_path / "theirs")
    model = dataclasses.replace(pretrained.model, image_token=IMAGE, sequence_length=9, max_new_tokens=4)
    assert model.data_shape == (1, 8, 8, 3) and model.every == 2 and model.resampler.num_latents == 3
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, IMAGE, (2, 9))
    tokens[0, [1, 5]] = tokens[1, [0, 3]] = IMAGE
    x = rng.normal(size=(2, 2, 8, 8, 3)).astype(np.float32)
    number = np.cumsum(tokens == IMAGE, 1)
    seen = number[..., None] == np.arange(1, 3)
    inputs = {
        "input_ids": torch.tensor(tokens),
        "pixel_values": torch.tensor(x.transpose(0, 1, 4, 2, 3).copy()),
        "image_attention_mask": torch.tensor(seen),
    }
    out = theirs(**inputs, labels=torch.tensor(tokens), use_cache=False)
    out.loss.backward()
    batch = {"x": jnp.asarray(x), "tokens": jnp.asarray(tokens, jnp.int32)}

    @jax.jit
    def ours(params):
        value, gradients = jax.value_and_grad(lambda p: model.loss(p, batch, jax.random.key(0))[0])(params)
        logits = model.module().apply({"params": params}, batch["x"], batch["tokens"], jnp.asarray(number))
        written = model.describe(pretrained.state.replace(params=params), batch["x"], batch["tokens"], num_beams=1)
        return logits, value, gradients, written

    logits, value, gradients, written = ours(pretrained.params)
    close(logits, out.logits)
    close(value, out.loss)
    gate = theirs.model.gated_cross_attn_layers[1]
    close(gradients["gated_2"]["cross_attention_gate"], gate.alpha_cross_attn.grad)
    close(gradients["gated_2"]["mlp_gate"], gate.alpha_dense.grad)
    close(gradients["resampler"]["latents"], theirs.model.perceiver_resampler.latents.grad)
    # The likeliest tokens, with pictures that stay the last ones.
    rows, mask = tokens, seen
    for _ in range(4):
        with torch.no_grad():
            step = theirs(
                input_ids=torch.tensor(rows),
                pixel_values=inputs["pixel_values"],
                image_attention_mask=torch.tensor(mask),
                use_cache=False,
            )
        new = step.logits[:, -1].argmax(-1).numpy()
        assert not np.isin(new, [IMAGE, 2]).any(), "the seed of this test writes no picture and no end"
        rows, mask = np.concatenate([rows, new[:, None]], 1), np.concatenate([mask, mask[:, -1:]], 1)
    np.testing.assert_array_equal(written, rows[:, 9:])
    with pytest.raises(UserError, match="no counterpart of Flamingo"):
        save_pretrained(tmp_path / "ours", model, pretrained.params)


def open_flamingo():
    """The module of its layers, without the models that its package imports."""
    spec = importlib.util.find_spec("open_flamingo")
    if spec is None:
        pytest.skip("open_flamingo is not installed")
    pytest.importorskip("einops_exts")
    file = f"{spec.submodule_search_locations[0]}/src/helpers.py"
    found = importlib.util.spec_from_file_location("open_flamingo_helpers", file)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def arrays(module):
    """Their tensors by name, linear maps transposed."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return {name: a.detach().numpy().T if a.ndim == 2 else a.detach().numpy() for name, a in module.named_parameters()}


def norm_of(found, name):
    return {"scale": found[f"{name}.weight"], "bias": found[f"{name}.bias"]}


def attention_of(found, name):
    key, value = np.split(found[f"{name}to_kv.weight"], 2, axis=1)
    maps = {"query": found[f"{name}to_q.weight"], "key": key, "value": value, "output": found[f"{name}to_out.weight"]}
    return {a: {"kernel": b} for a, b in maps.items()}


def hidden_of(found, name):
    return {"up": {"kernel": found[f"{name}1.weight"]}, "down": {"kernel": found[f"{name}3.weight"]}}


def test_blocks_of_open_flamingo():
    theirs = open_flamingo()
    torch.manual_seed(0)
    resampler = theirs.PerceiverResampler(dim=16, depth=2, dim_head=8, heads=2, num_latents=4, max_num_frames=3)
    found = arrays(resampler)
    params = {"latents": found["latents"].T, "times": found["frame_embs"].T, "final_norm": norm_of(found, "norm")}
    for i in range(2):
        params |= {
            f"features_norm_{i}": norm_of(found, f"layers.{i}.0.norm_media"),
            f"latents_norm_{i}": norm_of(found, f"layers.{i}.0.norm_latents"),
            f"attention_{i}": attention_of(found, f"layers.{i}.0."),
            f"mlp_norm_{i}": norm_of(found, f"layers.{i}.1.0"),
            f"mlp_{i}": hidden_of(found, f"layers.{i}.1."),
        }
    films = np.random.default_rng(0).normal(size=(2, 3, 5, 16)).astype(np.float32)  # [B, F, V, C]
    config = Resampler(num_latents=4, num_layers=2, num_heads=2, head_dim=8, num_frames=3)
    ours = PerceiverResampler(config).apply({"params": params}, films)
    close(ours, resampler(torch.tensor(films)[:, None])[:, 0])

    block = theirs.GatedCrossAttentionBlock(dim=12, dim_visual=16, dim_head=8, heads=2)
    found = arrays(block)
    params = {
        "cross_attention_norm": norm_of(found, "attn.norm"),
        "cross_attention": attention_of(found, "attn."),
        "cross_attention_gate": found["attn_gate"],
        "mlp_norm": norm_of(found, "ff.0"),
        "mlp": hidden_of(found, "ff."),
        "mlp_gate": found["ff_gate"],
    }
    x = np.random.default_rng(1).normal(size=(1, 7, 12)).astype(np.float32)
    pictures = np.random.default_rng(2).normal(size=(1, 2, 4, 16)).astype(np.float32)
    at = np.array([[False, True, False, False, True, False, False]])
    expected = block(torch.tensor(x), torch.tensor(pictures), media_locations=torch.tensor(at))
    config = Transformer(width=12, num_heads=2, head_dim=8, activation="gelu")
    close(GatedBlock(config, 4).apply({"params": params}, x, pictures, jnp.asarray(at.cumsum(1)))[0], expected)
