"""Folders of pipelines of the library diffusers, read into `StableDiffusion` and written from it.

    model_index.json                           the parts and their classes
    unet, vae                                  config.json and diffusion_pytorch_model.safetensors
    text_encoder, text_encoder_2               config.json and model.safetensors
    controlnet                                 as unet, where there is one
    tokenizer, tokenizer_2                     files of the tokenizer of CLIP
    scheduler                                  scheduler_config.json

A part is read and written one tensor at a time, so that a folder needs the memory of its parameters and of its largest
tensor.  The safety checker is not read.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from genjax.batch import PyTree
from genjax.config import check_types
from genjax.data.text.prompts import PromptTokenizer
from genjax.errors import UserError
from genjax.families.diffusion.checkpoints import (
    per_level,
    read_unet,
    unet_bindings,
    write_conditional_unet,
    write_unet,
)
from genjax.families.diffusion.controlnet import ControlledUNet, control_bindings, controlled
from genjax.families.diffusion.diffusion import Diffusion
from genjax.families.diffusion.guidance import Guidance
from genjax.families.diffusion.schedulers import CONFIG_FILE as SCHEDULER_FILE
from genjax.families.diffusion.schedulers import read_scheduler, write_scheduler
from genjax.families.diffusion.unet import UNet
from genjax.families.multimodal.checkpoints import CLIP_TEXT, text_encoder_bindings
from genjax.families.multimodal.clip_text import TextEncoder
from genjax.families.vae.autoencoder_kl import AutoencoderKL
from genjax.families.vae.checkpoints import AUTOENCODER_KL, autoencoder_bindings
from genjax.interop import bindings as binding
from genjax.interop import safetensors
from genjax.interop.architecture import UnsupportedError, number, require
from genjax.interop.huggingface import CONFIG_FILE, read_config, read_object, told_settings
from genjax.interop.safetensors import CheckpointFileError
from genjax.optimizers import SGD

INDEX_FILE = "model_index.json"
#: Pipelines whose folders have the same parts; the first of each kind is what is written.
PIPELINES = {
    "StableDiffusionPipeline": False,
    "StableDiffusionImg2ImgPipeline": False,
    "StableDiffusionInpaintPipeline": False,
    "StableDiffusionControlNetPipeline": False,
    "StableDiffusionXLPipeline": True,
    "StableDiffusionXLImg2ImgPipeline": True,
    "StableDiffusionXLInpaintPipeline": True,
    "StableDiffusionXLControlNetPipeline": True,
}


class Part(NamedTuple):
    """A part of a folder: its name there, the first name of its parameters' paths, its class, and its bindings."""

    folder: str
    name: str
    kind: str
    bindings: binding.Bindings


def is_pipeline(folder: str | Path) -> bool:
    """Whether a folder holds a pipeline of diffusers."""
    return (Path(folder).expanduser() / INDEX_FILE).is_file()


def has_control(folder: str | Path) -> bool:
    """Whether a pipeline has a control network."""
    return "controlnet" in read_index(Path(folder).expanduser())


def read_index(folder: Path) -> dict[str, Any]:
    """model_index.json of a folder.

    Raises:
      UnsupportedError: the pipeline is not known.
    """
    index = read_object(folder / INDEX_FILE)
    if str(index.get("_class_name")) not in PIPELINES:
        raise UnsupportedError(
            f"{folder} is a pipeline {index.get('_class_name')!r} of diffusers; known are {', '.join(PIPELINES)}"
        )
    return index


def _config(folder: Path, part: str, kind: str) -> dict[str, Any]:
    """config.json of a part, which must be of a class."""
    if not (folder / part).is_dir():
        raise CheckpointFileError(f"{folder} lacks the part {part}, which its {INDEX_FILE} names")
    config = read_config(folder / part)
    if config["model_type"] != kind:
        raise UnsupportedError(f"{folder / part} is a {config['model_type']}, and only a {kind} can be read there")
    return config


def _tokenizer(folder: Path, part: str, encoder: TextEncoder) -> PromptTokenizer:
    """The tokenizer of an encoder."""
    if not (folder / part).is_dir():
        raise CheckpointFileError(f"{folder} lacks the part {part}, which its {INDEX_FILE} names")
    # The encoder's settings decide the length of texts and the tokens that it knows.
    with told_settings(folder / part.replace("tokenizer", "text_encoder") / CONFIG_FILE):
        found = PromptTokenizer(folder / part, encoder.network.max_length)
        too_many = found.num_known > encoder.vocab_size
    if too_many:
        raise UserError(
            f"{folder / part} has {found.num_known} tokens and the text encoder beside it knows {encoder.vocab_size}: "
            "it is the tokenizer of another model"
        )
    return found


def read_model(folder: str | Path) -> dict[str, Any]:
    """The fields of a `StableDiffusion` that a folder describes.

    Raises:
      CheckpointFileError: a part is missing or damaged.
      UnsupportedError: a part or a setting of it is not known.
    """
    folder = Path(folder).expanduser()
    index = read_index(folder)
    large = PIPELINES[index["_class_name"]]
    vae = _config(folder, "vae", "AutoencoderKL")
    unet = _config(folder, "unet", "UNet2DConditionModel")
    with told_settings(file := folder / "vae" / CONFIG_FILE):
        autoencoder = AutoencoderKL(**AUTOENCODER_KL.read(vae, ()))
        check_types(autoencoder, str(file))
    if autoencoder.scaling_factor is None:
        raise CheckpointFileError(
            f"{file} has no scaling_factor, the scale by which codes are seen; write the one of the model's training "
            "there, which is 0.18215 for versions 1 and 2"
        )

    def encoder(part: str, **options: Any) -> TextEncoder:
        config = _config(folder, part, "clip_text_model")
        tensors = safetensors.read_folder(folder / part)
        with told_settings(file := folder / part / CONFIG_FILE):
            found = TextEncoder(**{**CLIP_TEXT.read(config, tensors), **options})
            check_types(found, str(file))
        return found

    if large:
        text = encoder("text_encoder", skipped=1, final_norm=False)
        second = encoder("text_encoder_2", skipped=1, final_norm=False)
        if second.projection_dim is None:
            raise CheckpointFileError(f"{folder / 'text_encoder_2'} holds no text_projection.weight, which SDXL needs")
    else:
        text, second = encoder("text_encoder"), None
    hinted = "controlnet" in index
    with told_settings(file := folder / "unet" / CONFIG_FILE):
        network = read_unet(unet)
        check_types(network, str(file))
        inputs, outputs = unet.get("in_channels", 4), unet.get("out_channels", 4)
        context = per_level(unet, "cross_attention_dim", 1280, 1)[0]
        size = unet.get("sample_size") or 64
        height, width = (int(n) * autoencoder.network.factor for n in (size if isinstance(size, list) else (size,) * 2))
        shape, image_channels = (height, width, autoencoder.data_shape[-1]), int(inputs) - int(outputs)
    if min(height, width) < 1 or image_channels < 0:
        raise UserError(
            f"{file} has sample_size={size}, in_channels={inputs} and out_channels={outputs}; sizes are positive, and "
            "the U-Net sees as many channels as it makes, or more"
        )
    if hinted:
        network = read_control(folder / "controlnet", network)
    width = text.network.width + (second.network.width if second else 0)
    if context != width:
        raise UserError(f"the U-Net of {folder} attends to {context} channels, but its text encoders give {width}")
    if outputs != autoencoder.latent_channels:
        raise UserError(
            f"the U-Net of {folder} makes {outputs} channels, but the codes of its vae have "
            f"{autoencoder.latent_channels}"
        )
    scheduler_file = folder / "scheduler" / SCHEDULER_FILE
    if not scheduler_file.is_file():
        raise CheckpointFileError(f"{folder} lacks scheduler/{SCHEDULER_FILE}")
    with told_settings(scheduler_file):
        scheduler = read_scheduler(read_object(scheduler_file))
    tokenizer = _tokenizer(folder, "tokenizer", text)
    more = {}
    if second is not None:
        other = _tokenizer(folder, "tokenizer_2", second)
        more = {
            "second_text": second,
            "second_empty_tokens": other.empty,
            "second_padding_token": other.padding,
            "frozen": ("autoencoder", "text", "second_text"),
            "zero_empty": index.get("force_zeros_for_empty_prompt", True),
        }
        if network.size_channels is None:
            raise UserError(f"the U-Net of {folder} has no addition_embed_type=text_time, which SDXL needs")
        given, needed = (
            number(unet, "projection_class_embeddings_input_dim"),
            second.projection_dim + 6 * network.size_channels,
        )
        if given != needed:
            raise UserError(
                f"the U-Net of {folder} takes vectors of {given} numbers, but its text encoder gives {needed}"
            )
    diffusion = Diffusion(
        network=network,
        condition_on=(
            "context",
            *(("vector",) if second is not None else ()),
            *(("image",) if inputs != outputs else ()),
            *(("hint",) if hinted else ()),
        ),
        guidance=Guidance(scale=4.0 if second is not None else 6.5),
        **scheduler.fields(),
    )
    check_types(diffusion, str(folder))
    return {
        "data_shape": shape,
        "autoencoder": autoencoder,
        "text": text,
        "empty_tokens": tokenizer.empty,
        "padding_token": tokenizer.padding,
        "image_channels": image_channels,
        "diffusion": diffusion,
        **more,
    }


def read_control(folder: Path, network: UNet) -> ControlledUNet:
    """A U-Net with the control network of a folder.

    Raises:
      UnsupportedError: the control network has other sizes than the U-Net, or a setting that is not known.
    """
    config, file = _config(folder.parent, folder.name, "ControlNetModel"), folder / CONFIG_FILE
    for name, value in (("controlnet_conditioning_channel_order", "rgb"), ("global_pool_conditions", False)):
        require(config, name, value, value)
    with told_settings(file):
        own = dataclasses.replace(read_unet(config), dropout_rate=network.dropout_rate)
    if own != network:
        raise UnsupportedError(f"the control network of {folder} has other sizes than the U-Net that it steers")
    with told_settings(file):
        found = controlled(network, tuple(config.get("conditioning_embedding_out_channels", (16, 32, 96, 256))))
        check_types(found, str(file))
    return found


def parts_of(model: Any) -> list[Part]:
    """The parts with weights of a model's folder."""
    network = model.diffusion.network
    hinted = isinstance(network, ControlledUNet)
    ours = "diffusion/unet/" if hinted else "diffusion/"
    found = [
        Part("unet", "diffusion", "UNet2DConditionModel", unet_bindings(network, ours)),
        Part("vae", "autoencoder", "AutoencoderKL", autoencoder_bindings(model.autoencoder.network, "autoencoder/")),
        Part("text_encoder", "text", "clip_text_model", text_encoder_bindings(model.text, "text/")),
    ]
    if model.second_text is not None:
        bindings = text_encoder_bindings(model.second_text, "second_text/")
        found.append(Part("text_encoder_2", "second_text", "clip_text_model", bindings))
    if hinted:
        found.append(
            Part("controlnet", "diffusion", "ControlNetModel", control_bindings(network, "diffusion/control/"))
        )
    return found


def _own(part: Part, params: PyTree) -> PyTree:
    """The part's parameters with their paths."""
    own = params[part.name]
    if part.name == "diffusion" and "control" in own:
        own = {"control": own["control"]} if part.folder == "controlnet" else {"unet": own["unet"]}
    return {part.name: own}


def abstract_params(model: Any) -> PyTree:
    """Shapes and types of a model's parameters; nothing is computed."""
    shapes = {"x": (1, *model.data_shape)}
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    batch["tokens"] = jax.ShapeDtypeStruct((1, model.text.network.max_length), jnp.int32)
    if model.image_channels:
        height, width, _ = model.coder.code_shape
        batch["image"] = jax.ShapeDtypeStruct((1, height, width, model.image_channels), jnp.float32)
    if "hint" in model.diffusion.condition_on:
        batch["hint"] = jax.ShapeDtypeStruct((1, *model.data_shape[:2], 3), jnp.float32)
    model = dataclasses.replace(
        model, pretrained=None, lora=None, diffusion=dataclasses.replace(model.diffusion, optimizer=SGD())
    )
    with told_settings("a part of the model"):
        return jax.eval_shape(lambda b: model.init(jax.random.key(0), b).params, batch)


def load_params(model: Any, folder: str | Path, abstract: PyTree) -> PyTree:
    """Reads all parts' parameters, each with the type and sharding of `abstract`.

    Raises:
      CheckpointFileError: a part has missing or extra tensors or wrong shapes, or a file is damaged.
    """
    folder, params = Path(folder).expanduser(), {}
    with told_settings(f"a {CONFIG_FILE} in {folder}"):
        parts = parts_of(model)
    for part in parts:
        tensors = safetensors.read_folder(folder / part.folder)
        found, buffers = part.bindings, CLIP_TEXT.is_buffer if part.kind == "clip_text_model" else lambda name: False
        if part.kind == "clip_text_model" and not any(name.startswith(CLIP_TEXT.prefix) for name in tensors):
            found = binding.without_prefix(found, CLIP_TEXT.prefix)
        own = _own(part, abstract)
        binding.check(own, found, tensors, buffers, lambda name: False, str(folder / part.folder))
        for name, read in binding.read(own, found, tensors).items():
            params[name] = {**params.get(name, {}), **read}
    return params


def _part_config(model: Any, part: Part) -> dict[str, Any]:
    match part.name:
        case "autoencoder":
            return AUTOENCODER_KL.write(model.autoencoder)
        case "text":
            return CLIP_TEXT.write(model.text)
        case "second_text":
            return CLIP_TEXT.write(model.second_text)
    network, second = model.diffusion.network, model.second_text
    height, width, channels = model.coder.code_shape
    vector = None if second is None else second.projection_dim + 6 * network.size_channels
    context = model.text.network.width + (0 if second is None else second.network.width)
    size = height if height == width else [height, width]
    if part.folder == "controlnet":
        config = write_unet(network, channels, context, vector)
        return {"_class_name": part.kind, **config, "conditioning_embedding_out_channels": list(network.hint_channels)}
    return write_conditional_unet(network, channels + model.image_channels, channels, size, context, vector)


def save_pipeline(
    folder: str | Path, model: Any, params: PyTree, dtype: str = "float32", source: str | Path | None = None
) -> None:
    """Writes a folder that the library diffusers opens.

    Args:
      folder: made where it does not exist.
      model: a `StableDiffusion`.
      params: its parameters, low-rank updates added already.
      dtype: type of the tensors.
      source: folder of a pipeline whose tokenizers are copied, as a model holds none; None leaves them out.

    Raises:
      UnsupportedError: the library has no counterpart of the model.
    """
    if model.autoencoder.scaling_factor is None:
        raise UnsupportedError(
            "the codes of this model have a scale that its state holds and not its settings; write it with "
            "model.autoencoder.scaling_factor=X, where X is state.learned['scale']"
        )
    folder, kind = Path(folder).expanduser(), jnp.dtype(dtype)
    large = model.second_text is not None
    diffusion = model.diffusion
    scheduler = write_scheduler(diffusion.process, diffusion.target, diffusion.sampler, diffusion.clip_x0)
    parts = [(part, _part_config(model, part)) for part in parts_of(model)]
    name = "StableDiffusionXL" if large else "StableDiffusion"
    hinted = isinstance(diffusion.network, ControlledUNet)
    task = "Inpaint" if model.image_channels else "ControlNet" if hinted else ""
    index: dict[str, Any] = {
        "_class_name": f"{name}{task}Pipeline",
        "scheduler": ["diffusers", scheduler["_class_name"]],
    }
    if large:
        index["force_zeros_for_empty_prompt"] = model.zero_empty
    else:
        index |= {"feature_extractor": [None, None], "safety_checker": [None, None], "requires_safety_checker": False}
    for part, config in parts:
        where = folder / part.folder
        where.mkdir(parents=True, exist_ok=True)
        own = _own(part, params)
        rows = [(n, shape, kind, make) for n, shape, make in binding.tensors_of(own, part.bindings)]
        diffusers_part = part.kind != "clip_text_model"
        weights = safetensors.DIFFUSERS_WEIGHTS if diffusers_part else safetensors.WEIGHTS
        safetensors.write(where / weights, rows)
        _write_json(where / CONFIG_FILE, config if diffusers_part else {**config, "dtype": dtype, "torch_dtype": dtype})
        theirs = part.kind if diffusers_part else config["architectures"][0]
        index[part.folder] = ["diffusers" if diffusers_part else "transformers", theirs]
    (folder / "scheduler").mkdir(exist_ok=True)
    _write_json(folder / "scheduler" / SCHEDULER_FILE, scheduler)
    for tokenizer in ("tokenizer", "tokenizer_2")[: 2 if large else 1]:
        index[tokenizer] = ["transformers", "CLIPTokenizer"]
        if source is not None and (Path(source).expanduser() / tokenizer).is_dir():
            shutil.copytree(Path(source).expanduser() / tokenizer, folder / tokenizer, dirs_exist_ok=True)
    _write_json(folder / INDEX_FILE, index)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
