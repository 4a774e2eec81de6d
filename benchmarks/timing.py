"""How two implementations are timed beside each other: in turns, in one process, medians of rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def training_steps(model: Any, batch: dict[str, np.ndarray], steps_per_dispatch: int = 1) -> Callable[[int], float]:
    """Returns a function that takes so many training steps (a multiple of those of a dispatch) and waits for them."""
    arrays = {name: jnp.asarray(a) for name, a in batch.items()}
    state = jax.jit(model.init)(jax.random.key(0), arrays)
    key = jax.random.key(1)

    def dispatch(state, arrays):
        def step(state, _):
            return model.train_step(state, arrays, jax.random.fold_in(key, state.step))

        # Like the engine: XLA on CPU compiles gradients of convolutions badly inside of a scan, even one of a single step.
        return (
            step(state, None) if steps_per_dispatch == 1 else jax.lax.scan(step, state, None, length=steps_per_dispatch)
        )

    compiled = jax.jit(dispatch, donate_argnums=0)

    def run(count: int) -> float:
        nonlocal state
        for _ in range(count // steps_per_dispatch):
            state, metrics = compiled(state, arrays)
        return float(jnp.ravel(metrics["loss"])[-1])

    return run


def compare(runs: dict[str, Callable[[int], float]], rounds: int, steps: int) -> dict[str, float]:
    """Times the runs in turns and prints medians, and ratios of the first to each other.

    Args:
      runs: functions by name that take a number of steps, wait for them, and return the last loss.
      rounds: how often each is timed.
      steps: number of steps of one timing.

    Returns:
      Median seconds of a step by name.
    """
    first = {name: run(steps) for name, run in runs.items()}
    print(f"loss after {steps} steps:", "  ".join(f"{name} {loss:.3f}" for name, loss in first.items()))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.perf_counter()
            run(steps)
            times[name].append((time.perf_counter() - began) / steps)
    medians = {name: statistics.median(t) for name, t in times.items()}
    own = next(iter(medians))
    for name, seconds in medians.items():
        ratio = "" if name == own else f"   {own} takes {medians[own] / seconds:.2f} of it"
        print(f"{name:<16} {1e3 * seconds:8.3f} ms a step (median of {rounds}){ratio}", flush=True)
    return medians
