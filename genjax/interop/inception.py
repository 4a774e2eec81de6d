"""Weights of the Inception network of the Frechet distance, from a file in the layout of pytorch-fid and
torch-fidelity.

Both packages have the same tensors (Mixed_5b.branch1x1.conv.weight, ...bn.running_mean, ..., fc.weight), as a file
of torch.save, which is read without unpickling code; .safetensors and .npz with the same names are read too.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from genjax.evaluation.inception import InceptionV3
from genjax.interop import safetensors
from genjax.interop.safetensors import CheckpointFileError
from genjax.interop.torch_files import read_torch_file

_EPSILON = 1e-3


def _read(path: Path) -> dict[str, np.ndarray]:
    match path.suffix:
        case ".safetensors":
            return {name: np.asarray(tensor.view()) for name, tensor in safetensors.read_header(path).items()}
        case ".npz":
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                    return dict(arrays)
            except Exception:
                # A damaged archive can raise almost any exception.
                raise CheckpointFileError(f"{path} is not a file of arrays that numpy.savez wrote") from None
    return read_torch_file(path)


def inception_params(path: str | Path) -> dict:
    """Parameters of `InceptionV3`, float32, with batch norm folded into the convolutions.

    Raises:
      CheckpointFileError: there is no such file, it cannot be read, or its tensors do not fit the network.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointFileError(f"there is no file {path} with weights of the Inception network")
    tensors = _read(path)
    expected = jax.eval_shape(lambda: InceptionV3().init(jax.random.key(0), jnp.zeros((1, 75, 75, 3))))["params"]

    def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in tensors:
            raise CheckpointFileError(
                f"{path} has another layout than pytorch-fid's and torch-fidelity's Inception weights: no tensor {name}"
            )
        if tensors[name].shape != shape:
            raise CheckpointFileError(
                f"{path} has another layout than pytorch-fid's and torch-fidelity's Inception weights: {name} has the "
                f"shape {tensors[name].shape}, not {shape}"
            )
        return np.asarray(tensors[name], np.float32)

    params = {}
    for names, leaf in traverse_util.flatten_dict(expected).items():
        if names == ("fc", "kernel"):
            params[names] = tensor("fc.weight", leaf.shape[::-1]).T
        elif names[-1] == "kernel":
            layer = ".".join(names[:-2])
            height, width, inputs, outputs = leaf.shape
            kernel = tensor(f"{layer}.conv.weight", (outputs, inputs, height, width)).transpose(2, 3, 1, 0)
            scale, shift, mean, variance = (
                tensor(f"{layer}.bn.{name}", (outputs,)) for name in ("weight", "bias", "running_mean", "running_var")
            )
            factor = scale / np.sqrt(variance + _EPSILON)
            params[names] = kernel * factor
            params[(*names[:-1], "bias")] = shift - mean * factor
    return traverse_util.unflatten_dict(params)
