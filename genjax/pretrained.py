"""Reads checkpoints of the libraries transformers and diffusers into models of genjax, and writes them.

    pretrained = genjax.load_pretrained("folder")              # config.json and safetensors
    logits = pretrained.model.logits(pretrained.state, tokens)
    genjax.save_pretrained("other", pretrained.model, pretrained.params)

The tables of names and settings stand beside the models (`families/language/checkpoints/`).
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import PyTree
from genjax.families.alignment.reward import Score
from genjax.families.diffusion import pipelines
from genjax.families.diffusion.flow_matching import FlowMatching
from genjax.families.diffusion.stable_diffusion import StableDiffusion
from genjax.families.language.bart import BART
from genjax.families.language.bert import BERT, RoBERTa
from genjax.families.language.gpt import GPT
from genjax.families.language.gpt_tasks import GPTForTask
from genjax.families.language.t5 import T5
from genjax.families.multimodal.captioner import Captioner
from genjax.families.multimodal.clip import CLIP
from genjax.families.multimodal.clip_text import TextEncoder
from genjax.families.multimodal.flamingo import Flamingo
from genjax.families.multimodal.git import GIT
from genjax.families.multimodal.llava import LLaVA
from genjax.families.multimodal.siglip import SigLIP
from genjax.families.multimodal.whisper import Whisper
from genjax.families.vae.autoencoder_kl import AutoencoderKL
from genjax.interop import bindings as binding
from genjax.interop import gguf, safetensors, weights
from genjax.interop.architecture import Architecture, UnsupportedError
from genjax.interop.huggingface import (
    CONFIG_FILE,
    GENERATION_FILE,
    GENERATION_SETTINGS,
    abstract_params,
    load_params,
    read_config,
    read_object,
    told_settings,
)
from genjax.model import MergesUpdates, TrainState
from genjax.nn.transformer import Transformer

#: The model class of genjax for each `model_type` of config.json, which for parts of diffusers is their `_class_name`.
MODELS: dict[str, type[Any]] = {
    "bert": BERT,
    "roberta": RoBERTa,
    "gpt2": GPT,
    "llama": GPT,
    "mistral": GPT,
    "qwen2": GPT,
    "qwen3": GPT,
    "gemma": GPT,
    "t5": T5,
    "bart": BART,
    "clip": CLIP,
    "siglip": SigLIP,
    "blip": Captioner,
    "git": GIT,
    "vision-encoder-decoder": Captioner,
    "llava": LLaVA,
    "paligemma": LLaVA,
    "clip_text_model": TextEncoder,
    "whisper": Whisper,
    "idefics": Flamingo,
    "AutoencoderKL": AutoencoderKL,
    "SD3Transformer2DModel": FlowMatching,
    "FluxTransformer2DModel": FlowMatching,
}
#: How the library's architectures end whose model of a text gives a number.
_SCORES = "ForSequenceClassification"
TOKENIZER_FILE = "tokenizer.json"
#: Files of a checkpoint, beside the weights, that say how texts and pictures become inputs.
PROCESSING_FILES = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt",
    "spiece.model", "tokenizer.model", "chat_template.jinja", "chat_template.json", "preprocessor_config.json",
    "processor_config.json",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A checkpoint of another library.

    Attributes:
      model: the model of genjax, with the checkpoint's configuration.
      params: the model's parameters.
      folder: folder of the checkpoint.
    """

    model: Any
    params: PyTree
    folder: Path

    @property
    def state(self) -> TrainState:
        """A state to evaluate and generate with; to train, use `--model.pretrained`."""
        return TrainState(step=jnp.zeros((), jnp.int32), params=self.params)


def _architecture(model_type: str) -> Architecture:
    """The architecture of a name in `MODELS`."""
    return next(a for a in MODELS[model_type].architectures if a.model_type == model_type)


def _kind_of(model: Any) -> type[Any] | None:
    """The class in `MODELS` that a model is, or that it is made of, such as a GPT that learns from preferences."""
    return next((kind for kind in type(model).__mro__ if kind in MODELS.values()), None)


def _architecture_for(model: Any) -> Architecture:
    """The architecture that a model of genjax is written as.

    Raises:
      UnsupportedError: there is none.
    """
    for model_type, kind in MODELS.items():
        if _kind_of(model) is kind:
            architecture = _architecture(model_type)
            if architecture.writes(model):
                return architecture
    raise UnsupportedError(f"the library transformers has no counterpart of {type(model).__name__} with these settings")


def _is_reward_model(model: Any) -> bool:
    return isinstance(model, GPTForTask) and isinstance(model.task, Score)


def _body(model: Any) -> Any:
    """The language model that a reward model is made of; other models as they are."""
    if not _is_reward_model(model):
        return model
    return GPT(vocab_size=model.vocab_size, network=model.network, compute_dtype=model.compute_dtype)


def _described(architecture: Architecture, model: Any) -> dict[str, Any]:
    """The configuration of a model; a reward model is a classifier of one label."""
    config = architecture.write(_body(model))
    if not _is_reward_model(model):
        return config
    name = re.sub("(LMHeadModel|ForCausalLM)$", _SCORES, config["architectures"][0])
    labels = {"num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return {**config, **labels, "architectures": [name], "pad_token_id": model.padding_token}


def _written(architecture: Architecture, model: Any) -> binding.Bindings:
    """The bindings of a model under the names that the library itself writes."""
    found = architecture.bind(model)
    return binding.without_prefix(found, architecture.prefix) if architecture.bare(model) else found


def _whole(model: Any, params: PyTree) -> PyTree:
    """The network's parameters, low-rank updates added where there are any."""
    return model.merged_params(params) if isinstance(model, MergesUpdates) else params


#: Fields of a stack that decide what it computes, and of a model above it.
_STACK_FIELDS = (
    "num_layers", "width", "num_heads", "activation", "gated", "norm", "norm_placement", "norm_epsilon", "qk_norm",
    "use_bias", "key_bias", "positions", "window", "experts",
)  # fmt: skip
_MODEL_FIELDS = (
    "num_types", "position_offset", "skip_padding", "embedding_norm", "tie_embeddings", "scale_logits", "logit_bias",
    "patch_size", "feature_layer", "feature_norm", "class_token", "projector_layers", "prefix_attention",
    "patch_bias", "head_transform", "project_features",
)  # fmt: skip


def _computation(model: Any) -> dict[str, Any]:
    """Settings of a model's computation, by the names of its fields, that other libraries may not have."""
    found = {name: getattr(model, name) for name in _MODEL_FIELDS if hasattr(model, name)}
    for part in ("network", "encoder", "decoder", "text", "vision", "questions"):
        if not isinstance(stack := getattr(model, part, None), Transformer):
            continue
        found |= {f"{part}.{name}": getattr(stack, name) for name in _STACK_FIELDS}
        found[f"{part}.attention_scale"] = stack.attention_scale or stack.size_of_head**-0.5
        if stack.positions == "t5":
            found[f"{part}.relative_buckets"] = stack.relative_buckets
    if hasattr(model, "embedding_scale"):
        scale = model.embedding_scale
        found["embedding_scale"] = model.encoder.width**0.5 if scale is None else scale
    # Positions of patches are the vision encoder's own table.
    found.pop("vision.positions", None)
    return found


def _check_counterpart(architecture: Architecture, model: Any, config: dict[str, Any], names: list[str]) -> None:
    """Raises UnsupportedError if a written configuration does not describe the model's computation completely."""
    theirs = _computation(type(model)(**architecture.read(config, names)))
    for name, value in _computation(model).items():
        if theirs[name] != value:
            raise UnsupportedError(
                f"the library transformers has no {architecture.model_type} with {name}={value!r} (it has "
                f"{theirs[name]!r})"
            )


def load_pretrained(folder: str | Path, dtype: Any = jnp.float32, shard: Any = None) -> Pretrained:
    """Reads a checkpoint.

    Args:
      folder: with config.json and model.safetensors (or its index and parts); a GGUF file; or a folder of a pipeline of
        diffusers.
      dtype: type of the parameters.
      shard: function from shape and type (a `jax.ShapeDtypeStruct`) to a `jax.sharding.Sharding`, or None for the
        default device.

    Raises:
      CheckpointFileError: a file is missing, truncated or damaged; or tensors are missing, extra or of wrong shapes.
      UnsupportedError: the architecture or a setting of it is not known.
    """
    folder = gguf.folder_of(folder)

    def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = None if shard is None else shard(leaf)
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)

    if pipelines.is_pipeline(folder):
        pipeline = StableDiffusion(**pipelines.read_model(folder))
        abstract = jax.tree.map(placed, pipelines.abstract_params(pipeline))
        return Pretrained(pipeline, pipelines.load_params(pipeline, folder, abstract), folder)
    config = read_config(folder)
    name = config["model_type"]
    if name == "UNet2DConditionModel":
        raise UnsupportedError(
            f"{folder} is a part of a pipeline of the library diffusers ({name}); open the folder above it, which "
            f"holds {pipelines.INDEX_FILE}"
        )
    if name not in MODELS:
        raise UnsupportedError(f"the architecture {name!r} is not known; known are {', '.join(sorted(MODELS))}")
    tensors = weights.read_folder(folder)
    with told_settings(folder / CONFIG_FILE):
        settings = _architecture(name).read(config, tensors)
        scores = MODELS[name] is GPT and (config.get("architectures") or [""])[0].endswith(_SCORES)
        model: Any = _reward_model(config, settings) if scores else MODELS[name](**settings)
        abstract = jax.tree.map(placed, abstract_params(model))
    return Pretrained(model, load_params(model, folder, abstract), folder)


def _reward_model(config: dict[str, Any], settings: dict[str, Any]) -> GPTForTask:
    """The reward model that a configuration of a classifier of one label describes.

    Raises:
      UnsupportedError: the classifier has several labels.
    """
    count = config.get("num_labels", len(config.get("id2label") or {}) or 2)
    if count != 1:
        raise UnsupportedError(
            f"a {config['architectures'][0]} with {count} labels has no counterpart; one of one label is a reward model"
        )
    return GPTForTask(
        vocab_size=settings["vocab_size"],
        padding_token=config.get("pad_token_id"),
        network=settings["network"],
        task=Score(),
    )


def to_tensors(model: Any, params: PyTree) -> dict[str, np.ndarray]:
    """Parameters (or gradients) under the names and in the arrangement of the library transformers."""
    params = _whole(model, params)
    return {name: make() for name, _, make in binding.tensors_of(params, _written(_architecture_for(model), model))}


def save_pretrained(folder: str | Path, model: Any, params: PyTree, dtype: str = "float32", source: Any = None) -> None:
    """Writes config.json and model.safetensors, so that the library transformers loads them.

    Args:
      folder: made where it does not exist.
      model: BERT, RoBERTa, GPT, T5, BART, CLIP, SigLIP, LLaVA, Captioner, GIT, TextEncoder or Whisper; a
        model that is made of one of them; a reward model; AutoencoderKL; FlowMatching with an MMDiT or a Flux; or
        StableDiffusion, a folder of parts.
      params: the model's parameters.
      dtype: type of the tensors: float32, bfloat16 or float16.
      source: folder of a checkpoint or of a run whose tokenizer belongs to the model, or None; its files for texts,
        chats and generation are copied.

    Raises:
      UnsupportedError: the library has no counterpart of the model.
    """
    folder = Path(folder).expanduser()
    if isinstance(model, StableDiffusion):
        pipelines.save_pipeline(folder, model, _whole(model, params), dtype, source)
        return
    body = _body(model)
    architecture = _architecture_for(body)
    config = _described(architecture, model)
    if architecture.library == "transformers":
        config |= {"dtype": dtype, "torch_dtype": dtype}
    kind, params = jnp.dtype(dtype), _whole(model, params)
    rows = [(name, shape, kind, make) for name, shape, make in binding.tensors_of(params, _written(architecture, body))]
    constant = lambda array: lambda: array
    rows += [(name, array.shape, kind, constant(array)) for name, array in architecture.constants(body).items()]
    _check_counterpart(architecture, body, config, [name for name, *_ in rows])
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.write(folder / architecture.weights_file, rows)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if source is not None and Path(source).expanduser().resolve() != folder.resolve():
        source = Path(source).expanduser()
        for name in (*PROCESSING_FILES, GENERATION_FILE):
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        if (source / TOKENIZER_FILE).is_file():
            _copy_tokenizer(source / TOKENIZER_FILE, folder / TOKENIZER_FILE)
    if (path := folder / GENERATION_FILE).is_file():
        generation = read_object(path)
        # The library prefers this file to config.json, so both must agree.
        generation |= {name: config[name] for name in GENERATION_SETTINGS if name in generation and name in config}
        path.write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")


def _copy_tokenizer(source: Path, target: Path) -> None:
    """Copies tokenizer.json; of a file that a run saved, only the part that the library tokenizers reads."""
    content = json.loads(source.read_text(encoding="utf-8"))
    if content.get("library") is not None:
        target.write_text(content["library"], encoding="utf-8")
    elif "pieces" not in content:
        shutil.copyfile(source, target)
