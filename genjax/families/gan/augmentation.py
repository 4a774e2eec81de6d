"""Differentiable augmentation of the discriminator's input (data and samples alike), for small data sets.

DiffAugment (Zhao et al. 2020, arXiv:2006.10738) always applies, each with its own random numbers for every example,

    flip         left and right exchanged, with probability 1/2
    color        x + b, b ~ U(-1/2, 1/2);  saturation times s ~ U(0, 2) about the mean of the channels;
                 contrast times c ~ U(1/2, 3/2) about the mean of the picture
    translation  a shift of up to 1/8 of the size each way, zeros coming in
    cutout       a square of half the size set to zero

The numbers hold for pictures with values in [-1, 1], whose middle is 0; other pictures are mapped there and back.

ADA (Karras et al. 2020, arXiv:2006.06676) applies each of its transforms with a probability p that follows a measure r
of the discriminator's overfitting, r = E sign(D(x) - b) over data:

    p <- clip(p + sign(r - target) B / images_to_one, 0, 1)

where b is the score at the boundary between data and samples: 0 for the paper's objective; see `score_boundary` in
objectives.py for the others.

The transforms follow the paper's appendix B, except that resampling is bilinear and not by an orthogonal wavelet.
The group filter splits frequencies into four bands [0, pi/8], [pi/8, pi/4], [pi/4, pi/2] and [pi/2, pi].  With a
halfband filter L(z) = h(z) h(1/z) / 2 of an orthogonal wavelet h and H(z) = 1 - L(z) = L(-z) they are

    L(z) L(z^2) L(z^4)      L(z) L(z^2) H(z^4)      L(z) H(z^2)      H(z)

and add up to 1.  Each band in turn gets a gain of 2^N(0, 1) with probability p.  Then all gains are divided by one
number, so that the power of a natural picture, whose bands have power in the ratio 10 : 1 : 1 : 1, stays the same.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array
from genjax.errors import UserError
from genjax.values import Support

Operation = Literal["flip", "color", "translation", "cutout"]
Group = Literal["blit", "geometry", "color", "filter", "corruption"]
#: Shares of the power of natural pictures in the four bands.
_BAND_POWER = np.array([10.0, 1.0, 1.0, 1.0], np.float32) / 13.0


def _uniform(key: Array, index: int, low: float = 0.0, high: float = 1.0, shape: tuple[int, ...] = ()) -> Array:
    return jax.random.uniform(jax.random.fold_in(key, index), shape, minval=low, maxval=high)


def shift_picture(x: Array, rows: Array, columns: Array) -> Array:
    """One picture [H, W, C] moved down and to the right by whole numbers of pixels, filled up with zeros."""
    height, width = x.shape[:2]
    row, column = jnp.arange(height) - rows, jnp.arange(width) - columns
    inside = ((row >= 0) & (row < height))[:, None] & ((column >= 0) & (column < width))[None]
    moved = jnp.roll(x, (rows, columns), (0, 1))
    return jnp.where(inside[:, :, None], moved, 0.0)


def _color(x: Array, key: Array) -> Array:
    x = x + _uniform(key, 0, -0.5, 0.5)
    grey = x.mean(-1, keepdims=True)
    x = (x - grey) * _uniform(key, 1, 0.0, 2.0) + grey
    mean = x.mean()
    return (x - mean) * _uniform(key, 2, 0.5, 1.5) + mean


def _translation(x: Array, key: Array) -> Array:
    limits = [int(size * 0.125 + 0.5) for size in x.shape[:2]]
    rows, columns = (jax.random.randint(jax.random.fold_in(key, i), (), -n, n + 1) for i, n in enumerate(limits))
    return shift_picture(x, rows, columns)


def _cutout(x: Array, key: Array) -> Array:
    outside = []
    for axis, size in enumerate(x.shape[:2]):
        length = int(size * 0.5 + 0.5)
        centre = jax.random.randint(jax.random.fold_in(key, axis), (), 0, size + 1 - length % 2)
        offset = jnp.arange(size) - centre + length // 2
        outside.append((offset < 0) | (offset >= length))
    return jnp.where((outside[0][:, None] | outside[1][None])[:, :, None], x, 0.0)


_OPERATIONS = {
    "flip": lambda x, key: jnp.where(_uniform(key, 0) < 0.5, x[:, ::-1], x),
    "color": _color,
    "translation": _translation,
    "cutout": _cutout,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation(abc.ABC):
    """Random changes of pictures [B, H, W, C] that gradients pass through.

    Attributes:
      low: smallest value of the data; None takes the data set's, or -1 where it does not say.
      high: largest value of the data; None takes the data set's, or 1 where it does not say.
    """

    low: float | None = None
    high: float | None = None

    #: Whether the probability follows the discriminator's scores.
    adaptive = False

    @abc.abstractmethod
    def transform(self, x: Array, key: Array, probability: Array) -> Array:
        """One picture [H, W, C] with values in [-1, 1] changed by the random numbers of `key`."""

    def __call__(self, x: Array, keys: Array, probability: Array) -> Array:
        """Pictures [B, H, W, C] changed, each by its own key [B]; `probability` is a scalar that
        DiffAugment ignores.
        """
        if x.ndim != 4:
            raise UserError(f"augmentation needs pictures [B, H, W, C], not data of the shape {x.shape[1:]}")
        support = self.support()
        middle, half = 0.5 * (support.low + support.high), 0.5 * (support.high - support.low)
        return middle + half * jax.vmap(self.transform, (0, 0, None))((x - middle) / half, keys, probability)

    def support(self) -> Support:
        """The values that are changed as they should be."""
        low, high = (-1.0 if self.low is None else self.low), (1.0 if self.high is None else self.high)
        remedy = "model.augmentation.low and high, or data.preprocessing"
        return Support(name="the augmentation", remedy=remedy, low=low, high=high)

    def only_within(self, x: Array) -> Array:
        """Data with NaN for values out of range: NaN stops a run, and an error cannot be raised under jit."""
        return jnp.where(self.support().contains(x), x, jnp.nan)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffAugment(Augmentation):
    """Augmentation of every picture.

    Attributes:
      policy: names of the transformations, in the order in which they are applied.
    """

    policy: tuple[Operation, ...] = ("color", "translation", "cutout")

    def transform(self, x: Array, key: Array, probability: Array) -> Array:
        for i, name in enumerate(self.policy):
            x = _OPERATIONS[name](x, jax.random.fold_in(key, i))
        return x


def sample_bilinear(x: Array, rows: Array, columns: Array) -> Array:
    """Values of a picture [H, W, C] at real positions [h, w] between pixels, mirrored beyond its edges, [h, w, C]."""

    def mirrored(index: Array, size: int) -> Array:
        index = jnp.mod(index, 2 * size)
        return jnp.where(index < size, index, 2 * size - 1 - index)

    top, left = jnp.floor(rows), jnp.floor(columns)
    down, right = (rows - top)[..., None], (columns - left)[..., None]
    height, width = x.shape[:2]
    r0, r1 = (mirrored(top.astype(jnp.int32) + i, height) for i in (0, 1))
    c0, c1 = (mirrored(left.astype(jnp.int32) + i, width) for i in (0, 1))
    upper = x[r0, c0] * (1.0 - right) + x[r0, c1] * right
    lower = x[r1, c0] * (1.0 - right) + x[r1, c1] * right
    return upper * (1.0 - down) + lower * down


def band_filters() -> np.ndarray:
    """Impulse responses of the four bands, from low to high frequencies, about their middle, [4, 43]."""
    root = 3.0**0.5
    wavelet = np.array([1.0 + root, 3.0 + root, 3.0 - root, 1.0 - root]) / (4.0 * 2.0**0.5)  # Daubechies' of four taps
    low = np.convolve(wavelet, wavelet[::-1]) / 2.0
    high = low * (-1.0) ** np.arange(-3, 4)
    spread = lambda taps, n: np.kron(taps, np.eye(1, n)[0])[: n * (len(taps) - 1) + 1]
    lows = np.convolve(low, spread(low, 2))
    bands = [
        np.convolve(lows, spread(low, 4)),
        np.convolve(lows, spread(high, 4)),
        np.convolve(low, spread(high, 2)),
        high,
    ]
    return np.stack([np.pad(band, (43 - len(band)) // 2) for band in bands])


@functools.cache
def band_matrices(size: int) -> np.ndarray:
    """The four bands as matrices of a row of pixels that is mirrored beyond its edges, float32 [4, size, size]."""
    place = np.mod(np.arange(size)[:, None] + np.arange(-21, 22)[None], 2 * size)  # [size, 43]
    place = np.where(place < size, place, 2 * size - 1 - place)
    matrices = np.zeros((4, size, size), np.float32)
    for matrix, taps in zip(matrices, band_filters()):
        np.add.at(matrix, (np.arange(size)[:, None], place), taps[None].astype(np.float32))
    return matrices


def filter_bands(x: Array, gains: Array) -> Array:
    """A picture [H, W, C] with its frequencies along both axes multiplied by the gains [4] of their bands."""
    rows, columns = (jnp.tensordot(gains, jnp.asarray(band_matrices(size)), 1) for size in x.shape[:2])
    return jnp.einsum("hi,iwc,vw->hvc", rows, x, columns)


def _rotation(angle: Array) -> Array:
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])


def _about_grey(amount: Array) -> Array:
    """The matrix [3, 3] that scales colours about the grey axis."""
    grey = jnp.full((3, 3), 1.0 / 3.0)
    return grey + (jnp.eye(3) - grey) * amount


def _hue(angle: Array) -> Array:
    """The rotation [3, 3] of colours about the grey axis (Rodrigues' formula)."""
    axis = 3.0**-0.5
    cross = axis * jnp.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
    return jnp.eye(3) + jnp.sin(angle) * cross + (1.0 - jnp.cos(angle)) * (cross @ cross)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ADA(Augmentation):
    """Augmentation with a probability that adapts.

    Attributes:
      groups: blit (mirroring, quarter turns, whole shifts), geometry (scaling, turning, stretching, fractional shifts),
        color (brightness, contrast, inversion of brightness, and of colours hue and saturation), filter (gains of
        frequency bands) and corruption (noise, a square of half the size set to zero).
      target: aim for the share of data that the discriminator takes for data, less the share that it takes for samples.
      images_to_one: smallest number of pictures in which the probability can go from 0 to 1.
      initial_probability: probability at the first step.
    """

    groups: tuple[Group, ...] = ("blit", "geometry", "color")
    target: float = 0.6
    images_to_one: int = 500_000
    initial_probability: float = 0.0

    adaptive = True

    def adapted(self, probability: Array, mean_sign: Array, batch_size: int) -> Array:
        """The next probability, given the mean sign of the scores of a batch of data."""
        change = jnp.sign(mean_sign - self.target) * batch_size / self.images_to_one
        return jnp.clip(probability + change, 0.0, 1.0)

    def transform(self, x: Array, key: Array, probability: Array) -> Array:
        counter = iter(range(1000))
        uniform = lambda low, high, shape=(): _uniform(key, next(counter), low, high, shape)
        normal = lambda shape=(): jax.random.normal(jax.random.fold_in(key, next(counter)), shape)
        happens = lambda p=probability: uniform(0.0, 1.0) < p
        height, width, channels = x.shape
        if "blit" in self.groups:
            x = jnp.where(happens() & (uniform(0.0, 1.0) < 0.5), x[:, ::-1], x)
            if height == width:
                turns = jnp.where(happens(), jnp.floor(uniform(0.0, 4.0)).astype(jnp.int32), 0)
                x = jnp.stack([jnp.rot90(x, n) for n in range(4)])[turns]
            amount = jnp.where(happens(), uniform(-0.125, 0.125, (2,)), 0.0)
            rows, columns = jnp.round(amount * jnp.array([height, width])).astype(jnp.int32)
            grid = jnp.meshgrid(jnp.arange(height) - rows, jnp.arange(width) - columns, indexing="ij")
            x = sample_bilinear(x, *(g.astype(jnp.float32) for g in grid))
        if "geometry" in self.groups:
            x = self._geometry(x, probability, uniform, normal, happens)
        if "color" in self.groups:
            x = x + jnp.where(happens(), 0.2 * normal(), 0.0)
            x = x * jnp.where(happens(), jnp.exp2(0.5 * normal()), 1.0)
            if channels in (1, 3):
                inverted = jnp.where(happens() & (uniform(0.0, 1.0) < 0.5), -1.0, 1.0)
                colours = jnp.eye(channels) + (inverted - 1.0) / channels
                if channels == 3:
                    colours = _hue(jnp.where(happens(), uniform(-jnp.pi, jnp.pi), 0.0)) @ colours
                    colours = _about_grey(jnp.where(happens(), jnp.exp2(normal()), 1.0)) @ colours
                x = x @ colours.T
        if "filter" in self.groups:
            gains = jnp.ones(4)
            for band in range(4):
                changed = jnp.ones(4).at[band].set(jnp.where(happens(), jnp.exp2(normal()), 1.0))
                gains = gains * changed * jax.lax.rsqrt(jnp.sum(_BAND_POWER * changed**2))
            x = filter_bands(x, gains)
        if "corruption" in self.groups:
            x = x + jnp.where(happens(), 0.1 * jnp.abs(normal()), 0.0) * normal(x.shape)
            middle = uniform(0.0, 1.0, (2,))
            inside = [jnp.abs((jnp.arange(n) + 0.5) / n - m) < 0.25 for n, m in zip(x.shape[:2], middle)]
            cut = inside[0][:, None] & inside[1][None] & happens()
            x = jnp.where(cut[:, :, None], 0.0, x)
        return x

    def _geometry(self, x: Array, probability: Array, uniform, normal, happens) -> Array:
        """Turns, scales and shifts the positions at which the picture is read."""
        height, width = x.shape[:2]
        # Rotation happens before and after stretching, each with probability q, so that 1 - (1 - q)^2 = p.
        once = 1.0 - jnp.sqrt(1.0 - probability)
        matrix = jnp.eye(2) * jnp.where(happens(), jnp.exp2(0.2 * normal()), 1.0)
        matrix = _rotation(jnp.where(happens(once), uniform(-jnp.pi, jnp.pi), 0.0)) @ matrix
        stretch = jnp.where(happens(), jnp.exp2(0.2 * normal()), 1.0)
        matrix = jnp.diag(jnp.stack([stretch, 1.0 / stretch])) @ matrix
        matrix = _rotation(jnp.where(happens(once), uniform(-jnp.pi, jnp.pi), 0.0)) @ matrix
        shift = jnp.where(happens(), 0.125 * normal((2,)), 0.0) * jnp.array([height, width])
        rows, columns = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
        positions = jnp.stack([rows - height / 2, columns - width / 2], axis=-1) @ matrix.T
        rows, columns = positions[..., 0] + shift[0], positions[..., 1] + shift[1]
        return sample_bilinear(x, rows + height / 2 - 0.5, columns + width / 2 - 0.5)
