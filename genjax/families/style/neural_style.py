"""Neural style by Gram matrices, through the maps of any feature network (Gatys et al. 2016, arXiv:1508.06576).

With the maps F_l of a picture x in layer l, N_l channels of M_l positions, the maps P_l of
the content and A_l of the style,

    content  1/2 sum (F_l - P_l)^2                                                          (eq. 1)
    style    sum (G(F_l) - G(A_l))^2 / (4 N_l^2 M_l^2),   G(F)_ij = sum_k F_ik F_jk         (eq. 3 and 4)
    loss     a content + b style + t sum |x - its neighbours|                               (eq. 7; t as is usual since)

where G of the style is taken per position, so that the two pictures may differ in size.  The paper descends by L-BFGS
from noise; here it is Adam, from the content or from noise, kept in [0, 1].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from genjax.batch import Array, PyTree
from genjax.errors import UserError
from genjax.optimizers import Adam, Optimizer

#: Maps pictures [1, H, W, C] in [0, 1] to the maps of layers by name, each [1, h, w, N].
Maps = Callable[[Array], dict[str, Array]]


def captured_maps(
    module: nn.Module, variables: PyTree, layers: Collection[str], prepare: Callable = lambda x: x
) -> Maps:
    """The outputs of named submodules of a Linen module, whatever it is.

    Args:
      module: takes pictures.
      variables: its variables, {"params": ...}.
      layers: names of submodules, with slashes between levels, as in Mixed_5b/branch1x1 or Convolution_1.
      prepare: function applied to pictures in [0, 1] first.

    Raises:
      UserError: (when the result is called) the module has no such submodule, or its output is no map.
    """

    def maps(x: Array) -> dict[str, Array]:
        _, state = module.apply(variables, prepare(x), capture_intermediates=True, mutable=["intermediates"])
        found = {}
        for name in layers:
            node = state["intermediates"]
            for part in name.split("/"):
                node = node.get(part) if isinstance(node, dict) else None
            output = node["__call__"][0] if isinstance(node, dict) and "__call__" in node else None
            if output is None or output.ndim != 4:
                known = ", ".join(k for k, v in state["intermediates"].items() if isinstance(v, dict))
                raise UserError(f"{type(module).__name__} has no maps of a layer {name!r}; its layers are {known}")
            found[name] = output.astype(jnp.float32)
        return found

    return maps


def gram_matrix(maps: Array) -> Array:
    """Mean over positions of the products of channels, [B, h, w, N] to [B, N, N]."""
    flat = maps.reshape(maps.shape[0], -1, maps.shape[-1])
    return jnp.einsum("bki,bkj->bij", flat, flat) / flat.shape[1]


def total_variation(x: Array) -> Array:
    """Sum of absolute differences of neighbouring pixels of pictures [B, H, W, C]."""
    return jnp.abs(jnp.diff(x, axis=1)).sum() + jnp.abs(jnp.diff(x, axis=2)).sum()


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeuralStyle:
    """Settings for a picture with the content of one picture and the style of another.

    Attributes:
      content_layers: layers of the feature network that hold the content.
      style_layers: layers that hold the style, with equal weights.
      content_weight: weight a of the content.
      style_weight: weight b of the style.
      smoothness_weight: weight t of the smoothness.
      start: picture to start from: the content, or noise.
      num_steps: number of updates of the picture.
      optimizer: optimizer of the picture.
    """

    content_layers: tuple[str, ...]
    style_layers: tuple[str, ...]
    content_weight: float = 1.0
    style_weight: float = 1000.0
    smoothness_weight: float = 0.0
    start: Literal["content", "noise"] = "content"
    num_steps: int = 500
    optimizer: Optimizer = Adam(learning_rate=0.02)

    def loss(self, maps: Maps, content: dict[str, Array], style: dict[str, Array], x: Array) -> dict[str, Array]:
        """The weighted terms and their sum.

        Args:
          maps: function from a picture to the maps of all named layers.
          content: maps of the content by layer.
          style: Gram matrices of the style by layer, [1, N, N].
          x: picture [1, H, W, C] in [0, 1].

        Returns:
          Scalars `content`, `style`, `smoothness` and `loss`.
        """
        found = maps(x)
        content_error = sum(0.5 * ((found[name] - content[name]) ** 2).sum() for name in self.content_layers)
        style_error = 0.0
        for name in self.style_layers:
            gram = gram_matrix(found[name])
            # Both Gram matrices are divided by their M, so that M^2 is divided out already.
            style_error += ((gram - style[name]) ** 2).sum() / (4.0 * gram.shape[-1] ** 2 * len(self.style_layers))
        terms = {
            "content": self.content_weight * content_error,
            "style": self.style_weight * style_error,
            "smoothness": self.smoothness_weight * total_variation(x),
        }
        return {**terms, "loss": sum(terms.values())}

    def apply(self, maps: Maps, content: Array, style: Array, key: Array) -> tuple[Array, dict[str, Array]]:
        """Makes the picture.

        Args:
          maps: a function from `captured_maps`, with all layers named here.
          content: picture [1, H, W, C] in [0, 1].
          style: picture [1, H', W', C] in [0, 1].
          key: random key of the noise of start=noise.

        Returns:
          The picture [1, H, W, C] in [0, 1], and the terms of the loss before each update, [num_steps].
        """
        content_maps = jax.jit(maps)(content)
        style_grams = {name: gram_matrix(m) for name, m in jax.jit(maps)(style).items()}
        start = content if self.start == "content" else jax.random.uniform(key, content.shape)
        optimizer = self.optimizer.build()

        def total(x: Array) -> tuple[Array, dict[str, Array]]:
            terms = self.loss(maps, content_maps, style_grams, x)
            return terms["loss"], terms

        @jax.jit
        def descend(x: Array) -> tuple[Array, dict[str, Array]]:
            def update(carry: tuple[Array, Any], _: None) -> tuple[tuple[Array, Any], dict[str, Array]]:
                x, opt_state = carry
                gradient, terms = jax.grad(total, has_aux=True)(x)
                change, opt_state = optimizer.update(gradient, opt_state, x)
                return (jnp.clip(x + change, 0.0, 1.0), opt_state), terms

            (x, _), terms = jax.lax.scan(update, (x, optimizer.init(x)), None, length=self.num_steps)
            return x, terms

        return descend(start)
