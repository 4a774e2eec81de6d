"""What differs by platform is chosen by the platform that a program is compiled for, and all choices give equal
values.
"""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import genjax
from genjax import config, devices
from genjax.training import resolve

ENTRIES = config.import_experiments()


def test_the_platform_is_asked_in_one_place():
    sources = Path(genjax.__file__).parent.rglob("*.py")
    asking = re.compile(r"default_backend|platform_dependent|\.device_kind")
    assert [path.name for path in sources if asking.search(path.read_text(encoding="utf-8"))] == ["devices.py"]


def test_a_function_is_traced_for_each_place_that_it_is_compiled_for():
    seen = []

    @jax.jit
    def function(x):
        seen.append((devices.platform(), devices.num_devices()))
        return x + 1

    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    for place in ("tpu", mesh, "cuda", "tpu"):
        with devices.compiled_for(place):
            function(0.0)
    function(0.0)
    assert seen == [("tpu", 8), ("cpu", 2), ("gpu", 8), ("cpu", 8)]
    assert devices.mesh() is None


@pytest.mark.parametrize("name", ["gated_pixel_cnn_digits", "dcgan_digits", "gpt_text"])
def test_a_step_for_another_platform_gives_equal_values(name):
    changes = {"training.mesh": "data:1", "training.num_steps": 4, "data.batch_size": 4}
    if name == "gpt_text":
        changes["model.optimizer.accumulation_steps"] = 2
    experiment = resolve(config.apply_overrides(ENTRIES[name].build(), {**ENTRIES[name].shrunk, **changes}))
    model, data = experiment.model, experiment.data
    raw = data.load("train").gather(np.arange(4))
    batch = data.transform({k: jnp.asarray(v) for k, v in raw.items()}, jax.random.key(0))
    state = jax.jit(model.init)(jax.random.key(1), batch)

    def after_a_step(platform):
        with devices.compiled_for(platform):
            after, metrics = jax.jit(model.train_step)(state, batch, jax.random.key(2))
        return {"params": after.params, "metrics": metrics}

    ours, plain = after_a_step("cpu"), after_a_step("gpu")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), ours, plain)
