"""Control networks beside those of the library diffusers: outputs, gradients, pictures, the way back, and the start."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.data.text.prompts import PromptTokenizer
from genjax.families.diffusion import pipelines
from genjax.interop.bindings import tensors_of
from genjax.interop.safetensors import read_folder
from genjax.model import TrainState
from genjax.pretrained import load_pretrained, save_pretrained
from tests.interop import pipelines as built
from tests.interop.diffusers_parts import diffusers, nchw, nhwc, torch

# The library itself makes arrays of tensors in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    theirs, folder = built.controlled(tmp_path_factory.mktemp("controlled"))
    return theirs, folder, load_pretrained(folder)


def hint_of(size):
    return np.random.default_rng(5).uniform(size=(1, size, size, 3)).astype(np.float32)


def test_outputs_and_gradients(both):
    theirs, _, pretrained = both
    rng = np.random.default_rng(0)
    z, context = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 8, 8, 4), (2, 5, 32)))
    hint, k = np.concatenate([hint_of(16), 1 - hint_of(16)]), np.array([1.0, 801.0], np.float32)
    module = pretrained.model.code_model().module()

    def loss(params):
        out = module.apply({"params": params}, z, k, {"context": context, "hint": hint})
        return jnp.square(out).mean(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(pretrained.params["diffusion"])
    inputs = (nchw(z), torch.tensor(k), torch.tensor(context))
    down, middle = theirs.controlnet(*inputs, controlnet_cond=nchw(hint), return_dict=False)
    added = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    expected = theirs.unet(*inputs, **added).sample
    np.testing.assert_allclose(out, nhwc(expected), atol=1e-4)
    assert np.abs(nhwc(theirs.unet(*inputs).sample) - out).max() > 1e-2
    theirs.controlnet.zero_grad()
    torch.square(expected).mean().backward()
    bindings = next(part.bindings for part in pipelines.parts_of(pretrained.model) if part.folder == "controlnet")
    own = {"diffusion": {"control": gradients["control"]}}
    found = {name: make() for name, _, make in tensors_of(own, bindings)}
    named = dict(theirs.controlnet.named_parameters())
    assert set(found) == set(named)
    for name, parameter in named.items():
        wanted = parameter.grad.numpy()
        scale = max(np.abs(wanted).max(), 1e-3)
        np.testing.assert_allclose(found[name] / scale, wanted / scale, atol=2e-4, err_msg=name)


def picture(theirs, noise, hint):
    options = {"latents": nchw(noise), "num_inference_steps": 4, "output_type": "np"}
    return theirs(["a low circle"], image=nchw(hint), **options).images


def test_pictures_and_the_way_back(both, tmp_path):
    theirs, folder, pretrained = both
    noise, hint = np.random.default_rng(0).normal(size=(1, 16, 16, 4)).astype(np.float32), hint_of(32)
    expected = picture(theirs, noise, hint)
    diffusion = pretrained.model.diffusion
    sampler = dataclasses.replace(diffusion.sampler, num_steps=4)
    model = dataclasses.replace(pretrained.model, diffusion=dataclasses.replace(diffusion, sampler=sampler))
    tokens = PromptTokenizer(folder / "tokenizer").encode(["a low circle"])
    options = {"noise": noise, "tokens": tokens, "hint": hint}
    own = jax.jit(lambda p: model.sample(TrainState.create(p), jax.random.key(0), 1, **options))(pretrained.params)
    assert np.abs(np.clip(0.5 + 0.5 * np.asarray(own), 0, 1) - expected).max() <= 2 / 255
    assert np.abs(picture(theirs, noise, 1 - hint) - expected).max() > 10 / 255
    save_pretrained(tmp_path, pretrained.model, pretrained.params, source=folder)
    before, after = read_folder(folder / "controlnet"), read_folder(tmp_path / "controlnet")
    assert set(before) == set(after)
    for name, tensor in before.items():
        assert tensor.view().tobytes() == after[name].view().tobytes(), name
    again = diffusers.StableDiffusionControlNetPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(picture(again, noise, hint), expected)
    assert load_pretrained(tmp_path).model == pretrained.model
