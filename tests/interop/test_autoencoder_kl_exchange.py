"""AutoencoderKL of the library diffusers, tiny and random, beside ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.interop.diffusers_parts import (
    build,
    check_gradients,
    check_round_trip,
    load_pretrained,
    nchw,
    nhwc,
    save_file,
    torch,
)

SIZES = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "latent_channels": 4,
    "sample_size": 32,
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return build("AutoencoderKL", tmp_path_factory.mktemp("theirs"), **SIZES)


def test_moments_mode_sample_decoding_and_gradients(pair):
    theirs, pretrained = pair
    model, params = pretrained.model, pretrained.params
    assert sum(p.size for p in jax.tree.leaves(params)) == 658375
    assert model.scaling_factor == 0.18215
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    noise = rng.normal(size=(2, 8, 8, 4)).astype(np.float32)

    def loss(params):
        posterior = model.posterior(params["autoencoder"], x)
        z = posterior.sample(noise)
        y = model.decode_maps(params["autoencoder"], z)
        kl = posterior.kl_to_standard_normal()
        return jnp.abs(y - x).mean() + 1e-3 * kl.mean(), (posterior, z, y, kl)

    (_, (posterior, z, y, kl)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    their_posterior = theirs.encode(nchw(x)).latent_dist
    their_z = their_posterior.mean + their_posterior.std * nchw(noise)
    their_y = theirs.decode(their_z).sample
    their_kl = their_posterior.kl()
    (torch.abs(their_y - nchw(x)).mean() + 1e-3 * their_kl.mean() / (8 * 8 * 4)).backward()
    for own, other in (
        (posterior.mean, their_posterior.mode()),
        (2 * posterior.log_scale, their_posterior.logvar),
        (z, their_z),
        (y, their_y),
    ):
        np.testing.assert_allclose(own, nhwc(other), atol=1e-4)
    np.testing.assert_allclose(kl.sum((1, 2, 3)), their_kl.detach(), rtol=1e-5)
    check_gradients(model, gradients, theirs)


def test_round_trip(pair, tmp_path):
    theirs, pretrained = pair
    check_round_trip(pretrained, theirs, tmp_path / "ours")


@pytest.mark.parametrize("options", [{"use_quant_conv": False, "use_post_quant_conv": False}, {"layers_per_block": 2}])
def test_other_sizes(options, tmp_path):
    theirs, pretrained = build("AutoencoderKL", tmp_path / "theirs", **{**SIZES, **options})
    x = np.random.default_rng(1).uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)
    posterior = pretrained.model.posterior(pretrained.params["autoencoder"], x)
    np.testing.assert_allclose(posterior.mean, nhwc(theirs.encode(nchw(x)).latent_dist.mode()), atol=1e-4)
    check_round_trip(pretrained, theirs, tmp_path / "ours")


def test_names_of_old_files_are_read(pair, tmp_path):
    theirs, pretrained = pair
    theirs.save_pretrained(tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in theirs.state_dict().items():
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        tensors[name] = tensor
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    again = load_pretrained(tmp_path)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), again.params, pretrained.params)))
