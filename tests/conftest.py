"""The strictest settings that JAX has, for every test; eight host devices, so that sharding is tested everywhere."""

import gc
import os

from tests.xla_flags import UNOPTIMIZED

# Before jax is imported: the backend reads these once.  What XLA_FLAGS already holds has the last word.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{UNOPTIMIZED} {os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "/tmp/genjax_test_cache")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest

from genjax import config

jax.config.update("jax_debug_nans", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
config.add_package("experiments.configs")


def pytest_collection_finish():
    """Leaves the modules and tests out of every search for garbage; tracing makes objects by the million."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 10, 100)


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
    """Gives the memory of a module's compiled programs back; thousands of them would not fit together."""
    yield
    jax.clear_caches()
