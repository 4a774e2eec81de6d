"""How two implementations are timed beside each other: in turns, in one process, medians of rounds."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Both libraries share the memory of a GPU; JAX reads this when it first looks for one.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

#: Operations a second of dense bfloat16 products by `jax.Device.device_kind`, in units of 1e12, from the vendors' data
#: sheets.
PEAK_TERA_OPERATIONS = {
    "NVIDIA A100": 312.0,
    "NVIDIA H100": 989.4,
    "NVIDIA H200": 989.4,
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5": 459.0,
    "TPU v6 lite": 918.0,
}


def torch_device() -> str:
    """Where PyTorch runs beside JAX: cuda or cpu.

    Raises:
      SystemExit: JAX runs on an accelerator that this PyTorch has no support for.
    """
    import torch

    backend = jax.default_backend()
    if backend == "cpu":
        return "cpu"
    if backend == "gpu" and torch.cuda.is_available():
        return "cuda"
    raise SystemExit(
        f"JAX runs on {backend} and this PyTorch does not: install a PyTorch with CUDA, or set JAX_PLATFORMS=cpu"
    )


def peak_operations() -> float | None:
    """Operations a second that the first device can do in bfloat16, or None where it is not in the table."""
    kind = jax.devices()[0].device_kind
    # The longest name counts: "TPU v5" begins "TPU v5 lite" too.
    known = sorted((name for name in PEAK_TERA_OPERATIONS if kind.startswith(name)), key=len)
    return 1e12 * PEAK_TERA_OPERATIONS[known[-1]] if known else None


def training_steps(model: Any, batch: dict[str, np.ndarray], steps_per_dispatch: int = 1) -> Callable[[int], float]:
    """Returns a function that takes so many training steps (a multiple of those of a dispatch) and waits for them."""
    arrays = {name: jnp.asarray(a) for name, a in batch.items()}
    state = jax.jit(model.init)(jax.random.key(0), arrays)
    key = jax.random.key(1)

    def dispatch(state, arrays):
        def step(state, _):
            return model.train_step(state, arrays, jax.random.fold_in(key, state.step))

        # Like the engine: XLA on CPU compiles gradients of convolutions badly inside of a scan, even one of a single
        # step.
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
