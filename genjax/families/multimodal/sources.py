"""Parts of models from runs, or from folders of the library transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from genjax.batch import PyTree
from genjax.interop import bindings, weights
from genjax.interop.architecture import UnsupportedError
from genjax.interop.huggingface import architecture_of, read_config


def is_run(source: str | Path) -> bool:
    """Whether a path is the working directory of a run."""
    return (Path(source).expanduser() / "checkpoints").is_dir()


def folder_model(folder: str | Path, kinds: tuple[type[Any], ...]) -> Any:
    """The model that a folder's configuration describes, of the first of the kinds that starts from it.

    Raises:
      UnsupportedError: none does.
    """
    config = read_config(folder)
    for kind in kinds:
        for architecture in kind.architectures:
            if architecture.model_type == config["model_type"]:
                found = architecture.read(config, weights.read_folder(folder))
                return kind(**found)
    known = ", ".join(architecture.model_type for kind in kinds for architecture in kind.architectures)
    raise UnsupportedError(f"{folder} is a checkpoint of {config['model_type']}, and known are {known}")


def folder_part(folder: str | Path, model: Any, like: PyTree) -> PyTree:
    """The parameters of a folder in the tree `like`, which is a part of the model's tree.

    Raises:
      CheckpointFileError: a tensor is missing, or has another shape.
    """
    architecture, tensors = architecture_of(model, read_config(folder), folder), weights.read_folder(folder)
    found = architecture.bind(model)
    if architecture.prefix and not any(name.startswith(architecture.prefix) for name in tensors):
        found = bindings.without_prefix(found, architecture.prefix)
    bindings.check(like, found, tensors, lambda name: True, lambda name: False, str(folder))
    return bindings.read(like, found, tensors)
