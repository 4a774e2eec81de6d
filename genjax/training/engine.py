"""Compiles and shards a training step: one function of (state, batch), on a mesh by `jit` or on devices by `pmap`.

The step t draws its randomness from fold_in(key(seed), t) and reads batch(seed, t); both are functions of the step
alone.  If the data set lies on the device, a step gets indices and
gathers its batch there.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from genjax.batch import DEVICE_AXIS, Batch, Metrics
from genjax.config import ConfigError
from genjax.data import Data, Pipeline, evaluation_batches
from genjax.metrics import Ratio, divided
from genjax.model import Summarizes, TrainState
from genjax.nn.sharding import BATCH_AXES, MESH_AXES
from genjax.training.experiment import Evaluation, Experiment, check_tokens_known
from genjax.training.programs import Programs, shared_programs


def parse_mesh(text: str | None, num_devices: int) -> dict[str, int]:
    """Reads `data:4,fsdp:2` into the sizes of all mesh axes; None puts every device on data.

    Raises:
      ConfigError: the text is not of that form or needs more devices than there are.
    """
    sizes = dict.fromkeys(MESH_AXES, 1)
    if text is None:
        sizes["data"] = num_devices
        return sizes
    for part in text.split(","):
        axis, _, size = part.strip().partition(":")
        if axis not in sizes or not size.isdigit() or int(size) < 1:
            raise ConfigError(
                f"training.mesh={text!r} is not of the form data:4,fsdp:2 with axes {', '.join(MESH_AXES)}"
            )
        sizes[axis] = int(size)
    if math.prod(sizes.values()) > num_devices:
        raise ConfigError(
            f"training.mesh={text!r} needs {math.prod(sizes.values())} devices, but there are {num_devices}"
        )
    return sizes


def build_mesh(text: str | None, devices: Sequence[Any] | None = None) -> Mesh:
    """The device mesh of a run, over the first devices that it needs; by default of JAX's devices."""
    devices = jax.devices() if devices is None else devices
    sizes = parse_mesh(text, len(devices))
    devices = devices[: math.prod(sizes.values())]
    axis_types = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(tuple(sizes.values()), MESH_AXES, axis_types=axis_types, devices=devices)


def num_batch_parts(mesh: Mesh) -> int:
    """Number of parts that a batch is divided into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch_size(size: int, mesh: Mesh, name: str) -> None:
    """Raises ConfigError if a batch cannot be divided among the devices of a mesh; `name` is the field with its
    size.
    """
    count = num_batch_parts(mesh)
    if size % count:
        raise ConfigError(
            f"{name}={size} cannot be divided among {count} devices; give a multiple of {count}, or fewer devices with "
            "--training.mesh=data:N"
        )


def evaluation_size(settings: Evaluation, data: Data, mesh: Mesh) -> int:
    """Examples of a call of the evaluation, a multiple of the devices; padding is masked, so no result depends on
    it.
    """
    limit, count = settings.num_examples, num_batch_parts(mesh)
    size = data.eval_batch_size if limit is None else min(data.eval_batch_size, limit)
    return math.ceil(size / count) * count


class Engine:
    """A compiled experiment: makes the first state, advances it, evaluates it and draws samples from it.

    Attributes:
      experiment: the resolved experiment.
      mesh: device mesh of `jit`, also used for evaluation and sampling.
      pipeline: training batches by step, or None if training data are not needed.
    """

    def __init__(self, experiment: Experiment, batch_spec: dict[str, Any] | None = None) -> None:
        """Opens the training data, unless `batch_spec` tells shapes and types of a batch."""
        training = experiment.training
        self.experiment = experiment
        self.mesh = build_mesh(training.mesh)
        self.pmap = training.parallelism == "pmap"
        if (
            self.pmap
            and training.mesh is not None
            and parse_mesh(training.mesh, jax.device_count())["data"] != (self.mesh.size)
        ):
            raise ConfigError(
                "training.parallelism=pmap copies the state to every device; its mesh has the axis data only"
            )
        self.num_batch_devices = num_batch_parts(self.mesh)
        check_batch_size(experiment.data.batch_size, self.mesh, "data.batch_size")
        self._init_key, self._step_key = jax.random.split(jax.random.key(training.seed))
        self._replicated = NamedSharding(self.mesh, PartitionSpec())
        self._batched = NamedSharding(self.mesh, PartitionSpec(BATCH_AXES))
        self._stacked = NamedSharding(self.mesh, PartitionSpec(None, BATCH_AXES))
        self._part, self._num_parts = self._own_part()
        self.pipeline = None
        if batch_spec is None:
            self.pipeline = Pipeline(
                experiment.data,
                "train",
                training.seed,
                process_index=self._part,
                process_count=self._num_parts,
            )
            batch_spec = self._raw_batch_spec()
        self.batch_spec = batch_spec
        self._programs = self._shared_programs()
        self.abstract_state = self._programs.abstract_state

    # ------------------------------------------------------------------------------------------------------------------
    # Shapes and places

    def _own_part(self) -> tuple[int, int]:
        """Number of the part of every batch that this process's devices hold, and number of parts.

        Processes that share an axis tensor hold the same part.
        """
        if len({device.process_index for device in self.mesh.devices.flat}) < jax.process_count():
            raise ConfigError(f"training.mesh={self.experiment.training.mesh} leaves a process without a device")
        size = self.num_batch_devices
        rows = self._batched.addressable_devices_indices_map((size,)).values()
        held = sorted({row.start or 0 for (row,) in rows})
        if held != list(range(held[0], held[0] + len(held))) or held[0] % len(held) or size % len(held):
            raise ConfigError(
                f"training.mesh={self.experiment.training.mesh} leaves process {jax.process_index()} without an equal "
                "part of the batch in one piece"
            )
        return held[0] // len(held), size // len(held)

    def _raw_batch_spec(self) -> dict[str, Any]:
        example = self.pipeline.batch(0)
        size = self.experiment.data.batch_size
        return {name: [[size, *a.shape[1:]], str(a.dtype)] for name, a in example.items()}

    def _abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: jax.ShapeDtypeStruct(tuple(s), np.dtype(d)) for name, (s, d) in self.batch_spec.items()}

    @contextlib.contextmanager
    def _named(self, data: Data, batch: Batch) -> Iterator[None]:
        """Raises a sentence that names the missing array if a traced model asks a batch for
        one that the data do not give.
        """
        try:
            yield
        except KeyError as error:
            given = jax.eval_shape(data.transform, batch, jax.random.key(0))
            (name,) = error.args
            if not isinstance(name, str) or name in given:
                raise
            raise ConfigError(
                f"{type(self.experiment.model).__name__} reads {name}, and {type(data).__name__} ({data.name}) gives "
                f"{', '.join(given)}; choose other data, or a model for these"
            ) from None

    def _shared_programs(self) -> Programs:
        spec = tuple((name, tuple(shape), dtype) for name, (shape, dtype) in sorted(self.batch_spec.items()))
        with self._named(self.experiment.data, self._abstract_batch()):
            return shared_programs(self.experiment.model, self.experiment.data, self.mesh, self.pmap, spec)

    def _place(self, array: np.ndarray, sharding: NamedSharding) -> jax.Array:
        """Puts an array on the devices, of which every process holds a part (or a copy)."""
        if jax.process_count() == 1:
            return jax.device_put(array, sharding)
        return jax.make_array_from_process_local_data(sharding, array)

    @functools.cached_property
    def _resident(self) -> dict[str, jax.Array] | None:
        """The whole training set on every device, where it is small."""
        if not self.pipeline.resident:
            return None
        arrays = self.pipeline.arrays()
        if self.pmap:
            devices = self.mesh.devices.flatten().tolist()
            local = [d for d in devices if d.process_index == jax.process_index()]
            return {name: jax.device_put(a, local[0]) for name, a in arrays.items()}
        return {name: self._place(a, self._replicated) for name, a in arrays.items()}

    # ------------------------------------------------------------------------------------------------------------------
    # Training

    def init(self) -> TrainState:
        """The state before the first step, on its devices."""
        batch = self.pipeline.batch(0)
        batch = {name: self._place(a, self._batched) for name, a in batch.items()}
        return self.distribute(self._programs.init(self._init_key, batch))

    def distribute(self, state: TrainState) -> TrainState:
        """A state on the mesh, in the form that `advance` takes: one copy a device under `pmap`."""
        if not self.pmap:
            return state
        count, devices = self.mesh.local_mesh.size, self.mesh.devices.flatten().tolist()
        # Sharded along the axis that the step uses: for a state on another axis its program would be compiled again.
        copy = jax.pmap(lambda state, _: state, DEVICE_AXIS, in_axes=(None, 0), devices=devices)
        return copy(jax.device_get(state), np.arange(count))

    def collect(self, state: TrainState) -> TrainState:
        """The inverse of `distribute`."""
        if not self.pmap:
            return state
        local = jax.tree.map(lambda leaf: leaf.addressable_shards[0].data[0], state)
        return jax.tree.map(lambda leaf: jax.device_put(leaf, self._replicated), local)

    def diagnose(self, state: TrainState, step: int) -> None:
        """Lets the model look for the cause of a non-finite loss at a step, outside of
        `jit`, from a sound earlier state.

        Raises:
          UserError: the model has found the cause.
        """
        batch, key = self._programs.prepared(self.pipeline.batch(step), jax.random.fold_in(self._step_key, step))
        self.experiment.model.diagnose(self.collect(state), batch, key)

    def _device_rows(self, rows: dict[str, np.ndarray]) -> dict[str, Any]:
        """Puts rows [K, local B, ...] on the devices in the form that the compiled chunk takes."""
        if not self.pmap:
            return {name: self._place(a, self._stacked) for name, a in rows.items()}
        count = self.mesh.local_mesh.size
        steps, size = next(iter(rows.values())).shape[:2]
        start = self._part * size
        rows = {**rows, "example_index": np.tile(np.arange(start, start + size, dtype=np.int32), (steps, 1))}
        return {name: a.reshape(steps, count, size // count, *a.shape[2:]) for name, a in rows.items()}

    def inputs(self, boundaries: Iterator[tuple[int, int]]) -> Iterator[dict[str, Any]]:
        """Yields the device inputs of one dispatch after the other, for (start, stop) steps."""
        boundaries = list(boundaries)
        if not boundaries:
            return
        if self._resident is not None:
            for start, stop in boundaries:
                rows = np.stack([self._local_indices(step) for step in range(start, stop)])
                yield self._device_rows({"indices": rows})
            return
        with contextlib.closing(self.pipeline.iterate(boundaries[0][0], boundaries[-1][1])) as batches:
            for start, stop in boundaries:
                chunk = [next(batches) for _ in range(start, stop)]
                yield self._device_rows({name: np.stack([b[name] for b in chunk]) for name in chunk[0]})

    def _local_indices(self, step: int) -> np.ndarray:
        indices = self.pipeline.indices(step).astype(np.int32)
        size = len(indices) // self._num_parts
        return indices[self._part * size :][:size]

    def advance(self, state: TrainState, inputs: dict[str, Any]) -> tuple[TrainState, Metrics]:
        """Runs one dispatch; the old state is donated.

        Metrics have one row per step (per device first, under pmap).
        """
        with self._named(self.experiment.data, self._abstract_batch()):
            return self._programs.advance(state, self._resident, inputs, self._step_key)

    def fetch(self, metrics: Metrics) -> dict[str, np.ndarray | Ratio]:
        """Metrics of a dispatch on the host, one row per step."""
        metrics = jax.device_get(jax.tree.map(lambda m: m.addressable_shards[0].data, metrics))
        return jax.tree.map(lambda m: np.asarray(m[0] if self.pmap else m), metrics)

    # ------------------------------------------------------------------------------------------------------------------
    # Evaluation and samples

    def evaluate(self, state: TrainState, split: str) -> dict[str, float]:
        """Mean of every metric over the examples of a split (of both parts of a `Ratio`), and `num_examples`.

        Args:
          state: a state on the mesh (as `collect` returns).
          split: name of a split.

        Raises:
          ConfigError: the data have tokens that the model does not know.
        """
        settings, data = self.experiment.evaluation, self.experiment.data
        check_tokens_known(self.experiment.model, data)
        key = jax.random.key(settings.seed)
        size = evaluation_size(settings, data, self.mesh)
        available, limit = len(data.load(split)), settings.num_examples
        count = available if limit is None else min(available, limit)
        pending: list[Metrics] = []
        own = {"part": self._part, "num_parts": self._num_parts}
        for batch, mask in evaluation_batches(data, split, size, settings.num_examples, **own):
            batch = {name: self._place(a, self._batched) for name, a in batch.items()}
            with self._named(data, batch):
                pending.append(self._programs.evaluate(state, batch, self._place(mask, self._batched), key))
        mean = lambda *sums: np.sum(sums, dtype=np.float64) / count
        means = jax.tree.map(mean, *jax.device_get(pending)) if pending else {}
        means = {name: float(value) for name, value in divided(means).items()}
        # Metrics that follow from means, such as the perplexity from nats a token.
        if isinstance(self.experiment.model, Summarizes):
            means = self.experiment.model.summarize(means)
        return {**means, "num_examples": count}

    def _place_global(self, array: np.ndarray) -> jax.Array:
        """Shards an array that every process holds whole."""
        if jax.process_count() == 1:
            return jax.device_put(array, self._batched)
        return multihost_utils.host_local_array_to_global_array(
            np.split(array, self._num_parts)[self._part], self.mesh, self._batched.spec
        )

    def map(
        self,
        function: Callable[[TrainState, Batch, jax.Array], Any],
        state: TrainState,
        split: str,
        data: Data | None = None,
        indices: np.ndarray | None = None,
    ) -> tuple[Any, dict[str, np.ndarray]]:
        """Applies a function of the model to every example of a split.

        Args:
          function: maps (state, transformed batch with `padding`, key) to a pytree of arrays with leading axis B.
          state: a state on the mesh.
          split: name of a split; at most `evaluation.num_examples` examples are read.
          data: another data set than the experiment's.
          indices: the examples to read, in place of the first `evaluation.num_examples`.

        Returns:
          The results and the raw examples, both on the host with the examples as leading axis.
        """
        data = data or self.experiment.data
        settings = self.experiment.evaluation
        size = evaluation_size(settings, data, self.mesh)
        key = jax.random.key(settings.seed)

        def compute(state: TrainState, batch: Batch, mask: jax.Array, key: jax.Array) -> Any:
            data_key, model_key = jax.random.split(key)
            batch = {**data.transform(batch, data_key), "padding": mask == 0}
            return function(self._programs.gathered(state), batch, model_key)

        compiled = jax.jit(self._programs.placed(compute), out_shardings=self._replicated)
        results, examples = [], []
        for batch, mask in evaluation_batches(data, split, size, settings.num_examples, indices):
            count = int(mask.sum())
            placed = {name: self._place_global(a) for name, a in batch.items()}
            with self._named(data, batch):
                values = compiled(state, placed, self._place_global(mask), key)
            values = jax.tree.map(lambda v: np.asarray(v.addressable_data(0)), values)
            results.append(jax.tree.map(lambda v, n=count: v[:n], values))
            examples.append({name: a[:count] for name, a in batch.items()})
        together = lambda *parts: np.concatenate(parts)
        return jax.tree.map(together, *results), jax.tree.map(together, *examples)

    def sample(self, state: TrainState, key: jax.Array, num_samples: int, **condition: Any) -> np.ndarray:
        """Draws samples on the mesh and brings them to the host; conditions are arrays."""
        if jax.process_count() > 1:
            condition = {name: self._place(np.asarray(c), self._replicated) for name, c in condition.items()}
        return np.asarray(self._programs.sample(state, key, num_samples, condition).addressable_data(0))

    def reconstruct(self, state: TrainState, num_examples: int, split: str | None = None) -> np.ndarray:
        """First examples of a split, in `random_order`, and their reconstructions in turn,
        [2 * num_examples // 2, ...].

        For models that `Reconstructs` describes.
        """
        split = split or self.experiment.evaluation.validation_split
        count = max(num_examples // 2, 1)
        batch, mask = next(iter(evaluation_batches(self.experiment.data, split, count, count)))
        count = int(np.asarray(mask).sum())

        key = jax.random.key(self.experiment.evaluation.seed)
        batch = {name: self._place_copy(a) for name, a in batch.items()}
        return np.asarray(self._programs.reconstruct(state, batch, key).addressable_data(0))[: 2 * count]

    def _place_copy(self, array: np.ndarray) -> jax.Array:
        """Copies an array that every process holds whole to every device."""
        return self._place(np.asarray(array), self._replicated)
