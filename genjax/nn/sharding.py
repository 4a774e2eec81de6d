"""Where arrays lie on a mesh: how parameters are stored, how they are gathered for use, how activations are split.

Axes of a mesh:

    data     examples; every device holds all of what is split over no other axis
    fsdp     examples, and every array of the state: parameters are gathered where they are used, in the type that they
             are used in, again in the backward pass, and their gradients are scattered (Zhao et al. 2023, FSDP)
    expert   examples, and the experts of a mixture: tokens are exchanged by all-to-all (Lepikhin et al. 2021, GShard)
    sequence tokens of every example: attention exchanges tokens for heads by all-to-all (Jacobs et al. 2023, Ulysses)
    tensor   heads, hidden layers and vocabulary of a transformer: a map by columns, then one by rows, and one sum over
             devices (Shoeybi et al. 2019, Megatron-LM, section 3); the last axis of other arrays

Over `expert` and `sequence` the arrays of the state are stored as over `fsdp`; experts stay where `expert` puts them.

No array that is multiplied has one axis split by `tensor` and another by `fsdp`.  XLA's partitioner (jaxlib 0.10, 0.12)
permutes the rows of the product of such an array with a batch that is split over `data` and `fsdp`
(tests/training/test_sharding.py).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from genjax import devices
from genjax.batch import Array, PyTree
from genjax.errors import UserError
from genjax.nn.products import dense_product

#: Axes of every mesh, in the order of its devices.
MESH_AXES = ("data", "fsdp", "expert", "sequence", "tensor")
#: Axes that the examples of a batch are divided among.
BATCH_AXES = ("data", "fsdp", "expert")
#: Axes that the examples of a batch are divided among where experts are split.
GROUP_AXES = ("data", "fsdp")
#: Axes that arrays of the state are stored over, and gathered over where they are used.
STORE_AXES = ("fsdp", "expert", "sequence")
#: Axes that a model must say that it can use (see `genjax.model.UsesMeshAxes`).
OPTIONAL_AXES = ("expert", "sequence")
#: Arrays smaller than this are copied to every device, because a collective would cost more than their memory.
SMALLEST_SHARDED = 1024

# Linear maps of transformers, by name: their outputs, or their inputs, are divided among the devices of `tensor`.
_BY_COLUMNS = ("query", "key", "value", "up", "gate", "head")
_BY_ROWS = ("output", "down")
# Tables with a row for each token, divided by rows; and arrays that every device of `tensor` reads whole.
_TABLES = ("token",)
_WHOLE = ("position", "type", "router", "relative_bias", "a", "b")
# Name of the blocks of a scanned stack, whose arrays have the layers as first axis; and names of blocks in general.
_SCANNED = "layers"
_BLOCK = re.compile(r"layers$|(layer|block)_\d")
# Blocks of U-Nets, which may compute themselves again, but do not gather.
_RECOMPUTED = re.compile(r"(down|middle|up)_\d")
# Arrays that their modules convert to the compute type before anything else: they are gathered in that type.
_COMPUTED_IN = ("kernel", "up", "gate", "down")

Path = tuple[str, ...]


def path_of(keys: tuple[Any, ...]) -> Path:
    """The names on the way to a leaf, of a path that `jax.tree_util` gives."""
    return tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", "")))) for key in keys)


def _tensor_dim(path: Path, num_dims: int) -> int | None:
    """Which axis of an array the axis `tensor` splits."""
    owner, name = ("", "", *path)[-2:]
    if owner in _WHOLE or name in _WHOLE or num_dims == 0:
        return None
    # Kernels of linear maps are `up/kernel`, weights of experts are `experts/up`.
    by_rows = owner in _BY_ROWS or name in _BY_ROWS
    if by_rows:
        return num_dims - 2 if num_dims >= 2 else None
    if owner in _BY_COLUMNS:
        return num_dims - 1
    return num_dims - 1 if num_dims >= 2 else None


def stored_spec(path: Path, shape: tuple[int, ...], dtype: Any, mesh: Mesh) -> PartitionSpec:
    """How an array of the state is stored.

    Parameters, their moments and their averages end in the same names and have the same shapes, and so the same
    shardings.

    Args:
      path: names on the way to the array.
      shape, dtype: of the array.
      mesh: the mesh of the run.
    """
    tensor = mesh.shape["tensor"]
    stores = [axis for axis in STORE_AXES if mesh.shape[axis] > 1]
    first = 1 if _SCANNED in path[:-1] and len(shape) > 1 else 0
    dims = shape[first:]
    if math.prod(dims) < SMALLEST_SHARDED or jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return PartitionSpec()
    axes: list[Any] = [None] * len(shape)
    place = _tensor_dim(path, len(dims)) if tensor > 1 else None
    if _is_table(path) and len(dims) == 2:
        # Read by `rows_of`, which multiplies nothing.
        return PartitionSpec(
            "tensor" if tensor > 1 and dims[0] % tensor == 0 else None, _fitting(mesh, stores, dims[1])
        )
    free = range(len(dims))
    if _is_experts(path) and "expert" in stores:
        axes[first], stores, free = "expert", [axis for axis in stores if axis != "expert"], free[1:]
    if place is not None and dims[place] % tensor == 0:
        axes[first + place] = _fitting(mesh, ["tensor", *stores], dims[place])
    elif stores:
        parts = lambda i: axes_size(mesh, _fitting(mesh, stores, dims[i]))
        i = max(free, key=lambda i: (parts(i), dims[i]))
        axes[first + i] = _fitting(mesh, stores, dims[i])
    return PartitionSpec(*axes)


def axes_size(mesh: Mesh, axes: str | tuple[str, ...] | None) -> int:
    """Number of parts that some axes of a mesh make."""
    return math.prod(mesh.shape[axis] for axis in ((axes,) if isinstance(axes, str) else axes or ()))


def _fitting(mesh: Mesh, axes: list[str], length: int) -> str | tuple[str, ...] | None:
    """The first of some axes whose parts divide a length, as an entry of a PartitionSpec."""
    while axes and length % axes_size(mesh, tuple(axes)):
        axes = axes[:-1]
    return None if not axes else axes[0] if len(axes) == 1 else tuple(axes)


def _is_experts(path: Path) -> bool:
    """Whether an array has the weights of experts, [E, ...]."""
    return path[-2:-1] == ("experts",) and path[-1] in _COMPUTED_IN


def _is_table(path: Path) -> bool:
    return len(path) > 1 and path[-2] in _TABLES


def _used_spec(stored: PartitionSpec, path: Path) -> PartitionSpec:
    """How an array is used that is stored so: gathered over all axes but `tensor`, and `expert` if it has experts."""
    kept = ("tensor", "expert") if _is_experts(path) else ("tensor",)
    names = lambda entry: (entry,) if isinstance(entry, str) else entry or ()
    return PartitionSpec(*(next((axis for axis in names(entry) if axis in kept), None) for entry in stored))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(x: Array, used: NamedSharding, stored: NamedSharding) -> Array:
    return jax.lax.with_sharding_constraint(x, used)


# The gradient is scattered where it is made.  The transpose of a constraint is the same constraint, which would sum the
# whole gradient on every device.
_gather.defvjp(
    lambda x, used, stored: (_gather(x, used, stored), None),
    lambda used, stored, _, gradient: (_scattered(gradient, used, stored),),
)


def _scattered(gradient: Array, used: NamedSharding, stored: NamedSharding) -> Array:
    """A gradient as its array is stored.

    Where `tensor` and `fsdp` split one axis, XLA would sum the whole gradient over `data` and `fsdp` and then cut; so
    `fsdp` first splits another axis, which scatters the sum, and the parts are exchanged.
    """
    mesh, (dim, names) = stored.mesh, _store_dim(stored, used.spec)
    if dim is not None and len(used.spec) > dim and used.spec[dim] is not None:
        kept = (*used.spec, *[None] * (gradient.ndim - len(used.spec)))
        free = [i for i, n in enumerate(gradient.shape) if kept[i] is None and n % axes_size(mesh, names) == 0]
        if free:
            first = PartitionSpec(*(names if i == free[-1] else axes for i, axes in enumerate(kept)))
            gradient = jax.lax.with_sharding_constraint(gradient, NamedSharding(mesh, first))
    return jax.lax.with_sharding_constraint(gradient, stored)


def _store_dim(stored: NamedSharding, used: PartitionSpec) -> tuple[int | None, tuple[str, ...]]:
    """Which axis of an array is gathered for use, and over which axes of the mesh."""
    names = lambda entry: (entry,) if isinstance(entry, str) else entry or ()
    for i, entry in enumerate(stored.spec):
        kept = ("tensor", *(names(used[i]) if i < len(used) else ()))
        gathered = tuple(axis for axis in names(entry) if axis not in kept)
        if gathered:
            return i, gathered
    return None, ()


def parameters_are_split() -> bool:
    """Whether parameters must be gathered before they are used."""
    mesh = devices.mesh()
    return mesh is not None and any(mesh.shape.get(axis, 1) > 1 for axis in STORE_AXES)


def gathered(params: PyTree) -> PyTree:
    """Parameters as they are used: whole over `STORE_AXES`; gradients that flow back are scattered again.

    What networks gather themselves is left as it is stored: parameters of blocks, each of which gathers where it runs,
    and tables, which are never gathered to look rows up.

    Args:
      params: parameters of a network or of several, or a part of such a tree.
    """
    if not parameters_are_split():
        return params

    def gather(keys: tuple[Any, ...], leaf: Array) -> Array:
        path = path_of(keys)
        return leaf if _is_gathered_by_its_network(path) else gathered_array(leaf, path)

    return jax.tree_util.tree_map_with_path(gather, params)


def gathered_array(x: Array, path: Path, dtype: Any = None) -> Array:
    """One array as it is used, whole over `STORE_AXES`.

    Args:
      x: the array as it is stored.
      path: names on the way to it.
      dtype: type that it is converted to before it is gathered, or None.
    """
    mesh = devices.mesh()
    stored = None if mesh is None else stored_spec(path, x.shape, x.dtype, mesh)
    x = x if dtype is None else x.astype(dtype)
    if stored is None or not parameters_are_split() or stored == PartitionSpec():
        return x
    return _gather(x, NamedSharding(mesh, _used_spec(stored, path)), NamedSharding(mesh, stored))


def _is_gathered_by_its_network(path: Path) -> bool:
    """Whether an array belongs to one of the blocks that gather their own parameters, or is a table."""
    return _is_table(path) or any(_BLOCK.match(name) for name in path[:-1])


def _gathers_again(primitive: Any, *_: Any, **__: Any) -> bool:
    """For `jax.checkpoint`: the backward pass gathers parameters again, and computes nothing else again."""
    return primitive.name != "sharding_constraint"


def blocks(block: type[nn.Module], within: nn.Module, dtype: Any, remat: bool, **options: Any) -> type[nn.Module]:
    """The class of a network's blocks, which gather their parameters where they run, and again in the backward pass.

    The blocks' names are `layers` (scanned), or `layer_0`, `block_0` and so on.

    Args:
      block: class of a block.
      within: the module that builds them.
      dtype: type that the blocks compute in.
      remat: whether the backward pass computes the blocks again.
      options: further arguments of `nn.remat`.
    """
    if parameters_are_split() and not within.is_initializing():
        block = nn.map_variables(block, "params", functools.partial(_gathered_block, dtype=dtype))
        return nn.remat(block, policy=None if remat else _gathers_again, **options)
    return nn.remat(block, **options) if remat else block


def scanned(stack: type[nn.Module], within: nn.Module, dtype: Any) -> type[nn.Module]:
    """The class of a scanned stack of `blocks`, whose maps take the compute type before the first block runs.

    Their gradients, which come in that type, are then stacked in it; converted in the scan they would be stacked in
    float32, in twice the memory and with the same values.

    Args:
      stack: class of the scanned blocks.
      within: the module that builds it.
      dtype: type that the blocks compute in.
    """
    if not parameters_are_split() or within.is_initializing():
        return stack
    convert = lambda keys, leaf: leaf.astype(_type_of_use(path_of(keys), leaf, dtype) or leaf.dtype)
    return nn.map_variables(stack, "params", functools.partial(jax.tree_util.tree_map_with_path, convert))


def _type_of_use(path: Path, leaf: Array, dtype: Any) -> Any:
    """The compute type, where an array of a block is converted to it before anything else, or None."""
    return dtype if path[-1] in _COMPUTED_IN and leaf.ndim > 1 else None


def _gathered_block(params: PyTree, dtype: Any) -> PyTree:
    def gather(keys: tuple[Any, ...], leaf: Array) -> Array:
        path = path_of(keys)
        return gathered_array(leaf, path, _type_of_use(path, leaf, dtype))

    return jax.tree_util.tree_map_with_path(gather, params)


def of_gathered(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function `(params, ...)` of whole parameters as a function of stored ones.

    Where it is differentiated, the backward pass gathers parameters again.  Networks of blocks do that themselves, and
    U-Nets keep what was gathered.
    """
    if not parameters_are_split():
        return function
    whole = lambda params, *rest: function(gathered(params), *rest)

    def of_stored(params: PyTree, *rest: Any) -> Any:
        paths = [path_of(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(params)]
        # A policy would hold for the blocks' own `nn.remat` too, which then would save all.
        if any(_is_gathered_by_its_network(path) or any(map(_RECOMPUTED.match, path)) for path in paths):
            return whole(params, *rest)
        return jax.checkpoint(whole, policy=_gathers_again)(params, *rest)

    return of_stored


def is_split(axis: str) -> bool:
    """Whether the mesh that is compiled for has this axis."""
    mesh = devices.mesh()
    return mesh is not None and mesh.shape.get(axis, 1) > 1


def mesh_of_examples(batch: int) -> Mesh | None:
    """The mesh if it has several devices and divides `batch` examples, else None."""
    mesh = devices.mesh()
    return None if mesh is None or mesh.size == 1 or batch % axes_size(mesh, BATCH_AXES) else mesh


def on_devices(
    function: Callable[..., Any],
    mesh: Mesh | None,
    in_specs: Any,
    out_specs: Any,
    axes: tuple[str, ...] = (*BATCH_AXES, "sequence"),
) -> Callable[..., Any]:
    """The function as every device runs it on its own parts, split by XLA over other axes; without a mesh, itself."""
    if mesh is None:
        return function
    return jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names=set(axes), check_vma=False
    )


def split(x: Array, *axes: Any, uneven: bool = False) -> Array:
    """Splits an activation over the mesh; without a mesh it is the identity.

    Args:
      x: the activation.
      axes: for each of its axes a mesh axis, a tuple of several, None, or PartitionSpec.UNCONSTRAINED.
      uneven: whether an axis may be split whose length no mesh axis divides; otherwise such an axis is not split.
    """
    mesh = devices.mesh()
    if mesh is None:
        return x
    spec = []
    for length, each in zip(x.shape, axes, strict=True):
        if each is PartitionSpec.UNCONSTRAINED:
            spec.append(each)
            continue
        names = tuple(a for a in ((each,) if isinstance(each, str) else each or ()) if mesh.shape.get(a, 1) > 1)
        fits = length % math.prod(mesh.shape[a] for a in names) == 0
        spec.append(names if names and (fits or uneven) else None)
    if all(each is None for each in spec):
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))


def split_tokens(x: Array, last: str | None = None) -> Array:
    """Splits an activation [B, T, ...] of tokens: examples over the batch's axes, tokens over `sequence`, and its third
    axis over `last`.
    """
    return split(x, BATCH_AXES, "sequence", last, *[None] * (x.ndim - 3))


def tokens_divide(*lengths: int) -> bool:
    """Whether the mesh has an axis `sequence`, which divides sequences of these lengths."""
    return is_split("sequence") and all(n % devices.mesh().shape["sequence"] == 0 for n in lengths)


#: Entries of a PartitionSpec, for arguments of `on_own_heads`: examples, and the heads that a device computes.
EXAMPLES, HEADS = BATCH_AXES, ("tensor", "sequence")


def heads_divide(batch: int, num_kv_heads: int) -> bool:
    """Whether the mesh divides an attention's examples, and its key-value heads by `tensor`."""
    mesh = devices.mesh()
    return batch % axes_size(mesh, EXAMPLES) == 0 and num_kv_heads % mesh.shape["tensor"] == 0


def on_own_heads(attention: Callable[..., Array], q: Array, k: Array, v: Array, others: PyTree, specs: PyTree) -> Array:
    """Runs an attention where every device has all tokens of its own examples and of its own heads.

    Devices of `sequence` exchange tokens for heads before it, and heads for tokens after it (Jacobs et al. 2023).  If
    they are more than the key-value heads, these are repeated first.

    Args:
      attention: (queries [B, T, H, D], keys and values [B, S, K, D], others) to [B, T, H, D].
      q, k, v: queries, keys and values.
      others: further arguments, a pytree, whole along tokens.
      specs: a PartitionSpec for each array of `others`, of `EXAMPLES`, `HEADS` and None.
    """
    mesh = devices.mesh()
    size = mesh.shape["sequence"]
    exchange = functools.partial(jax.lax.all_to_all, axis_name="sequence", tiled=True)

    def local(q: Array, k: Array, v: Array, others: PyTree) -> Array:
        repeats = math.lcm(k.shape[2], size) // k.shape[2]
        k, v = (jnp.repeat(a, repeats, axis=2) if repeats > 1 else a for a in (k, v))
        q, k, v = (exchange(a, split_axis=2, concat_axis=1) if size > 1 else a for a in (q, k, v))
        out = attention(q, k, v, others)
        return exchange(out, split_axis=1, concat_axis=2) if size > 1 else out

    tokens = PartitionSpec(EXAMPLES, "sequence", "tensor", None)
    return on_devices(local, mesh, (tokens, tokens, tokens, specs), tokens, MESH_AXES)(q, k, v, others)


def check_heads(num_heads: int, num_kv_heads: int) -> None:
    """Refuses a mesh that does not divide the heads of an attention.

    Raises:
      UserError: the heads are no multiple of `tensor`, or of `tensor` times `sequence`.
    """
    check_divides("tensor", num_heads=num_heads, num_kv_heads=num_kv_heads)
    mesh = devices.mesh()
    size = 1 if mesh is None else axes_size(mesh, ("tensor", "sequence"))
    if num_heads % math.lcm(num_kv_heads, size):
        raise UserError(
            f"training.mesh splits num_heads={num_heads} (num_kv_heads={num_kv_heads}) among "
            f"sequence:{mesh.shape['sequence']} and tensor:{mesh.shape['tensor']}, which do not divide it; choose a "
            f"divisor of {num_heads} for their product"
        )


def for_columns(x: Array, *widths: int) -> Array:
    """The input of maps by columns to features of these widths, each of which applies `columns_product`.

    It is x [B, T, C], or, where `tensor` splits the maps, x once for each device of the axis, [N, B, T, C].  The
    gradients of several maps are then added on each device, and summed over devices once.
    """
    mesh = devices.mesh()
    count = 1 if mesh is None else mesh.shape.get("tensor", 1)
    if count == 1 or any(width % count for width in widths):
        return x
    return split(jnp.broadcast_to(x[None], (count, *x.shape)), "tensor", BATCH_AXES, "sequence", None)


def columns_product(x: Array, kernel: Array, dimension_numbers: Any, **options: Any) -> Array:
    """The `dot_general` of a map by columns: x as `for_columns` gives it and a kernel [C, F] to [B, T, F]."""
    if x.ndim < 4:
        return dense_product(x, kernel, dimension_numbers, **options)
    count, batch, length, width = x.shape
    # The gradient takes the same constraint; `fsdp` scatters it along its first axis.
    kernel = split(kernel.reshape(width, count, -1), PartitionSpec.UNCONSTRAINED, "tensor", None)
    y = jax.lax.dot_general(x, kernel, (((3,), (0,)), ((0,), (1,))), **options)  # [N, B, T, F / N]
    y = split(jnp.moveaxis(y, 0, 2), BATCH_AXES, "sequence", "tensor", None)
    return y.reshape(batch, length, -1)


def split_logits(logits: Array) -> Array:
    """Splits logits [B, T, V] over the vocabulary."""
    length = "sequence" if tokens_divide(logits.shape[1]) else None
    return split(logits, BATCH_AXES, length, "tensor", uneven=True)


def contracted_dim(path: Path) -> int:
    """Which axis of an output map [C, V] or a table [V, C] has the features."""
    return 1 if _is_table(path) else 0


def logits_of(x: Array, matrix: Array, path: Path, dtype: Any) -> Array:
    """The logits x W of an output map W [C, V], or x W^T of a table W [V, C]: [B, T, C] -> float32 [B, T, V].

    Args:
      x: features.
      matrix: the map or the table, as it is stored.
      path: names on the way to it.
      dtype: compute type.
    """
    dim = contracted_dim(path)
    x = x.astype(dtype)
    if not parameters_are_split():
        return split_logits(_logits(x, matrix.astype(dtype), dim))
    mesh = devices.mesh()
    stored = stored_spec(path, matrix.shape, matrix.dtype, mesh)
    return _split_logits(x, matrix, dim, NamedSharding(mesh, _used_spec(stored, path)), NamedSharding(mesh, stored))


def _logits(x: Array, matrix: Array, dim: int) -> Array:
    return jax.lax.dot_general(x, matrix, (((2,), (dim,)), ((), ())), preferred_element_type=jnp.float32)


# The gradient of the matrix is scattered as the product gives it, in float32.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _split_logits(x: Array, matrix: Array, dim: int, used: NamedSharding, stored: NamedSharding) -> Array:
    whole = jax.lax.with_sharding_constraint(matrix.astype(x.dtype), used)
    return split_logits(_logits(x, whole, dim))


def _split_logits_forward(
    x: Array, matrix: Array, dim: int, used: NamedSharding, stored: NamedSharding
) -> tuple[Array, tuple[Array, Array]]:
    return _split_logits(x, matrix, dim, used, stored), (x, matrix)


def _split_logits_backward(
    dim: int, used: NamedSharding, stored: NamedSharding, saved: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, matrix = saved
    gradient = split_logits(gradient)
    whole = jax.lax.with_sharding_constraint(matrix.astype(x.dtype), used)
    by_x = _contract(gradient, whole, (2,), (1 - dim,))
    # Of x and of the gradient by logits, it is the latter whose last axis is the vocabulary.
    product = lambda a, b: _contract(a, b, (0, 1), (0, 1))
    arrays, places = ((x, gradient), (None, 2)) if dim == 0 else ((gradient, x), (2, None))
    by_matrix = scattered_sum(product, arrays, places, stored, 1 - dim)
    return split_tokens(by_x).astype(x.dtype), by_matrix.astype(matrix.dtype)


def _contract(a: Array, b: Array, of_a: tuple[int, ...], of_b: tuple[int, ...]) -> Array:
    return jax.lax.dot_general(a, b, ((of_a, of_b), ((), ())), preferred_element_type=jnp.float32)


def scattered_sum(
    part: Callable[..., Array],
    arrays: tuple[Array, ...],
    places: tuple[int | None, ...],
    stored: NamedSharding,
    vocabulary: int,
) -> Array:
    """Sums a matrix over devices, each of which has a part of its terms.

    Args:
      part: arrays [B, T, ...] to the sum over all B and T, [M, N].
      arrays: the arrays, whose first axes are split over `BATCH_AXES` and `sequence`.
      places: for each array which of its axes is the vocabulary, or None.
      stored: how the sum is stored.
      vocabulary: which axis of the sum is the vocabulary; `tensor` splits it, also where it does not divide it.
    """
    mesh, (dim, scattered) = stored.mesh, _store_dim(stored, PartitionSpec())
    tokens = (BATCH_AXES, "sequence")
    if dim is None or any(n % axes_size(mesh, axes) for a in arrays for n, axes in zip(a.shape, tokens)):
        return jax.lax.with_sharding_constraint(part(*arrays), stored)
    summed = tuple(axis for axis in (*BATCH_AXES, "sequence") if axis not in scattered)

    # XLA for TPUs sums the whole matrix on every device where the scattered axis is the one that its layout puts last,
    # and gathers a gradient of logits that `tensor` splits.
    def local(*arrays: Array) -> Array:
        own = jax.lax.psum_scatter(part(*arrays), scattered, scatter_dimension=dim, tiled=True)
        return jax.lax.psum(own, summed)

    rows = [("tensor",), ()] if vocabulary == 0 else [(), ("tensor",)]
    rows[dim] = (*rows[dim], *scattered)
    length = next(a.shape[place] for a, place in zip(arrays, places) if place is not None)
    missing = -length % axes_size(mesh, rows[vocabulary])
    padded, specs = [], []
    for a, place in zip(arrays, places):
        padded.append(jnp.pad(a, [(0, missing if i == place else 0) for i in range(a.ndim)]))
        specs.append(PartitionSpec(*tokens, *("tensor" if i == place else None for i in range(2, a.ndim))))
    whole = on_devices(local, mesh, tuple(specs), PartitionSpec(*rows), MESH_AXES)(*padded)
    return jax.lax.with_sharding_constraint(jax.lax.slice_in_dim(whole, 0, length, axis=vocabulary), stored)


_split_logits.defvjp(_split_logits_forward, _split_logits_backward)


def rows_of(table: Array, tokens: Array) -> Array:
    """Looks up tokens [B, T] in a table [V, C] that is stored as `stored_spec` says: [B, T, C].

    Every device looks up its features of all examples of its group, and features are exchanged for examples.  Neither
    the table nor its gradient is ever whole on a device.
    """
    if not parameters_are_split() and not is_split("tensor"):
        return jnp.take(table, tokens, axis=0)
    mesh = devices.mesh()
    outer = _fitting(mesh, [axis for axis in BATCH_AXES if axis not in STORE_AXES], tokens.shape[0])
    # Also where nothing is split, which XLA would decide otherwise.
    whole = NamedSharding(mesh, PartitionSpec(outer, None))
    rows = jnp.take(table, jax.lax.with_sharding_constraint(tokens, whole), axis=0)
    features = stored_spec(("token", "embedding"), table.shape, table.dtype, mesh)
    names = features[1] if len(features) else None
    rows = split(rows, outer, None, names)
    # One axis after the other: XLA exchanges features for tokens, then for examples, and would gather them for both.
    names = tuple(axis for axis in ((names,) if isinstance(names, str) else names or ()) if axis != "sequence")
    return split_tokens(split(rows, outer, "sequence", names))


def num_parts(axis: str) -> int:
    """Size of an axis of the mesh, 1 without a mesh."""
    mesh = devices.mesh()
    return 1 if mesh is None else mesh.shape.get(axis, 1)


def examples_for_experts(x: Array) -> Array:
    """Splits [E, B, T, ...] by experts over `expert`, which examples are split over elsewhere."""
    return split(x, "expert", GROUP_AXES, "sequence", *[None] * (x.ndim - 3))


def check_divides(axis: str, **counts: int) -> None:
    """Refuses a mesh whose axis does not divide what is split over it.

    Raises:
      UserError: a count is no multiple of the axis.
    """
    mesh = devices.mesh()
    size = 1 if mesh is None else mesh.shape.get(axis, 1)
    for name, count in counts.items():
        if count % size:
            raise UserError(
                f"training.mesh splits {name}={count} among {axis}:{size}, which does not divide it; "
                f"choose a divisor of {math.gcd(*counts.values())} for {axis}"
            )
