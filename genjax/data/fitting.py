"""Pictures of files and of arrays, brought to a size and a number of channels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from genjax.data.base import DataError
from genjax.errors import UserError, reason_of

#: A picture: its path, or its content in memory, whose str() is its name in messages.
PictureFile = str | Path | io.BytesIO
#: Pictures up to this size are decoded once into memory.
MEMORY_BYTES = 2**30


class UnreadablePicture(DataError):
    """A file that is no picture, or a damaged one."""


def open_picture(path: Path | io.BytesIO, channels: int) -> Image.Image:
    """Opens a picture as a viewer shows it: rotated as the file says, with white behind transparent places.

    Args:
      path: the file, or its content.
      channels: 1, 3 or 4; without the fourth, what is transparent is white.

    Returns:
      A picture of 8 bits; of 16 bits the upper 8.

    Raises:
      UnreadablePicture: it is not a readable picture, or has no known range of brightness.
    """
    try:
        with Image.open(path) as picture:
            picture = ImageOps.exif_transpose(picture)
            if picture.mode.startswith("I;16"):
                # Pillow would clip values above 255.
                picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            if picture.mode in ("I", "F"):
                raise UserError("its pixels have 32 bits; save it with 8 or 16")
            if picture.mode == "LAB":
                raise UserError("its colours are in the space LAB; save it in RGB or grey")
            if channels < 4 and (picture.mode.endswith("A") or "transparency" in picture.info):
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture.convert("RGBA"))
            return picture.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
    except (OSError, SyntaxError, Image.DecompressionBombError, ValueError) as error:
        # Pillow's own message would name the file again.
        known = not isinstance(error, UnidentifiedImageError)
        reason = reason_of(error) if known else "its content is of no known format, such as PNG or JPEG"
        raise UnreadablePicture(f"{path} is not a readable picture ({reason})") from None


def read_image(path: Path | io.BytesIO, size: tuple[int, int] | None, channels: int) -> np.ndarray:
    """Reads a picture as uint8 [H, W, C].

    Args:
      path: the file, or its content.
      size: height and width to crop (centrally, to the same proportions) and scale to, or None to leave it.
      channels: 1, 3 or 4; see `open_picture`.

    Raises:
      UnreadablePicture: see `open_picture`.
    """
    picture = open_picture(path, channels)
    if size is not None:
        picture = ImageOps.fit(picture, (size[1], size[0]), Image.Resampling.LANCZOS)
    array = np.asarray(picture, np.uint8)
    return array.reshape(*array.shape[:2], channels)


def read_given(file: PictureFile, size: tuple[int, int] | None, channels: int) -> np.ndarray:
    """As `read_image`, of a file that a user names, where ~ is the home folder, or of a content."""
    return read_image(file if isinstance(file, io.BytesIO) else Path(file).expanduser(), size, channels)


def fit_picture(picture: np.ndarray, size: tuple[int, int] | None, channels: int | None, white: int) -> np.ndarray:
    """Brings a picture of integer levels to a size and a number of channels, as `read_image` does with files.

    Args:
      picture: [H, W, C] with C of 1, 3 or 4.
      size: height and width to crop (centrally, to the same proportions) and scale to, or None to leave it.
      channels: 1, 3 or 4, or None to leave them; without the fourth, what is transparent is white.
      white: the largest level.

    Returns:
      The same type, [size[0], size[1], channels].
    """
    have = picture.shape[-1]
    if size in (None, picture.shape[:2]) and channels in (None, have):
        return picture
    x = picture.astype(np.float32)
    if channels not in (None, have):
        if have == 4 and channels < 4:
            cover = x[..., 3:] / white
            x = x[..., :3] * cover + white * (1.0 - cover)
        if x.shape[-1] == 1:
            x = x.repeat(3, -1)
        if channels == 1:
            x = x @ np.array([[0.299], [0.587], [0.114]], np.float32)
        elif channels == 4:
            x = np.concatenate([x, np.full_like(x[..., :1], white)], -1)
    if size not in (None, picture.shape[:2]):
        scaled = (
            ImageOps.fit(Image.fromarray(part), size[::-1], Image.Resampling.LANCZOS) for part in np.moveaxis(x, -1, 0)
        )
        x = np.stack(list(scaled), -1)
    return np.clip(np.round(x), 0, white).astype(picture.dtype)


def fit_pictures(x: np.ndarray, size: tuple[int, int] | None, channels: int | None, white: int) -> np.ndarray:
    """`fit_picture` of each of the pictures x [N, H, W, C]."""
    if size in (None, x.shape[1:3]) and channels in (None, x.shape[-1]):
        return x
    return np.stack([fit_picture(picture, size, channels, white) for picture in x])
