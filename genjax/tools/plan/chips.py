"""Published rates of accelerators, and the devices that a program can be compiled for without them.

| chip | products, bfloat16 | memory | bandwidth | chip to chip, one way | source |
|---|---|---|---|---|---|
| v4 | 275 TFLOP/s | 32 GiB | 1200 GB/s | 300 GB/s | cloud.google.com/tpu/docs/v4 |
| v5e | 197 TFLOP/s | 16 GB | 819 GB/s | 200 GB/s | docs.cloud.google.com/tpu/docs/v5e |
| v5p | 459 TFLOP/s | 95 GB | 2765 GB/s | 600 GB/s | docs.cloud.google.com/tpu/docs/v5p |
| v6e | 918 TFLOP/s | 32 GB | 1638 GB/s | 400 GB/s | docs.cloud.google.com/tpu/docs/v6e |
| a100 | 312 TFLOP/s | 80 GB | 2039 GB/s | 300 GB/s | NVIDIA A100 datasheet (SXM, 80 GB) |
| h100 | 989 TFLOP/s | 80 GB | 3350 GB/s | 450 GB/s | NVIDIA H100 datasheet (SXM, dense) |
| h200 | 989 TFLOP/s | 141 GB | 4800 GB/s | 450 GB/s | NVIDIA H200 datasheet (SXM, dense) |

Google gives the sum over a chip's links, in bits (v4: 2400 Gbit/s, v5p: 4800) or in both directions (v5e: 400 GB/s,
v6e: 800); NVIDIA gives both directions of NVLink (600 and 900 GB/s).  Eight GPUs share a machine; between machines a
  GPU has
one network port of 200 Gbit/s (DGX A100) or 400 Gbit/s (DGX H100 and H200).
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from genjax.config import ConfigError, suggestion


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published rates of a chip.

    Attributes:
      flops: matrix products in bfloat16 (dense), FLOP/s.
      memory: bytes of main memory.
      bandwidth: bytes a second of main memory.
      link: bytes a second that a chip can receive of other chips over all of its links.
      network: bytes a second between machines, or None where the links connect all chips.
      source: where the numbers stand.
    """

    flops: float
    memory: float
    bandwidth: float
    link: float
    network: float | None
    source: str


CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1200e9, 300e9, None, "cloud.google.com/tpu/docs/v4"),
    "v5e": Chip(197e12, 16e9, 819e9, 200e9, None, "docs.cloud.google.com/tpu/docs/v5e"),
    "v5p": Chip(459e12, 95e9, 2765e9, 600e9, None, "docs.cloud.google.com/tpu/docs/v5p"),
    "v6e": Chip(918e12, 32e9, 1638e9, 400e9, None, "docs.cloud.google.com/tpu/docs/v6e"),
    "a100": Chip(312e12, 80e9, 2039e9, 300e9, 25e9, "NVIDIA A100 80 GB SXM datasheet"),
    "h100": Chip(989e12, 80e9, 3350e9, 450e9, 50e9, "NVIDIA H100 SXM datasheet, dense"),
    "h200": Chip(989e12, 141e9, 4800e9, 450e9, 50e9, "NVIDIA H200 SXM datasheet, dense"),
}
#: Tells libtpu not to look for a TPU and its neighbours, to let several processes use it, and to be quiet about it.
_ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "4",
    "TPU_STDERR_LOG_LEVEL": "4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
}
_TPUS = ("v4", "v5e", "v5p", "v6e")
#: GPUs of one machine, which NVLink connects.
GPUS_PER_MACHINE = 8


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for.

    Attributes:
      devices: JAX's devices, which need not be attached.
      chip: the rates of one of them, or None where they are not known.
      compiler: whose compiler makes the programs: tpu or cpu.
    """

    devices: list[Any]
    chip: Chip | None
    compiler: str


def target(topology: str, chip: str | None = None) -> Target:
    """The devices of a topology.

    Args:
      topology: a TPU slice such as v5p:4x4x4 or v5e:2x4; a number of GPUs such as h100:8; or host:N, N devices of this
        machine's CPU.  GPUs are planned by programs that are compiled for the CPU, as XLA compiles for GPUs only where
        there is one.
      chip: for host:N, the chip whose rates to take.

    Raises:
      ConfigError: there is no such chip or topology, the package libtpu is missing, or JAX has already started with
        fewer devices.
    """
    if chip is not None and chip not in CHIPS:
        raise ConfigError(f"there is no chip {chip!r}; known are {', '.join(CHIPS)}{suggestion(chip, CHIPS)}")
    kind, _, shape = topology.partition(":")
    if kind not in CHIPS and kind != "host":
        raise ConfigError(
            f"there is no topology {topology!r}; give a TPU slice (v5p:4x4x4, v5e:2x4), a number of GPUs (h100:8), or "
            f"host:N{suggestion(kind, [*CHIPS, 'host'])}"
        )
    if not re.fullmatch(r"\d+(x\d+)*", shape) or math.prod(map(int, shape.split("x"))) < 1:
        raise ConfigError(f"the topology {topology!r} has no shape; give {kind}:2x4, say, or {kind}:8")
    count = math.prod(map(int, shape.split("x")))
    if kind in _TPUS:
        return _tpu(topology, kind, count)
    return Target(_host_devices(count), CHIPS.get(kind if kind != "host" else chip or ""), "cpu")


def _tpu(topology: str, kind: str, count: int) -> Target:
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError(
            f"--topology={topology} needs the TPU's compiler: pip install libtpu; "
            f"--topology=host:{count} --chip={kind} plans without it, and says what it then cannot know"
        )
    for name, value in _ALONE.items():
        os.environ.setdefault(name, value)
    # The CPU's flags are read now.  libtpu would read them at the first program that it compiles, and end the process
    # at one that it does not know; its own are in LIBTPU_INIT_ARGS.
    jax.devices("cpu")
    os.environ.pop("XLA_FLAGS", None)
    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"the TPU's compiler knows no topology {topology!r}: {reason}") from None
    chip, cores = CHIPS[kind], len(described.devices) // count
    # A device of v4 is one of a chip's two cores.
    share = {name: getattr(chip, name) / cores for name in ("flops", "memory", "bandwidth", "link")}
    return Target(list(described.devices), dataclasses.replace(chip, **share), "tpu")


def _host_devices(count: int) -> list[Any]:
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        # Once JAX has started, the number stays as it is, which is looked at below.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ConfigError(
            f"JAX has started with {len(devices)} host devices, and {count} are needed; plan in a process of its own, "
            f"or set XLA_FLAGS=--xla_force_host_platform_device_count={count} before JAX is imported"
        )
    return devices[:count]
