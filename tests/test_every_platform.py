"""Every registered experiment, shrunk, compiled for TPUs that are not there and lowered for CUDA.

    python -m pytest -m platforms tests/test_every_platform.py

Needs libtpu (pip install libtpu), and about an hour of two cores.  Plans of large experiments at full size stand in
docs/speed.md.
"""

import importlib.util
from unittest import mock

import jax
import pytest

from genjax import devices
from genjax.tools.plan.chips import target
from genjax.tools.plan.programs import lowered_program, outlined, planned_programs
from tests.test_conformance import ENTRIES, shrunk

pytestmark = [
    pytest.mark.platforms,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="pip install libtpu"),
]
PARTS = ("step", "evaluation", "sampler")


@pytest.fixture(autouse=True)
def forget_compiled_programs_of_an_experiment():
    """No two experiments share a program."""
    yield
    jax.clear_caches()


def lowered(name: str, found: list) -> dict:
    """The lowered programs of an experiment, by name."""
    experiment, batch = outlined(shrunk(name))
    programs = planned_programs(experiment, batch, found)
    return {part: lowered_program(part, programs, experiment, batch)[0] for part in PARTS}


@pytest.mark.parametrize("name", sorted(ENTRIES))
@pytest.mark.parametrize("topology", ["v5e:1x1", "v5p:1x1x1"])
def test_compiles_for_a_tpu(name, topology):
    for part, program in lowered(name, target(topology).devices).items():
        memory = program.compile().memory_analysis()
        assert memory.argument_size_in_bytes > 0, part


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_lowers_for_cuda(name):
    experiment, batch = outlined(shrunk(name))
    programs = planned_programs(experiment, batch, jax.devices()[:1])
    # A mesh of devices of this machine, and the ways of a GPU.
    with mock.patch.object(devices, "platform", lambda: "gpu"):
        for part in PARTS:
            lower = lowered_program(part, programs, experiment, batch, ("cuda",))[0]
            assert "stablehlo" in lower.as_text()
