"""Forecasts, chains and hidden states of runs that have learned nothing, as Python and as their commands give them."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from genjax.config import ConfigError
from genjax.errors import UserError
from genjax.tools import chains, forecasts, states
from genjax.training.checkpoints import Checkpoints
from tests.experiments.commands import call
from tests.tools.untrained import untrained


def test_the_ends_of_series_are_forecast(tmp_path):
    run = untrained("mixture_density_waves", tmp_path / "run")
    flags = ["--horizon=5", "--num_samples=7", "--num_series=3", "--levels=0.2,0.8", "--training.mesh=data:1"]
    options = forecasts.Options(horizon=5, num_samples=7, num_series=3, levels=(0.2, 0.8))
    found = forecasts.forecast(run, options)
    assert found.samples.shape == (7, 3, 5, found.x.shape[-1]) and "last 5 of" in found.protocol
    result = call("forecast", str(run.workdir), *flags)
    assert result.returncode == 0 and (run.workdir / "forecast_00000000.png").is_file(), result.stderr
    written = json.loads((run.workdir / "forecast_00000000.json").read_text())
    assert written == pytest.approx({"protocol": found.protocol, **found.metrics})
    with pytest.raises(ConfigError, match="leaves nothing of series"):
        forecasts.forecast(run, forecasts.Options(horizon=10_000))


def test_chains_are_summed_up_and_written(tmp_path):
    run = untrained("nuts_eight_schools", tmp_path / "run")
    with pytest.raises(UserError, match="there are no draws at step 0"):
        chains.chains(run)
    noise = np.random.default_rng(0).normal(size=run.state.extra["draws"].shape).astype(np.float32)
    state = run.state.replace(step=jnp.int32(4), extra={**run.state.extra, "draws": jnp.asarray(noise)})
    checkpoints = Checkpoints(run.workdir)
    checkpoints.save(4, state)
    checkpoints.close()
    num_draws, num_chains, num_parameters = noise.shape
    result = call("chains", str(run.workdir), "--num_shown=2", "--training.mesh=data:1")
    assert result.returncode == 0, result.stderr
    assert f"{num_chains} chains of {num_draws} draws" in result.stdout
    rows = (run.workdir / "chains.csv").read_text().splitlines()
    assert rows[0].startswith("parameter,") and len(rows) == 1 + num_parameters
    assert all((run.workdir / f"chains{ending}").is_file() for ending in (".npz", "_trace.png", "_pairs.png"))
    with pytest.raises(ConfigError, match="has no hidden states"):
        states.draw(run)


def test_hidden_states_are_drawn_or_told(tmp_path):
    hmm, mixture = untrained("hmm_chords", tmp_path / "hmm"), untrained("gmm_two_moons", tmp_path / "mixture")
    assert [path.name for path in states.draw(hmm, states.Options(num_rows=2))] == ["transition.png", "paths.png"]
    assert call("states", str(mixture.workdir), "--training.mesh=data:1").stdout.endswith("ellipses.png\n")
    assert states.motions(hmm) is None
    with pytest.raises(ConfigError, match="has no chains"):
        chains.chains(hmm)
    kalman = untrained("kalman_waves", tmp_path / "kalman")
    motions = states.motions(kalman)
    assert all(modulus > 0 and (period > 0 or np.isinf(period)) for modulus, period in motions)
    assert len(call("states", str(kalman.workdir), "--training.mesh=data:1").stdout.splitlines()) == len(motions)
