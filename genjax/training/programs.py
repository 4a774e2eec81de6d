"""Compiled functions of an experiment: pure functions of a model and its data, on a mesh by
`jit` or on devices by `pmap`.

Engines of equal experiments in one process share these programs, so that a resumed, evaluated or sampled run is neither
traced nor compiled again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from genjax import devices
from genjax.batch import DEVICE_AXIS, Batch, Metrics
from genjax.data import Data
from genjax.errors import UserError
from genjax.model import GenerativeModel, TrainState, UsesMeshAxes
from genjax.nn import sharding
from genjax.nn.sharding import BATCH_AXES


class Programs:
    """The compiled functions of one model, data set and mesh.

    Attributes:
      abstract_state: shapes, types and shardings of the state.
    """

    def __init__(
        self,
        model: GenerativeModel,
        data: Data,
        mesh: Mesh,
        pmap: bool,
        batch: tuple[tuple[str, tuple[int, ...], str], ...],
    ) -> None:
        """`batch` has name, shape and type of each array of a raw batch."""
        self.model, self.data, self.mesh, self.pmap = model, data, mesh, pmap
        for axis in sharding.OPTIONAL_AXES:
            if mesh.shape[axis] > 1 and axis not in (model.mesh_axes if isinstance(model, UsesMeshAxes) else ()):
                raise UserError(
                    f"training.mesh has {axis}:{mesh.shape[axis]}, and {type(model).__name__} as it is configured has "
                    f"nothing to split over it; put these devices on another axis"
                )
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._initialize = jax.jit(self.placed(self._first_state))
        # Placed as `init` is given them, so that it is not traced again.
        batched = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
        shapes = {name: jax.ShapeDtypeStruct(shape, np.dtype(dtype), sharding=batched) for name, shape, dtype in batch}
        state = jax.eval_shape(self._initialize, jax.eval_shape(lambda: jax.random.key(0)), shapes)
        self.abstract_state = jax.tree_util.tree_map_with_path(self._stored, state)
        self._shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)

    def _stored(self, keys: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        """An array of the state, with its sharding."""
        spec = sharding.stored_spec(sharding.path_of(keys), leaf.shape, leaf.dtype, self.mesh)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(self.mesh, spec))

    def placed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, which knows when it is traced that it is compiled for this mesh."""

        @functools.wraps(function)
        def placed(*arguments: Any) -> Any:
            with devices.compiled_for(self.mesh):
                return function(*arguments)

        return placed

    def placed_on_one(self, function: Callable) -> Callable:
        """The function as one device of pmap runs it: it knows its platform, and no mesh to split activations over."""

        @functools.wraps(function)
        def placed(*arguments: Any) -> Any:
            with devices.compiled_for(self.mesh.devices.flat[0].platform):
                return function(*arguments)

        return placed

    def _first_state(self, key: jax.Array, batch: Batch) -> TrainState:
        data_key, model_key = jax.random.split(key)
        return self.model.init(model_key, self.data.transform(batch, data_key))

    @functools.cached_property
    def init(self) -> Any:
        """Maps (key, raw batch) to the state before the first step."""
        # The inner compiled function is not traced again.
        return jax.jit(lambda key, batch: self._initialize(key, batch), out_shardings=self._shardings)

    def gathered(self, state: TrainState) -> TrainState:
        """The state with networks as evaluations and samplers compute with them (see `sharding.gathered`)."""
        state = state.replace(params=sharding.gathered(state.params), ema_params=sharding.gathered(state.ema_params))
        return self._with_whole_networks(state)

    def _with_whole_networks(self, state: TrainState) -> TrainState:
        """The state as a step computes with it.

        A step gathers what it learns where it is used, and closes over the networks beside it, such as a teacher or a
        reference: the nested dicts in `extra`.
        """
        networks = {name: value for name, value in state.extra.items() if isinstance(value, Mapping)}
        return state.replace(extra={**state.extra, **sharding.gathered(networks)})

    def prepared(self, batch: Batch, key: jax.Array) -> tuple[Batch, jax.Array]:
        """A raw batch as the model's training step gets it, and the step's key for the model."""
        augment_key, data_key, model_key = jax.random.split(key, 3)
        return self.data.transform(self.data.augment(batch, augment_key), data_key), model_key

    @functools.cached_property
    def advance(self) -> Any:
        """Maps (state, resident arrays or None, inputs, key) to the state and the metrics
        of K steps; donates the state.

        Inputs are indices [K, B] of the resident arrays, or batches [K, B, ...].
        """
        if self.pmap:
            return jax.pmap(
                self.placed_on_one(self._chunk),
                axis_name=DEVICE_AXIS,
                in_axes=(0, None, 1, None),
                donate_argnums=0,
                devices=self.mesh.devices.flatten().tolist(),
            )
        return jax.jit(self.placed(self._chunk), donate_argnums=0, out_shardings=(self._shardings, self._replicated))

    def _chunk(
        self, state: TrainState, resident: dict[str, jax.Array] | None, inputs: Any, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        def step(state: TrainState, row: Any) -> tuple[TrainState, Metrics]:
            batch = row if resident is None else {name: array[row["indices"]] for name, array in resident.items()}
            if "example_index" in row:
                batch = {**batch, "example_index": row["example_index"]}
            batch, model_key = self.prepared(batch, jax.random.fold_in(key, state.step))
            return self.model.train_step(self._with_whole_networks(state), batch, model_key)

        if jax.tree.leaves(inputs)[0].shape[0] > 1:
            return jax.lax.scan(step, state, inputs)
        state, metrics = step(state, jax.tree.map(lambda a: a[0], inputs))
        return state, jax.tree.map(lambda m: m[None], metrics)

    @functools.cached_property
    def evaluate(self) -> Any:
        """Maps (state, raw batch, mask [B], key) to sums of every metric over the examples that the mask keeps."""

        def evaluate(state: TrainState, batch: Batch, mask: jax.Array, key: jax.Array) -> Metrics:
            data_key, model_key = jax.random.split(key)
            # Metrics that compare the examples of a batch must know which examples are padding.
            batch = {**self.data.transform(batch, data_key), "padding": mask == 0}
            values = self.model.evaluate(self.gathered(state), batch, model_key)
            for name, value in values.items():
                shapes = {leaf.shape for leaf in jax.tree.leaves(value)}
                if shapes != {mask.shape}:
                    raise UserError(
                        f"{type(self.model).__name__}.evaluate returned {name} of shape {shapes.pop()}; it must give "
                        f"one value per example, {mask.shape}"
                    )
            # Padding may hold any value, so it is cut out and not multiplied by 0.
            return jax.tree.map(lambda value: jnp.sum(jnp.where(mask > 0, value, 0.0)), values)

        return jax.jit(self.placed(evaluate), out_shardings=self._replicated)

    @functools.cached_property
    def sample(self) -> Any:
        """Maps (state, key, number of samples, conditions) to samples."""

        def sample(state: TrainState, key: jax.Array, num_samples: int, condition: dict[str, Any]) -> jax.Array:
            return self.model.sample(self.gathered(state), key, num_samples, **condition)

        return jax.jit(self.placed(sample), static_argnums=2, out_shardings=self._replicated)

    @functools.cached_property
    def reconstruct(self) -> Any:
        """Maps (state, raw batch, key) to examples, each followed by its reconstruction."""

        def pairs(state: TrainState, batch: Batch, key: jax.Array) -> jax.Array:
            data_key, model_key = jax.random.split(key)
            batch = self.data.transform(batch, data_key)
            again = self.model.reconstruct(self.gathered(state), batch, model_key)
            return jnp.stack([batch["x"].astype(again.dtype), again], axis=1).reshape(-1, *again.shape[1:])

        return jax.jit(self.placed(pairs), out_shardings=self._replicated)


#: Returns the programs of an experiment; the last few are kept.
shared_programs = functools.lru_cache(maxsize=4)(Programs)
