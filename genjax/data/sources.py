"""Where raw examples come from: TFDS by name, the embedded digits, emoji, a folder of images, a table of numbers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from genjax.data.base import ArrayExamples, DataError, Examples, check_split, files_below, split_indices

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

    Looks for the files first, because TFDS would try for minutes to download what is not there.

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
            f"pip install tensorflow && tfds build {name} --data_dir={root} --file_format=array_record, "
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

    A set without a validation split lends the last tenth of its training examples.

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
    """Pictures of a TFDS set too large for memory, decoded when they are asked for."""

    def __init__(self, source: Any, image: str, label: str | None):
        self._source, self._image, self._label = source, image, label

    def __len__(self) -> int:
        return len(self._source)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        rows = self._source.__getitems__([int(i) for i in indices])
        batch = {"x": np.stack([row[self._image] for row in rows])}
        if self._label is not None:
            batch["label"] = np.array([row[self._label] for row in rows], np.int32)
        return batch

    def arrays(self) -> None:
        return None


def tfds_image_features(builder: Any) -> tuple[str, str | None]:
    """Names of the picture and of its class (or None) among the features of a TFDS set.

    Raises:
      DataError: there is no picture, or its size is not fixed.
    """
    import tensorflow_datasets as tfds

    features = dict(builder.info.features.items())
    images = [n for n, f in features.items() if isinstance(f, tfds.features.Image)]
    if not images:
        raise DataError(f"the data set {builder.name} has no pictures; its features are {', '.join(features)}")
    if None in features[images[0]].shape:
        raise DataError(
            f"the pictures of {builder.name} differ in size; export them to a folder and use "
            "--data.name=folder --data.image_size=HEIGHT,WIDTH"
        )
    labels = [n for n, f in features.items() if isinstance(f, tfds.features.ClassLabel) and f.num_classes]
    return images[0], "label" if "label" in labels else (labels[0] if labels else None)


def tfds_images(name: str, directory: str | None, split: str) -> Examples:
    """Pictures `x` uint8 [N, H, W, C] and classes `label` int32 [N] of a TFDS set."""
    builder = open_tfds(name, directory)
    image, label = tfds_image_features(builder)
    source = builder.as_data_source(split=tfds_split(builder, split))
    lazy = TfdsImages(source, image, label)
    if len(source) * np.prod(builder.info.features[image].shape) > MEMORY_BYTES:
        return lazy
    parts = [lazy.gather(np.arange(i, min(i + 4096, len(source)))) for i in range(0, len(source), 4096)]
    return ArrayExamples({key: np.concatenate([p[key] for p in parts]) for key in parts[0]} if parts else {})


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


def emoji(directory: str | None, split: str, size: tuple[int, int] | None, channels: int) -> ArrayExamples:
    """The captioned emoji of emoji64.npz, with their category as class; both drawings of one are in the same split.

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
    # Colour counts as much as it covers.
    colour, cover = pictures[..., :3] * pictures[..., 3:], pictures[..., 3:]
    blocks = lambda a: a.reshape(len(a), height, 64 // height, width, 64 // width, -1).mean((2, 4))  # noqa: E731
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


def read_image(path: Path, size: tuple[int, int] | None, channels: int) -> np.ndarray:
    """Reads a picture.

    Args:
      path: the file.
      size: height and width to crop (centrally, to the same proportions) and scale to, or None to leave it.
      channels: 1, 3 or 4; without the fourth, what is transparent is white.

    Returns:
      uint8 [H, W, C]; of 16 bits the upper 8.

    Raises:
      DataError: it is not a readable picture, or has no known range of brightness.
    """
    try:
        with Image.open(path) as picture:
            picture = ImageOps.exif_transpose(picture)
            if picture.mode.startswith("I;16"):
                # Pillow would cut off all above 255.
                picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            if picture.mode in ("I", "F"):
                raise ValueError("its pixels have 32 bits; save it with 8 or 16")
            if channels < 4 and (picture.mode.endswith("A") or "transparency" in picture.info):
                white = Image.new("RGBA", picture.size, "white")
                picture = Image.alpha_composite(white, picture.convert("RGBA"))
            picture = picture.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
            if size is not None:
                picture = ImageOps.fit(picture, (size[1], size[0]), Image.Resampling.LANCZOS)
            array = np.asarray(picture, np.uint8)
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError, ValueError) as error:
        raise DataError(f"{path} is not a readable picture ({error}); repair or remove it") from None
    return array.reshape(*array.shape[:2], channels)


class FolderImages:
    """Pictures of files, decoded when they are asked for."""

    def __init__(self, paths: list[Path], labels: np.ndarray | None, size: tuple[int, int] | None, channels: int):
        self.paths, self._labels, self._size, self._channels = paths, labels, size, channels
        self._shape = None if not paths else read_image(paths[0], size, channels).shape

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of every picture."""
        return self._shape

    def _read(self, path: Path) -> np.ndarray:
        array = read_image(path, self._size, self._channels)
        if array.shape != self._shape:
            raise DataError(
                f"{path} is {array.shape[0]} x {array.shape[1]} pixels, but {self.paths[0]} is {self._shape[0]} x "
                f"{self._shape[1]}; bring all to one size with --data.image_size={self._shape[0]},{self._shape[1]}"
            )
        return array

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        batch = {"x": np.stack([self._read(self.paths[i]) for i in indices])}
        if self._labels is not None:
            batch["label"] = self._labels[indices]
        return batch

    def arrays(self) -> None:
        return None


def folder_classes(directory: str | None) -> list[str]:
    """Names of the classes of a folder of pictures: its subfolders, or none where the pictures lie in it directly."""
    root = _folder(directory)
    base = root / "train" if (root / "train").is_dir() else root
    return sorted(p.name for p in base.iterdir() if p.is_dir() and not p.name.startswith("."))


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


def folder_images(
    directory: str | None,
    split: str,
    size: tuple[int, int] | None,
    channels: int,
    class_names: tuple[str, ...] | None = None,
) -> Examples:
    """Pictures under a folder.

    Subfolders train, validation, test are the splits where there is a subfolder train; else the split is random and
    fixed.  Subfolders of that are the classes, in the order of `class_names`, or of their names.

    Raises:
      DataError: there are no pictures, one of them cannot be read or is of none of `class_names`, or they differ in size.
    """
    root = _folder(directory)
    divided = (root / "train").is_dir()
    if divided:
        check_split(split, sorted(p.name for p in root.iterdir() if p.is_dir()), f"folder {root}")
    base = root / split if divided else root
    paths = picture_files(base)
    found = folder_classes(directory)
    labels, folders = None, [p.relative_to(base).parts[0] for p in paths]
    if found and all(folder in found for folder in folders):
        number = {name: i for i, name in enumerate(found if class_names is None else class_names)}
        if unknown := sorted(set(folders) - set(number)):
            raise DataError(f"{base} has the class {unknown[0]!r}, which is none of {', '.join(map(repr, number))}")
        labels = np.array([number[folder] for folder in folders], np.int32)
    if not divided:
        rows = split_indices(len(paths), split, f"folder {root}")
        paths = [paths[i] for i in rows]
        labels = None if labels is None else labels[rows]
    images = FolderImages(paths, labels, size, channels)
    if not paths or len(paths) * np.prod(images.shape) > MEMORY_BYTES:
        return images
    return ArrayExamples(images.gather(np.arange(len(paths))))


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
