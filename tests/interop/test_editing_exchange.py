"""Edits by tiny pipelines of the library diffusers beside ours, from the same picture and the same noise."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import edit
from genjax.data.text.prompts import PromptTokenizer
from genjax.errors import UserError
from genjax.families.diffusion import code_editing
from genjax.model import TrainState
from genjax.pretrained import load_pretrained
from tests.interop import pipelines as built
from tests.interop.diffusers_parts import diffusers, torch

# The library itself makes arrays of tensors in a way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
STEPS = 4
SCHEDULERS = {
    "DDIMScheduler": {"set_alpha_to_one": False, "clip_sample": False},
    "EulerDiscreteScheduler": {"timestep_spacing": "leading"},
}


def opened(folder, scheduler, **unet):
    """Their parts, and ours read from the folder, with a scheduler."""
    theirs, folder = built.stable_diffusion(folder, layers_per_block=1, **unet)
    scheduler = getattr(diffusers, scheduler)(**built.CHAIN, **SCHEDULERS[scheduler])
    scheduler.save_pretrained(folder / "scheduler")
    parts = {**theirs.components, "scheduler": scheduler}
    pretrained = load_pretrained(folder)
    diffusion = pretrained.model.diffusion
    sampler = dataclasses.replace(diffusion.sampler, num_steps=STEPS)
    model = dataclasses.replace(pretrained.model, diffusion=dataclasses.replace(diffusion, sampler=sampler))
    return parts, dataclasses.replace(pretrained, model=model)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return opened(tmp_path_factory.mktemp("plain"), "DDIMScheduler")


def picture():
    """A picture in [0, 1], and a mask, 1 where it is drawn anew."""
    rng = np.random.default_rng(0)
    mask = np.zeros((1, 32, 32, 1), np.float32)
    mask[:, 7:20, 11:32] = 1.0
    return rng.uniform(size=(1, 32, 32, 3)).astype(np.float32), mask


def draws(count):
    """Noise in the order in which their pipelines draw it, and the generator that draws it again."""
    generator = torch.Generator().manual_seed(3)
    noise = [torch.randn((1, 4, 16, 16), generator=generator).numpy().transpose(0, 2, 3, 1) for _ in range(count)]
    return noise, torch.Generator().manual_seed(3)


def theirs(kind, parts, generator, **options):
    pipeline = getattr(diffusers, kind)(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    image = torch.tensor(picture()[0].transpose(0, 3, 1, 2))
    options = {"generator": generator, "num_inference_steps": STEPS, "output_type": "np", **options}
    return pipeline(prompt="a low circle", image=image, **options).images


def ours(pretrained, **options):
    tokens = PromptTokenizer(pretrained.folder / "tokenizer").encode(["a low circle"])
    x = 2.0 * picture()[0] - 1.0
    run = lambda p: code_editing.edit(
        pretrained.model, TrainState.create(p), jax.random.key(0), x, tokens=tokens, **options
    )
    return np.clip(0.5 + 0.5 * np.asarray(jax.jit(run)(pretrained.params)), 0.0, 1.0)


def test_image_to_image(plain):
    parts, pretrained = plain
    (code_noise, noise), generator = draws(2)
    expected = theirs("StableDiffusionImg2ImgPipeline", parts, generator, strength=0.8)
    found = ours(pretrained, strength=0.8, code_noise=code_noise, noise=noise)
    assert np.abs(found - expected).max() <= 2 / 255
    assert np.abs(expected - picture()[0]).max() > 0.1


def mask_for_them():
    return torch.tensor(picture()[1].transpose(0, 3, 1, 2))


def test_inpainting_by_replacement(plain):
    parts, pretrained = plain
    (code_noise, noise), generator = draws(2)
    options = {"mask_image": mask_for_them(), "strength": 0.8}
    expected = theirs("StableDiffusionInpaintPipeline", parts, generator, **options)
    found = ours(pretrained, strength=0.8, known=1.0 - picture()[1], code_noise=code_noise, noise=noise)
    assert np.abs(found - expected).max() <= 2 / 255


def test_inpainting_by_a_network_that_sees_the_mask(tmp_path):
    parts, pretrained = opened(tmp_path, "EulerDiscreteScheduler", in_channels=9)
    assert pretrained.model.image_channels == 5
    (noise, masked_code_noise), generator = draws(2)
    options = {"mask_image": mask_for_them(), "strength": 1.0}
    expected = theirs("StableDiffusionInpaintPipeline", parts, generator, **options)
    known = 1.0 - picture()[1]
    found = ours(pretrained, strength=1.0, known=known, noise=noise, masked_code_noise=masked_code_noise)
    assert np.abs(found - expected).max() <= 2 / 255
    with pytest.raises(UserError, match="the network sees a mask beside the code; give what is known"):
        ours(pretrained)


def test_what_does_not_fit_is_one_sentence(plain):
    _, pretrained = plain
    for options, words in (
        ({"strength": 0.0}, r"strength=0.0 must lie in \(0, 1\]"),
        ({"strength": 0.2}, "strength=0.2 is less than one of the 4 steps.*give at least 0.25"),
        ({"known": np.ones((1, 16, 16, 1))}, r"the mask has shape \(1, 16, 16, 1\), and pictures of shape"),
    ):
        with pytest.raises(UserError, match=words):
            ours(pretrained, **options)


def test_the_command(plain, tmp_path, capsys):
    _, pretrained = plain
    x, mask = picture()
    Image.fromarray((255 * x[0]).astype(np.uint8)).save(tmp_path / "x.png")
    Image.fromarray((255 * mask[0, ..., 0]).astype(np.uint8)).save(tmp_path / "mask.png")
    arguments = [f"--pretrained={pretrained.folder}", f"--image={tmp_path / 'x.png'}", "--prompt=a low circle"]
    more = [f"--mask={tmp_path / 'mask.png'}", "--num_steps=2", "--strength=1", f"--output={tmp_path / 'out.png'}"]
    assert edit.main(["edit", *arguments, *more]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out.png")
    assert np.asarray(Image.open(tmp_path / "out.png")).shape[-1] == 3
