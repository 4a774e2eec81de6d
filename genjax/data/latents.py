"""Latents: arrays that another model made of its data, such as the maps of a picture autoencoder, read from .npy files.

Files are mapped, not read, so a set may be larger than the memory.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax import buckets
from genjax.data.base import Data, DataError, Outline, check_split
from genjax.data.files import with_ending
from genjax.data.images import write_grid
from genjax.data.training_files import save_training_files

_SPLITS = ("train", "validation", "test")
#: Description of the texts beside the arrays, and its entries.
TEXTS_FILE = "texts.json"
TEXT_FIELDS = ("vocab_size", "sequence_length", "start_token", "end_token", "padding_token")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latents(Data):
    """Arrays `x` float32 [B, ...], and where the set has them classes `label` [B] and texts `tokens`, `mask` [B, T].

    Attributes:
      name: files, at data.dir: train.npy [N, ...] of floats and, where there are classes, train_label.npy [N]; where
        there are texts, train_tokens.npy and train_mask.npy [N, T], and texts.json, which says vocab_size and others;
        the same for validation and test; or random, normal noise of ten classes, to see whether a run fits into memory.
      shape: shape of an example of random, and of files in plans that are made without them.
      scale: factor on the arrays, chosen so that their standard deviation is about 1; 0.18215 for the autoencoder of
        Stable Diffusion.
    """

    name: str = "files"
    shape: tuple[int, ...] = (32, 32, 4)
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name not in ("files", "random"):
            raise DataError(f"data.name={self.name} is not a set of latents: files, random")

    def load_split(self, split: str) -> MappedArrays:
        check_split(split, _SPLITS, self.name)
        if self.name == "random":
            rng = np.random.default_rng(_SPLITS.index(split))
            count = 512 if split == "train" else 64
            x = rng.normal(size=(count, *self.shape)).astype(np.float32) / self.scale
            return MappedArrays({"x": x, "label": rng.integers(0, 10, count).astype(np.int32)})
        if self.dir is None:
            raise DataError("data.name=files needs --data.dir, a folder with train.npy")
        folder = buckets.folder(self.dir)
        arrays = {"x": mapped(folder / f"{split}.npy")}
        for name in ("label", "tokens", "mask"):
            if (folder / f"{split}_{name}.npy").is_file():
                arrays[name] = mapped(folder / f"{split}_{name}.npy")
        return MappedArrays(arrays)

    def save(self, workdir: Path) -> None:
        """Writes the list of training files into the run's directory, if it is not there yet.

        Raises:
          DataError: the run was trained on other files.
        """
        if self.name == "files":
            folder = buckets.folder(self.dir)
            save_training_files(workdir, {folder: [f for f in sorted(folder.glob("train*.npy")) if f.is_file()]})

    def outline(self) -> Outline | None:
        """Files that are not there as `shape` tells, with the classes of ImageNet."""
        if self.name == "random" or self.dir is not None:
            return None
        spec = {"data_shape": self.shape, "num_classes": 1000}
        return Outline(spec, {"x": (self.shape, "float32"), "label": ((), "int32")})

    def spec(self) -> dict[str, Any]:
        """data_shape, num_classes of a labelled set, and vocab_size and others of a set with texts."""
        examples = self.load("train")
        first = examples.gather(np.zeros(1, np.int64))
        spec = {"data_shape": tuple(first["x"].shape[1:]), **(self._texts() if "tokens" in first else {})}
        labels = examples.labels()
        return spec if labels is None else {**spec, "num_classes": int(labels.max()) + 1}

    def _texts(self) -> dict[str, Any]:
        """What texts.json says."""
        path = buckets.folder(self.dir) / TEXTS_FILE
        if not path.is_file():
            raise DataError(f"there is no file {path}, which says vocab_size of train_tokens.npy")
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: content[name] for name in TEXT_FIELDS if name in content}

    def transform(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        del key
        return {**batch, "x": batch["x"].astype(jnp.float32) * self.scale}

    def write_samples(self, samples: np.ndarray, stem: Path) -> list[Path]:
        """Writes the arrays, for the decoder of their autoencoder; for maps [H, W, C] also a sheet of the first three
        channels.
        """
        samples = np.asarray(samples, np.float32)
        table = with_ending(stem, ".npy")
        np.save(table, samples / self.scale)
        if samples.ndim != 4:
            return [table]
        picture = with_ending(stem, ".png")
        shown = samples[..., : 3 if samples.shape[-1] >= 3 else 1]
        write_grid(np.clip(0.5 + shown / 6.0, 0.0, 1.0), picture)
        return [table, picture]

    def protocol(self) -> str:
        return f"times {self.scale:g}"


class MappedArrays:
    """Examples of arrays with one leading axis that need not fit into memory; a copy in another process maps the files
    again.
    """

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        lengths = {name: len(a) for name, a in arrays.items()}
        if len(set(lengths.values())) != 1:
            raise DataError(f"the arrays of a set of latents differ in length: {lengths}")
        self._arrays = arrays

    def __len__(self) -> int:
        return len(self._arrays["x"])

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        batch = {name: np.asarray(a[indices]) for name, a in self._arrays.items()}
        return {name: a.astype(np.int32) if name in ("label", "tokens") else a for name, a in batch.items()}

    def __getstate__(self) -> dict[str, Path | np.ndarray]:
        return {name: Path(a.filename) if isinstance(a, np.memmap) else a for name, a in self._arrays.items()}

    def __setstate__(self, state: dict[str, Path | np.ndarray]) -> None:
        self._arrays = {name: mapped(a) if isinstance(a, Path) else a for name, a in state.items()}

    def arrays(self) -> None:
        return None

    def labels(self) -> np.ndarray | None:
        """Classes of all examples, or None."""
        return self._arrays.get("label")


def mapped(path: Path) -> np.ndarray:
    """Opens a .npy file without reading it.

    Raises:
      DataError: there is no such file, or it is damaged.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}; a set of latents has train.npy, validation.npy and test.npy")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise DataError(f"{path} cannot be read as a .npy file: {error}") from None
