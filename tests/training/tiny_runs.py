"""A run small enough to be repeated many times: the VAE of the demo, shrunk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from genjax import config
from genjax.training import Experiment, resolve
from genjax.training.engine import Engine

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
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={num_devices}",
        "PYTHONPATH": str(ROOT),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return {**os.environ, **changes}


def command(module: str, *arguments: str) -> list[str]:
    """Command line of an entry point."""
    return [sys.executable, "-m", f"experiments.{module}", *arguments]


def call(module: str, *arguments: str, cwd: Path | None = None, num_devices: int = 1) -> subprocess.CompletedProcess:
    """Runs an entry point to its end."""
    return subprocess.run(
        command(module, *arguments),
        cwd=cwd or ROOT,
        env=environment(num_devices),
        capture_output=True,
        text=True,
        timeout=300,
    )


def logged_losses(workdir: Path) -> list[float]:
    """Losses of the lines of training metrics."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"]
