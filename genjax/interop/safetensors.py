"""Reading and writing safetensors files one tensor at a time (github.com/huggingface/safetensors, format description).

    8 bytes    length N of the header, little-endian
    N bytes    JSON: {name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {...}}
    the rest   the tensors' bytes, in C order; offsets count from here

A tensor is mapped into memory only while it is read, so that a checkpoint never needs twice its size.
"""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import ml_dtypes
import numpy as np

from genjax.errors import UserError

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

#: Longest header that the format allows.
_LONGEST_HEADER = 100_000_000

WEIGHTS = "model.safetensors"
#: The same of a part of a pipeline of the library diffusers.
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"


class CheckpointFileError(UserError):
    """A file of weights that cannot be used; the message is one sentence for the user."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Place of a tensor: its file, type, shape, and first byte in the file."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    def view(self) -> np.ndarray:
        """The tensor, mapped into memory read-only as long as the result lives."""
        if math.prod(self.shape) == 0:
            return np.zeros(self.shape, self.dtype)
        # Mapped as bytes, since a map does not have bfloat16, and offsets need not be aligned.
        size = math.prod(self.shape) * self.dtype.itemsize
        raw = np.memmap(self.file, np.uint8, "r", self.offset, (size,))
        return np.ndarray(self.shape, self.dtype, buffer=raw)


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name.

    Raises:
      CheckpointFileError: the file is truncated or is no safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if not 0 < length <= _LONGEST_HEADER:
                raise CheckpointFileError(f"{path} is no safetensors file: its first 8 bytes are no header's length")
            if 8 + length > size:
                raise CheckpointFileError(f"{path} is truncated: {size} bytes, and its header alone has {8 + length}")
            header = json.loads(file.read(length))
        tensors, end = {}, 0
        for name, row in header.items():
            if name == "__metadata__":
                continue
            if row["dtype"] not in _DTYPES:
                raise CheckpointFileError(f"{path}: the tensor {name} has the type {row['dtype']}, which is not known")
            dtype, shape, (begin, stop) = _DTYPES[row["dtype"]], tuple(row["shape"]), row["data_offsets"]
            if stop - begin != math.prod(shape) * dtype.itemsize or begin < 0:
                raise CheckpointFileError(f"{path} is damaged: the place of the tensor {name} does not fit its shape")
            tensors[name], end = Tensor(path, dtype, shape, 8 + length + begin), max(end, stop)
    except OSError as error:
        raise CheckpointFileError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointFileError):
            raise
        raise CheckpointFileError(f"{path} is damaged: it has no header of a safetensors file") from None
    if 8 + length + end != size:
        what = "truncated" if size < 8 + length + end else "damaged"
        raise CheckpointFileError(f"{path} is {what}: {size} bytes, and its tensors end at byte {8 + length + end}")
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """The strings by name in the header of a file that `read_header` has read."""
    with path.open("rb") as file:
        return json.loads(file.read(struct.unpack("<Q", file.read(8))[0])).get("__metadata__") or {}


def read_folder(folder: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, which is one file or several with an index.

    Raises:
      CheckpointFileError: there is no checkpoint, or one of its files is missing, truncated or damaged.
    """
    for weights in (WEIGHTS, DIFFUSERS_WEIGHTS):
        index_file = folder / f"{weights}.index.json"
        if index_file.is_file():
            return _read_parts(folder, index_file)
        if (folder / weights).is_file():
            return read_header(folder / weights)
    pickled = [
        p.name for p in sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt")) + sorted(folder.glob("*.pth"))
    ]
    hint = f"; {pickled[0]} is pickled and is not read, as that can run code: save it as safetensors" if pickled else ""
    raise CheckpointFileError(f"{folder} holds neither {WEIGHTS} nor {DIFFUSERS_WEIGHTS}, nor an index of one{hint}")


def _read_parts(folder: Path, index_file: Path) -> dict[str, Tensor]:
    """The tensors of several files with an index."""
    try:
        index = json.loads(index_file.read_text())["weight_map"]
        files = sorted(set(index.values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointFileError(f"{index_file} is damaged; it must be JSON with a weight_map") from None
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors.update(read_header(folder / file))
    absent = sorted(set(index) - set(tensors))
    if absent:
        raise CheckpointFileError(f"{index_file} names tensors that its files do not hold: {shortened(absent)}")
    return tensors


def write(
    path: Path,
    tensors: Iterable[tuple[str, tuple[int, ...], np.dtype, Callable[[], np.ndarray]]],
    metadata: dict[str, str] | None = None,
) -> None:
    """Writes a file, making one tensor at a time.

    Args:
      path: the file.
      tensors: name, shape, type, and a function that makes the array.
      metadata: strings by name for the header.

    Raises:
      CheckpointFileError: an array has another shape or type than announced.
    """
    tensors = list(tensors)
    header: dict[str, object] = {"__metadata__": metadata or {"format": "pt"}}
    end = 0
    for name, shape, dtype, _ in tensors:
        stop = end + math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {"dtype": _NAMES[np.dtype(dtype)], "shape": list(shape), "data_offsets": [end, stop]}
        end = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors begin at a multiple of 8
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape, dtype, make in tensors:
            array = np.asarray(make(), dtype, order="C")
            if array.shape != tuple(shape):
                raise CheckpointFileError(f"the tensor {name} was announced with shape {shape} and has {array.shape}")
            file.write(array.reshape(-1).view(np.uint8).data)
    temporary.replace(path)


def shortened(names: Iterable[str], most: int = 6) -> str:
    """Names with commas between them; only the first names if there are many."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
