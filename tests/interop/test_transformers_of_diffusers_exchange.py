"""SD3's and Flux' transformers of the library diffusers, tiny and random, beside ours."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.errors import UserError
from genjax.families.diffusion.flux import packed
from tests.interop.diffusers_parts import (
    build,
    check_gradients,
    check_round_trip,
    load_pretrained,
    nchw,
    nhwc,
    save_pretrained,
    torch,
)

# The library itself makes arrays of tensors in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
SD3 = {
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 32,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 64,
    "out_channels": 4,
    "pos_embed_max_size": 16,
}
FLUX = {
    "in_channels": 8,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 20,
    "axes_dims_rope": (4, 4, 8),
}


def inputs(channels, context, vector):
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return draw(2, 8, 12, channels), np.array([0.2, 0.9], np.float32), draw(2, 5, context), draw(2, vector)


def ours(pretrained, z, t, condition):
    """Output, and gradients of its mean square."""
    model = dataclasses.replace(pretrained.model, data_shape=z.shape[1:])

    def loss(params):
        out = model.module().apply({"params": params}, z, 1000.0 * t, condition)
        return jnp.square(out).mean(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(pretrained.params)
    return out, gradients


@pytest.mark.parametrize(
    ("changes", "count"), [({}, 78672), ({"qk_norm": "rms_norm", "dual_attention_layers": (0,)}, None)]
)
def test_the_transformer_of_stable_diffusion_3(changes, count, tmp_path):
    theirs, pretrained = build("SD3Transformer2DModel", tmp_path / "theirs", **SD3, **changes)
    assert count in (None, sum(p.size for p in jax.tree.leaves(pretrained.params)))
    z, t, context, vector = inputs(4, 32, 64)
    out, gradients = ours(pretrained, z, t, {"context": context, "vector": vector})
    expected = theirs(nchw(z), torch.tensor(context), torch.tensor(vector), torch.tensor(1000.0 * t)).sample
    torch.square(expected).mean().backward()
    np.testing.assert_allclose(out, nhwc(expected), atol=1e-4)
    check_gradients(pretrained.model, gradients, theirs)
    check_round_trip(pretrained, theirs, tmp_path / "ours")


@pytest.mark.parametrize("guided", [True])
def test_the_transformer_of_flux(guided, tmp_path):
    theirs, pretrained = build("FluxTransformer2DModel", tmp_path / "theirs", **FLUX, guidance_embeds=guided)
    z, t, context, vector = inputs(2, 24, 20)
    condition = {"context": context, "vector": vector}
    more = {}
    if guided:
        condition["guidance"] = np.array([1.5, 4.0], np.float32)
        more = {"guidance": torch.tensor(condition["guidance"])}
    out, gradients = ours(pretrained, z, t, condition)
    rows, columns = np.meshgrid(np.arange(4.0), np.arange(6.0), indexing="ij")
    places = np.stack([np.zeros(24), rows.ravel(), columns.ravel()], axis=1).astype(np.float32)
    expected = theirs(
        torch.tensor(np.asarray(packed(z, (2, 2)))),
        encoder_hidden_states=torch.tensor(context),
        pooled_projections=torch.tensor(vector),
        timestep=torch.tensor(t),
        img_ids=torch.tensor(places),
        txt_ids=torch.zeros(5, 3),
        **more,
    ).sample
    torch.square(expected).mean().backward()
    np.testing.assert_allclose(packed(out, (2, 2)), expected.detach(), atol=1e-4)
    check_gradients(pretrained.model, gradients, theirs)
    check_round_trip(pretrained, theirs, tmp_path / "ours")


def test_what_the_library_has_no_counterpart_of(tmp_path):
    _, pretrained = build("FluxTransformer2DModel", tmp_path / "theirs", **FLUX)
    network = pretrained.model.network

    def saved(**changes):
        model = dataclasses.replace(pretrained.model, network=dataclasses.replace(network, **changes))
        save_pretrained(tmp_path / "ours", model, pretrained.params)

    for changes, words in (
        ({"patch_size": 1}, "no Flux with patches of 1, but of 2"),
        ({"context_dim": None}, "give network.context_dim and network.vector_dim"),
        ({"pooled": False}, "with a pooled text and mlp_ratio=4"),
    ):
        with pytest.raises(UserError, match=words):
            saved(**changes)
    file = tmp_path / "theirs" / "config.json"
    file.write_text(file.read_text().replace('"patch_size": 1', '"patch_size": 2'))
    with pytest.raises(UserError, match="patch_size=2, and only 1 can be read"):
        load_pretrained(tmp_path / "theirs")
