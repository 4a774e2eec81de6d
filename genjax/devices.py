"""Where a program will run: the platform and the mesh that it is compiled for, known while it is traced.

A program may be compiled on one machine for another: a training step for a TPU pod is planned on a laptop.  So what
differs by platform asks `platform()`, and nothing else in genjax asks JAX for its default backend.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
from jax.sharding import Mesh

_GPUS = ("gpu", "cuda", "rocm")


class _Place(NamedTuple):
    platform: str | None = None
    mesh: Mesh | None = None


# Part of the key of JAX's caches, so that a function that is compiled for two places is traced twice.
_place = jax.make_user_context(_Place())


def platform() -> str:
    """The platform that the function now traced is compiled for: cpu, gpu or tpu.

    Outside of `compiled_for` it is JAX's default.
    """
    name = _place.value.platform or jax.default_backend()
    return "gpu" if name in _GPUS else name


def mesh() -> Mesh | None:
    """The mesh that the function now traced is compiled for; None outside of `compiled_for`."""
    return _place.value.mesh


def num_devices() -> int:
    """Number of devices of the mesh; outside of `compiled_for`, of all devices."""
    here = mesh()
    return jax.device_count() if here is None else here.size


def is_divided() -> bool:
    """Whether what is traced here is compiled for a mesh of several devices; False outside of `compiled_for`."""
    here = mesh()
    return here is not None and here.size > 1


@contextlib.contextmanager
def compiled_for(place: Mesh | str) -> Iterator[None]:
    """Functions traced inside are compiled for a mesh, or for a platform without a mesh (cpu, gpu or tpu)."""
    chosen = _Place(place.devices.flat[0].platform, place) if isinstance(place, Mesh) else _Place(place)
    with _place(chosen):
        yield
