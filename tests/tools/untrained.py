"""Runs before their first step, which tools take like any other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import genjax
from genjax import config
from genjax.training import Run, resolve
from genjax.training.checkpoints import Checkpoints
from genjax.training.engine import Engine
from genjax.training.experiment import save_config


def untrained(name: str, workdir: Path, changes: Mapping[str, Any] | None = None) -> Run:
    """An experiment with changed fields, by default those that shrink it, as a run of no steps in a new directory."""
    entry = config.find_experiment(name)
    fields = {
        **(entry.shrunk if changes is None else changes),
        "training.compilation_cache": "",
        "training.mesh": "data:1",
    }
    engine = Engine(resolve(config.apply_overrides(entry.build(), fields)))
    workdir.mkdir(parents=True)
    save_config(workdir, name, engine.experiment, engine.batch_spec)
    checkpoints = Checkpoints(workdir)
    checkpoints.save(0, engine.init())
    checkpoints.close()
    return genjax.restore(workdir)
