"""Folders of Stable Diffusion that cannot be used: each is told in one sentence, which names the part or setting."""

import dataclasses
import json
import logging
import shutil

import numpy as np
import pytest
from PIL import Image

from genjax.data.text.prompts import PromptTokenizer
from genjax.errors import UserError
from genjax.families.diffusion.stable_diffusion import StableDiffusion
from genjax.interop.safetensors import read_folder
from genjax.pretrained import load_pretrained, save_pretrained
from tests.experiments.commands import call
from tests.interop import made_folders

WEIGHTS = "diffusion_pytorch_model.safetensors"
SHARD = "diffusion_pytorch_model-00001-of-00001.safetensors"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return made_folders.stable_diffusion(tmp_path_factory.mktemp("folders"))


@pytest.fixture
def folder(source, tmp_path):
    return shutil.copytree(source, tmp_path / "copy")


def without(path):
    return lambda folder: shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()


def renamed(path, name):
    return lambda folder: (folder / path).rename((folder / path).with_name(name))


def written(path, text):
    return lambda folder: (folder / path).write_text(text)


def settings(path, **changes):
    return lambda folder: (folder / path).write_text(json.dumps({**json.loads((folder / path).read_text()), **changes}))


def scheduler(**changes):
    return settings("scheduler/scheduler_config.json", **changes)


def halved(folder):
    file = folder / "unet" / WEIGHTS
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def in_parts(folder):
    """The weights of the U-Net in one part with an index."""
    names = list(read_folder(folder / "unet"))
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / SHARD)
    (folder / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, SHARD)}))


def part_gone(folder):
    in_parts(folder)
    (folder / "unet" / SHARD).unlink()


def index_damaged(folder):
    in_parts(folder)
    (folder / "unet" / f"{WEIGHTS}.index.json").write_text("{}")


REFUSED = [
    *((without(part), f"lacks the part {part}") for part in ("vae", "unet", "text_encoder", "tokenizer")),
    (without("scheduler"), "lacks scheduler/scheduler_config.json"),
    *((without(f"{part}/config.json"), f"{part} holds no config.json") for part in ("vae", "unet", "text_encoder")),
    (settings("model_index.json", controlnet=["diffusers", "ControlNetModel"]), "lacks the part controlnet"),
    (without(f"unet/{WEIGHTS}"), f"unet holds neither model.safetensors nor {WEIGHTS}"),
    (renamed(f"unet/{WEIGHTS}", "diffusion_pytorch_model.bin"), "pickled and is not read, as that can run code: save"),
    (renamed("text_encoder/model.safetensors", "pytorch_model.bin"), "pickled and is not read"),
    (halved, "is truncated: .* its tensors end at byte"),
    (part_gone, f"{SHARD} cannot be read"),
    (index_damaged, "index.json is damaged; it must be JSON with a weight_map"),
    (written("model_index.json", "x"), "model_index.json is damaged: it is not JSON"),
    (settings("model_index.json", _class_name="KandinskyPipeline"), "'KandinskyPipeline' of diffusers; known are Sta"),
    (settings("model_index.json", _class_name=[]), "a pipeline .* of diffusers; known are StableDiffusionPipeline"),
    (settings("unet/config.json", _class_name="UNet3DConditionModel"), "only a UNet2DConditionModel can be read"),
    (settings("vae/config.json", _class_name="AutoencoderTiny"), "only a AutoencoderKL can be read there"),
    (settings("text_encoder/config.json", model_type="t5"), "only a clip_text_model can be read there"),
    (scheduler(_class_name="EDMEulerScheduler"), "scheduler 'EDMEulerScheduler'; known are DDIMScheduler, .*"),
    (scheduler(beta_schedule="sigmoid"), "beta_schedule='sigmoid'; known are linear, scaled_linear, squaredcos_cap_v2"),
    (scheduler(prediction_type="flow"), "prediction_type='flow'; known are epsilon, v_prediction, sample"),
    (scheduler(rescale_betas_zero_snr=True), "prediction_type=epsilon, which says nothing .*; it needs v_prediction"),
    (scheduler(clip_sample=True), "^scheduler_config.json has clip_sample=True, and only False can be read"),
    (scheduler(_class_name="DPMSolverMultistepScheduler", solver_order=3), "solver_order=3; known are 1, 2"),
    (scheduler(timestep_spacing="wide"), "spacing the value 'wide', which is not one of leading, trailing, linspace"),
    (settings("unet/config.json", cross_attention_dim=40), "attends to 40 channels, but its text encoders give 16"),
    (settings("vae/config.json", latent_channels=8), "makes 4 channels, but the codes of its vae have 8"),
    (settings("unet/config.json", in_channels=3), "in_channels=3 and out_channels=4; .* sees as many channels as it"),
    (settings("unet/config.json", layers_per_block=2), "unet does not fit its configuration; missing tensors: .* more"),
    (settings("vae/config.json", scaling_factor=None), "vae/config.json has no scaling_factor"),
    (settings("vae/config.json", scaling_factor="1"), "autoencoder_kl.scaling_factor the value '1', which is not a"),
    (settings("vae/config.json", block_out_channels=8), "vae/config.json has a setting of a type or size that cannot"),
    (settings("unet/config.json", sample_size="big"), "unet/config.json has a setting of a type or size .*'big'"),
    (settings("unet/config.json", attention_head_dim=None), "unet/config.json has a setting of a type or size"),
    (settings("unet/config.json", norm_num_groups=0), "has a setting of a type or size that cannot be used"),
    (settings("tokenizer/tokenizer_config.json", pad_token="<pad>"), "has no token <pad>, as that of CLIP has"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED, ids=[words[:40] for _, words in REFUSED])
def test_what_cannot_be_opened_is_one_sentence(change, words, folder):
    change(folder)
    with pytest.raises(UserError, match=words) as told:
        load_pretrained(folder)
    assert "\n" not in str(told.value)


def test_weights_in_parts_are_read(folder, source):
    in_parts(folder)
    found, expected = load_pretrained(folder), load_pretrained(source)
    np.testing.assert_array_equal(
        found.params["diffusion"]["input"]["kernel"], expected.params["diffusion"]["input"]["kernel"]
    )


def test_a_long_prompt_is_cut_with_a_warning_that_names_the_words(folder, caplog):
    tokenizer = PromptTokenizer(folder / "tokenizer")
    with caplog.at_level(logging.WARNING):
        rows = tokenizer.encode(["low " * 75 + "owls"])
    assert "the prompt has 79 tokens and 75 are read; cut off: 'owls'" in caplog.text
    assert rows.shape == (1, 77) and rows[0, -1] == tokenizer.end


def test_the_commands_end_with_the_sentence(folder, tmp_path):
    picture = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(picture)
    (folder / "unet" / WEIGHTS).unlink()
    edit = ("edit", f"--pretrained={folder}", f"--image={picture}", f"--output={tmp_path / 'edit.png'}")
    train = ("train", "--experiment=dreambooth", f"--model.pretrained={folder}", f"--data.dir={tmp_path}")
    options = ("--model.prior_weight=0", "--data.image_size=8,8", "--training.mesh=data:1")
    for command in (edit, (*train, *options, f"--workdir={tmp_path / 'run'}")):
        result = call(*command)
        assert result.returncode == 1
        assert result.stderr.splitlines()[-1].startswith("error: ") and "holds neither" in result.stderr
        assert "Traceback" not in result.stderr
    # A start that is refused leaves nothing that the mended command would be compared with.
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_scale_that_only_the_state_holds_is_not_lost(source, tmp_path):
    found = load_pretrained(source)
    learned = dataclasses.replace(found.model.autoencoder, scaling_factor=None)
    model = dataclasses.replace(found.model, autoencoder=learned)
    with pytest.raises(UserError, match=r"scaling_factor=X, where X is state.learned\['scale'\]"):
        save_pretrained(tmp_path / "other", model, found.params)
    assert isinstance(found.model, StableDiffusion) and not (tmp_path / "other").exists()
