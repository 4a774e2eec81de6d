"""The correspondence between tensors of another library and parameters of genjax, as data for both directions.

A `Binding` of a parameter is a tensor's name and the arrangement of its axes and parts.  Every arrangement is linear
and loses nothing, so the same bindings load weights, save them, and convert gradients in tests.  "Ours" means
genjax, "theirs" the other library.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from genjax.batch import Array, PyTree
from genjax.interop.safetensors import CheckpointFileError, Tensor, shortened


@dataclasses.dataclass(frozen=True)
class Binding:
    """A parameter of ours as a part of a tensor of theirs.

    Attributes:
      name: name of the tensor.
      axes: our axes as a permutation of theirs; None for the same order.
      part: (i, n): our array is part i of n equal parts of the last axis.
      leading: number of first axes of size 1 of their tensor that our array lacks.
      trailing: number of last axes of size 1 of their tensor that our array lacks.
      aliases: names of the same tensor in other versions.
    """

    name: str
    axes: tuple[int, ...] | None = None
    part: tuple[int, int] | None = None
    leading: int = 0
    trailing: int = 0
    aliases: tuple[str, ...] = ()

    def ours(self, array: np.ndarray) -> np.ndarray:
        """Our view of their array."""
        if self.leading:
            array = array[(0,) * self.leading]
        if self.trailing:
            array = array.reshape(array.shape[: -self.trailing])
        if self.axes is not None:
            array = array.transpose(self.axes)
        if self.part is not None:
            place, count = self.part
            size = array.shape[-1] // count
            array = array[..., place * size : (place + 1) * size]
        return array

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of our view of their tensor of a given shape; () if it does not fit."""
        try:
            return self.ours(np.broadcast_to(np.zeros(()), shape)).shape
        except (ValueError, IndexError):
            return ()

    def theirs(self, array: np.ndarray) -> np.ndarray:
        """Our array in their arrangement, without the other parts of the tensor."""
        if self.axes is not None:
            array = array.transpose(np.argsort(self.axes))
        array = array.reshape((*array.shape, *(1,) * self.trailing))
        return array.reshape((*(1,) * self.leading, *array.shape))

    @property
    def part_axis(self) -> int:
        """Axis of their tensor that is divided into parts, counted from the end."""
        return (-1 if self.axes is None else self.axes[-1] - len(self.axes)) - self.trailing


Bindings = dict[str, Binding]


def same(ours: str, theirs: str, **options: Any) -> Bindings:
    """An array with the same arrangement in both."""
    return {ours: Binding(theirs, **options)}


def linear(
    ours: str, theirs: str, bias: bool = True, transposed: bool = True, others: tuple[str, ...] = (), **options: Any
) -> Bindings:
    """A linear map; PyTorch stores [out, in], the transpose of ours.  `others` are older names of it."""
    axes = (1, 0) if transposed else None
    aliases = lambda part: tuple(f"{other}.{part}" for other in others)
    found = {f"{ours}/kernel": Binding(f"{theirs}.weight", axes, aliases=aliases("weight"), **options)}
    if bias:
        options = {name: value for name, value in options.items() if name != "trailing"}
        found[f"{ours}/bias"] = Binding(f"{theirs}.bias", aliases=aliases("bias"), **options)
    return found


def convolution(ours: str, theirs: str) -> Bindings:
    """A convolution of pictures with a bias; PyTorch stores [out, in, height, width]."""
    return {f"{ours}/kernel": Binding(f"{theirs}.weight", (2, 3, 1, 0)), f"{ours}/bias": Binding(f"{theirs}.bias")}


def norm(ours: str, theirs: str, bias: bool = True) -> Bindings:
    """LayerNorm, or RMSNorm without a bias."""
    found = {f"{ours}/scale": Binding(f"{theirs}.weight")}
    if bias:
        found[f"{ours}/bias"] = Binding(f"{theirs}.bias")
    return found


def embedding(ours: str, theirs: str, aliases: tuple[str, ...] = ()) -> Bindings:
    """A table of embeddings."""
    return {f"{ours}/embedding": Binding(f"{theirs}.weight", aliases=aliases)}


def merge(*parts: Bindings) -> Bindings:
    """All bindings together."""
    return {path: binding for part in parts for path, binding in part.items()}


def without_prefix(bindings: Bindings, prefix: str) -> Bindings:
    """Bindings of the bare body of a network, whose names lack the prefix."""
    strip = lambda name: name.removeprefix(prefix)
    return {
        path: dataclasses.replace(b, name=strip(b.name), aliases=tuple(map(strip, b.aliases)))
        for path, b in bindings.items()
    }


# ----------------------------------------------------------------------------------------------------------------------
# Scanned stacks


def of_leaf(path: str, bindings: Bindings) -> tuple[Binding, ...] | None:
    """The bindings of a parameter: one, or in a scanned stack one for each layer; None if there are none."""
    if path in bindings:
        return (bindings[path],)
    before, middle, after = path.partition("/layers/")
    if not middle:
        return None
    found: list[Binding] = []
    while f"{before}/layer_{len(found)}/{after}" in bindings:
        found.append(bindings[f"{before}/layer_{len(found)}/{after}"])
    return tuple(found) or None


def _source(binding: Binding, tensors: Mapping[str, Any]) -> str | None:
    return next((name for name in (binding.name, *binding.aliases) if name in tensors), None)


# ----------------------------------------------------------------------------------------------------------------------
# Reading


def check(
    abstract: PyTree,
    bindings: Bindings,
    tensors: Mapping[str, Tensor],
    ignored: Callable[[str], bool],
    optional: Callable[[str], bool],
    where: str,
) -> list[str]:
    """Compares a model's parameters with a checkpoint's tensors.

    Args:
      abstract: shapes of the parameters, as nested dicts.
      bindings: bindings of all parameters that the checkpoint may hold.
      tensors: tensors of the checkpoint.
      ignored: names of tensors that are no parameters.
      optional: paths of parameters that may be absent, and names of tensors that may be left over.
      where: the checkpoint, for the message.

    Returns:
      Paths of parameters that the checkpoint does not have, all of them optional.

    Raises:
      CheckpointFileError: all missing tensors, extra tensors and wrong shapes.
    """
    missing, wrong, fresh, used = [], [], [], set()
    for path, leaf in traverse_util.flatten_dict(abstract, sep="/").items():
        found = of_leaf(path, bindings)
        sources = [source for b in found or () if (source := _source(b, tensors)) is not None]
        if found is None or len(sources) < len(found):
            if optional(path):
                fresh.append(path)
            else:
                missing += [path] if found is None else [b.name for b in found if _source(b, tensors) is None]
            continue
        wanted = leaf.shape if path in bindings else leaf.shape[1:]
        for binding, source in zip(found, sources):
            if binding.shape(tensors[source].shape) != wanted:
                scale = binding.part[1] if binding.part else 1
                whole = (*wanted[:-1], wanted[-1] * scale) if wanted else wanted
                theirs = binding.theirs(np.broadcast_to(np.zeros(()), whole)).shape
                wrong.append(f"{source} has {tensors[source].shape} and needs {theirs}")
        for binding in found:
            used |= {binding.name, *binding.aliases}
    extra = [name for name in tensors if name not in used and not ignored(name) and not optional(name)]
    problems = [
        f"{title}: {shortened(sorted(set(rows)))}"
        for title, rows in (("missing tensors", missing), ("extra tensors", extra), ("wrong shapes", wrong))
        if rows
    ]
    if problems:
        raise CheckpointFileError(f"{where} does not fit its configuration; {'; '.join(problems)}")
    return fresh


def read_leaf(
    leaf: jax.ShapeDtypeStruct, found: tuple[Binding, ...], stacked: bool, tensors: Mapping[str, Tensor]
) -> Array:
    """One parameter on its devices; each reads its own part of the file.

    Args:
      leaf: shape, type and, where it is placed, sharding.
      found: the parameter's bindings; if `stacked`, one for each layer.
      stacked: whether a first axis counts layers.
      tensors: what the checkpoint holds.
    """

    def part(index: Any) -> np.ndarray:
        def one(binding: Binding, index: tuple[slice, ...]) -> np.ndarray:
            tensor = tensors[_source(binding, tensors) or binding.name]
            # A copy, so that the file's memory map is released at once.
            return np.array(binding.ours(tensor.view())[index], dtype=leaf.dtype, order="C")

        if not stacked:
            return one(found[0], index)
        layers = found[index[0]]
        first = one(layers[0], index[1:])
        out = np.empty((len(layers), *first.shape), leaf.dtype)
        out[0] = first
        for i, binding in enumerate(layers[1:], 1):
            out[i] = one(binding, index[1:])
        return out

    whole = (slice(None),) * len(leaf.shape)
    if leaf.sharding is None:
        return jnp.asarray(part(whole))
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)


def read(abstract: PyTree, bindings: Bindings, tensors: Mapping[str, Tensor]) -> PyTree:
    """Reads parameters one after the other, with the shardings of `abstract`; parameters without
    tensors are left out.
    """
    params = {}
    for path, leaf in traverse_util.flatten_dict(abstract, sep="/").items():
        found = of_leaf(path, bindings)
        if found is not None and all(_source(b, tensors) is not None for b in found):
            params[path] = read_leaf(leaf, found, path not in bindings, tensors)
    return traverse_util.unflatten_dict(params, sep="/")


# ----------------------------------------------------------------------------------------------------------------------
# Writing


def tensors_of(params: PyTree, bindings: Bindings) -> Iterable[tuple[str, tuple[int, ...], Callable[[], np.ndarray]]]:
    """Their tensors for our parameters: name, shape, and a function that makes the array, so that
    only one is in memory.
    """
    groups: dict[str, list[tuple[Binding, Any, int | None]]] = {}
    for path, leaf in traverse_util.flatten_dict(params, sep="/").items():
        found = of_leaf(path, bindings)
        if found is None:
            raise CheckpointFileError(f"the parameter {path} has no place in the other library's model")
        for i, binding in enumerate(found):
            groups.setdefault(binding.name, []).append((binding, leaf, None if path in bindings else i))
    for name, members in groups.items():
        members.sort(key=lambda member: member[0].part or (0, 1))

        def make(members=members) -> np.ndarray:
            arrays = [b.theirs(np.asarray(leaf if i is None else leaf[i])) for b, leaf, i in members]
            return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, members[0][0].part_axis)

        binding, leaf, layer = members[0]
        ours = leaf.shape if layer is None else leaf.shape[1:]
        shape = list(binding.theirs(np.broadcast_to(np.zeros(()), ours)).shape)
        if len(members) > 1:
            shape[binding.part_axis] *= len(members)
        yield name, tuple(shape), make
