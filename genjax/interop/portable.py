"""Loads an exported program; this file lies in every archive that `genjax.interop.export` writes,
and needs only jax.
"""

import importlib.util
import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export


def load(path: str | Path | None = None) -> Callable[..., Any]:
    """The function in an archive: a function of a seed for samplers, of arrays for forward passes.

    Args:
      path: the archive; None for the archive that this file was imported from.
    """
    archive = Path(__file__).parent if path is None else Path(path)
    if importlib.util.find_spec("flatbuffers") is None:
        sys.path.append(str(archive))  # the archive contains the package
    with zipfile.ZipFile(archive) as file:
        manifest = json.loads(file.read("manifest.json"))
        program = export.deserialize(bytearray(file.read("program")))
        arrays = [
            jax.device_put(np.frombuffer(file.read(f"arrays/{i}"), jnp.dtype(row["dtype"])).reshape(row["shape"]))
            for i, row in enumerate(manifest["arrays"])
        ]
    kinds = [jnp.dtype(row["dtype"]) for row in manifest["arguments"]]
    run = jax.jit(program.call)

    def call(*arguments):
        if len(arguments) != len(kinds):
            raise TypeError(f"this program takes {len(kinds)} arguments: {manifest['arguments']}")
        return run(arrays, *(jnp.asarray(a, kind) for a, kind in zip(arguments, kinds)))

    call.__doc__ = f"{manifest['description']}; arguments {manifest['arguments']}"
    return call
