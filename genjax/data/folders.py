"""Folders of the user's pictures: their splits, their classes, and the pictures that cannot be read."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from genjax import buckets
from genjax.data.base import ArrayExamples, DataError, Examples, check_any_files, check_split, split_files
from genjax.data.files import files_below, find_place, only_writer, walk_files
from genjax.data.fitting import MEMORY_BYTES, UnreadablePicture, read_image
from genjax.errors import number_of

_logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


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
    root = buckets.folder(directory)
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


def folder_files(directory: str | None, split: str | None) -> tuple[Path, list[Path]]:
    """The folder that a split's pictures lie under, and the pictures.

    If there is a subfolder train, the subfolders train, validation and test are the splits; otherwise `split_files`
    divides the pictures.  Without a split: all pictures below the folder.

    Raises:
      DataError: there are no pictures, or no such split.
    """
    root = _folder(directory)
    if split is None:
        return root, picture_files(root)
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
        others = f" and {number_of(len(loose) - 1, 'other')}" if len(loose) > 1 else ""
        raise DataError(
            f"{base} has class folders ({', '.join(map(repr, names[:3]))}, ...) and pictures beside them, "
            f"{loose[0].name}{others}; move these into a class or away, "
            "or say with --data.class_names= that the folders are no classes"
        )
    folders = [path.relative_to(base).parts[0] for path in paths]
    if unknown := sorted(set(folders) - set(number)):
        raise DataError(f"{base} has the class {unknown[0]!r}, which is none of {', '.join(map(repr, number))}")
    return np.array([number[folder] for folder in folders], np.int32)


def folder_images(
    directory: str | None,
    split: str | None,
    size: tuple[int, int] | None,
    channels: int,
    class_names: tuple[str, ...] | None = None,
    skip_corrupt: bool = False,
) -> tuple[Examples, list[Path]]:
    """Pictures under a folder, with classes where they lie in subfolders; see `folder_files` and `labels_of_files`.

    Every picture is decoded once at the start, so that a training run does not end at a damaged picture.

    Returns:
      The examples, and the file of each.

    Raises:
      DataError: there are no pictures, one of them cannot be read or is of none of `class_names`, or they differ in
        size.
    """
    base, paths = folder_files(directory, split)
    images = FolderImages(paths, labels_of_files(base, paths, folder_classes(directory), class_names), size, channels)
    return decoded_files(images, base, skip_corrupt)


def files_of_same_names(base: Path, paths: Iterable[Path], root: Path, what: str) -> list[Path]:
    """Of each path below `root` the picture below `base` with the same name, endings aside.

    Args:
      base: folder of the pictures that are looked for.
      paths: files below `root`.
      root: their folder.
      what: what the pictures are, for messages.

    Raises:
      DataError: a path has no such picture, or two.
    """
    found: dict[Path, Path] = {}
    for path in picture_files(base):
        name = path.relative_to(base).with_suffix("")
        if name in found:
            raise DataError(f"{found[name]} and {path} are each a {what} of one picture; remove one of them")
        found[name] = path
    names = [path.relative_to(root) for path in paths]
    missing = [name for name in names if name.with_suffix("") not in found]
    if missing:
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise DataError(f"{base} has no {what} of {missing[0]}{others}: a picture of the same name below it")
    return [found[name.with_suffix("")] for name in names]


def decoded_files(images: FolderImages, base: Path, skip_corrupt: bool | None = None) -> tuple[Examples, list[Path]]:
    """Pictures of files below `base`, in memory if they fit; see `folder_images`.

    Args:
      images: the files.
      base: their folder.
      skip_corrupt: whether those that cannot be read are left out; None where they cannot be.
    """
    paths = images.paths
    in_memory = len(paths) * np.prod(images.shape) <= MEMORY_BYTES
    pictures, unreadable = _decoded(images, keep=True) if in_memory else ([], _known_unreadable(images, base))
    if unreadable:
        first = next(iter(unreadable.values()))
        others = f", and {len(unreadable) - 1} more below {base}" if len(unreadable) > 1 else ""
        if not skip_corrupt:
            leave = "" if skip_corrupt is None else ", or leave it out with --data.skip_corrupt"
            raise DataError(f"{first}{others}; repair or remove what is damaged{leave}")
        _logger.warning("%d of %d pictures are left out: %s%s", len(unreadable), len(paths), first, others)
        images = images.without(unreadable)
    if not in_memory:
        return images, images.paths
    arrays = {"x": np.stack(pictures)}
    return ArrayExamples(arrays if images.labels is None else {**arrays, "label": images.labels}), images.paths


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
    """Files that are no readable pictures, and the reasons; searched once for each state of a folder, as it takes
    long.
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
