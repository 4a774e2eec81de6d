"""The density of an autoencoder's codes, from the table of codes to the pictures of what a flow draws."""

import jax
import numpy as np
import pytest

import genjax
from genjax import config
from genjax.config import ConfigError
from genjax.data import Points
from genjax.families.flow.real_nvp import RealNVP
from genjax.tools import latents as latent_tables
from genjax.tools.latents import Options
from genjax.training import train
from tests.experiments.commands import call

CHANGES = {
    "model.latent_dim": 3,
    "model.network.hidden_dims": (4,),
    "data.batch_size": 32,
    "training.num_steps": 2,
    "training.steps_per_dispatch": 1,
    "training.sample_every": None,
    "training.evaluate_every": None,
    "training.best_metric": None,
    "training.tensorboard": False,
    "training.compilation_cache": "",
}


def test_a_flow_learns_the_codes_of_an_autoencoder_and_what_it_draws_is_decoded(tmp_path):
    config.import_experiments()
    experiment = config.apply_overrides(config.find_experiment("autoencoder_digits").build(), CHANGES)
    train(experiment, tmp_path, name="autoencoder_digits", quiet=True)
    run = genjax.restore(tmp_path)
    codes, examples = latent_tables.encode(run)
    assert codes.shape == (len(examples["x"]), 3)
    path = latent_tables.write_codes(run, codes)
    assert path == tmp_path / "latents" / "codes_test.npy"
    np.testing.assert_array_equal(latent_tables.read_codes(path, (3,), 10), codes[:10])

    data = Points(name="table", dir=str(path), standardize=True)
    flow = RealNVP(data_shape=data.spec()["data_shape"], num_couplings=2, hidden_dims=(4,))
    batch = data.transform({"x": data.load("train").arrays()["x"][:32]}, jax.random.key(0))
    state, step = jax.jit(flow.init)(jax.random.key(0), batch), jax.jit(flow.train_step)
    losses = []
    for key in jax.random.split(jax.random.key(1), 20):
        state, metrics = step(state, batch, key)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    drawn = jax.jit(flow.sample, static_argnums=2)(state, jax.random.key(2), 6)
    table = next(file for file in data.write_samples(np.asarray(drawn), tmp_path / "drawn") if file.suffix == ".csv")

    again = latent_tables.read_codes(table, (3,), 5)
    np.testing.assert_allclose(again, data.inverse_transform(drawn)[:5], rtol=1e-4, atol=1e-5)
    pictures = latent_tables.decode(run, again)
    assert pictures.shape == (5, 8, 8, 1) and np.isfinite(pictures).all()
    for tool in ("interpolate", "traverse", "arithmetic", "decode"):
        small = Options(num_rows=2, num_values=3, codes=str(table))
        assert all(file.stat().st_size > 0 for file in latent_tables.TOOLS[tool](run, small).files)
    shown = call("latents", str(tmp_path), "--tool=export", "--evaluation.split=validation")
    assert shown.stdout.splitlines()[0] == str(tmp_path / "latents" / "codes_validation.npy"), shown.stderr
    for tool, options, error in (
        ("anomaly", Options(), "needs --held_out"),
        ("anomaly", Options(held_out=3), "the run has seen the class 3; train one without it: --data.classes=0,1,2,4"),
        ("augment", Options(), "needs a model conditional on classes"),
        ("disentangle", Options(), "needs a set with known factors"),
        ("traverse", Options(example=1000), "--example=1000 is not in the split"),
        ("interpolate", Options(num_rows=1000), "--num_rows=1000 needs 2000 examples"),
    ):
        with pytest.raises(ConfigError, match=error):
            latent_tables.TOOLS[tool](run, options)
    with pytest.raises(ConfigError, match="has 3 columns, but a code of this run has 4"):
        latent_tables.read_codes(table, (2, 2), 5)
    with pytest.raises(ConfigError, match="is not a file; give a CSV or NPY file"):
        latent_tables.read_codes(tmp_path / "missing.npy", (3,), 5)
