"""Samplers and forward passes as one portable file, which needs jax and nothing of genjax to run.

    export_sampler("sampler.zip", run.model, run.state, num_samples=16)

The file is a zip archive: `program` is what `jax.export` serialises (StableHLO, for several platforms), `arrays/` the
parameters as raw bytes, `manifest.json` their shapes and types, `portable.py` the loader, and `flatbuffers/` the small
package with which jax reads its format.  Python imports from the archive itself, so elsewhere:

    import sys; sys.path.insert(0, "sampler.zip")
    from portable import load
    pictures = load()(0)            # a seed; a forward pass takes its arrays
"""

from __future__ import annotations

import importlib.util
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from genjax.errors import UserError
from genjax.interop import portable
from genjax.model import TrainState

PLATFORMS = ("cpu", "cuda", "tpu")


def export_function(
    path: str | Path,
    function: Callable[..., Any],
    constants: Any,
    *arguments: jax.ShapeDtypeStruct,
    platforms: Sequence[str] = PLATFORMS,
    description: str = "",
) -> Path:
    """Writes a function of (constants, *arguments) with its constants.

    Args:
      path: the file, by convention ending in .zip.
      function: traceable by `jit`.
      constants: pytree of arrays that are written into the file.
      *arguments: shapes and types of the other arguments; dimensions may be symbolic (`jax.export.symbolic_shape`).
      platforms: platforms that the program shall run on.
      description: description of the function, for the manifest.

    Raises:
      UserError: a constant is a random key, which cannot be written; or the package flatbuffers is missing.
    """
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError("jax.export writes programs with the package flatbuffers: pip install 'genjax[export]'")
    leaves, tree = jax.tree.flatten(constants)
    if any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves):
        raise UserError("a state with random keys in it cannot be exported; export a function of its parameters")

    def program(leaves: list[jax.Array], *arguments: jax.Array) -> Any:
        return function(jax.tree.unflatten(tree, leaves), *arguments)

    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    exported = export.export(jax.jit(program), platforms=tuple(platforms))(shapes, *arguments)
    rows = [{"shape": leaf.shape, "dtype": str(leaf.dtype)} for leaf in leaves]
    takes = [{"shape": [str(n) for n in a.shape], "dtype": str(a.dtype)} for a in arguments]
    manifest = {"description": description, "platforms": list(platforms), "arguments": takes, "arrays": rows}
    path = Path(path).expanduser()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("portable.py", Path(portable.__file__).read_text(encoding="utf-8"))
        reader = Path(str(importlib.import_module("flatbuffers").__file__)).parent
        for file in sorted(reader.rglob("*.py")):
            archive.write(file, f"flatbuffers/{file.relative_to(reader).as_posix()}")
        archive.writestr("manifest.json", json.dumps({**manifest, "jax": jax.__version__}, indent=1))
        archive.writestr("program", exported.serialize())
        for i, leaf in enumerate(leaves):
            archive.writestr(f"arrays/{i}", np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return path


def _evaluated(state: TrainState) -> TrainState:
    """The state for evaluation: averaged parameters if they are kept, and no optimizer state."""
    return state.replace(params=state.eval_params, ema_params=None, opt_state=())


def export_sampler(
    path: str | Path,
    model: Any,
    state: TrainState,
    num_samples: int,
    platforms: Sequence[str] = PLATFORMS,
    **condition: Any,
) -> Path:
    """Writes a function from a seed (uint32) to `num_samples` samples, the same as `model.sample` draws with this seed.

    Args:
      path: the file.
      model: any generative model.
      state: a trained state.
      num_samples: number of samples of a call.
      platforms: platforms that the function shall run on.
      **condition: conditions of the samples, fixed in the file.
    """

    def sample(state: TrainState, seed: jax.Array) -> jax.Array:
        return model.sample(state, jax.random.key(seed), num_samples, **condition)

    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    text = f"{num_samples} samples of {type(model).__name__}"
    return export_function(path, sample, _evaluated(state), seed, platforms=platforms, description=text)


def export_forward(
    path: str | Path,
    model: Any,
    state: TrainState,
    method: str,
    *examples: Any,
    any_batch: bool = True,
    platforms: Sequence[str] = PLATFORMS,
) -> Path:
    """Writes a method of a model, as `logits`, `features` or `encode_source`, as a function of arrays.

    Args:
      path: the file.
      model: a model with the method (state, *arrays).
      state: a trained state.
      method: name of the method.
      *examples: arrays with the shapes and types of the method's arguments, batch first.
      any_batch: whether the batch may have any size; if not, it has the size of the examples' batch.
      platforms: platforms that the exported function shall run on.
    """
    (batch,) = export.symbolic_shape("batch")
    shapes = [np.asarray(e).shape for e in examples]
    arguments = [
        jax.ShapeDtypeStruct((batch, *shape[1:]) if any_batch else shape, np.asarray(example).dtype)
        for shape, example in zip(shapes, examples)
    ]
    call = lambda state, *arrays: getattr(model, method)(state, *arrays)
    text = f"{method} of {type(model).__name__}"
    return export_function(path, call, _evaluated(state), *arguments, platforms=platforms, description=text)
