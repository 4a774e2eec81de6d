"""How an architecture of the libraries transformers and diffusers is described here, and helpers to read its
configuration.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import numpy as np

from genjax.errors import UserError
from genjax.interop.bindings import Bindings
from genjax.interop.safetensors import DIFFUSERS_WEIGHTS, WEIGHTS
from genjax.nn.positions import LinearScaling, Llama3Scaling, RotaryScaling, YarnScaling
from genjax.nn.transformer import Transformer

Config = Mapping[str, Any]


class UnsupportedError(UserError):
    """A configuration that genjax has no counterpart of; the message is one sentence for the user."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How one architecture of transformers or diffusers is read into a model of genjax, and written from it.

    It stands in `architectures` of each model class that can start from the architecture's checkpoints.  "The body" is
    the network without its output layers; "the head" is the output layers.

    Attributes:
      model_type: the architecture's name in config.json: its model_type, or in diffusers its _class_name.
      read: (config.json, names of the tensors) -> fields of the model.
      write: model -> config.json, including its entry `architectures`.
      bind: model -> names of its tensors, as `Bindings`.
      prefix: first part of the names of the body's tensors; files that hold the body alone leave it out.
      buffers: pattern of the names of tensors that are no parameters, or None.
      copies: names of tensors that may repeat the token embeddings; they are not read then.
      heads: pattern of the names of the head's tensors, or None; a model with another head does not read them.
      head_paths: beginnings of the paths of the head's parameters in genjax.
      own: fields that `read` returns, but the user decides when a model starts from a checkpoint.
      writes: whether a given model is written as this architecture.
      bare: whether a given model is written as the body alone, without the prefix.
      constants: tensors of a given model that are no parameters and are written beside them.
      library: the library whose checkpoints these are.
    """

    model_type: str
    read: Callable[[Config, Collection[str]], dict[str, Any]]
    write: Callable[[Any], dict[str, Any]]
    bind: Callable[[Any], Bindings]
    prefix: str = ""
    buffers: str | None = None
    copies: tuple[str, ...] = ()
    heads: str | None = None
    head_paths: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    writes: Callable[[Any], bool] = lambda model: True
    bare: Callable[[Any], bool] = lambda model: False
    constants: Callable[[Any], dict[str, np.ndarray]] = lambda model: {}
    library: Literal["transformers", "diffusers"] = "transformers"

    @property
    def weights_file(self) -> str:
        """Name of the file of weights."""
        return WEIGHTS if self.library == "transformers" else DIFFUSERS_WEIGHTS

    def is_buffer(self, name: str) -> bool:
        """Whether the tensor of this name is not a parameter, or only repeats one."""
        found = self.buffers is not None and re.search(self.buffers, name) is not None
        return found or name in self.copies

    def is_head(self, name: str) -> bool:
        """Whether a tensor's name, or the path of a parameter in genjax, belongs to the head."""
        found = self.heads is not None and re.match(self.heads, name) is not None
        return found or name.startswith(self.head_paths)


#: Names of activations in transformers, and in genjax.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "quick_gelu": "quick_gelu",
}
THEIR_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_new",
    "relu": "relu",
    "silu": "silu",
    "quick_gelu": "quick_gelu",
}


def activation(name: str) -> str:
    """The name in genjax of an activation of transformers.

    Raises:
      UnsupportedError: genjax does not have it.
    """
    if name not in ACTIVATIONS:
        raise UnsupportedError(f"config.json has the activation {name!r}; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def require(config: Config, name: str, default: Any, *allowed: Any, file: str = "config.json") -> None:
    """Raises UnsupportedError unless the setting `name` of a file has one of the values `allowed`."""
    value = config.get(name, default)
    if value not in allowed:
        raise UnsupportedError(f"{file} has {name}={value!r}, and only {', '.join(map(repr, allowed))} can be read")


def number(config: Config, *names: str) -> Any:
    """A setting that must be given, under one of its names.

    Raises:
      UnsupportedError: it is not given.
    """
    for name in names:
        if config.get(name) is not None:
            return config[name]
    raise UnsupportedError(f"config.json does not say {names[0]}")


def token(config: Config, name: str, default: int | None) -> int | None:
    """A special token; the first if there are several."""
    ends = tokens(config, name, default)
    return ends[0] if isinstance(ends, tuple) else ends


def tokens(config: Config, name: str, default: int | None) -> int | tuple[int, ...] | None:
    """A special token, or all of them if there are several, as with tokens that end a text."""
    value = config.get(name, default)
    if not isinstance(value, (list, tuple)):
        return value
    return value[0] if len(value) == 1 else tuple(value) or None


def num_labels(config: Config) -> int:
    """Number of labels of a classifier."""
    if config.get("id2label"):
        return len(config["id2label"])
    return config.get("num_labels") or 2


def layer_paths(network: Transformer) -> list[tuple[int, str]]:
    """Number and path of each layer, as if the stack were not scanned."""
    return [(i, f"stack/layer_{i}") for i in range(network.num_layers)]


# ----------------------------------------------------------------------------------------------------------------------
# Rotary positions


def read_rotary(config: Config, default_base: float) -> dict[str, Any]:
    """Base, fraction and scaling, from `rope_parameters` or the older `rope_theta` and `rope_scaling`."""
    rope = dict(config.get("rope_scaling") or {}) | dict(config.get("rope_parameters") or {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    length = config.get("max_position_embeddings", 2048)
    scaling: RotaryScaling | None
    match kind:
        case "default":
            scaling = None
        case "linear":
            scaling = LinearScaling(factor=float(rope["factor"]))
        case "llama3":
            scaling = Llama3Scaling(
                factor=float(rope["factor"]),
                original_length=rope["original_max_position_embeddings"],
                low_frequency_factor=float(rope["low_freq_factor"]),
                high_frequency_factor=float(rope["high_freq_factor"]),
            )
        case "yarn":
            unread = [name for name in ("attention_factor", "mscale", "mscale_all_dim") if rope.get(name) is not None]
            if unread or not rope.get("truncate", True):
                raise UnsupportedError(
                    f"config.json scales rotary positions by yarn with {', '.join(unread) or 'truncate=false'}"
                )
            scaling = YarnScaling(
                factor=float(rope["factor"]),
                original_length=rope.get("original_max_position_embeddings") or length,
                beta_fast=float(rope.get("beta_fast") or 32.0),
                beta_slow=float(rope.get("beta_slow") or 1.0),
            )
        case _:
            raise UnsupportedError(
                f"config.json scales rotary positions by {kind!r}; known are default, linear, llama3 and yarn"
            )
    base = rope.get("rope_theta", config.get("rope_theta")) or default_base
    fraction = rope.get("partial_rotary_factor", config.get("partial_rotary_factor")) or 1.0
    return {"rotary_base": float(base), "rotary_fraction": float(fraction), "rotary_scaling": scaling}


def write_rotary(network: Transformer) -> dict[str, Any]:
    """`rope_parameters` of a stack.

    Raises:
      UnsupportedError: transformers has no such scaling.
    """
    rope: dict[str, Any] = {"rope_theta": network.rotary_base, "rope_type": "default"}
    if network.rotary_fraction != 1.0:
        rope["partial_rotary_factor"] = network.rotary_fraction
    match network.rotary_scaling:
        case None:
            pass
        case LinearScaling(factor=factor):
            rope |= {"rope_type": "linear", "factor": factor}
        case Llama3Scaling() as s:
            rope |= {
                "rope_type": "llama3",
                "factor": s.factor,
                "original_max_position_embeddings": s.original_length,
                "low_freq_factor": s.low_frequency_factor,
                "high_freq_factor": s.high_frequency_factor,
            }
        case YarnScaling() as s:
            rope |= {
                "rope_type": "yarn",
                "factor": s.factor,
                "original_max_position_embeddings": s.original_length,
                "beta_fast": s.beta_fast,
                "beta_slow": s.beta_slow,
            }
        case other:
            raise UnsupportedError(f"transformers has no counterpart of {type(other).__name__}")
    # The older keys too, because versions before 5 read only these.
    old = None if rope["rope_type"] == "default" else {k: v for k, v in rope.items() if k != "rope_theta"}
    return {"rope_parameters": rope, "rope_theta": network.rotary_base, "rope_scaling": old}
