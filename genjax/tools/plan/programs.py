"""Plans a run on devices that are not there: compiles its programs ahead of time, and reads what they will cost.

Neither data nor weights are needed.  Of the training step, the evaluation and the sampler a plan tells the memory of a
device, the operations, the collectives, and the times that these take at the chip's published rates.  The largest of
the times bounds a step from below, as if all else were hidden behind it:

    seconds = max(products / peak, traffic / bandwidth, received / link)
    MFU    <= FLOPs of the model / (seconds x devices x peak)

FLOPs of the model are (6 N + 12 L H Q T) a token of a transformer with N parameters, L layers, H heads of Q features
and T tokens in context (Chowdhery et al. 2022, appendix B); of another model, the products of its step without
recomputation.
"""

from __future__ import annotations

import dataclasses
import math
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from genjax import config, devices
from genjax.config import ConfigError
from genjax.config.trees import leaves
from genjax.data import HasOutline, Pipeline
from genjax.errors import UserError
from genjax.nn.transformer import Transformer
from genjax.tools.plan.chips import CHIPS, GPUS_PER_MACHINE, Chip, Target, target
from genjax.tools.plan.costs import Costs, costs_of
from genjax.tools.plan.jaxpr import count_products
from genjax.tools.plan.records import Bound, Options, Plan, ProgramPlan
from genjax.training.engine import BATCH_AXES, build_mesh, check_batch_size, evaluation_size
from genjax.training.experiment import Experiment, resolve
from genjax.training.programs import Programs


def plan(experiment: Experiment, options: Options, name: str = "experiment") -> Plan:
    """Compiles the programs of an experiment for devices that need not be there.

    Args:
      experiment: what to plan, with its mesh and its batch size.
      options: the devices.
      name: the experiment's name.

    Raises:
      ConfigError: the topology, the mesh or the batch does not fit.
      UserError: the data set cannot be read, and its settings do not tell what a batch looks like.
    """
    found = target(options.topology, options.chip)
    resolved, batch = outlined(experiment)
    programs = planned_programs(resolved, batch, found.devices)
    return planned(resolved, batch, programs, found, options, name)


# ----------------------------------------------------------------------------------------------------------------------
# From an experiment to programs


def outlined(experiment: Experiment) -> tuple[Experiment, dict[str, jax.ShapeDtypeStruct]]:
    """The resolved experiment, and what a raw batch of it looks like."""
    data, size = experiment.data, experiment.data.batch_size
    outline = data.outline() if isinstance(data, HasOutline) else None
    if outline is not None:
        shapes = {name: jax.ShapeDtypeStruct((size, *s), np.dtype(d)) for name, (s, d) in outline.example.items()}
        return resolve(experiment, outline.spec), shapes
    try:
        batch = Pipeline(data, "train", experiment.training.seed).batch(0)
    except UserError as error:
        raise UserError(
            f"the settings of {type(data).__name__} ({data.name}) do not tell what a batch looks like, "
            f"and its data cannot be read: {error}"
        ) from None
    return resolve(experiment), {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in batch.items()}


def planned_programs(
    experiment: Experiment, batch: dict[str, jax.ShapeDtypeStruct], devices: Sequence[Any]
) -> Programs:
    """The programs of a resolved experiment on a mesh of these devices; nothing is compiled yet.

    Raises:
      ConfigError: the mesh or the batch does not fit.
    """
    if experiment.training.parallelism != "jit":
        raise ConfigError("a plan is of a mesh: leave training.parallelism=pmap out")
    mesh = build_mesh(experiment.training.mesh, devices)
    check_batch_size(experiment.data.batch_size, mesh, "data.batch_size")
    spec = tuple((key, tuple(a.shape), str(a.dtype)) for key, a in sorted(batch.items()))
    return Programs(experiment.model, experiment.data, mesh, False, spec)


def planned(
    experiment: Experiment,
    batch: dict[str, jax.ShapeDtypeStruct],
    programs: Programs,
    found: Target,
    options: Options,
    name: str,
) -> Plan:
    """Compiles the programs that are asked for, and tells what they cost."""
    mesh, state = programs.mesh, programs.abstract_state
    model_flops, counted = _model_flops(experiment, programs, batch)
    chip = found.chip
    compiled = {
        each: _compiled(lowered_program(each, programs, experiment, batch), mesh, chip, state)
        for each in options.programs
    }
    hidden = _with_hidden_products(compiled, model_flops / mesh.size, chip)
    params = jax.tree.leaves(state.params)
    optimizer, whole = device_bytes(state.opt_state), device_bytes(state)
    return Plan(
        experiment=name,
        topology=options.topology,
        mesh={axis: size for axis, size in mesh.shape.items() if size > 1},
        batch_size=experiment.data.batch_size,
        num_devices=mesh.size,
        num_parameters=sum(leaf.size for leaf in params),
        parameters=device_bytes(state.params),
        optimizer=optimizer,
        other_state=whole - optimizer - device_bytes(state.params),
        memory=None if chip is None else chip.memory,
        model_flops=model_flops,
        model_flops_of=counted,
        peak_flops=None if chip is None else chip.flops,
        programs=compiled,
        unknown=(*_unknown(found, options, compiled), *hidden),
    )


def _with_hidden_products(compiled: dict[str, ProgramPlan], least: float, chip: Chip | None) -> list[str]:
    """Gives a step whose kernels hide their operations, as splash attention does, the model's own, and says so."""
    step = compiled.get("step")
    if step is None or step.costs is None or not step.costs.unnoted_kernels or step.costs.products >= least:
        return []
    costs = dataclasses.replace(step.costs, products=least)
    compiled["step"] = dataclasses.replace(step, costs=costs, bound=None if chip is None else bound_of(costs, chip))
    return [
        f"operations of {step.costs.unnoted_kernels} kernels that note none: {step.costs.products:.3g} of a step were "
        f"counted, and the model's own {least:.3g} stand in their place, without what is computed twice"
    ]


def lowered_program(
    name: str,
    programs: Programs,
    experiment: Experiment,
    batch: dict[str, jax.ShapeDtypeStruct],
    platforms: tuple[str, ...] | None = None,
) -> tuple[Any, float]:
    """A program of the experiment, lowered; and the bytes of its inputs on a device.

    Args:
      name: step, evaluation or sampler.
      programs: the experiment's programs.
      experiment: the resolved experiment.
      batch: what a raw batch of its training looks like.
      platforms: what to lower for; None for the platform of the programs' mesh.
    """
    mesh, state = programs.mesh, programs.abstract_state
    key = jax.eval_shape(lambda: jax.random.key(0))
    batched, stacked = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((BATCH_AXES,), (None, BATCH_AXES)))
    lowered = lambda function, *arguments: function.trace(*arguments).lower(lowering_platforms=platforms)
    if name == "step":
        inputs = {n: jax.ShapeDtypeStruct((1, *a.shape), a.dtype, sharding=stacked) for n, a in batch.items()}
        return lowered(programs.advance, state, None, inputs, key), device_bytes(inputs)
    if name == "evaluation":
        size = evaluation_size(experiment.evaluation, experiment.data, mesh)
        shapes = {n: ((size, *a.shape[1:]), a.dtype) for n, a in batch.items()} | {"example_index": ((size,), np.int32)}
        inputs = {n: jax.ShapeDtypeStruct(s, d, sharding=batched) for n, (s, d) in shapes.items()}
        mask = jax.ShapeDtypeStruct((size,), np.float32, sharding=batched)
        return lowered(programs.evaluate, state, inputs, mask, key), device_bytes(inputs)
    return lowered(programs.sample, state, key, experiment.training.num_samples, {}), 0.0


def device_bytes(tree: Any) -> float:
    """Bytes of abstract arrays on one device."""
    total = 0.0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
        # Random keys are two numbers of 32 bits.
        itemsize = 8 if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize
        total += math.prod(shape) * itemsize
    return total


def _compiled(program: tuple[Any, float], mesh: Mesh, chip: Chip | None, state: Any) -> ProgramPlan:
    began = time.monotonic()
    try:
        compiled, text = _with_text(program[0], mesh)
    except jax.errors.JaxRuntimeError as error:
        used = re.search(r"Used ([\d.]+)([KMGT]?) of", str(error))
        if used is None or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        # The compiler for TPUs refuses programs that do not fit, and says what they need.
        peak = float(used.group(1)) * 1024 ** " KMGT".index(used.group(2) or " ")
        needed = peak - device_bytes(state)
        return ProgramPlan(program[1], needed, peak, None, None, time.monotonic() - began, 0.0)
    seconds = time.monotonic() - began
    memory, costs = compiled.memory_analysis(), costs_of(text, dict(mesh.shape))
    analysis = compiled.cost_analysis() or {}
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return ProgramPlan(
        inputs=program[1],
        temporaries=memory.temp_size_in_bytes,
        peak=held + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes,
        costs=costs,
        bound=None if chip is None else bound_of(costs, chip),
        compile_seconds=seconds,
        xla_flops=float(analysis.get("flops", 0.0)),
    )


def _with_text(lowered: Any, mesh: Mesh) -> tuple[Any, str]:
    """A compiled program and its text.

    The compiler for TPUs writes the text itself: JAX first reads the program with its own copy of XLA, which refuses
    asynchronous fusions of several operands that it does not know (libtpu 0.0.52, jaxlib 0.10).
    """
    if mesh.devices.flat[0].platform != "tpu":
        compiled = lowered.compile()
        return compiled, compiled.as_text()
    with tempfile.TemporaryDirectory() as folder:
        compiled = lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
        (path,) = Path(folder).glob("*.after_optimizations.txt")
        return compiled, path.read_text()


def bound_of(costs: Costs, chip: Chip) -> Bound:
    """Seconds that a program takes at least on a chip."""
    rate = lambda c: chip.link if chip.network is None or c.largest_distance < GPUS_PER_MACHINE else chip.network
    received = sum(c.received / rate(c) for c in costs.collectives)
    return Bound(costs.products / chip.flops, costs.traffic / chip.bandwidth, received)


def _model_flops(
    experiment: Experiment, programs: Programs, batch: dict[str, jax.ShapeDtypeStruct]
) -> tuple[float, str]:
    """Operations of the model alone in a step over all devices, and how they were counted."""
    model = experiment.model
    network, length = getattr(model, "network", None), getattr(model, "sequence_length", None)
    if isinstance(network, Transformer) and isinstance(length, int) and "tokens" in batch and network.experts is None:
        count = sum(leaf.size for leaf in jax.tree.leaves(programs.abstract_state.params))
        seen = length if network.window is None else min(length, network.window)
        attention = 12 * network.num_layers * network.num_heads * network.size_of_head * seen
        return float((6 * count + attention) * length * experiment.data.batch_size), "6N + 12LHQT"
    plain = config.apply_overrides(model, {path: False for path, hint, _ in leaves(model) if path.endswith("remat")})

    def step(state: Any, batch: Any, key: Any) -> Any:
        data_key, model_key = jax.random.split(key)
        return plain.train_step(state, experiment.data.transform(batch, data_key), model_key)

    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), programs.abstract_state)
    # On no platform that has ways of its own, so that every product is seen.
    with devices.compiled_for("any"):
        jaxpr = jax.make_jaxpr(step)(state, batch, key)
    return count_products(jaxpr.jaxpr), "products of the step without recomputation"


def _unknown(found: Target, options: Options, programs: dict[str, ProgramPlan]) -> Iterator[str]:
    if found.compiler == "cpu":
        yield (
            "compiled for the CPU: temporaries, fusions and collectives (XLA for CPUs writes a reduce-scatter as an "
            "all-reduce and a slice) are those of the CPU's compiler, and what is chosen by platform is what a CPU runs"
        )
    if found.chip is None:
        yield f"the rates and the memory of the chips: give --chip, one of {', '.join(CHIPS)}"
    loops = sum(p.costs.unknown_loops for p in programs.values() if p.costs is not None)
    if loops:
        yield f"how often {loops} loops run, each of which is counted once"
    yield "latencies, and products of other types than bfloat16, which are slower"
