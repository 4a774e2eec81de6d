"""Pipelines of the library diffusers, tiny and random, beside ours: parts, pictures, and the way back."""

import dataclasses
import json
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.data.text.prompts import PromptTokenizer
from genjax.families.diffusion import pipelines
from genjax.families.diffusion.schedulers import read_scheduler
from genjax.families.diffusion.stable_diffusion import StableDiffusion
from genjax.interop.bindings import tensors_of
from genjax.interop.safetensors import read_folder
from genjax.model import TrainState
from genjax.pretrained import load_pretrained, save_pretrained
from tests.interop import pipelines as built
from tests.interop.diffusers_parts import diffusers, nchw, nhwc, torch

# The library itself makes arrays of tensors in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
LONG = "a small red circle left of a large green cross " * 5


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    theirs, folder = built.stable_diffusion(tmp_path_factory.mktemp("first"))
    return theirs, folder, load_pretrained(folder)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    theirs, folder = built.stable_diffusion_xl(tmp_path_factory.mktemp("large"))
    return theirs, folder, load_pretrained(folder)


def unet_tensors(model, gradients):
    """Gradients of the U-Net under the names of diffusers."""
    bindings = pipelines.parts_of(model)[0].bindings
    return {name: make() for name, _, make in tensors_of({"diffusion": gradients}, bindings)}


def check_unet(theirs, model, params, vector=None):
    """Output and gradients of the U-Net, for noise, steps and contexts."""
    rng = np.random.default_rng(0)
    z, context = rng.normal(size=(2, 8, 8, 4)), rng.normal(size=(2, 5, theirs.config.cross_attention_dim))
    z, context, k = z.astype(np.float32), context.astype(np.float32), np.array([1.0, 801.0], np.float32)
    module = model.code_model().module()
    condition = {"context": context} if vector is None else {"context": context, "vector": vector}

    def loss(params):
        out = module.apply({"params": params}, z, k, condition)
        return jnp.square(out).mean(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params["diffusion"])
    added = None
    if vector is not None:
        added = {"text_embeds": torch.tensor(vector[:, :-6]), "time_ids": torch.tensor(vector[:, -6:])}
    inputs = (nchw(z), torch.tensor(k), torch.tensor(context))
    their_out = theirs(*inputs, added_cond_kwargs=added).sample
    theirs.zero_grad()
    torch.square(their_out).mean().backward()
    np.testing.assert_allclose(out, nhwc(their_out), atol=1e-4)
    found = unet_tensors(model, gradients)
    named = dict(theirs.named_parameters())
    assert set(found) == set(named)
    for name, parameter in named.items():
        expected = parameter.grad.numpy()
        scale = max(np.abs(expected).max(), 1e-3)
        np.testing.assert_allclose(found[name] / scale, expected / scale, atol=2e-4, err_msg=name)


def test_unet(first):
    theirs, _, pretrained = first
    params = pretrained.params
    assert sum(p.size for p in jax.tree.leaves(params["diffusion"])) == sum(p.numel() for p in theirs.unet.parameters())
    check_unet(theirs.unet, pretrained.model, params)


def test_unet_of_the_large_model(large):
    theirs, _, pretrained = large
    vector = np.random.default_rng(1).normal(size=(2, 26)).astype(np.float32)
    vector[:, -6:] = [32, 32, 0, 0, 32, 16]
    check_unet(theirs.unet, pretrained.model, pretrained.params, vector)


@pytest.mark.parametrize("prompt", ["", "a low  LOW Circle, 12!", LONG])
def test_prompts(first, prompt, caplog):
    theirs, folder, pretrained = first
    tokenizer = PromptTokenizer(folder / "tokenizer")
    with caplog.at_level(logging.WARNING):
        tokens = tokenizer.encode([prompt])
    assert ("cut off" in caplog.text) == (prompt == LONG)
    found = theirs.tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    np.testing.assert_array_equal(tokens, found.input_ids)
    context, _ = jax.jit(pretrained.model.encode_text)(pretrained.params, tokens)
    expected = theirs.text_encoder(found.input_ids).last_hidden_state
    np.testing.assert_allclose(context, expected.detach(), atol=1e-4)


def test_the_tokenizer_is_read_from_both_kinds_of_files(first, tmp_path):
    theirs, folder, _ = first
    built.tokenizer_files(tmp_path)
    prompts = ["", "it's a low-down circle; ok 2022", LONG]
    rows = PromptTokenizer(tmp_path).encode(prompts)
    np.testing.assert_array_equal(rows, PromptTokenizer(folder / "tokenizer").encode(prompts))
    assert tuple(rows[0]) == PromptTokenizer(tmp_path).empty


def picture(theirs, noise, **options):
    return theirs(["a low circle"], latents=nchw(noise), num_inference_steps=4, output_type="np", **options).images


def own_picture(model, params, folder, noise, steps=4, **changes):
    sampler = dataclasses.replace(model.diffusion.sampler, num_steps=steps)
    model = dataclasses.replace(model, diffusion=dataclasses.replace(model.diffusion, sampler=sampler, **changes))
    names = {"tokenizer": "tokens", "tokenizer_2": "second_tokens"}
    tokens = {
        name: PromptTokenizer(folder / part).encode(["a low circle"])
        for part, name in names.items()
        if (folder / part).is_dir()
    }
    run = jax.jit(lambda p: model.sample(TrainState.create(p), jax.random.key(0), 1, noise=noise, **tokens))
    return np.clip(0.5 + 0.5 * np.asarray(run(params)), 0.0, 1.0)


def test_pictures_and_the_way_back(first, tmp_path):
    theirs, folder, pretrained = first
    model, params = pretrained.model, pretrained.params
    noise = np.random.default_rng(0).normal(size=(1, 16, 16, 4)).astype(np.float32)
    expected = picture(theirs, noise)
    assert np.abs(own_picture(model, params, folder, noise) - expected).max() <= 2 / 255
    save_pretrained(tmp_path, model, params, source=folder)
    for part in ("unet", "vae", "text_encoder"):
        before, after = read_folder(folder / part), read_folder(tmp_path / part)
        # Version 5 of transformers leaves the prefix out, which all versions read.
        names = {name: "text_model." + name if name not in after else name for name in before}
        assert set(names.values()) == set(after)
        for name, tensor in before.items():
            assert tensor.view().tobytes() == after[names[name]].view().tobytes(), name
    again = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(picture(again, noise), expected)
    assert load_pretrained(tmp_path).model == model


def test_pictures_of_the_large_model_and_the_way_back(large, tmp_path):
    theirs, folder, pretrained = large
    noise = np.random.default_rng(0).normal(size=(1, 16, 16, 4)).astype(np.float32)
    expected = picture(theirs, noise, guidance_scale=5.0)
    assert np.abs(own_picture(pretrained.model, pretrained.params, folder, noise) - expected).max() <= 2 / 255
    save_pretrained(tmp_path, pretrained.model, pretrained.params, source=folder)
    again = diffusers.StableDiffusionXLPipeline.from_pretrained(tmp_path, add_watermarker=False)
    again.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(picture(again, noise, guidance_scale=5.0), expected)
    assert load_pretrained(tmp_path).model == pretrained.model
    # Where the text encoder is frozen, so is the second.
    start = StableDiffusion(pretrained=str(folder), frozen=("autoencoder", "text", "diffusion/unet"))
    assert set(start.with_pretrained_sizes().frozen) == {*start.frozen, "second_text"}
    assert "second_text" not in dataclasses.replace(start, frozen=("autoencoder",)).with_pretrained_sizes().frozen


def test_version_2_with_v_and_linear_projections(tmp_path):
    theirs, folder = built.stable_diffusion(
        tmp_path,
        use_linear_projection=True,
        attention_head_dim=(2, 4),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    scheduler = diffusers.DDIMScheduler(
        **built.CHAIN, prediction_type="v_prediction", set_alpha_to_one=False, clip_sample=False
    )
    scheduler.save_pretrained(folder / "scheduler")
    theirs.scheduler = scheduler
    pretrained = load_pretrained(folder)
    assert pretrained.model.diffusion.target == "v" and pretrained.model.diffusion.network.head_channels == 16
    noise = np.random.default_rng(0).normal(size=(1, 16, 16, 4)).astype(np.float32)
    own = own_picture(pretrained.model, pretrained.params, folder, noise)
    assert np.abs(own - picture(theirs, noise)).max() <= 2 / 255
    save_pretrained(tmp_path / "ours", pretrained.model, pretrained.params, source=folder)
    assert load_pretrained(tmp_path / "ours").model == pretrained.model


def test_what_cannot_be_opened(first, tmp_path):
    _, folder, pretrained = first
    with pytest.raises(ValueError, match="is a part of a pipeline .* open the folder above it"):
        load_pretrained(folder / "unet")
    copy = tmp_path / "copy"

    def changed(part, **changes):
        """A fresh copy with other settings of a part."""
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        if part is not None:
            file = copy / part if part.endswith(".json") else copy / part / "config.json"
            file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
        return copy

    for part, changes, words in (
        ("model_index.json", {"_class_name": "KandinskyPipeline"}, "'KandinskyPipeline' of diffusers; known are"),
        ("unet", {"_class_name": "UNet3DConditionModel"}, "only a UNet2DConditionModel can be read"),
        ("unet", {"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift='scale_shift'"),
        ("unet", {"cross_attention_dim": 40}, "attends to 40 channels, but its text encoders give 32"),
        ("vae", {"latent_channels": 8}, "codes of its vae have 8"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid'"),
    ):
        with pytest.raises(ValueError, match=words):
            load_pretrained(changed(part, **changes))
    changed(None)
    shutil.rmtree(copy / "vae")
    with pytest.raises(ValueError, match="lacks the part vae"):
        load_pretrained(copy)
    changed(None)
    (copy / "unet" / "diffusion_pytorch_model.safetensors").rename(copy / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match="is pickled and is not read"):
        load_pretrained(copy)
    model = dataclasses.replace(pretrained.model, data_shape=(33, 32, 3))
    with pytest.raises(ValueError, match="multiples of 2"):
        model.code_model()


def test_full_size_is_opened_without_its_memory(tmp_path):
    """Stable Diffusion 1 as shapes alone; numbers of parameters as the library counts them."""
    vae = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "sample_size": 512, "latent_channels": 4}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    unet = {"block_out_channels": [320, 640, 1280, 1280], "sample_size": 64, "cross_attention_dim": 768}
    text = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "projection_dim": 768}
    for part, config in (
        ("vae", {"_class_name": "AutoencoderKL", **vae, **blocks}),
        ("unet", {"_class_name": "UNet2DConditionModel", "attention_head_dim": 8, **unet}),
        ("text_encoder", {"model_type": "clip_text_model", "num_hidden_layers": 12, **text}),
        ("scheduler", {}),
    ):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    (tmp_path / "text_encoder" / "model.safetensors").write_bytes(b"\x02\x00\x00\x00\x00\x00\x00\x00{}")
    settings = {"_class_name": "PNDMScheduler", **built.CHAIN, "skip_prk_steps": True}
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    built.tokenizer_files(tmp_path / "tokenizer")
    model = StableDiffusion(**pipelines.read_model(tmp_path))
    shapes = pipelines.abstract_params(model)
    count = lambda name: sum(leaf.size for leaf in jax.tree.leaves(shapes[name]))
    assert (count("diffusion"), count("autoencoder"), count("text")) == (859_520_964, 83_653_863, 123_060_480)
    assert model.coder.code_shape == (64, 64, 4) and read_scheduler(settings).sampler == model.diffusion.sampler
