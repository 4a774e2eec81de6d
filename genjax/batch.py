"""Types of batches and metrics, keys of examples, and sums over devices: what every room may use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from genjax.errors import UserError
from genjax.metrics import Ratio

Array = jax.Array
PyTree = Any
Batch = Mapping[str, Array]
Metrics = dict[str, Array | Ratio]
#: Types that a network can compute in.  Parameters, losses and likelihoods are always float32.
ComputeDtype = Literal["float32", "bfloat16", "float16"]

#: Name of the device axis in the `pmap` mode of the engine.
DEVICE_AXIS = "device"


def batch_size(batch: Batch) -> int:
    """Number of examples in a batch."""
    return jax.tree.leaves(dict(batch))[0].shape[0]


def counted_examples(batch: Batch) -> Array | None:
    """True at examples, False at what only fills up the last batch of an evaluation, bool [B];
    None where all are examples.

    What compares the examples of a batch, or takes means over them, looks at no others; see `GenerativeModel.evaluate`.
    """
    return ~batch["padding"] if "padding" in batch else None


def _device() -> Array | None:
    """Number of this device in the `pmap` mode, None elsewhere."""
    try:
        return jax.lax.axis_index(DEVICE_AXIS)
    except NameError:
        return None


def example_places(batch: Batch) -> Array:
    """The place of each example in the whole batch, [B]; `batch` may be a part of the whole batch.

    If the batch has no `example_index`, the devices of the `pmap` mode hold equal parts, in their order.
    """
    if "example_index" in batch:
        return batch["example_index"]
    places, device = jnp.arange(batch_size(batch)), _device()
    return places if device is None else places + device * len(places)


def example_keys(key: Array, batch: Batch) -> Array:
    """One random key per example, shape [B].

    Noise drawn from these keys belongs to the example and not to its place in memory, so that accumulation, `pmap` and
    evaluation in batches of another size all give the same numbers:

        epsilon = jax.vmap(lambda k: jax.random.normal(k, (latent_dim,)))(example_keys(key, batch))

    The engine adds `example_index` to every batch that is a part of a larger batch.
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, example_places(batch))


def check_label_range(label: Array, num_classes: int | None) -> None:
    """Refuses labels [B] outside of 0 .. num_classes - 1.

    Inside compiled functions, where the values of labels are not known, only `num_classes` is checked.

    Raises:
      UserError: a label is out of range, or `num_classes` is None.
    """
    if num_classes is None:
        raise UserError("model.num_classes is None; give it, or choose a data set with classes")
    if isinstance(label, jax.core.Tracer):
        return
    # In numpy: jnp would return a traced value if the caller is compiled.
    known = np.asarray(label)
    if known.size and (known.min() < 0 or known.max() >= num_classes):
        raise UserError(f"labels must lie between 0 and {num_classes - 1}, not {known.min()} and {known.max()}")


def one_hot_classes(label: Array, num_classes: int | None) -> Array:
    """Classes [B] as float32 [B, num_classes].

    Inside compiled functions, where values are not known, a label out of range gives NaN, which stops the run.

    Raises:
      UserError: as `check_label_range`.
    """
    check_label_range(label, num_classes)
    assert num_classes is not None
    known = (label >= 0) & (label < num_classes)
    return jnp.where(known[:, None], jax.nn.one_hot(label, num_classes), jnp.nan)


def check_data_shape(x: Array, data_shape: tuple[int, ...] | None) -> None:
    """Refuses examples x [B, *data_shape] of another shape; without a `data_shape` all shapes are right.

    Raises:
      UserError: the shape is another.
    """
    if data_shape is not None and x.shape[1:] != tuple(data_shape):
        raise UserError(f"examples have the shape {x.shape[1:]}, but model.data_shape is {tuple(data_shape)}")


def cross_device_mean(tree: PyTree) -> PyTree:
    """Mean over the devices in the `pmap` mode; otherwise the input itself (under `jit` means are global already)."""
    return tree if _device() is None else jax.lax.pmean(tree, DEVICE_AXIS)


def cross_device_sum(tree: PyTree) -> PyTree:
    """Sum over the devices in the `pmap` mode; otherwise the input unchanged.  For sufficient statistics."""
    return tree if _device() is None else jax.lax.psum(tree, DEVICE_AXIS)


def cross_device_gather(tree: PyTree) -> PyTree:
    """Joins the parts of the batch on all devices in the `pmap` mode; otherwise returns the input unchanged."""
    return tree if _device() is None else jax.tree.map(lambda a: jax.lax.all_gather(a, DEVICE_AXIS, tiled=True), tree)


def own_part(tree: PyTree, count: int) -> PyTree:
    """Selects this device's `count` rows of arrays over the global batch under `pmap`; otherwise returns all rows.

    A device that draws noise for the global batch and keeps its own part draws the same noise as a single device would.
    """
    device = _device()
    if device is None:
        return tree
    return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, device * count, count), tree)
