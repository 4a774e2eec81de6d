"""One picture in the style of another, by the feature maps of a trained classifier or of the Inception network.

    picture, terms = style.transfer(
        style.Options(features="inception.pth", content="house.png", style="waves.png")
    )

Pictures are arrays [H, W, C] in [0, 1]; `write_picture` writes one to a file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from genjax.config import ConfigError, check_at_least
from genjax.data.fitting import open_picture
from genjax.evaluation.inception import InceptionV3
from genjax.families.style.neural_style import NeuralStyle, captured_maps
from genjax.interop.inception import inception_params
from genjax.model import HasFeatures
from genjax.training import runs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Which pictures are joined, and how.

    Attributes:
      features: the directory of a run of a classifier, or a file of Inception weights.
      content: picture whose content is kept.
      style: picture whose style is taken.
      size: longer side that both pictures are scaled to, for the Inception network; no side may be below 75.
      content_layers: layers of the content; by default one in the middle.
      style_layers: layers of the style; by default several from the first on.
      content_weight: weight of the content.
      style_weight: weight of the style.
      smoothness_weight: weight of the differences of neighbouring pixels.
      num_steps: number of updates.
    """

    features: str | None = None
    content: str | None = None
    style: str | None = None
    size: int = 256
    content_layers: tuple[str, ...] = ()
    style_layers: tuple[str, ...] = ()
    content_weight: float = 1.0
    style_weight: float = 1000.0
    smoothness_weight: float = 0.0
    num_steps: int = 500

    def __post_init__(self) -> None:
        check_at_least(self, size=75, content_weight=0.0, style_weight=0.0, smoothness_weight=0.0, num_steps=1)


def transfer(options: Options) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Gives the picture `content` the style of the picture `style`.

    Returns:
      The picture [H, W, C] in [0, 1], and the terms of the objective by name, [num_steps] each.

    Raises:
      ConfigError: a path is missing, or the run gives no features.
      UserError: a picture or the file of weights cannot be used, or there is no such layer.
    """
    module, variables, prepare, shape, layers = _feature_network(options.features)
    content = _read_picture(options.content, "content", options.size, shape)
    style = _read_picture(options.style, "style", options.size, shape)
    method = NeuralStyle(
        content_layers=options.content_layers or layers[-2:-1],
        style_layers=options.style_layers or layers,
        content_weight=options.content_weight,
        style_weight=options.style_weight,
        smoothness_weight=options.smoothness_weight,
        num_steps=options.num_steps,
    )
    maps = captured_maps(module, variables, {*method.content_layers, *method.style_layers}, prepare)
    picture, terms = method.apply(maps, content, style, jax.random.key(0))
    return np.asarray(picture)[0], {name: np.asarray(values) for name, values in terms.items()}


def write_picture(picture: np.ndarray, path: Path) -> None:
    """Writes a picture [H, W, C] in [0, 1], of one channel or three."""
    levels = np.round(255 * picture).astype(np.uint8)
    Image.fromarray(levels.squeeze(-1) if levels.shape[-1] == 1 else levels).save(path)


def _read_picture(path: str | None, name: str, size: int, shape: tuple[int, ...] | None) -> np.ndarray:
    """A picture [1, H, W, C] in [0, 1]: of the given shape, or coloured with `size` as its longer side."""
    if path is None:
        raise ConfigError(f"--{name} is missing; it is the path of a picture")
    picture = open_picture(Path(path).expanduser(), 1 if shape is not None and shape[-1] == 1 else 3)
    if shape is None:
        scale = size / max(picture.size)
        shape = (*(max(1, round(side * scale)) for side in picture.size[::-1]), 3)
    pixels = np.asarray(picture.resize((shape[1], shape[0]), Image.Resampling.LANCZOS), np.float32) / 255.0
    return pixels.reshape(1, *shape)


def _feature_network(name: str | None) -> tuple[Any, Any, Callable, tuple[int, ...] | None, tuple[str, ...]]:
    """Module, its variables, function that prepares pictures, only shape that it takes (or None), and its layers."""
    if name is None:
        raise ConfigError("--features is missing; it is the directory of a run of a classifier, or a file of weights")
    path = Path(name).expanduser()
    if path.is_dir():
        run = runs.restore(path)
        if not isinstance(run.model, HasFeatures):
            raise ConfigError(f"--features={name} is a run of {type(run.model).__name__}, which gives no features")
        layers = tuple(
            f"{layer}_{i}" for i in range(len(run.model.channels)) for layer in ("Downsample", "Convolution")
        )
        variables = {"params": run.state.eval_params}
        return run.model.network(), variables, lambda x: x, tuple(run.model.data_shape), layers
    layers = ("Conv2d_1a_3x3", "Conv2d_2b_3x3", "Conv2d_4a_3x3", "Mixed_5b", "Mixed_5d")
    return InceptionV3(), {"params": inception_params(path)}, lambda x: 2.0 * x - 1.0, None, layers
