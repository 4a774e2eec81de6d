"""The engine: compile and shard a step, loop, checkpoints, records."""

from genjax.errors import Interrupted
from genjax.training.checkpoints import CheckpointError
from genjax.training.experiment import Evaluation, Experiment, Training, resolve
from genjax.training.finite import NonFiniteError
from genjax.training.loop import train
from genjax.training.runs import Run, restore

__all__ = [
    "CheckpointError",
    "Evaluation",
    "Experiment",
    "Interrupted",
    "NonFiniteError",
    "Run",
    "Training",
    "resolve",
    "restore",
    "train",
]
