"""What the training loop adds to the bare compiled step, and the time from start to the first step.

    python -m benchmarks.loop
    python -m benchmarks.loop --experiment=vae_digits --steps_per_dispatch=50

The loop logs every 100 steps as by default; the bare step is the same compiled call on inputs that lie on the device.
Rounds of both take turns, and medians count.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax

from genjax import config
from genjax.training import host, resolve, train
from genjax.training.engine import Engine


def bare_seconds(engine: Engine, num_steps: int, steps_per_dispatch: int) -> float:
    """Seconds a step of the compiled call alone."""
    state = engine.init()
    boundaries = [(i, i + steps_per_dispatch) for i in range(0, num_steps, steps_per_dispatch)]
    inputs = list(engine.inputs(boundaries))
    state, _ = engine.advance(state, inputs[0])
    jax.block_until_ready(state)
    began = time.perf_counter()
    for each in inputs[1:]:
        state, metrics = engine.advance(state, each)
    jax.block_until_ready((state, metrics))
    return (time.perf_counter() - began) / (num_steps - steps_per_dispatch)


def loop_seconds(experiment: object) -> float:
    """Seconds a step of `genjax.train` between its first and its last line of metrics."""
    with tempfile.TemporaryDirectory() as workdir:
        train(experiment, workdir, quiet=True)
        rows = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    rates = [row["steps_per_second"] for row in rows if row["kind"] == "train"][1:]
    # Each line covers as many steps: the mean time of a step is the mean of the inverse rates.
    return statistics.mean(1.0 / rate for rate in rates)


def first_step_seconds(name: str) -> float:
    """Seconds from the start of a process to its first line of metrics, with a warm compilation cache."""
    with tempfile.TemporaryDirectory() as workdir:
        began = time.perf_counter()
        command = [sys.executable, "-m", "experiments.train", f"--experiment={name}", f"--workdir={workdir}"]
        command += ["--training.log_every=1", "--training.steps_per_dispatch=1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            for line in process.stdout:
                if line.startswith("step 1/"):
                    seconds = time.perf_counter() - began
                    break
            process.kill()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--experiment", default="vae_digits")
    parser.add_argument("--steps_per_dispatch", type=int, default=50)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    values = parser.parse_args()
    changes = {
        "training.num_steps": values.steps,
        "training.steps_per_dispatch": values.steps_per_dispatch,
        "training.log_every": 100,
        "training.checkpoint_every": 10 * values.steps,
        "training.evaluate_every": None,
        "training.sample_every": None,
        "training.best_metric": None,
    }
    experiment = config.apply_overrides(config.find_experiment(values.experiment).build(), changes)
    host.initialize(experiment.training)
    engine = Engine(resolve(experiment))
    bare, loop = [], []
    for _ in range(values.rounds):
        bare.append(bare_seconds(engine, values.steps, values.steps_per_dispatch))
        loop.append(loop_seconds(experiment))
    a, b = statistics.median(bare), statistics.median(loop)
    print(f"bare step {1e3 * a:.4f} ms, in the loop {1e3 * b:.4f} ms: {100 * (b / a - 1):+.1f} %")
    first_step_seconds(values.experiment)
    print(f"start to first step, warm cache: {first_step_seconds(values.experiment):.1f} s")


if __name__ == "__main__":
    main()
