"""Families compared on the same pictures: likelihoods by what they are, and one table of all seeds."""

import dataclasses
import json
import math

import numpy as np
import pytest

import genjax
from genjax import config, training
from genjax.config import ConfigError
from genjax.tools import comparison
from tests.tools.untrained import untrained

CHANGES = {
    "model.component": "gaussian", "model.num_components": 1, "data.preprocessing": "dequantize",
    "training.num_steps": 2, "training.compilation_cache": "",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("normal") / "run"
    experiment = config.apply_overrides(config.find_experiment("bernoulli_mixture_digits").build(), CHANGES)
    training.train(experiment, workdir, name="bernoulli_mixture_digits", quiet=True, flags=["--training.num_steps=2"])
    return genjax.restore(workdir)


def test_noise_makes_a_density_a_bound_which_is_that_of_the_fitted_normal(run):
    train, test = (run.experiment.data.load(split).gather for split in ("train", "test"))
    count = len(run.experiment.data.load("train"))
    x, y = (
        get(np.arange(n))["x"].reshape(n, -1).astype(np.float64)
        for get, n in ((train, count), (test, len(run.experiment.data.load("test"))))
    )
    # Uniform noise adds 1/2 to the mean and 1/12 to the variance of a level.
    variance = x.var(0) + 1 / 12
    nats = 0.5 * np.log(2 * np.pi * variance) + ((y - x.mean(0)) ** 2 + 1 / 12) / (2 * variance)
    found = comparison.likelihoods(run)
    assert list(found) == ["bits/dim, bound"]
    assert found["bits/dim, bound"] == pytest.approx(nats.mean() / math.log(2), abs=0.02)


def test_levels_have_exact_probabilities_and_binary_pictures_nats(tmp_path):
    levels = untrained("gated_pixel_cnn_digits", tmp_path / "levels")
    (value,) = (found := comparison.likelihoods(levels)).values()
    assert list(found) == ["bits/dim, exact"] and value == pytest.approx(levels.evaluate()["bits_per_dim"], rel=1e-5)
    binary = untrained("bernoulli_mixture_digits", tmp_path / "binary")
    (value,) = (found := comparison.likelihoods(binary)).values()
    assert list(found) == ["nats, exact"] and value == pytest.approx(binary.evaluate()["nll"], rel=1e-5)


def test_a_record_is_kept_for_its_step_and_its_options(run):
    record = comparison.measure(run, "pixels", num_samples=64)
    assert json.loads(comparison.file_of(run.workdir, "test").read_text()) == record
    assert {"Frechet distance", "precision", "recall", "copied", "parameters", "bits/dim, bound"} <= set(record)
    assert record["parameters"] == 64 + 64 + 1
    # Samples of one normal distribution are farther from the split than training pictures are.
    assert record["Frechet distance"] > 2 * record["train"]["Frechet distance"]
    comparison.file_of(run.workdir, "test").write_text(json.dumps({**record, "recall": 2.0}))
    assert comparison.measure(run, "pixels", num_samples=64)["recall"] == 2.0
    assert comparison.measure(run, "pixels", num_samples=32)["recall"] < 2.0


def test_a_table_has_means_over_seeds_and_one_protocol(run):
    record = {
        "protocol": "a, step 1: Model on digits, 17 levels",
        "step": 1,
        "train": {"recall": 0.9},
        "floor": {"recall": 0.8},
    }
    seeds = [{**record, "bits/dim, exact": value, "recall": 0.5} for value in (2.0, 3.0)]
    table = comparison.table(
        {
            "a": seeds,
            "b": [{**record, "protocol": "b, step 2: Other on digits, 17 levels", "recall": 0.25}],
            "not trained": [],
        }
    )
    assert table.protocol == "comparison: digits, 17 levels"
    assert table.columns == ["bits/dim, exact", "recall"]
    assert [row.label for row in table.rows] == ["a", "b", "training pictures", "half of the split against the other"]
    assert (table.rows[0].cells[0].mean, table.rows[0].cells[0].count) == (2.5, 2) and table.rows[1].cells[0] is None
    with pytest.raises(ConfigError, match="were not measured alike"):
        comparison.table({"a": seeds, "b": [{**seeds[0], "protocol": "b, step 2: Other on digits, 2 levels"}]})


def test_what_is_no_picture_is_refused(run):
    data = config.find_experiment("gmm_two_moons").build().data
    other = dataclasses.replace(run, experiment=dataclasses.replace(run.experiment, data=data))
    with pytest.raises(
        ConfigError, match="families are compared on pictures; bernoulli_mixture_digits has Points data"
    ):
        comparison.measure(other, "pixels")
