"""Exported programs run without genjax, and give what the model gives."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.families.language.gpt import GPT
from genjax.families.language.networks import llama_network
from genjax.interop.export import export_forward, export_sampler
from genjax.optimizers import Adam

pytest.importorskip("flatbuffers")

MODEL = GPT(
    vocab_size=7,
    sequence_length=5,
    network=llama_network(1, 8, 2, mlp_dim=8, max_length=8, init_std=0.5),
    optimizer=Adam(ema_decay=0.9),
)
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import flatbuffers
assert flatbuffers.__file__.startswith(sys.argv[1])
from portable import load
import numpy as np
np.save(sys.argv[2], load()(3))
assert not any(name.startswith(("genjax", "flax")) for name in sys.modules)
"""


@pytest.fixture(scope="module")
def state():
    return jax.jit(MODEL.init)(jax.random.key(0), {"tokens": jnp.zeros((1, 6), jnp.int32)})


def test_a_sampler_draws_the_same_without_genjax(state, tmp_path):
    path = export_sampler(tmp_path / "sampler.zip", MODEL, state, 2)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": ""}
    subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), str(tmp_path / "out.npy")],
        check=True,
        cwd=tmp_path,
        env=environment,
        timeout=300,
    )
    expected = jax.jit(MODEL.sample, static_argnums=2)(state, jax.random.key(jnp.uint32(3)), 2)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), expected)


def test_a_forward_pass_takes_any_batch(state, tmp_path):
    from genjax.interop.portable import load

    path = export_forward(tmp_path / "logits.zip", MODEL, state, "logits", np.zeros((1, 4), np.int32))
    tokens = jax.random.randint(jax.random.key(1), (3, 4), 0, 7)
    np.testing.assert_allclose(load(path)(tokens), jax.jit(MODEL.logits)(state, tokens), atol=1e-6)
    with pytest.raises(TypeError, match="takes 1 arguments"):
        load(path)()
