"""Sources of raw examples: TFDS by name, the embedded digits, emoji, a folder of images, a table of numbers."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
import shlex
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from genjax.data.base import (
    ArrayExamples,
    DataError,
    Examples,
    check_any_files,
    check_split,
    split_files,
    split_indices,
)
from genjax.data.files import files_below, find_place, only_writer, walk_files
from genjax.errors import UserError

_logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
#: Pictures up to this size are decoded once into memory.
MEMORY_BYTES = 2**30


# ----------------------------------------------------------------------------------------------------------------------
# TensorFlow Datasets, without TensorFlow


def tfds_directory(directory: str | None) -> Path:
    """The directory of prepared TFDS sets."""
    return Path(directory or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def open_tfds(name: str, directory: str | None) -> Any:
    """Opens a prepared TFDS set.

    Looks for the files first, because TFDS would try for minutes to download missing files.

    Args:
      name: name, name/config, or name:version, as in TFDS.
      directory: where prepared sets lie.

    Returns:
      A `tfds.core.DatasetBuilder`.

    Raises:
      DataError: the set is not there, or not in a format that can be read without TensorFlow.
    """
    root = tfds_directory(directory)
    folder = root / name.partition(":")[0]
    if not any(folder.glob("**/dataset_info.json")):
        prepared = sorted({str(p.parent.parent.relative_to(root)) for p in root.glob("*/**/dataset_info.json")})
        there = f"it holds {', '.join(prepared)}" if prepared else "it holds no prepared set"
        raise DataError(
            f"the data set {name!r} is neither embedded nor prepared in {root} ({there}); prepare it once with: "
            f"pip install tensorflow && tfds build {name} --data_dir={shlex.quote(str(root))} --file_format=array_record, "
            "or say with --data.dir where it lies"
        )
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=root)
    if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise DataError(
            f"the data set {name!r} in {root} is stored as {builder.info.file_format.value}, which needs TensorFlow; "
            f"convert it with: tfds convert_format --dataset_dir={builder.data_path} --out_file_format=array_record"
        )
    return builder


def tfds_split(builder: Any, split: str) -> str:
    """The TFDS split expression of train, validation or test, or of an expression such as train[:90%].

    If a set has no validation split, the last tenth of its training examples is used.

    Raises:
      DataError: there is no such split.
    """
    known = tuple(builder.info.splits)
    if split.partition("[")[0] in known:
        if split == "train" and "validation" not in known:
            return f"train[:{builder.info.splits['train'].num_examples - _tenth(builder)}]"
        return split
    if split == "validation" and "train" in known:
        return f"train[{builder.info.splits['train'].num_examples - _tenth(builder)}:]"
    check_split(split, known, builder.name)
    return split


def _tenth(builder: Any) -> int:
    return builder.info.splits["train"].num_examples // 10


class TfdsImages:
    """Pictures of a TFDS set, decoded when they are asked for.

    Args:
      source: the set's data source.
      image, label: names of the features; label may be None.
      fit: function of a picture [H, W, C] that is applied before pictures are stacked.
    """

    def __init__(self, source: Any, image: str, label: str | None, fit: Callable[[np.ndarray], np.ndarray]) -> None:
        self._source, self._image, self._label, self._fit = source, image, label, fit

    def __len__(self) -> int:
        return len(self._source)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        rows = self._source.__getitems__([int(i) for i in indices])
        batch = {"x": np.stack([self._fit(row[self._image]) for row in rows])}
        if self._label is not None:
            batch["label"] = np.array([row[self._label] for row in rows], np.int32)
        return batch

    def arrays(self) -> None:
        return None


def tfds_image_features(builder: Any) -> tuple[str, str | None]:
    """Names of the picture and of its class (or None) among the features of a TFDS set.

    Raises:
      DataError: there is no picture.
    """
    import tensorflow_datasets as tfds

    features = dict(builder.info.features.items())
    images = [n for n, f in features.items() if isinstance(f, tfds.features.Image)]
    if not images:
        raise DataError(f"the data set {builder.name} has no pictures; its features are {', '.join(features)}")
    labels = [n for n, f in features.items() if isinstance(f, tfds.features.ClassLabel) and f.num_classes]
    return images[0], "label" if "label" in labels else (labels[0] if labels else None)


def tfds_images(
    name: str, directory: str | None, split: str, size: tuple[int, int] | None, channels: int | None, white: int = 255
) -> Examples:
    """Pictures `x` uint8 [N, H, W, C] and classes `label` int32 [N] of a TFDS set.

    Args:
      name: the set's name.
      directory: where prepared sets lie.
      split: the split.
      size, channels: size and channels of the result; see `fit_picture`.
      white: the largest level of a pixel.

    Raises:
      DataError: the set cannot be read, or its pictures differ in size and `size` is None.
    """
    builder = open_tfds(name, directory)
    image, label = tfds_image_features(builder)
    shape = builder.info.features[image].shape
    if size is None and None in shape[:2]:
        raise DataError(
            f"the pictures of {builder.name} differ in size; bring all to one with --data.image_size=HEIGHT,WIDTH"
        )
    source = builder.as_data_source(split=tfds_split(builder, split))
    examples = TfdsImages(
        source, image, label, functools.partial(fit_picture, size=size, channels=channels, white=white)
    )
    if len(source) * np.prod((*(size or shape[:2]), channels or shape[2] or 3)) > MEMORY_BYTES:
        return examples
    parts = [examples.gather(np.arange(i, min(i + 4096, len(source)))) for i in range(0, len(source), 4096)]
    return ArrayExamples({key: np.concatenate([p[key] for p in parts]) for key in parts[0]} if parts else {})


# ----------------------------------------------------------------------------------------------------------------------
# Size and channels of pictures that lie in arrays


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


# ----------------------------------------------------------------------------------------------------------------------
# Embedded digits


def digits(split: str) -> ArrayExamples:
    """The 1797 handwritten digits of scikit-learn, 8 x 8 pixels of 17 levels (UCI, Alpaydin & Kaynak 1998)."""
    from sklearn.datasets import load_digits

    data = load_digits()
    rows = split_indices(len(data.target), split, "digits")
    return ArrayExamples(
        {"x": data.images[rows, ..., None].astype(np.uint8), "label": data.target[rows].astype(np.int32)}
    )


def archive(directory: str | None, name: str) -> Path:
    """Path of a file `name` that `data.dir` is or holds.

    Raises:
      DataError: there is none.
    """
    path = Path(directory or ".").expanduser()
    path = path if path.is_file() else path / name
    if not path.is_file():
        raise DataError(f"there is no file {path}; say with --data.dir where {name} lies")
    return path


def emoji_categories(directory: str | None) -> tuple[str, ...]:
    """Names of the categories of emoji, or their numbers where the file has no names."""
    with np.load(archive(directory, "emoji64.npz")) as content:
        if "category_names" in content:
            return tuple(map(str, content["category_names"]))
        return tuple(map(str, range(int(content["category"].max()) + 1)))


def emoji(directory: str | None, split: str, size: tuple[int, int] | None, channels: int) -> ArrayExamples:
    """The captioned emoji of emoji64.npz, with their category as class; both drawings of an emoji are in the same
    split.

    Args:
      directory: the file, or where it lies.
      split: train, validation (a tenth) or test (the file's own).
      size: height and width to scale to, each a divisor of 64; None leaves 64 x 64.
      channels: 4 as they are, 3 on white, 1 grey on white.
    """
    check_split(split, ("train", "validation", "test"), "emoji")
    with np.load(archive(directory, "emoji64.npz")) as content:
        pictures, label, number = content["images"], content["category"], content["emoji_id"]
        is_test = content["is_test"]
    is_validation = ~is_test & (number % 10 == 8)
    rows = {"test": is_test, "validation": is_validation, "train": ~is_test & ~is_validation}[split]
    pictures = pictures[rows].astype(np.float32) / 255.0
    height, width = size or (64, 64)
    if 64 % height or 64 % width:
        raise DataError(f"data.image_size={height},{width} must divide the 64 x 64 pixels of emoji")
    # Colours are weighted by their opacity.
    colour, cover = pictures[..., :3] * pictures[..., 3:], pictures[..., 3:]
    blocks = lambda a: a.reshape(len(a), height, 64 // height, width, 64 // width, -1).mean((2, 4))
    colour, cover = blocks(colour), blocks(cover)
    if channels == 4:
        pictures = np.concatenate([colour / np.maximum(cover, 1e-6), cover], -1)
    else:
        pictures = colour + 1.0 - cover
        if channels == 1:
            pictures = pictures @ np.array([[0.299], [0.587], [0.114]], np.float32)
    levels = np.round(np.clip(pictures, 0.0, 1.0) * 255).astype(np.uint8)
    return ArrayExamples({"x": levels, "label": label[rows].astype(np.int32)})


# ----------------------------------------------------------------------------------------------------------------------
# A folder of the user's images


class UnreadablePicture(DataError):
    """A file that is no picture, or a damaged one."""


def open_picture(path: Path, channels: int) -> Image.Image:
    """Opens a picture as a viewer shows it: rotated as the file says, with white behind transparent places.

    Args:
      path: the file.
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
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError, ValueError) as error:
        raise UnreadablePicture(f"{path} is not a readable picture ({error})") from None


def read_image(path: Path, size: tuple[int, int] | None, channels: int) -> np.ndarray:
    """Reads a picture as uint8 [H, W, C].

    Args:
      path: the file.
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


class FolderImages:
    """Pictures of files, decoded when they are asked for.

    Args:
      paths: the files.
      labels: class of each, int32, or None.
      size, channels: see `read_image`.

    Raises:
      UnreadablePicture: none of the files is a readable picture.
    """

    def __init__(
        self, paths: list[Path], labels: np.ndarray | None, size: tuple[int, int] | None, channels: int
    ) -> None:
        self.paths, self.labels, self.size, self._channels = paths, labels, size, channels
        for self._first in paths:
            try:
                self.shape = read_image(self._first, size, channels).shape
                return
            except UnreadablePicture as error:
                last = error
        raise last

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, path: Path) -> np.ndarray:
        """One picture, uint8 [H, W, C].

        Raises:
          UnreadablePicture: the file is not a readable picture.
          DataError: the picture has another size than the first one.
        """
        array = read_image(path, self.size, self._channels)
        if array.shape != self.shape:
            raise DataError(
                f"{path} is {array.shape[0]} x {array.shape[1]} pixels, but {self._first} is {self.shape[0]} x "
                f"{self.shape[1]}; bring all to one size with --data.image_size={self.shape[0]},{self.shape[1]}"
            )
        return array

    def without(self, unreadable: Iterable[Path]) -> FolderImages:
        """The same examples without some files."""
        unreadable = set(unreadable)
        kept = np.array([path not in unreadable for path in self.paths])
        labels = None if self.labels is None else self.labels[kept]
        return FolderImages([p for p, keep in zip(self.paths, kept) if keep], labels, self.size, self._channels)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        batch = {"x": np.stack([self.read(self.paths[i]) for i in indices])}
        if self.labels is not None:
            batch["label"] = self.labels[indices]
        return batch

    def arrays(self) -> None:
        return None


def natural_order(name: str) -> tuple[list[str | int], str]:
    """A key that sorts names as people do: 2 before 10."""
    return [int(part) if part.isdecimal() else part.lower() for part in re.split(r"(\d+)", name)], name


def split_folders(root: Path) -> dict[str, Path]:
    """The subfolders of a folder that the user has divided into splits, by their names in small letters.

    Returns:
      An empty dict if there is no subfolder train (in any case).

    Raises:
      DataError: two subfolders differ only in upper and lower case.
    """
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    named = {p.name.lower(): p for p in folders}
    if "train" not in named:
        return {}
    if len(named) < len(folders):
        twice = next(p for p in folders if named[p.name.lower()] != p)
        raise DataError(f"{root} has the folders {twice.name} and {named[twice.name.lower()].name}; keep one of them")
    return named


def folder_classes(directory: str | None) -> list[str]:
    """Names of the classes of a folder of pictures: its subfolders with pictures, in natural order.

    There are none if the pictures lie in the folder itself.
    """
    root = _folder(directory)
    base = split_folders(root).get("train", root)
    folders = (p for p in base.iterdir() if p.is_dir() and not p.name.startswith("."))
    return sorted((p.name for p in folders if any(walk_files(p, IMAGE_SUFFIXES))), key=natural_order)


def _folder(directory: str | None) -> Path:
    if not directory:
        raise DataError("--data.name=folder needs the folder of the pictures: --data.dir=FOLDER")
    root = Path(directory).expanduser()
    if not root.is_dir():
        raise DataError(f"--data.dir={directory} is not a folder")
    return root


def picture_files(base: Path) -> list[Path]:
    """The pictures under a folder, in the order of their paths.

    Raises:
      DataError: there are none.
    """
    paths = files_below(base, IMAGE_SUFFIXES)
    if not paths:
        raise DataError(f"{base} holds no pictures ({' '.join(IMAGE_SUFFIXES)})")
    return paths


def folder_files(directory: str | None, split: str) -> tuple[Path, list[Path]]:
    """The folder that a split's pictures lie under, and the pictures.

    If there is a subfolder train, the subfolders train, validation and test are the splits; otherwise `split_files`
    divides the pictures.

    Raises:
      DataError: there are no pictures, or no such split.
    """
    root = _folder(directory)
    divided = split_folders(root)
    if divided:
        check_split(split.lower(), divided, f"folder {root}")
        base = divided[split.lower()]
        return base, picture_files(base)
    paths = picture_files(root)
    chosen = split_files(paths, root, split, f"folder {root}")
    check_any_files(chosen, len(paths), root, split)
    return root, chosen


def labels_of_files(
    base: Path, paths: list[Path], found: list[str], class_names: tuple[str, ...] | None
) -> np.ndarray | None:
    """Classes int32 of pictures in class folders, or None.

    Args:
      base: the folder of the class folders.
      paths: the pictures.
      found: classes of the training pictures; empty if pictures are not in subfolders.
      class_names: names in the order of their numbers; None takes `found`; empty if subfolders are no classes.

    Raises:
      DataError: only some pictures lie in class folders, or a class has none of the names.
    """
    if not found or class_names == ():
        return None
    names = found if class_names is None else class_names
    number = {name: i for i, name in enumerate(names)}
    loose = [path for path in paths if path.parent == base]
    if loose:
        others = f" and {len(loose) - 1} others" if len(loose) > 1 else ""
        raise DataError(
            f"{base} has class folders ({', '.join(map(repr, names[:3]))}, ...) and pictures beside them, {loose[0].name}"
            f"{others}; move these into a class or away, or say with --data.class_names= that the folders are no classes"
        )
    folders = [path.relative_to(base).parts[0] for path in paths]
    if unknown := sorted(set(folders) - set(number)):
        raise DataError(f"{base} has the class {unknown[0]!r}, which is none of {', '.join(map(repr, number))}")
    return np.array([number[folder] for folder in folders], np.int32)


def folder_images(
    directory: str | None,
    split: str,
    size: tuple[int, int] | None,
    channels: int,
    class_names: tuple[str, ...] | None = None,
    skip_corrupt: bool = False,
) -> Examples:
    """Pictures under a folder, with classes where they lie in subfolders; see `folder_files` and `labels_of_files`.

    Every picture is decoded once at the start, so that a training run does not end at a damaged picture.

    Raises:
      DataError: there are no pictures, one of them cannot be read or is of none of `class_names`, or they differ in
        size.
    """
    base, paths = folder_files(directory, split)
    images = FolderImages(paths, labels_of_files(base, paths, folder_classes(directory), class_names), size, channels)
    in_memory = len(paths) * np.prod(images.shape) <= MEMORY_BYTES
    pictures, unreadable = _decoded(images, keep=True) if in_memory else ([], _known_unreadable(images, base))
    if unreadable:
        first = next(iter(unreadable.values()))
        others = f", and {len(unreadable) - 1} more below {base}" if len(unreadable) > 1 else ""
        if not skip_corrupt:
            raise DataError(
                f"{first}{others}; repair or remove what is damaged, or leave it out with --data.skip_corrupt"
            )
        _logger.warning("%d of %d pictures are left out: %s%s", len(unreadable), len(paths), first, others)
        images = images.without(unreadable)
    if not in_memory:
        return images
    arrays = {"x": np.stack(pictures)}
    return ArrayExamples(arrays if images.labels is None else {**arrays, "label": images.labels})


def _decoded(images: FolderImages, keep: bool) -> tuple[list[np.ndarray], dict[Path, str]]:
    """The decoded pictures of files (an empty list unless `keep`), and the reasons why other files cannot be read."""

    def attempt(path: Path) -> tuple[Path, np.ndarray | str | None]:
        try:
            picture = images.read(path)
        except UnreadablePicture as error:
            return path, str(error)
        return path, picture if keep else None

    pictures: list[np.ndarray] = []
    unreadable: dict[Path, str] = {}
    with ThreadPoolExecutor() as threads:
        for start in range(0, len(images), 4096):
            for path, result in threads.map(attempt, images.paths[start : start + 4096]):
                if isinstance(result, str):
                    unreadable[path] = result
                elif keep:
                    pictures.append(result)
    return pictures, unreadable


def _known_unreadable(images: FolderImages, base: Path) -> dict[Path, str]:
    """Files that are no readable pictures, and the reasons; searched once for each state of a
    folder, as it takes long.
    """
    digest = hashlib.sha256(repr((str(base.resolve()), images.size, images.shape)).encode(errors="surrogateescape"))
    for path in images.paths:
        stat = path.stat()
        digest.update(f"{path.relative_to(base)}\0{stat.st_size} {stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    place = find_place(base, f"pictures-{digest.hexdigest()[:32]}", lambda path: path.with_suffix(".json").is_file())
    if place is None:
        return _decoded(images, keep=False)[1]
    with only_writer(place) as writer:
        file = place.with_suffix(".json")
        if not file.is_file():
            _logger.warning("looking for damaged pictures among the %d below %s, once for all", len(images), base)
            found = {str(path.relative_to(base)): why for path, why in _decoded(images, keep=False)[1].items()}
            unfinished = file.with_suffix(f".{writer}.new")
            unfinished.write_text(json.dumps(found))
            unfinished.replace(file)
        return {base / name: why for name, why in json.loads(file.read_text()).items()}


# ----------------------------------------------------------------------------------------------------------------------
# A table of numbers


def read_table(path: str | None) -> tuple[np.ndarray, list[str]]:
    """Reads a table from a .npy file [N, D], or from a .csv file with or without a line of names.

    Returns:
      Values float32 [N, D] and the names of the columns.

    Raises:
      DataError: there is no such file, a value is not a finite number, or rows or names differ in length.
    """
    if not path:
        raise DataError("--data.name=table needs the file of the table: --data.dir=FILE.csv or FILE.npy")
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"--data.dir={path} is not a file")
    names: list[str] = []
    if file.suffix == ".npy":
        try:
            values = np.load(file, allow_pickle=False)
            values = values.astype(np.float32)
        except (ValueError, OSError, EOFError) as error:
            raise DataError(f"{file} is not a readable array of numbers ({error})") from None
        if values.ndim != 2:
            raise DataError(f"{file} has the shape {values.shape}; a table has two axes, rows and columns")
    else:
        rows: list[list[float]] = []
        for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), 1):
            if not line.strip():
                continue
            cells = [c.strip() for c in line.split(",")]
            try:
                rows.append([float(c) for c in cells])
            except ValueError:
                if rows or names or any(map(_is_number, cells)):
                    raise DataError(f"line {number} of {file} has a cell that is not a number: {line[:60]!r}") from None
                names = cells
                continue
            if len(rows[-1]) != len(rows[0]):
                raise DataError(f"line {number} of {file} has {len(rows[-1])} cells, the first row has {len(rows[0])}")
        if not rows:
            raise DataError(f"{file} has no rows")
        if names and len(names) != len(rows[0]):
            raise DataError(f"{file} names {len(names)} columns, and its rows have {len(rows[0])} cells")
        values = np.array(rows, np.float32)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise DataError(f"row {bad[0][0] + 1}, column {bad[0][1] + 1} of {file} is not a finite number")
    return values, names or [f"column_{i}" for i in range(values.shape[1])]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
