"""The family that the README shows is complete: it trains, resumes and samples as it stands there."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

import genjax
from genjax import config
from genjax.data import procedural
from genjax.training import train

pytestmark = pytest.mark.quick

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_family_of_the_readme_learns_its_data(tmp_path):
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "class FlowMatching" in block
    ]
    assert len(code.splitlines()) < 70 and len([line for line in code.splitlines() if line.strip()]) < 60
    (tmp_path / "flow_matching.py").write_text(code)
    experiment = config.find_experiment(f"{tmp_path / 'flow_matching.py'}:moons").build()
    short = {
        "training.num_steps": 1500,
        "training.compilation_cache": "",
        "training.tensorboard": False,
        "training.mesh": "data:1",
    }
    experiment = config.apply_overrides(experiment, short)
    state = train(experiment, tmp_path / "run", quiet=True)
    assert (tmp_path / "run" / "samples" / "samples_00001500.png").stat().st_size > 0

    run = genjax.restore(tmp_path / "run")
    samples = run.sample(jax.random.key(1), 2000)
    data = procedural.DENSITIES["two_moons"](np.random.default_rng(1), 2000)
    assert int(state.step) == 1500
    # Nearest data points: as close to the moons as further data are, up to the roughness of a short training.
    distance = np.sqrt(((samples[:, None] - data[None]) ** 2).sum(-1)).min(1)
    assert np.mean(distance) < 0.12
    np.testing.assert_allclose(samples.mean(0), data.mean(0), atol=0.2)
    np.testing.assert_allclose(samples.std(0), data.std(0), atol=0.2)
