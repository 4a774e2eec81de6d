"""Settings of the host process: the allocator, the compilation cache, several processes."""

from __future__ import annotations

import ctypes
import logging
import platform
from pathlib import Path

import jax

from genjax import devices
from genjax.config import ConfigError
from genjax.training.experiment import Training

_logger = logging.getLogger(__name__)


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory instead of giving it back to the kernel.

    XLA on CPU allocates and frees large buffers at every step, and faulting their pages in again costs 10 to 30 % of
    the step of most models (docs/design.md).  Keeping the memory costs some resident memory.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    m_trim_threshold, m_top_pad, m_mmap_max, m_arena_max = -1, -2, -4, -8
    libc.mallopt(m_mmap_max, 0)
    libc.mallopt(m_trim_threshold, 2**31 - 1)
    libc.mallopt(m_top_pad, 64 * 2**20)
    libc.mallopt(m_arena_max, 1)


def initialize(training: Training) -> None:
    """Prepares this process for a run; must be called before the first array is made.

    Raises:
      ConfigError: the flags of a run of several processes do not fit together.
    """
    # Loading a compiled program takes seconds, compiling it tens of seconds.
    if training.compilation_cache and jax.config.jax_compilation_cache_dir is None:
        directory = Path(training.compilation_cache).expanduser()
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            _logger.warning("no compilation cache: %s", error)
        else:
            jax.config.update("jax_compilation_cache_dir", str(directory))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
            jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if training.debug_nans:
        jax.config.update("jax_debug_nans", True)
    given = [training.coordinator_address, training.num_processes, training.process_id]
    by_hand = any(g is not None for g in given)
    if by_hand and any(g is None for g in given):
        raise ConfigError(
            "a run of several processes needs all of training.coordinator_address, training.num_processes and "
            "training.process_id"
        )
    if (by_hand or training.distributed) and not jax.distributed.is_initialized():
        try:
            jax.distributed.initialize(*given)
        except ValueError:
            raise ConfigError(
                "training.distributed is set, but JAX finds no job of several processes here; give "
                "training.coordinator_address, training.num_processes and training.process_id"
            ) from None
    if devices.platform() == "cpu":
        keep_freed_memory()
