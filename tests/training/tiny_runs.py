"""A run small enough to be repeated many times: the VAE of the demo, shrunk."""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

import experiments.train
from experiments import command_line
from genjax import config
from genjax.training import Experiment, resolve
from genjax.training.engine import Engine
from tests.xla_flags import UNOPTIMIZED

ROOT = Path(__file__).parents[2]
TINY = {
    "model.latent_dim": 4,
    "model.network.hidden_dims": (32, 48),
    "model.num_importance_samples": 0,
    "data.batch_size": 32,
    "model.optimizer.schedule": "constant",
    "training.num_steps": 50,
    "training.steps_per_dispatch": 5,
    "training.log_every": 10,
    "training.checkpoint_every": 20,
    "training.evaluate_every": None,
    "training.sample_every": None,
    "training.best_metric": None,
    "training.num_samples": 4,
    "training.tensorboard": False,
    "training.compilation_cache": "",
}


def tiny(**overrides: object) -> Experiment:
    """The shrunk experiment with further overrides, dots written as two underscores."""
    experiment = config.find_experiment("vae_digits").build()
    changes = {**TINY, **{name.replace("__", "."): value for name, value in overrides.items()}}
    return config.apply_overrides(experiment, changes)


def losses(experiment: Experiment) -> np.ndarray:
    """Losses of all steps, without a working directory."""
    engine = Engine(resolve(experiment))
    state = engine.init()
    values = []
    steps = range(0, experiment.training.num_steps, 10)
    for inputs in engine.inputs([(start, start + 10) for start in steps]):
        state, metrics = engine.advance(state, inputs)
        values.append(engine.fetch(metrics)["loss"])
    return np.concatenate(values)


def flags(overrides: dict[str, object]) -> list[str]:
    """Overrides as command-line flags."""

    def text(value: object) -> str:
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()

    return [f"--{name}={text(value)}" for name, value in overrides.items()]


def environment(num_devices: int = 1) -> dict[str, str]:
    """Environment of a subprocess."""
    changes = {
        "JAX_PLATFORMS": "cpu",
        # A plan for a TPU takes the flags out of the environment of its process.
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', UNOPTIMIZED)} --xla_force_host_platform_device_count={num_devices}",
        "PYTHONPATH": str(ROOT),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return {**os.environ, **changes}


def command(module: str, *arguments: str) -> list[str]:
    """Command line of an entry point."""
    return [sys.executable, "-m", f"experiments.{module}", *arguments]


#: Runs in processes of their own are forked from one that has imported what they need, as an import takes as long as
#: a run.  JAX starts its backend, and threads with it, in each of them.
_COPIES = multiprocessing.get_context("forkserver")
_COPIES.set_forkserver_preload(["experiments.train", "genjax.training", "tests.training.tiny_runs"])


def started(
    workdir: Path, *arguments: str, output: Path, num_devices: int = 1, changes: Mapping[str, str] | None = None
) -> multiprocessing.Process:
    """Starts the training of the shrunk experiment in a process of its own, as the command line would.

    Args:
      workdir: directory of the run.
      *arguments: further flags.
      output: file of what it prints.
      num_devices: devices of the process.
      changes: further changes to its environment.
    """
    flags = ["train", "--experiment=vae_digits", f"--workdir={workdir}", *arguments]
    process = _COPIES.Process(target=_train, args=(flags, output, num_devices, dict(changes or {})), daemon=True)
    process.start()
    return process


def _train(arguments: list[str], output: Path, num_devices: int, changes: dict[str, str]) -> None:
    os.environ.update({**environment(num_devices), **changes})
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    with output.open("a") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    try:
        command_line.run(lambda _: experiments.train.main(arguments))
    finally:
        # A copy ends without what an interpreter runs at its end: JAX waits there until every process is done.
        atexit._run_exitfuncs()


def logged_losses(workdir: Path) -> list[float]:
    """Losses of the lines of training metrics."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"]
