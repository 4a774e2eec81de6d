"""Sets that TensorFlow Datasets has prepared, read without TensorFlow."""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from genjax import buckets
from genjax.data.base import ArrayExamples, DataError, Examples, check_split
from genjax.data.fitting import MEMORY_BYTES, fit_picture


def tfds_directory(directory: str | None, name: str) -> Path:
    """The directory of prepared TFDS sets; in a bucket, a copy of the set `name` alone."""
    return buckets.folder(directory or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets", only=name)


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
    folder_name = name.partition(":")[0]
    root = tfds_directory(directory, folder_name)
    folder = root / folder_name
    if not any(folder.glob("**/dataset_info.json")):
        prepared = sorted({str(p.parent.parent.relative_to(root)) for p in root.glob("*/**/dataset_info.json")})
        there = f"it holds {', '.join(prepared)}" if prepared else "it holds no prepared set"
        raise DataError(
            f"the data set {name!r} is neither embedded nor prepared in {root} ({there}); prepare it once with: "
            f"pip install tensorflow && tfds build {name} --data_dir={shlex.quote(str(root))} "
            "--file_format=array_record, or say with --data.dir where it lies"
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
