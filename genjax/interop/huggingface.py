"""Models that start from a checkpoint of the library transformers or diffusers: `--model.pretrained=FOLDER`.

A model names the architectures that it starts from in `architectures`; their tables stand beside the models.  Weights
are read one tensor at a time, each device its own part.  Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
from flax import traverse_util

from genjax.batch import PyTree
from genjax.errors import UserError
from genjax.interop import bindings as binding
from genjax.interop import gguf, weights
from genjax.interop.architecture import Architecture, UnsupportedError
from genjax.interop.safetensors import CheckpointFileError, Tensor
from genjax.model import HasDataShape, HasTextShapes
from genjax.nn.tokens import with_more_tokens
from genjax.optimizers import SGD

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
#: Settings of generation, which the library looks up in generation_config.json first.
GENERATION_SETTINGS = ("bos_token_id", "eos_token_id", "decoder_start_token_id")


def read_config(folder: str | Path) -> dict[str, Any]:
    """The configuration of a checkpoint, with the special tokens of its generation_config.json where it has one.

    A part of a pipeline of diffusers has its `_class_name` as `model_type`.

    Raises:
      CheckpointFileError: there is no configuration, it is damaged, or it belongs to another library.
    """
    folder = gguf.folder_of(folder)
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointFileError(
            f"{folder} holds no {CONFIG_FILE}: it is {_kind_of_folder(folder)}no checkpoint of the "
            "libraries transformers and diffusers"
        )
    config = read_object(folder / CONFIG_FILE)
    if "model_type" not in config and "_class_name" in config:
        config["model_type"] = config["_class_name"]
    if "model_type" not in config:
        raise CheckpointFileError(
            f"{folder / CONFIG_FILE} says no model_type: it is {_kind_of_config(config)}no checkpoint of the "
            "libraries transformers and diffusers"
        )
    if (folder / GENERATION_FILE).is_file():
        generation = read_object(folder / GENERATION_FILE)
        config |= {name: generation[name] for name in GENERATION_SETTINGS if generation.get(name) is not None}
    return config


def read_object(path: Path) -> dict[str, Any]:
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


@contextlib.contextmanager
def told_settings(file: str | Path) -> Iterator[None]:
    """Turns what goes wrong with settings of another type or size than they should have into a sentence.

    Raises:
      UnsupportedError: something went wrong.
    """
    try:
        yield
    except UserError:
        raise
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        raise UnsupportedError(
            f"{file} has a setting of a type or size that cannot be used ({type(error).__name__}: {reason})"
        ) from error


def _kind_of_folder(folder: Path) -> str:
    """Description of a folder without config.json, as part of a sentence; empty if it is not known."""
    if (folder / "model_index.json").is_file():
        return "a pipeline of the library diffusers, and "
    if (folder / "adapter_config.json").is_file():
        return "an adapter of the library peft (merge it into its base model and save that), and "
    if (folder / "checkpoints").is_dir():
        return "a run of genjax (start from it with --training.init_from), and "
    return ""


def _kind_of_config(config: dict[str, Any]) -> str:
    """Description of a config.json without model_type, as part of a sentence; empty if it is not known."""
    if "architecture" in config:
        return f"of a {config['architecture']} of the library timm, and "
    return ""


class HasArchitectures(Protocol):
    """A model that starts from checkpoints of another library.

    Attributes:
      architectures: architectures of these checkpoints.
    """

    architectures: ClassVar[tuple[Architecture, ...]]


def architecture_of(model: HasArchitectures, config: dict[str, Any], folder: str | Path) -> Architecture:
    """The architecture, of a model's `architectures`, that a checkpoint's configuration names.

    Raises:
      UnsupportedError: the checkpoint belongs to another kind of model.
    """
    for architecture in model.architectures:
        if architecture.model_type == config["model_type"]:
            return architecture
    known = ", ".join(architecture.model_type for architecture in model.architectures)
    raise UnsupportedError(
        f"{folder} is a checkpoint of {config['model_type']}, and the experiment's model is a {type(model).__name__}, "
        f"which starts from {known}"
    )


def configured(model: Any, folder: str | Path) -> Any:
    """A model with the sizes of a checkpoint, but its own task, optimizer and compute settings.

    Raises:
      UnsupportedError: the checkpoint belongs to another kind of model.
    """
    architecture = architecture_of(model, config := read_config(folder), folder)
    theirs = architecture.read(config, weights.read_folder(folder))
    changes = {name: value for name, value in theirs.items() if name not in architecture.own and hasattr(model, name)}
    for name in {"network", "encoder", "decoder"} & set(changes):
        own = {field: getattr(getattr(model, name), field) for field in ("remat", "scan_layers")}
        changes[name] = dataclasses.replace(changes[name], **own)
    return dataclasses.replace(model, **changes)


def abstract_params(model: Any) -> PyTree:
    """Shapes and types of a model's parameters."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    batch = {"tokens": tokens, "source": tokens}
    if isinstance(model, HasDataShape) and model.data_shape is not None:
        batch["x"] = jax.ShapeDtypeStruct((1, *model.data_shape), jnp.float32)
    for name, shape in model.text_shapes.items() if isinstance(model, HasTextShapes) else ():
        batch[name] = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    # With an optimizer whose state is empty and needs no length of a run.
    model = dataclasses.replace(model, optimizer=SGD())
    return jax.eval_shape(lambda b: model.init(jax.random.key(0), b).params, batch)


def _fitting(architecture: Architecture, model: Any, tensors: dict[str, Tensor]) -> binding.Bindings:
    """The bindings of a model; without the prefix in names if the file holds the bare body."""
    found = architecture.bind(model)
    if architecture.prefix and not any(name.startswith(architecture.prefix) for name in tensors):
        found = binding.without_prefix(found, architecture.prefix)
    return found


def load_params(
    model: Any, folder: str | Path, abstract: PyTree, fine_tune: bool = False, replace: bool = False
) -> PyTree:
    """Reads the parameters of a model from a checkpoint.

    Args:
      model: a model with the checkpoint's sizes (see `configured`).
      folder: the checkpoint.
      abstract: shapes, types and, where they are placed, shardings of the parameters, as nested dicts.
      fine_tune: whether the model's heads may be missing in the checkpoint (they are then left out of the result), and
        the checkpoint's heads may be left over.
      replace: whether `abstract` are arrays whose memory is released before the new arrays are read.

    Raises:
      CheckpointFileError: missing tensors, extra tensors and wrong shapes, all at once; or a damaged file.
    """
    architecture = architecture_of(model, read_config(folder), folder)
    tensors = weights.read_folder(folder)
    found = _fitting(architecture, model, tensors)
    optional = architecture.is_head if fine_tune else lambda name: False
    fresh = binding.check(abstract, found, tensors, architecture.is_buffer, optional, str(folder))
    if replace:
        abstract = given_up(abstract, set(fresh))
    return binding.read(abstract, found, tensors)


def given_up(arrays: PyTree, kept: set[str]) -> PyTree:
    """Releases the memory of arrays, except at the kept paths; returns their shapes, types and shardings."""
    flat = traverse_util.flatten_dict(arrays, sep="/")
    shapes = {n: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding) for n, a in flat.items()}
    for name, array in flat.items():
        if name not in kept:
            array.delete()
    return traverse_util.unflatten_dict(shapes, sep="/")


class FromPretrained:
    """Mixin that makes a model with a field `pretrained` a `genjax.model.HasPretrained`."""

    architectures: ClassVar[tuple[Architecture, ...]]
    vocab_size: int | None
    pretrained: str | None

    def with_pretrained_sizes(self) -> Any:
        """The model with the sizes of the checkpoint, but its own task, optimizer and compute settings."""
        if self.pretrained is None:
            return self
        return configured(self, self.pretrained)

    def pretrained_params(self, params: PyTree) -> PyTree:
        """The checkpoint's parameters on the devices of `params`, whose memory is released; missing heads stay new.

        If the model has more tokens than the checkpoint, new tokens get the mean of the others.

        Raises:
          UserError: the checkpoint does not fit.
        """
        if self.pretrained is None:
            return params
        # Checkpoints have no low-rank updates.
        network = traverse_util.flatten_dict({name: part for name, part in params.items() if name != "lora"})
        theirs = self.with_pretrained_sizes()
        grown = {}
        if theirs.vocab_size != self.vocab_size:
            shapes = traverse_util.flatten_dict(abstract_params(theirs))
            grown = {path: new for path, new in network.items() if new.shape != shapes[path].shape}
            network = {
                path: jnp.zeros(shapes[path].shape, a.dtype) if path in grown else a for path, a in network.items()
            }
        loaded = traverse_util.flatten_dict(
            load_params(theirs, self.pretrained, traverse_util.unflatten_dict(network), fine_tune=True, replace=True)
        )
        for path in grown.keys() & loaded.keys():
            loaded[path] = jax.device_put(with_more_tokens(loaded[path], grown[path].shape), grown[path].sharding)
        return traverse_util.unflatten_dict(traverse_util.flatten_dict(params) | loaded)
