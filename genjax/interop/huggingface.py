"""Checkpoints of the library transformers as models of ours, and back.

    pretrained = load_pretrained("folder")                     # config.json and safetensors
    logits = pretrained.model.logits(pretrained.state, tokens)
    save_pretrained("other", pretrained.model, pretrained.params)

Weights are read one tensor at a time, each device its own part.  Nothing is ever unpickled.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from genjax.batch import PyTree
from genjax.interop import bindings as binding
from genjax.interop import safetensors
from genjax.interop.architectures import ARCHITECTURES
from genjax.interop.architectures.base import Architecture, UnsupportedError
from genjax.interop.safetensors import CheckpointFileError, Tensor
from genjax.model import TrainState
from genjax.nn.transformer import Transformer
from genjax.optimizers import SGD

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
TOKENIZER_FILE = "tokenizer.json"
#: What stands beside the weights in a checkpoint and says how texts and pictures become inputs.
PROCESSING_FILES = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt",
    "spiece.model", "tokenizer.model", "chat_template.jinja", "chat_template.json", "preprocessor_config.json",
    "processor_config.json",
)  # fmt: skip
#: Settings that the library generates by, and looks up in the file for generation first.
_GENERATION_SETTINGS = ("bos_token_id", "eos_token_id", "decoder_start_token_id")


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A checkpoint of another library.

    Attributes:
      model: ours, with the checkpoint's configuration.
      params: its parameters.
      folder: where it lies.
    """

    model: Any
    params: PyTree
    folder: Path

    @property
    def state(self) -> TrainState:
        """A state to evaluate and generate with; to train, use `--model.pretrained`."""
        return TrainState(step=jnp.zeros((), jnp.int32), params=self.params)


def read_config(folder: str | Path) -> dict[str, Any]:
    """The configuration of a checkpoint, with the special tokens of its generation_config.json where it has one.

    Raises:
      CheckpointFileError: there is none, it is damaged, or it is one of another library.
    """
    folder = Path(folder).expanduser()
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointFileError(
            f"{folder} holds no {CONFIG_FILE}: it is {_kind_of_folder(folder)}no checkpoint of the library transformers"
        )
    config = _read_object(folder / CONFIG_FILE)
    if "model_type" not in config:
        raise CheckpointFileError(
            f"{folder / CONFIG_FILE} says no model_type: it is {_kind_of_config(config)}no checkpoint of the library "
            "transformers"
        )
    if (folder / GENERATION_FILE).is_file():
        generation = _read_object(folder / GENERATION_FILE)
        config |= {name: generation[name] for name in _GENERATION_SETTINGS if generation.get(name) is not None}
    return config


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
      CheckpointFileError: the file holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise CheckpointFileError(f"{path} is damaged: it is not JSON") from None
    if not isinstance(content, dict):
        raise CheckpointFileError(f"{path} is damaged: it must be a JSON object")
    return content


def _kind_of_folder(folder: Path) -> str:
    """What a folder without config.json is, as part of a sentence; nothing where it is not known."""
    if (folder / "model_index.json").is_file():
        return "a pipeline of the library diffusers, and "
    if (folder / "adapter_config.json").is_file():
        return "an adapter of the library peft (merge it into its base model and save that), and "
    if (folder / "checkpoints").is_dir():
        return "a run of genjax (start from it with --training.init_from), and "
    return ""


def _kind_of_config(config: dict[str, Any]) -> str:
    """What a config.json without model_type is of, as part of a sentence; nothing where it is not known."""
    if "_diffusers_version" in config or "_class_name" in config:
        return f"of a {config.get('_class_name', 'model')} of the library diffusers, and "
    if "architecture" in config:
        return f"of a {config['architecture']} of the library timm, and "
    return ""


def architecture_of(config: dict[str, Any]) -> Architecture:
    """The architecture that a configuration names.

    Raises:
      UnsupportedError: it is not known; those that are, are named.
    """
    name = config["model_type"]
    if name not in ARCHITECTURES:
        raise UnsupportedError(f"the architecture {name!r} is not known; known are {', '.join(sorted(ARCHITECTURES))}")
    return ARCHITECTURES[name]


def architecture_for(model: Any) -> Architecture:
    """The architecture that a model of ours is written as.

    Raises:
      UnsupportedError: there is none.
    """
    for architecture in ARCHITECTURES.values():
        if type(model) is architecture.model and architecture.writes(model):
            return architecture
    raise UnsupportedError(f"the library transformers has no counterpart of {type(model).__name__} with these settings")


def configured(model: Any, folder: str | Path) -> Any:
    """A model with the sizes of a checkpoint, and its own task, optimizer and way to compute.

    Raises:
      UnsupportedError: the checkpoint is of another kind of model.
    """
    architecture = architecture_of(config := read_config(folder))
    theirs = architecture.read(config, safetensors.read_folder(Path(folder).expanduser()))
    fitting = isinstance(model, (architecture.model, *architecture.others)) or isinstance(theirs, type(model))
    if not fitting:
        raise UnsupportedError(
            f"{folder} is a checkpoint of {config['model_type']}, a {architecture.model.__name__}, and the experiment's "
            f"model is a {type(model).__name__}"
        )
    changes = {name: getattr(theirs, name) for name in architecture.fields if hasattr(model, name)}
    for name in {"network", "encoder", "decoder"} & set(changes):
        own = {field: getattr(getattr(model, name), field) for field in ("remat", "scan_layers")}
        changes[name] = dataclasses.replace(changes[name], **own)
    return dataclasses.replace(model, **changes)


def abstract_params(model: Any) -> PyTree:
    """Shapes and types of a model's parameters."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    batch = {"tokens": tokens, "source": tokens}
    if getattr(model, "data_shape", None) is not None:
        batch["x"] = jax.ShapeDtypeStruct((1, *model.data_shape), jnp.float32)
    # Whose state holds nothing and needs no length of a run.
    model = dataclasses.replace(model, optimizer=SGD())
    return jax.eval_shape(lambda b: model.init(jax.random.key(0), b).params, batch)


def _fitting(architecture: Architecture, model: Any, tensors: dict[str, Tensor]) -> binding.Bindings:
    """The bindings of a model, in the names of a file of the bare body where it is one."""
    found = architecture.bind(model)
    if architecture.prefix and not any(name.startswith(architecture.prefix) for name in tensors):
        found = binding.without_prefix(found, architecture.prefix)
    return found


def _written(architecture: Architecture, model: Any) -> binding.Bindings:
    """The bindings of a model under the names that the library itself writes."""
    found = architecture.bind(model)
    return binding.without_prefix(found, architecture.prefix) if architecture.bare(model) else found


def _whole(model: Any, params: PyTree) -> PyTree:
    """The network's parameters, low-rank updates added where there are any."""
    return model.network_params(params) if hasattr(model, "network_params") else params


#: Fields of a stack that decide what it computes, and of a model above it.
_STACK_FIELDS = (
    "num_layers", "width", "num_heads", "activation", "gated", "norm", "norm_placement", "norm_epsilon", "qk_norm",
    "use_bias", "positions", "window", "experts",
)  # fmt: skip
_MODEL_FIELDS = (
    "num_types", "position_offset", "skip_padding", "embedding_norm", "tie_embeddings", "scale_logits", "logit_bias",
    "patch_size",
)  # fmt: skip


def _computation(model: Any) -> dict[str, Any]:
    """What a model computes from its parameters, by the names of its fields, as far as other libraries may not know it."""
    found = {name: getattr(model, name) for name in _MODEL_FIELDS if hasattr(model, name)}
    for part in ("network", "encoder", "decoder", "text", "vision"):
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
    """Raises UnsupportedError if a written configuration does not say all that the model computes."""
    theirs = _computation(architecture.read(config, names))
    for name, value in _computation(model).items():
        if theirs[name] != value:
            raise UnsupportedError(
                f"the library transformers has no {architecture.model_type} with {name}={value!r} (it has {theirs[name]!r})"
            )


def load_params(
    model: Any, folder: str | Path, abstract: PyTree, fine_tune: bool = False, replace: bool = False
) -> PyTree:
    """Reads the parameters of a model from a checkpoint.

    Args:
      model: with the checkpoint's sizes (see `configured`).
      folder: the checkpoint.
      abstract: shapes, types and, where they are placed, shardings of the parameters, as nested dicts.
      fine_tune: heads may be absent from the checkpoint, and are then left out of the result; its own may be left over.
      replace: `abstract` are arrays, which are given up before those that replace them are read.

    Raises:
      CheckpointFileError: missing tensors, extra tensors and wrong shapes, all at once; or a damaged file.
    """
    folder = Path(folder).expanduser()
    architecture = architecture_of(read_config(folder))
    tensors = safetensors.read_folder(folder)
    found = _fitting(architecture, model, tensors)
    optional = architecture.is_head if fine_tune else lambda name: False
    fresh = binding.check(abstract, found, tensors, architecture.is_buffer, optional, str(folder))
    if replace:
        abstract = _given_up(abstract, set(fresh))
    return binding.read(abstract, found, tensors)


def _given_up(arrays: PyTree, kept: set[str]) -> PyTree:
    """Shapes, types and shardings of arrays whose memory is given back, but for those at the kept paths."""
    flat = traverse_util.flatten_dict(arrays, sep="/")
    shapes = {n: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for n, a in flat.items()}
    for name, array in flat.items():
        if name not in kept:
            array.delete()
    return traverse_util.unflatten_dict(shapes, sep="/")


def load_pretrained(folder: str | Path, dtype: Any = jnp.float32, shard: Any = None) -> Pretrained:
    """Reads a checkpoint.

    Args:
      folder: with config.json and model.safetensors (or its index and parts).
      dtype: type of the parameters.
      shard: function from shape and type (a `jax.ShapeDtypeStruct`) to a `jax.sharding.Sharding`, or None for the
        default device.

    Raises:
      CheckpointFileError: a file is missing, truncated or damaged; or tensors are missing, extra or of wrong shapes.
      UnsupportedError: the architecture or a setting of it is not known.
    """
    folder = Path(folder).expanduser()
    config = read_config(folder)
    model = architecture_of(config).read(config, safetensors.read_folder(folder))

    def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = None if shard is None else shard(leaf)
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)

    return Pretrained(model, load_params(model, folder, jax.tree.map(placed, abstract_params(model))), folder)


def to_tensors(model: Any, params: PyTree) -> dict[str, np.ndarray]:
    """Parameters (or gradients) under the names and in the arrangement of the library transformers."""
    params = _whole(model, params)
    return {name: make() for name, _, make in binding.tensors_of(params, _written(architecture_for(model), model))}


def save_pretrained(folder: str | Path, model: Any, params: PyTree, dtype: str = "float32", source: Any = None) -> None:
    """Writes config.json and model.safetensors, so that the library transformers loads them.

    Args:
      folder: made where it does not exist.
      model: BERT, RoBERTa, GPT, T5, BART or CLIP.
      params: its parameters.
      dtype: type of the tensors: float32, bfloat16 or float16.
      source: folder of a checkpoint or of a run whose tokenizer belongs to the model, or None; its files for texts, chats
        and generation are copied.

    Raises:
      UnsupportedError: the library has no counterpart of the model.
    """
    folder = Path(folder).expanduser()
    architecture = architecture_for(model)
    config = {**architecture.write(model), "dtype": dtype, "torch_dtype": dtype}
    kind, params = jnp.dtype(dtype), _whole(model, params)
    rows = [
        (name, shape, kind, make) for name, shape, make in binding.tensors_of(params, _written(architecture, model))
    ]
    _check_counterpart(architecture, model, config, [name for name, *_ in rows])
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.write(folder / safetensors.WEIGHTS, rows)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if source is not None and Path(source).expanduser().resolve() != folder.resolve():
        source = Path(source).expanduser()
        for name in (*PROCESSING_FILES, GENERATION_FILE):
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        if (source / TOKENIZER_FILE).is_file():
            _copy_tokenizer(source / TOKENIZER_FILE, folder / TOKENIZER_FILE)
    if (path := folder / GENERATION_FILE).is_file():
        generation = _read_object(path)
        # The library believes this file before config.json, so both must say the same.
        generation |= {name: config[name] for name in _GENERATION_SETTINGS if name in generation and name in config}
        path.write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")


def _copy_tokenizer(source: Path, target: Path) -> None:
    """Copies tokenizer.json; of one that a run saved, the part that the library tokenizers reads."""
    content = json.loads(source.read_text(encoding="utf-8"))
    if content.get("library") is not None:
        target.write_text(content["library"], encoding="utf-8")
    elif "pieces" not in content:
        shutil.copyfile(source, target)
