"""Gives one picture the style of another, by the feature maps of a trained classifier or of the Inception network:

    python -m experiments.style --features=inception.pth --content=house.png --style=waves.png --output=styled.png

--features is a file of Inception weights (see experiments.quality), for pictures of any size, or the working directory
of a classifier, for pictures of the size that the classifier was trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments import command_line
from genjax.config import ConfigError

flags.DEFINE_string("features", None, "the directory of a run of a classifier, or a file of Inception weights")
flags.DEFINE_string("content", None, "picture whose content is kept")
flags.DEFINE_string("style", None, "picture whose style is taken")
flags.DEFINE_string("output", "styled.png", "path of the result")
flags.DEFINE_integer(
    "size",
    256,
    "longer side that both pictures are scaled to, for the Inception network; no side may be below 75",
    lower_bound=75,
)
flags.DEFINE_list("content_layers", None, "layers of the content; by default one in the middle")
flags.DEFINE_list("style_layers", None, "layers of the style; by default several from the first on")
flags.DEFINE_float("content_weight", 1.0, "weight of the content", lower_bound=0.0)
flags.DEFINE_float("style_weight", 1000.0, "weight of the style", lower_bound=0.0)
flags.DEFINE_float("smoothness_weight", 0.0, "weight of the differences of neighbouring pixels", lower_bound=0.0)
flags.DEFINE_integer("num_steps", 500, "number of updates", lower_bound=1)


def read_picture(path: str | None, name: str, size: int, shape: tuple[int, ...] | None) -> np.ndarray:
    """A picture [1, H, W, C] in [0, 1]: of the given shape, or coloured with `size` as its longer side."""
    from PIL import Image

    from genjax.data.sources import open_picture

    if path is None:
        raise ConfigError(f"--{name} is missing; it is the path of a picture")
    picture = open_picture(Path(path).expanduser(), 1 if shape is not None and shape[-1] == 1 else 3)
    if shape is None:
        scale = size / max(picture.size)
        shape = (*(max(1, round(side * scale)) for side in picture.size[::-1]), 3)
    pixels = np.asarray(picture.resize((shape[1], shape[0]), Image.Resampling.LANCZOS), np.float32) / 255.0
    return pixels.reshape(1, *shape)


def feature_network(name: str | None) -> tuple[Any, Any, Callable, tuple[int, ...] | None, tuple[str, ...]]:
    """Module, its variables, function that prepares pictures, only shape that it takes (or None), and its layers."""
    from genjax.training import runs as runs

    if name is None:
        raise ConfigError("--features is missing; it is the directory of a run of a classifier, or a file of weights")
    path = Path(name).expanduser()
    if path.is_dir():
        run = runs.restore(path)
        if not hasattr(run.model, "features"):
            raise ConfigError(f"--features={name} is a run of {type(run.model).__name__}, which gives no features")
        layers = tuple(
            f"{layer}_{i}" for i in range(len(run.model.channels)) for layer in ("Downsample", "Convolution")
        )
        variables = {"params": run.state.eval_params}
        return run.model.network(), variables, lambda x: x, tuple(run.model.data_shape), layers
    from genjax.evaluation.inception import InceptionV3
    from genjax.interop.inception import inception_params

    layers = ("Conv2d_1a_3x3", "Conv2d_2b_3x3", "Conv2d_4a_3x3", "Mixed_5b", "Mixed_5d")
    return InceptionV3(), {"params": inception_params(path)}, lambda x: 2.0 * x - 1.0, None, layers


def main(arguments: list[str]) -> int:
    values = flags.FLAGS
    if command_line.first_flags(arguments, {"help": False, "h": False}):
        command_line.print_help(__doc__)
        return 0
    values(arguments)
    import jax
    from PIL import Image

    from genjax.families.style.neural_style import NeuralStyle, captured_maps

    module, variables, prepare, shape, layers = feature_network(values.features)
    content = read_picture(values.content, "content", values.size, shape)
    style = read_picture(values.style, "style", values.size, shape)
    method = NeuralStyle(
        content_layers=tuple(values.content_layers or layers[-2:-1]),
        style_layers=tuple(values.style_layers or layers),
        content_weight=values.content_weight,
        style_weight=values.style_weight,
        smoothness_weight=values.smoothness_weight,
        num_steps=values.num_steps,
    )
    maps = captured_maps(module, variables, {*method.content_layers, *method.style_layers}, prepare)
    picture, terms = method.apply(maps, content, style, jax.random.key(0))
    for name, values_of_term in terms.items():
        print(f"  {name:<12} {values_of_term[0]:.5g} -> {values_of_term[-1]:.5g}")
    path = Path(values.output).expanduser()
    levels = np.round(255 * np.asarray(picture)[0]).astype(np.uint8)
    Image.fromarray(levels.squeeze(-1) if levels.shape[-1] == 1 else levels).save(path)
    print(path)
    return 0


if __name__ == "__main__":
    command_line.run(main)
