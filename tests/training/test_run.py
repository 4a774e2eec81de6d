"""A restored run refuses conditions that there are not, and draws many samples in batches."""

from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from genjax import config
from genjax.config import ConfigError
from genjax.data import Text
from genjax.families.vae.vae import VAE
from genjax.training import Run, resolve
from genjax.training.engine import Engine


def run_of(name: str, sample, **data) -> Run:
    """A run without a state, whose engine draws with `sample`."""
    experiment = resolve(config.apply_overrides(config.find_experiment(name).build(), data))
    return Run(name, Path(), experiment, None, SimpleNamespace(sample=sample))


def repeats_labels(state, key, num_samples, label):
    return np.asarray(label)


CONDITIONAL = ["conditional_vae_digits", "glow_digits", "gated_pixel_cnn_digits", "edm_digits", "dcgan_digits"]


@pytest.mark.parametrize("name", CONDITIONAL)
@pytest.mark.parametrize("label", [12, -1, [3, 12]])
def test_a_class_that_there_is_not_is_refused(name, label):
    changes = {"edm_digits": {"model.condition_on": ("label",)}, "dcgan_digits": {"model.conditioning": "projection"}}
    run = run_of(name, repeats_labels, **changes.get(name, {}))
    with pytest.raises(ValueError, match="labels must lie between 0 and 9"):
        run.sample(jax.random.key(0), 2, label=label)
    assert run.sample(jax.random.key(0), 2, label=np.array([9, 0])).tolist() == [9, 0]


def test_many_samples_are_drawn_in_batches_with_their_conditions_and_all_classes_in_turn():
    run = run_of("conditional_vae_digits", repeats_labels, **{"data.eval_batch_size": 7})
    np.testing.assert_array_equal(run.sample(jax.random.key(0), 24), np.arange(24) % 10)
    own = np.arange(24)[::-1] // 3
    np.testing.assert_array_equal(run.sample(jax.random.key(0), 24, label=own), own)

    def noise(state, key, num_samples, prompt):
        assert num_samples == 7 and prompt.shape == (24,)
        return np.asarray(jax.random.normal(key, (num_samples, 2)))

    run = run_of("vae_digits", noise, **{"data.eval_batch_size": 7})
    # A prompt is of all samples, though it has as many tokens as there are samples.
    samples = run.sample(jax.random.key(0), 24, prompt=np.zeros(24, np.int32))
    assert samples.shape == (24, 2) and len(np.unique(samples)) == 48


def test_data_that_lack_what_the_model_reads_are_refused_with_what_they_give():
    experiment = config.find_experiment("vae_digits").build()
    with pytest.raises(
        ConfigError, match=r"^VAE reads x, and Text \(python_topics\) gives mask, .* tokens, .*; choose other"
    ):
        Engine(resolve(config.override(experiment, "data", Text())))


def test_engines_of_equal_experiments_trace_a_model_once(monkeypatch):
    traced = []
    monkeypatch.setattr(
        VAE, "init", lambda self, key, batch, init=VAE.init: traced.append(key) or init(self, key, batch)
    )
    changes = {
        "model.network.hidden_dims": (3,),
        "model.latent_dim": 2,
        "data.batch_size": 8,
        "training.mesh": "data:1",
    }
    experiment = resolve(config.apply_overrides(config.find_experiment("vae_digits").build(), changes))
    first, second = Engine(experiment), Engine(experiment)
    assert all(map(np.array_equal, *map(jax.tree.leaves, (first.init().params, second.init().params))))
    assert len(traced) == 1
