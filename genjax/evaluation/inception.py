"""The Inception v3 network of the Frechet Inception distance (Heusel et al. 2017, arXiv:1706.08500, released weights).

Szegedy et al. 2016 (arXiv:1512.00567) with the changes of the released graph: averages at the borders count only pixels
inside the picture, the last block pools by the maximum, and there are 1008 outputs.  Batch norm is folded into
the convolutions (`genjax.interop.inception` reads the weights so), each of which is then relu(conv(x) + b).

    pictures in [0, 1]  ->  levels u of 8 bits  ->  299 x 299, bilinear  ->  about [-1, 1]
                        ->  2048 features (mean over the last maps)  ->  1008 logits

`resize="tensorflow"` samples at i * scale and gives (u - 128) / 128, as the graph of the paper and torch-fidelity do;
"pytorch" samples at (i + 1/2) * scale - 1/2 and gives 2 u / 255 - 1, as pytorch-fid does.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from genjax.batch import Array
from genjax.errors import UserError

Resize = Literal["tensorflow", "pytorch"]

NUM_FEATURES = 2048
NUM_LOGITS = 1008
_SIZE = 299
#: Smallest size of pictures; the last maps of smaller pictures would be empty.
_SMALLEST = 75


def interpolation_matrix(size: int, new_size: int, resize: Resize) -> np.ndarray:
    """Weights [new_size, size] of bilinear interpolation along one axis, without anti-aliasing."""
    scale = size / new_size
    place = np.arange(new_size) * scale if resize == "tensorflow" else (np.arange(new_size) + 0.5) * scale - 0.5
    place = np.clip(place, 0.0, size - 1.0)
    low = np.minimum(place.astype(int), size - 1)
    high = np.minimum(low + 1, size - 1)
    matrix = np.zeros((new_size, size), np.float32)
    rows = np.arange(new_size)
    np.add.at(matrix, (rows, low), 1.0 - (place - low))
    np.add.at(matrix, (rows, high), place - low)
    return matrix


def prepare(x: Array, resize: Resize = "tensorflow", size: int = _SIZE) -> Array:
    """Pictures [B, H, W, C] in [0, 1], C of 1 or 3, to the network's input: [B, size, size, 3], nearly in [-1, 1].

    Values are rounded to 8 bits first, as in picture files, so that samples and data are treated alike; gradients
    ignore the rounding.

    Raises:
      UserError: the pictures are neither grey nor coloured.
    """
    if x.ndim != 4 or x.shape[-1] not in (1, 3):
        raise UserError(f"the Inception network wants pictures [B, H, W, 1 or 3], not of shape {x.shape}")
    rows = interpolation_matrix(x.shape[1], size, resize)
    columns = interpolation_matrix(x.shape[2], size, resize)
    levels = 255.0 * x
    levels += jax.lax.stop_gradient(jnp.round(levels) - levels)
    x = jnp.einsum("ph,bhwc,qw->bpqc", rows, levels, columns, precision="highest")
    x = (x - 128.0) / 128.0 if resize == "tensorflow" else x / 127.5 - 1.0
    return jnp.broadcast_to(x, (*x.shape[:3], 3))


class _ConvReLU(nn.Module):
    features: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.relu(nn.Conv(self.features, self.kernel, self.stride, self.padding, name="conv")(x))


def _chain(x: Array, name: str, *layers: tuple) -> Array:
    """Convolutions one after the other, called name_1, name_2, ...; a single one is called name."""
    for i, layer in enumerate(layers, 1):
        x = _ConvReLU(*layer, name=name if len(layers) == 1 else f"{name}_{i}")(x)
    return x


def _average(x: Array) -> Array:
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def _halving_maximum(x: Array) -> Array:
    return nn.max_pool(x, (3, 3), (2, 2))


_HALVING = ((3, 3), 2, "VALID")


class _BlockA(nn.Module):
    pool_features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        branches = [
            _chain(x, "branch1x1", (64, (1, 1))),
            _chain(x, "branch5x5", (48, (1, 1)), (64, (5, 5))),
            _chain(x, "branch3x3dbl", (64, (1, 1)), (96, (3, 3)), (96, (3, 3))),
            _chain(_average(x), "branch_pool", (self.pool_features, (1, 1))),
        ]
        return jnp.concatenate(branches, -1)


class _BlockB(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        branches = [
            _chain(x, "branch3x3", (384, *_HALVING)),
            _chain(x, "branch3x3dbl", (64, (1, 1)), (96, (3, 3)), (96, *_HALVING)),
            _halving_maximum(x),
        ]
        return jnp.concatenate(branches, -1)


class _BlockC(nn.Module):
    inner: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, row, column = self.inner, (1, 7), (7, 1)
        branches = [
            _chain(x, "branch1x1", (192, (1, 1))),
            _chain(x, "branch7x7", (c, (1, 1)), (c, row), (192, column)),
            _chain(x, "branch7x7dbl", (c, (1, 1)), (c, column), (c, row), (c, column), (192, row)),
            _chain(_average(x), "branch_pool", (192, (1, 1))),
        ]
        return jnp.concatenate(branches, -1)


class _BlockD(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        branches = [
            _chain(x, "branch3x3", (192, (1, 1)), (320, *_HALVING)),
            _chain(x, "branch7x7x3", (192, (1, 1)), (192, (1, 7)), (192, (7, 1)), (192, *_HALVING)),
            _halving_maximum(x),
        ]
        return jnp.concatenate(branches, -1)


class _BlockE(nn.Module):
    pools_maximum: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        pooled = nn.max_pool(x, (3, 3), (1, 1), "SAME") if self.pools_maximum else _average(x)
        single = _ConvReLU(384, (1, 1), name="branch3x3_1")(x)
        double = _ConvReLU(384, (3, 3), name="branch3x3dbl_2")(_ConvReLU(448, (1, 1), name="branch3x3dbl_1")(x))
        branches = [
            _ConvReLU(320, (1, 1), name="branch1x1")(x),
            _ConvReLU(384, (1, 3), name="branch3x3_2a")(single),
            _ConvReLU(384, (3, 1), name="branch3x3_2b")(single),
            _ConvReLU(384, (1, 3), name="branch3x3dbl_3a")(double),
            _ConvReLU(384, (3, 1), name="branch3x3dbl_3b")(double),
            _ConvReLU(192, (1, 1), name="branch_pool")(pooled),
        ]
        return jnp.concatenate(branches, -1)


class InceptionV3(nn.Module):
    """Pictures [B, H, W, 3] in [-1, 1], H and W of at least 75, to features [B, 2048] and logits [B, 1008].

    The logits have no bias, as the Inception score needs them.  Smaller pictures are a UserError.
    """

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        if min(x.shape[1:3]) < _SMALLEST:
            raise UserError(
                f"the Inception network needs pictures of at least {_SMALLEST} pixels each way, not {x.shape[1]} x "
                f"{x.shape[2]}; scale them up"
            )
        x = _ConvReLU(32, *_HALVING, name="Conv2d_1a_3x3")(x)
        x = _ConvReLU(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = _ConvReLU(64, (3, 3), name="Conv2d_2b_3x3")(x)
        x = _ConvReLU(80, (1, 1), name="Conv2d_3b_1x1")(_halving_maximum(x))
        x = _ConvReLU(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x)
        x = _halving_maximum(x)
        for letter, pool_features in zip("bcd", (32, 64, 64), strict=True):
            x = _BlockA(pool_features, name=f"Mixed_5{letter}")(x)
        x = _BlockB(name="Mixed_6a")(x)
        for letter, inner in zip("bcde", (128, 160, 160, 192), strict=True):
            x = _BlockC(inner, name=f"Mixed_6{letter}")(x)
        x = _BlockD(name="Mixed_7a")(x)
        x = _BlockE(False, name="Mixed_7b")(x)
        x = _BlockE(True, name="Mixed_7c")(x)
        features = x.mean((1, 2))
        return features, nn.Dense(NUM_LOGITS, use_bias=False, name="fc")(features)
