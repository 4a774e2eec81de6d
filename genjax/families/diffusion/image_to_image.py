"""Diffusion conditional on a degraded picture, which is concatenated to the noisy one.

Saharia et al. 2021 (SR3, arXiv:2104.07636) for super-resolution; Saharia et al. 2022 (Palette, arXiv:2111.05826) for
inpainting and colourisation.  The degraded picture is made of x itself, so any set of pictures serves.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch
from genjax.errors import UserError
from genjax.families.diffusion.edm import EDM
from genjax.model import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageToImage(EDM):
    """EDM that restores pictures [H, W, C].

    Attributes:
      degradation: low_resolution, the mean of blocks of `factor` pixels; hole, the middle `1 / factor` of height and
        width is missing; grey, the mean of the channels.
      factor: size of the blocks of low_resolution; for hole, ratio of the picture's sides to the hole's sides.
    """

    degradation: Literal["low_resolution", "hole", "grey"] = "low_resolution"
    factor: int = 2
    condition_on: tuple[str, ...] = ("image",)

    def degrade(self, x: Array) -> Array:
        """The condition's image of pictures [B, H, W, C], [B, H, W, C'].

        Raises:
          UserError: the data are no pictures, or the factor does not divide their size.
        """
        if x.ndim != 4:
            raise UserError(f"image-to-image models take pictures [H, W, C], not data of shape {x.shape[1:]}")
        if self.factor < 1:
            raise UserError(f"factor={self.factor} must be at least 1")
        batch, height, width, channels = x.shape
        match self.degradation:
            case "low_resolution":
                if height % self.factor or width % self.factor:
                    raise UserError(f"factor={self.factor} does not divide pictures of {height} x {width}")
                blocks = (batch, height // self.factor, self.factor, width // self.factor, self.factor, channels)
                small = x.reshape(blocks).mean((2, 4))
                return jnp.repeat(jnp.repeat(small, self.factor, axis=1), self.factor, axis=2)
            case "hole":
                mask = hole_mask(height, width, self.factor)[None]
                mask = jnp.broadcast_to(mask, (batch, height, width, 1))
                return jnp.concatenate([x * mask, mask], axis=-1)
            case "grey":
                return x.mean(-1, keepdims=True)
        raise UserError(f"unknown degradation {self.degradation!r}; choose low_resolution, hole or grey")

    def image_shape(self) -> tuple[int, ...]:
        """Shape of a degraded picture."""
        shape = jax.eval_shape(self.degrade, jax.ShapeDtypeStruct((1, *self.data_shape), jnp.float32)).shape
        return shape[1:]

    def condition_shapes(self, state: TrainState) -> dict[str, tuple[int, ...]]:
        shapes = super().condition_shapes(state)
        return {**shapes, "image": self.image_shape()} if "image" in self.condition_on else shapes

    def condition(self, batch: Batch) -> dict[str, Array]:
        if "image" not in batch:
            batch = {**batch, "image": self.degrade(batch["x"])}
        return super().condition(batch)

    def reconstruct(self, state: TrainState, batch: Batch, key: Array) -> Array:
        """Restores each picture of a batch after degrading it, the shape of x."""
        condition = self.condition(batch)
        label = condition.pop("label", None)
        return self.sample(state, key, batch["x"].shape[0], label=label, **condition)


def hole_mask(height: int, width: int, factor: int) -> Array:
    """1 where a picture is known and 0 in its middle, [H, W, 1]."""
    rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None]
    inside = lambda i, n: (i >= (n - n // factor) // 2) & (i < (n - n // factor) // 2 + n // factor)
    hole = inside(rows, height) & inside(columns, width)
    return 1.0 - hole.astype(jnp.float32)[..., None]
