"""Tensors of files that torch.save wrote, read without torch and without running code in the pickle.

Two containers exist, and both are read: the ZIP archive of torch 1.6 and later (`*/data.pkl` beside one file for each
storage), and the older sequence of pickles with the storages' bytes behind.  The pickle is read by an
unpickler that knows a short list of harmless names (ordered dictionaries, storages, the rebuilding of a
tensor) and refuses all other
names.
"""

from __future__ import annotations

import collections
import dataclasses
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from genjax.errors import UserError
from genjax.interop.safetensors import CheckpointFileError

_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


@dataclasses.dataclass(frozen=True)
class _Storage:
    dtype: np.dtype
    key: str
    length: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def view(self, raw: bytes) -> np.ndarray:
        flat = np.frombuffer(raw, self.storage.dtype)
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True))
        if min((self.offset, *self.strides, *self.shape), default=0) < 0 or (0 not in self.shape and last >= len(flat)):
            raise UserError("a tensor reaches beyond its storage")
        size = self.storage.dtype.itemsize
        strides = [size * step for step in self.strides]
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides, writeable=False)


def _rebuild_tensor(storage: _Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_parameter(tensor: _Tensor, *_: Any) -> _Tensor:
    return tensor


_KNOWN = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): np.dtype(dtype) for name, dtype in _DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    """Reads containers and tensors, and refuses every name that is not on the list."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}, which is not on the list")
        return _KNOWN[module, name]

    def persistent_load(self, identity: Any) -> _Storage:
        kind, dtype, key, _, length = identity[:5]
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise pickle.UnpicklingError("the pickle refers to something that is no storage")
        if len(identity) > 5 and identity[5] is not None:
            raise pickle.UnpicklingError("the pickle has views of storages, which are not read")
        return _Storage(dtype, str(key), int(length))


def _read_zip(file: BinaryIO) -> tuple[Any, dict[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        (pickled,) = (name for name in names if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise UserError("the bytes are not little-endian")
        with archive.open(pickled) as stream:
            content = _Unpickler(stream).load()
        prefix = f"{folder}data/"
        return content, {n.removeprefix(prefix): archive.read(n) for n in names if n.startswith(prefix)}


def _read_legacy(file: BinaryIO) -> tuple[Any, dict[str, bytes]]:
    if _Unpickler(file).load() != _LEGACY_MAGIC:
        raise UserError("the first pickle is not torch's")
    _Unpickler(file).load()  # Version of the protocol.
    if not _Unpickler(file).load().get("little_endian", True):
        raise UserError("the bytes are not little-endian")
    content = _Unpickler(file).load()
    keys = _Unpickler(file).load()
    # The storages follow without their types, which are known from their tensors.
    sizes = {t.storage.key: t.storage.dtype.itemsize for t in _tensors(content).values()}
    storages = {}
    for key in keys:
        (length,) = struct.unpack("<q", file.read(8))
        storages[key] = file.read(length * sizes[key])
    return content, storages


def _tensors(content: Any) -> dict[str, _Tensor]:
    if not isinstance(content, dict):
        raise UserError("it holds no dictionary of tensors")
    return {str(name): value for name, value in content.items() if isinstance(value, _Tensor)}


def read_torch_file(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors by name of a dictionary (such as a module's state_dict) that torch.save
    wrote; other values are left out.

    Raises:
      CheckpointFileError: torch did not write the file, it is damaged, or it needs names that are not allowed.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
            file.seek(0)
            content, storages = (_read_zip if zipped else _read_legacy)(file)
        return {name: tensor.view(storages[tensor.storage.key]) for name, tensor in _tensors(content).items()}
    except OSError as error:
        raise CheckpointFileError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:
        # A damaged pickle can raise almost any exception.
        raise CheckpointFileError(f"{path} is not a file of tensors that torch.save wrote: {error}") from None
