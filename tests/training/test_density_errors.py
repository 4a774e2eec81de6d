"""What a user of a density model can do wrong ends in one sentence, from the data set to the step that broke."""

import jax
import numpy as np
import pytest
from absl import flags

from experiments import command_line
from genjax import config
from genjax.data import Points
from genjax.data.base import DataError
from genjax.families.vae.vae import VAE
from genjax.tools import conditions, samples
from genjax.training import resolve, train

TINY = {
    "data.batch_size": 8,
    "training.num_steps": 2,
    "training.steps_per_dispatch": 1,
    "training.sample_every": None,
    "training.evaluate_every": None,
    "training.best_metric": None,
    "training.tensorboard": False,
    "training.compilation_cache": "",
}


def experiment(name, **changes):
    """The shrunk experiment with further overrides, dots written as two underscores."""
    config.import_experiments()
    entry = config.find_experiment(name)
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return config.apply_overrides(entry.build(), {**entry.shrunk, **TINY, **changes})


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("real_nvp_two_moons", {"model__logit_alpha": 0.05}, "values are declared to lie in [0, 1], but reach from"),
        ("glow_digits", {"data__pad_to": (9, 9)}, "squeeze needs images of even height and width, got shape (9, 9, 1)"),
        ("real_nvp_two_moons", {"model__base__dim": 3}, "base distribution has 3 dimensions but the data have 2"),
        (
            "fvsbn_mnist",
            {"data__preprocessing": "levels"},
            "the data have values from 0 to 16, but Bernoulli declares 0 to 1; "
            "change data.preprocessing (binarize_dynamic for",
        ),
        ("vq_prior_digits", {"model__untrained_vq_vae": False}, "give its run by --training.init_from=RUN"),
    ],
    ids=["values_out_of_range", "odd_size", "base_of_another_dimension", "levels_without_probability", "no_vq_vae"],
)
def test_bad_input_is_one_sentence(name, changes, message, tmp_path, capsys):
    run = lambda _: train(experiment(name, **changes), tmp_path, name=name, quiet=True)
    with jax.debug_nans(False), pytest.raises(SystemExit):
        command_line.run(run)
    sentence = capsys.readouterr().err
    assert message in sentence and sentence.count("\n") == 1


def test_columns_of_a_table_can_be_what_the_others_are_modelled_given(tmp_path):
    file = tmp_path / "table.csv"
    rows = np.random.default_rng(0).normal(size=(50, 3)) * [1.0, 10.0, 5.0] + [0.0, 3.0, -2.0]
    np.savetxt(file, rows, delimiter=",", header="height,age,weight", comments="")
    changes = {"data__name": "table", "data__dir": str(file)}
    chosen = resolve(experiment("spline_table", **changes, data__condition_columns=("age",)))
    assert chosen.model.data_shape == (2,) and chosen.model.condition_dim == 1
    data = chosen.data
    arrays = data.load("train").arrays()
    batch = data.transform({name: jax.numpy.asarray(a) for name, a in arrays.items()}, jax.random.key(0))
    assert batch["x"].shape == (40, 2) and batch["condition"].shape == (40, 1)
    np.testing.assert_allclose(batch["condition"].mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(batch["condition"].std(0), 1.0, rtol=1e-4)
    np.testing.assert_allclose(batch["log_abs_det"], -np.log(arrays["x"].std(0)).sum(), rtol=1e-4)
    table = next(path for path in data.write_samples(batch["x"], tmp_path / "samples") if path.suffix == ".csv")
    assert table.read_text().startswith("height,weight\n")
    np.testing.assert_allclose(np.loadtxt(table, delimiter=",", skiprows=1), arrays["x"], rtol=1e-4, atol=1e-4)
    seen = conditions.condition_for(chosen.model, data, arrays["condition"][3].tolist(), 2)
    np.testing.assert_allclose(seen, np.tile(batch["condition"][3], (2, 1)), rtol=1e-4)
    with pytest.raises(flags.Error, match="--condition=old: 'old' is not numbers separated by commas"):
        config.from_flags(["sample", "--condition=old"], samples.Options())
    with pytest.raises(DataError, match="2 values are given, but these are the data's condition columns: age"):
        conditions.condition_for(chosen.model, data, [1.0, 2.0], 2)
    with pytest.raises(config.ConfigError, match="VAE is not conditional on columns"):
        conditions.condition_for(VAE(), data, [1.0], 2)
    with pytest.raises(DataError, match="has no column size; it has height, age, weight"):
        Points(name="table", dir=str(file), condition_columns=("size",)).load("train")
    with pytest.raises(DataError, match="none is left"):
        Points(name="table", dir=str(file), condition_columns=("height", "age", "weight")).load("train")
    # One flag comes before the other, so that neither alone may be refused.
    changed = config.apply_overrides(Points(), {"condition_columns": ("age",), "name": "table", "dir": str(file)})
    assert changed.spec() == {"data_shape": (2,), "condition_dim": 1}
    with pytest.raises(DataError, match="two_moons has none"):
        Points(condition_columns=("x",)).spec()
