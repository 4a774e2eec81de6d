"""Pictures: embedded sets, TFDS sets by name, a folder of the user's files; samples become a PNG grid."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from genjax.batch import example_keys
from genjax.data import procedural, transforms
from genjax.data.base import ArrayExamples, Data, DataError, Examples, Outline, split_indices
from genjax.data.class_names import read_classes, save_classes
from genjax.data.digits import read_digits
from genjax.data.emoji import emoji_categories, read_emoji
from genjax.data.files import with_ending
from genjax.data.fitting import PictureFile, fit_pictures, read_given
from genjax.data.folders import folder_classes, folder_files, folder_images
from genjax.data.tfds import open_tfds, tfds_image_features, tfds_images
from genjax.data.training_files import save_training_files

_LEVELS = {"digits": 17, "binarized_mnist": 2}
#: Shape of a picture and number of classes (0 for none) of TFDS sets; None where pictures differ in size.
_PUBLISHED = {
    "mnist": ((28, 28, 1), 10),
    "binarized_mnist": ((28, 28, 1), 0),
    "fashion_mnist": ((28, 28, 1), 10),
    "kmnist": ((28, 28, 1), 10),
    "cifar10": ((32, 32, 3), 10),
    "cifar100": ((32, 32, 3), 100),
    "svhn_cropped": ((32, 32, 3), 10),
    "celeb_a": ((218, 178, 3), 0),
    "imagenet2012": (None, 1000),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images(Data):
    """Pictures `x`, with classes `label` [B] where the set has them (and `factors` [B, 5] of the sprites).

    Attributes:
      name: digits, sprites or shapes (embedded); folder, pictures at data.dir; emoji, the file emoji64.npz at data.dir;
        or the name of a TFDS set such as mnist.
      preprocessing: how integer levels become the model's input; see genjax/data/transforms.py.
      logit_alpha: margin of the preprocessing logit.
      num_levels: number of levels after quantisation; by default all levels of the set.
      image_size: height and width that pictures are cropped (centrally) and scaled to; for emoji divisors of 64.
      channels: 1 grey, 3 colour, 4 colour with transparency (with 1 or 3, transparent places are white); None takes the
        set's channels, and 3 for a folder and for emoji.
      pad_to: height and width that pictures are padded to with zeros, centrally, as 32,32 for MNIST.
      classes: keep only examples of the named classes, numbered from 0 in this order; empty keeps all classes.
      horizontal_flip: mirror training pictures at random.
      flatten: give the model vectors [B, D] instead of pictures [B, H, W, C].
      class_names: names of a folder's subfolders in the order of their class numbers; None takes all subfolders with
        pictures in natural order (2 before 10), or the classes of the run that a command looks at; empty if subfolders
        are no classes.
      skip_corrupt: leave out and name pictures of a folder that cannot be read, instead of refusing the folder.
    """

    name: str = "digits"
    preprocessing: transforms.Preprocessing = "unit"
    logit_alpha: float = 1e-6
    num_levels: int | None = None
    image_size: tuple[int, int] | None = None
    channels: int | None = None
    pad_to: tuple[int, int] | None = None
    classes: tuple[int, ...] = ()
    horizontal_flip: bool = False
    flatten: bool = False
    class_names: tuple[str, ...] | None = None
    skip_corrupt: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels not in (None, 1, 3, 4):
            raise DataError(f"data.channels={self.channels} must be 1, 3 or 4")
        if self.num_levels is not None and not 2 <= self.num_levels <= self._stored_levels:
            raise DataError(f"data.num_levels={self.num_levels} must lie between 2 and {self._stored_levels}")

    # ------------------------------------------------------------------------------------------------------------------
    # Reading

    @property
    def _stored_levels(self) -> int:
        return _LEVELS.get(self.name, 256)

    @property
    def levels(self) -> int:
        """Number of levels of a stored pixel, L in genjax/data/transforms.py."""
        if self.preprocessing == "binarize_static":
            return 2
        return self.num_levels or self._stored_levels

    @classmethod
    def from_saved(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Fields of a saved configuration as this class reads them.

        Before there was skip_corrupt, channels had no effect on other sets than folders and emoji.
        """
        if "skip_corrupt" in fields or fields.get("name") in ("folder", "emoji"):
            return fields
        return {name: value for name, value in fields.items() if name != "channels"}

    def load_split(self, split: str) -> Examples:
        size, channels = self.image_size, self.channels
        match self.name:
            case "digits":
                examples = self._fitted(read_digits(split))
            case "sprites" | "shapes":
                examples = self._fitted(self._procedural(split))
            case "folder":
                names, skip = self.class_names, self.skip_corrupt
                examples, _ = folder_images(self.dir, split, size, channels or 3, names, skip)
            case "emoji":
                examples = read_emoji(self.dir, split, size, channels or 3)
            case _:
                examples = tfds_images(self.name, self.dir, split, size, channels, self._stored_levels - 1)
        return self._prepared(self._of_classes(examples), split)

    def _fitted(self, examples: ArrayExamples) -> ArrayExamples:
        arrays = examples.arrays()
        x = fit_pictures(arrays["x"], self.image_size, self.channels, self._stored_levels - 1)
        return ArrayExamples({**arrays, "x": x})

    def _procedural(self, split: str) -> ArrayExamples:
        if self.name == "sprites":
            pictures, factors = procedural.sprites()
            arrays = {"x": pictures, "factors": factors, "label": factors[:, 0]}
        else:
            pictures, label = procedural.shapes()
            arrays = {"x": pictures, "label": label}
        rows = split_indices(len(pictures), split, self.name)
        return ArrayExamples({key: a[rows] for key, a in arrays.items()})

    def _of_classes(self, examples: Examples) -> Examples:
        if not self.classes:
            return examples
        arrays = examples.arrays()
        if arrays is None or "label" not in arrays:
            raise DataError(
                f"data.classes={self.classes} needs a labelled set that fits into memory; {self.name} is not"
            )
        count = len(self._all_classes())
        if unknown := [number for number in self.classes if not 0 <= number < count]:
            raise DataError(f"data.classes={unknown[0]} is no class of {self.name}, which has 0 to {count - 1}")
        rows = np.isin(arrays["label"], self.classes)
        number = np.zeros(count, np.int32)
        number[list(self.classes)] = np.arange(len(self.classes))
        kept = {key: a[rows] for key, a in arrays.items()}
        return ArrayExamples({**kept, "label": number[kept["label"]]})

    def _prepared(self, examples: Examples, split: str) -> Examples:
        """Quantises, draws static binary values and pads, once, where the set lies in memory."""
        arrays = examples.arrays()
        if arrays is None:
            if self.preprocessing == "binarize_static":
                raise DataError(
                    f"preprocessing=binarize_static needs a set that fits into memory; {self.name} does not"
                )
            return _Mapped(examples, self._resized_levels)
        x = arrays["x"]
        if self.preprocessing == "binarize_static":
            seed = sum(split.encode())
            x = (np.random.default_rng(seed).random(x.shape) < x / (self._stored_levels - 1)).astype(np.uint8)
            return ArrayExamples({**arrays, "x": self._padded(x)})
        return ArrayExamples({**arrays, "x": self._resized_levels(x)})

    def _resized_levels(self, x: np.ndarray) -> np.ndarray:
        if self.num_levels not in (None, self._stored_levels):
            x = (x.astype(np.uint32) * self.num_levels // self._stored_levels).astype(np.uint8)
        return self._padded(x)

    def _padded(self, x: np.ndarray) -> np.ndarray:
        if self.pad_to is None:
            return x
        margins = [target - size for target, size in zip(self.pad_to, x.shape[1:3])]
        if min(margins) < 0:
            raise DataError(f"data.pad_to={self.pad_to} is smaller than the pictures, which are {x.shape[1:3]}")
        return np.pad(x, [(0, 0), *((m // 2, m - m // 2) for m in margins), (0, 0)])

    def outline(self) -> Outline | None:
        """What a batch looks like, if the settings or the set's name tell the size of its pictures."""
        if self.name == "folder":
            # Subfolders are classes, which the folder alone tells.
            shape, num_classes = None, len(self.class_names or ())
        elif self.name in _PUBLISHED:
            shape, num_classes = _PUBLISHED[self.name]
        else:
            return None
        if shape is None and self.image_size is None:
            return None
        height, width = self.pad_to or self.image_size or shape[:2]
        picture = (height, width, self.channels or (3 if shape is None else shape[2]))
        spec: dict[str, Any] = {
            "data_shape": (int(np.prod(picture)),) if self.flatten else picture,
            **transforms.values_of(self.preprocessing, self.levels, self.logit_alpha),
        }
        example: dict[str, tuple[tuple[int, ...], str]] = {"x": (picture, "uint8")}
        if not num_classes:
            return Outline(spec, example)
        return Outline({**spec, "num_classes": len(self.classes) or num_classes}, {**example, "label": ((), "int32")})

    def spec(self) -> dict[str, Any]:
        """data_shape (H, W, C) or (D,), range and num_levels of what models see, and num_classes."""
        examples = self.load("train")
        example = examples.gather(np.zeros(1, np.int64))
        shape = example["x"].shape[1:]
        spec: dict[str, Any] = {
            "data_shape": (int(np.prod(shape)),) if self.flatten else tuple(shape),
            **transforms.values_of(self.preprocessing, self.levels, self.logit_alpha),
        }
        if "label" in example:
            spec["num_classes"] = len(self.label_names())
        return spec

    def label_names(self) -> tuple[str, ...]:
        """Names of the classes in the order of their numbers; only the classes in `classes` if some are chosen."""
        names = self._all_classes()
        return tuple(names[number] for number in self.classes) if self.classes else names

    def _all_classes(self) -> tuple[str, ...]:
        """Names of all classes of the set."""
        match self.name:
            case "digits":
                return tuple(map(str, range(10)))
            case "sprites":
                return procedural.SPRITE_SHAPES
            case "shapes":
                return procedural.SHAPE_CLASSES
            case "folder":
                return self._folder_classes()
            case "emoji":
                return emoji_categories(self.dir)
        builder = open_tfds(self.name, self.dir)
        label = tfds_image_features(builder)[1]
        return () if label is None else tuple(builder.info.features[label].names)

    def _folder_classes(self) -> tuple[str, ...]:
        return tuple(folder_classes(self.dir)) if self.class_names is None else self.class_names

    def save(self, workdir: Path) -> None:
        """Writes a folder's classes and the list of training files into the run's directory, if they are not there yet.

        Raises:
          DataError: the run has other classes or files.
        """
        if self.name != "folder":
            return
        save_training_files(workdir, self._training_files())
        if "label" in self.load("train").gather(np.zeros(1, np.int64)):
            save_classes(workdir, self._folder_classes())

    def _training_files(self) -> dict[Path, list[Path]]:
        """The files of the training split of each folder that is read."""
        return dict([folder_files(self.dir, "train")])

    def beside(self, workdir: Path) -> Images:
        """The same data with the classes of a run, where it has them."""
        learned = read_classes(workdir)
        return self if learned is None else dataclasses.replace(self, class_names=learned)

    def going_on(self, workdir: Path) -> Images:
        # Classes come from the data, so that `save` can compare them; an earlier run may have another order.
        learned = read_classes(workdir) if self.name == "folder" and self.class_names is None else None
        same = learned is not None and set(learned) == set(self._folder_classes())
        return dataclasses.replace(self, class_names=learned) if same else self

    # ------------------------------------------------------------------------------------------------------------------
    # On the device

    def augment(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        if not self.horizontal_flip:
            return batch
        keys = example_keys(key, batch)
        mirrored = transforms.bernoulli_per_example(keys, jnp.full(keys.shape, 0.5)) > 0
        x = jnp.where(mirrored[:, None, None, None], batch["x"][:, :, ::-1], batch["x"])
        return {**batch, "x": x}

    def transform(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        keys = example_keys(key, batch)
        x, log_abs_det = transforms.apply(self.preprocessing, batch["x"], keys, self.levels, self.logit_alpha)
        batch = {**batch, "x": x.reshape(x.shape[0], -1) if self.flatten else x}
        return batch if log_abs_det is None else {**batch, "log_abs_det": log_abs_det}

    def to_unit(self, samples: np.ndarray) -> np.ndarray:
        """Samples of a model as brightness in [0, 1], shape [N, H, W, C]."""
        samples = np.asarray(samples, np.float32)
        if self.flatten:
            shape = self.load("train").gather(np.zeros(1, np.int64))["x"].shape[1:]
            samples = samples.reshape(len(samples), *shape)
        return transforms.to_unit(self.preprocessing, samples, self.levels, self.logit_alpha)

    def read_picture(self, file: PictureFile) -> jax.Array:
        """A picture of a file as models of this data see it, float32 [1, H, W, C].

        Raises:
          DataError: the file is not a readable picture; the message names it.
        """
        height, width, channels = self.spec()["data_shape"]
        levels = read_given(file, self.image_size or (height, width), channels)
        return Images.transform(self, {"x": jnp.asarray(self._resized_levels(levels[None]))}, jax.random.key(0))["x"]

    def write_samples(self, samples: np.ndarray, stem: Path) -> list[Path]:
        """Writes one PNG with the pictures in rows."""
        path = with_ending(stem, ".png")
        write_grid(self.to_unit(samples), path)
        return [path]

    def protocol(self) -> str:
        alpha = f" (alpha {self.logit_alpha:g})" if self.preprocessing == "logit" else ""
        return f"preprocessing {self.preprocessing}{alpha}, {self.levels} levels"


class _Mapped:
    """Examples whose pictures are changed as they are read."""

    def __init__(self, examples: Examples, function: Any) -> None:
        self._examples, self._function = examples, function

    def __len__(self) -> int:
        return len(self._examples)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        batch = self._examples.gather(indices)
        return {**batch, "x": self._function(batch["x"])}

    def arrays(self) -> None:
        return None


def tile(pictures: np.ndarray, num_columns: int | None = None) -> np.ndarray:
    """Arranges pictures row after row on one sheet; small ones are enlarged, so that it can be looked at.

    Args:
      pictures: brightness in [0, 1], shape [N, H, W, C] with C of 1, 3 or 4.
      num_columns: pictures in a row; by default about the square root of their number.

    Returns:
      uint8 [height, width], or [height, width, C] of colour.
    """
    count, height, width, channels = pictures.shape
    columns = num_columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    sheet = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1, channels), 0.35, np.float32)
    for i, picture in enumerate(pictures):
        top, left = (i // columns) * (height + 1) + 1, (i % columns) * (width + 1) + 1
        sheet[top : top + height, left : left + width] = picture
    factor = max(1, 512 // max(sheet.shape))
    levels = np.round(sheet * 255).astype(np.uint8).repeat(factor, 0).repeat(factor, 1)
    return levels[..., 0] if channels == 1 else levels


def write_grid(pictures: np.ndarray, path: Path, num_columns: int | None = None) -> None:
    """Writes pictures as one PNG, arranged by `tile`."""
    Image.fromarray(tile(pictures, num_columns)).save(path)
