"""Plans for all meshes and several batch sizes."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator

from genjax import config
from genjax.config import ConfigError
from genjax.errors import UserError
from genjax.model import UsesMeshAxes
from genjax.nn.sharding import OPTIONAL_AXES
from genjax.tools.plan.chips import target
from genjax.tools.plan.programs import device_bytes, outlined, planned, planned_programs
from genjax.tools.plan.records import Options, Plan
from genjax.training.engine import MESH_AXES
from genjax.training.experiment import Experiment


def search(experiment: Experiment, options: Options, name: str = "experiment") -> Iterator[Plan]:
    """Yields plans of the step for meshes and batch sizes, as they are found; see `best_first`.

    Meshes that give every device more state than its memory holds are not compiled.

    Raises:
      ConfigError: the topology is not known, or no mesh can be used.
    """
    found = target(options.topology, options.chip)
    options = dataclasses.replace(options, programs=("step",))
    began = time.monotonic()
    tried = 0
    own = experiment.model.mesh_axes if isinstance(experiment.model, UsesMeshAxes) else ()
    axes = tuple(axis for axis in MESH_AXES if axis not in OPTIONAL_AXES or axis in own)
    for size in options.batch_sizes or (experiment.data.batch_size,):
        for mesh in _meshes(len(found.devices), axes):
            if tried and time.monotonic() - began > options.budget:
                return
            changes = {"training.mesh": mesh, "data.batch_size": size}
            changed = config.apply_overrides(experiment, changes)
            try:
                resolved, batch = outlined(changed)
                programs = planned_programs(resolved, batch, found.devices)
            except UserError:
                # The batch or the model does not divide among these axes.
                continue
            tried += 1
            if found.chip is None or device_bytes(programs.abstract_state) <= found.chip.memory:
                yield planned(resolved, batch, programs, found, options, name)
    if not tried:
        raise ConfigError(
            f"no mesh of {len(found.devices)} devices divides the batch and the model; give other data.batch_size"
        )


def best_first(plans: list[Plan]) -> list[Plan]:
    """The plans that fit (or may fit), by their bound on seconds an example."""
    kept = [p for p in plans if p.fits is not False and p.programs["step"].costs is not None]

    def key(plan: Plan) -> float:
        step = plan.programs["step"]
        return (step.peak if step.bound is None else step.bound.seconds) / plan.batch_size

    return sorted(kept, key=key)


def _meshes(count: int, axes: tuple[str, ...]) -> Iterator[str]:
    """Divisions of devices among these axes of the mesh."""
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    for sizes in itertools.product(divisors, repeat=len(axes)):
        if math.prod(sizes) == count:
            yield ",".join(f"{axis}:{n}" for axis, n in zip(axes, sizes) if n > 1) or f"{axes[0]}:1"
