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
#: Types that a network can compute in; parameters, losses and likelihoods are float32 whatever it is.
ComputeDtype = Literal["float32", "bfloat16", "float16"]

#: Name of the device axis in the `pmap` mode of the engine.
DEVICE_AXIS = "device"


def batch_size(batch: Batch) -> int:
    """Number of examples in a batch."""
    return jax.tree.leaves(dict(batch))[0].shape[0]


def example_places(batch: Batch) -> Array:
    """The place of each example in the whole batch, of which this may be a part, [B].

    Without `example_index` the devices of the `pmap` mode hold equal parts, one after the other.
    """
    if "example_index" in batch:
        return batch["example_index"]
    places = jnp.arange(batch_size(batch))
    try:
        return places + jax.lax.axis_index(DEVICE_AXIS) * len(places)
    except NameError:
        return places


def example_keys(key: Array, batch: Batch) -> Array:
    """One random key per example, shape [B].

    Noise that is drawn from these belongs to the example and not to its place in memory, so that
    accumulation, `pmap` and evaluation in batches of another size all give the same numbers:

        epsilon = jax.vmap(lambda k: jax.random.normal(k, (latent_dim,)))(example_keys(key, batch))

    The engine puts `example_index` into the batch wherever the batch at hand is a part of a larger one.
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, example_places(batch))


def check_label_range(label: Array, num_classes: int | None) -> None:
    """Refuses labels [B] outside of 0 .. num_classes - 1; inside of compiled functions their values are not known.

    Raises:
      UserError: one is none of the classes, or nobody has said how many there are.
    """
    if num_classes is None:
        raise UserError("model.num_classes is None; give it, or choose a data set with classes")
    if isinstance(label, jax.core.Tracer):
        return
    # In numpy, as jnp's answer would be traced where the caller is compiled.
    label = np.asarray(label)
    if label.size and (label.min() < 0 or label.max() >= num_classes):
        raise UserError(f"labels must lie between 0 and {num_classes - 1}, not {label.min()} and {label.max()}")


def one_hot_classes(label: Array, num_classes: int | None) -> Array:
    """Classes [B] as float32 [B, num_classes].

    Inside of compiled functions, where values are not known, a label outside of the classes gives NaN and stops the run.

    Raises:
      UserError: as `check_label_range`.
    """
    check_label_range(label, num_classes)
    known = (label >= 0) & (label < num_classes)
    return jnp.where(known[:, None], jax.nn.one_hot(label, num_classes), jnp.nan)


def cross_device_mean(tree: PyTree) -> PyTree:
    """Mean over the devices of the `pmap` mode; elsewhere the identity (under `jit` means are global already)."""
    try:
        jax.lax.axis_index(DEVICE_AXIS)
    except NameError:
        return tree
    return jax.lax.pmean(tree, DEVICE_AXIS)


def cross_device_sum(tree: PyTree) -> PyTree:
    """Sum over the devices of the `pmap` mode; elsewhere the identity.  For sufficient statistics."""
    try:
        jax.lax.axis_index(DEVICE_AXIS)
    except NameError:
        return tree
    return jax.lax.psum(tree, DEVICE_AXIS)


def cross_device_gather(tree: PyTree) -> PyTree:
    """The global batch from its parts on the devices of the `pmap` mode; elsewhere the identity."""
    try:
        jax.lax.axis_index(DEVICE_AXIS)
    except NameError:
        return tree
    return jax.tree.map(lambda a: jax.lax.all_gather(a, DEVICE_AXIS, tiled=True), tree)


def own_part(tree: PyTree, count: int) -> PyTree:
    """Of arrays over the global batch the rows of this device's `count` examples in the `pmap` mode; elsewhere the identity.

    What a device draws in the shape of the global batch, and takes its part of, is what one device would draw.
    """
    try:
        device = jax.lax.axis_index(DEVICE_AXIS)
    except NameError:
        return tree
    return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, device * count, count), tree)
