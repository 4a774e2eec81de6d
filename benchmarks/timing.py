"""How two implementations are timed beside each other: in turns, in one process, medians of rounds.

A ratio holds on machines whose memory is as fast beside their products.  So the rates of the machine, and the bytes
that our step moves by XLA's count, are printed with it; --pressure times the same while another process copies memory.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
#: Copies an array of 64 MiB until its parent ends it.
COPYING = "import numpy as np; a = np.ones(2**24, np.float32); b = a.copy()\nwhile True: np.copyto(b, a)"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds --clock and --pressure, which `options_of` hands to `compare`."""
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="seconds of the wall or of CPU")
    parser.add_argument("--pressure", action="store_true", help="also time it while another process copies memory")


def options_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_options` as arguments of `compare`."""
    return {"clock": arguments.clock, "pressure": arguments.pressure}


@functools.cache
def machine(seconds: float = 0.5) -> str:
    """What the first device does in a second: float32 products, copies of the host, and an elementwise pass of XLA."""
    side, size = 1024, 2**24
    a, long = jnp.ones((side, side)), jnp.ones(size)
    product, fresh = jax.jit(jnp.dot), jax.jit(lambda x: 2.0 * x + 1.0)
    source = np.ones(size, np.float32)
    goal = source.copy()
    rates = {
        "products": (2e-9 * side**3, "GFLOP/s", lambda: product(a, a).block_until_ready()),
        "copies": (8e-9 * size, "GB/s", lambda: np.copyto(goal, source)),
        "an elementwise pass": (8e-9 * size, "GB/s", lambda: fresh(long).block_until_ready()),
    }
    told = []
    for name, (amount, unit, run) in rates.items():
        run()
        least, began = float("inf"), time.perf_counter()
        while time.perf_counter() - began < seconds:
            at = time.perf_counter()
            run()
            least = min(least, time.perf_counter() - at)
        told.append(f"{name} {amount / least:.1f} {unit}")
    return ", ".join(told)


@contextlib.contextmanager
def copying_elsewhere() -> Iterator[None]:
    """Another process copies memory meanwhile, on the cores that this one leaves free, if there are such."""
    process = subprocess.Popen([sys.executable, "-c", COPYING], env={**os.environ, "OMP_NUM_THREADS": "1"})
    if hasattr(os, "sched_setaffinity"):
        free = set(range(os.cpu_count() or 1)) - os.sched_getaffinity(0)
        os.sched_setaffinity(process.pid, free or os.sched_getaffinity(0))
    try:
        time.sleep(1.0)  # until it copies
        yield
    finally:
        process.kill()
        process.wait()


class TrainingSteps:
    """Takes training steps of a model on one batch, and waits for them."""

    def __init__(self, dispatch: Callable[..., Any], state: Any, arrays: Any, steps_per_dispatch: int) -> None:
        self._compiled = jax.jit(dispatch, donate_argnums=0).lower(state, arrays).compile()
        self._state, self._arrays, self._steps = state, arrays, steps_per_dispatch

    def __call__(self, count: int) -> float:
        """Takes so many steps, a multiple of those of a dispatch, and returns the last loss."""
        for _ in range(count // self._steps):
            self._state, metrics = self._compiled(self._state, self._arrays)
        return float(jnp.ravel(metrics["loss"])[-1])

    @property
    def bytes_moved(self) -> float:
        """Bytes that a step reads and writes by XLA's count, which counts what a loop does once."""
        return (self._compiled.cost_analysis() or {}).get("bytes accessed", 0.0)


def training_steps(model: Any, batch: dict[str, np.ndarray], steps_per_dispatch: int = 1) -> TrainingSteps:
    """Training steps of a model; XLA counts the steps of one dispatch once."""
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

    return TrainingSteps(dispatch, state, arrays, steps_per_dispatch)


def compare(
    runs: dict[str, Callable[[int], float]], rounds: int, steps: int, clock: str = "wall", pressure: bool = False
) -> dict[str, float]:
    """Times the runs in turns and prints medians, and ratios of the first to each other.

    Args:
      runs: functions by name that take a number of steps, wait for them, and return the last loss.
      rounds: how often each is timed.
      steps: number of steps of one timing.
      clock: one of `CLOCKS`.
      pressure: whether to time them once more while another process copies memory.

    Returns:
      Median seconds of a step by name, of the first timing.
    """
    print(f"this machine: {machine()}", flush=True)
    first = {name: run(steps) for name, run in runs.items()}
    print(f"loss after {steps} steps:", "  ".join(f"{name} {loss:.3f}" for name, loss in first.items()))
    medians = _medians(runs, rounds, steps, clock)
    if pressure:
        print("while another process copies memory:")
        with copying_elsewhere():
            _medians(runs, rounds, steps, clock)
    return medians


def _medians(runs: dict[str, Callable[[int], float]], rounds: int, steps: int, clock: str) -> dict[str, float]:
    now, times = CLOCKS[clock], {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began = now()
            run(steps)
            times[name].append((now() - began) / steps)
    medians = {name: statistics.median(t) for name, t in times.items()}
    own = next(iter(medians))
    for name, seconds in medians.items():
        ratio = "" if name == own else f"   {own} takes {medians[own] / seconds:.2f} of it"
        moved = getattr(runs[name], "bytes_moved", None)
        told = "" if not moved else f"; {1e-6 * moved:.1f} MB moved"
        unit = "ms of CPU" if clock == "cpu" else "ms"
        print(f"{name:<16} {1e3 * seconds:8.3f} {unit} a step (median of {rounds}){ratio}{told}", flush=True)
    return medians
