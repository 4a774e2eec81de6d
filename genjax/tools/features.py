"""Features of pictures to judge samples by: raw pixels, features of a trained classifier, or of the
Inception network.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from genjax.config import ConfigError
from genjax.data import Images
from genjax.evaluation.inception import InceptionV3, prepare
from genjax.interop.inception import inception_params
from genjax.model import HasFeatures
from genjax.training import runs

#: Function from pictures [B, H, W, C] in [0, 1] to features [B, D] and logits [B, K] or None.
Extract = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]


def compiled(function: Any) -> Extract:
    """A function that calls a jitted function with batches of one size: shorter batches are filled up."""
    function, size = jax.jit(function), 0

    def extract(pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        nonlocal size
        size = max(size, len(pictures))
        filled = pictures[np.minimum(np.arange(size), len(pictures) - 1)]
        return tuple(np.asarray(part)[: len(pictures)] for part in function(filled))

    return extract


def feature_function(name: str, resize: str) -> tuple[str, Any]:
    """A description of the features, and the differentiable function that maps pictures [B, H, W, C] in [0, 1] to them.

    The function gives features [B, D], and logits [B, K] or None.

    Raises:
      ConfigError: there are no features of this name.
      UserError: the file of weights cannot be used.
    """
    if name == "pixels":
        return "pixels in [0, 1]", lambda x: (x.reshape(len(x), -1), None)
    path = Path(name).expanduser()
    if path.is_dir():
        return _classifier_function(path)
    if not path.is_file():
        raise ConfigError(f"--features={name} is neither pixels, nor the directory of a run, nor a file of weights")
    params = inception_params(path)
    apply = lambda x: InceptionV3().apply({"params": params}, prepare(x, resize))
    return f"Inception v3 of the FID ({path.name}, resized as {resize} does)", apply


def feature_extractor(name: str, resize: str) -> tuple[str, Extract]:
    """`feature_function`, compiled, for NumPy arrays."""
    description, function = feature_function(name, resize)
    return description, function if name == "pixels" else compiled(function)


def classifier_features(path: Path) -> tuple[str, Extract]:
    """Features of a trained classifier; pictures with a margin around are cropped to its size."""
    description, function = _classifier_function(path)
    return description, compiled(function)


def _classifier_function(path: Path) -> tuple[str, Any]:
    run = runs.restore(path)
    data, model = run.experiment.data, run.model
    if not isinstance(model, HasFeatures):
        raise ConfigError(f"--features={path} is a run of {type(model).__name__}, which gives no features")
    if not isinstance(data, Images) or data.preprocessing != "unit" or data.flatten:
        raise ConfigError(f"--features={path} must be trained on pictures with data.preprocessing=unit")
    shape = tuple(model.data_shape)

    def apply(x: jax.Array) -> Any:
        margins = [have - want for have, want in zip(x.shape[1:], shape, strict=True)]
        if min(margins) < 0 or margins[2]:
            raise ConfigError(f"--features={path} wants pictures of shape {shape}, these have {x.shape[1:]}")
        top, left = margins[0] // 2, margins[1] // 2
        return model.features(run.state, x[:, top : top + shape[0], left : left + shape[1]])

    return f"{run.name} ({type(model).__name__}, step {run.step}, trained on {data.name})", apply
