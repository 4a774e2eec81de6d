"""The command that compares families: its systems exist, and it says what it cannot do."""

import shlex

import pytest

from experiments import families
from genjax import config
from genjax.config import ConfigError
from genjax.training import resolve


@pytest.mark.parametrize("pictures", families.SYSTEMS)
def test_every_system_is_an_experiment_on_these_pictures(pictures, tmp_path):
    options = families.Options(pictures=pictures, num_steps=7)
    systems = families.chosen(options)
    for system in [*systems, families.FEATURES]:
        (experiment,) = config.from_flags(
            ["families", *shlex.split(system.flags)], config.find_experiment(system.experiment).build()
        )
        data = resolve(experiment).data
        assert data.name == "digits", system.name
        assert (data.levels == 2) == (pictures == "binary_digits" and system is not families.FEATURES), system.name
    directories = {run.workdir for s in systems for run, _ in families.runs_of(s, options, tmp_path, 2)}
    assert len(directories) == 2 * len(systems)


def test_a_system_may_start_from_another(tmp_path):
    (prior,) = families.chosen(families.Options(systems=("prior",)))
    ((run, line),) = families.runs_of(prior, families.Options(num_steps=9), tmp_path, 1)
    ((first, _),) = families.runs_of(prior.first, families.Options(), tmp_path, 1)
    assert f"--training.init_from={first.workdir}" in line and "--training.num_steps=9" in line and run.num_steps == 9


def test_an_unknown_system_is_one_sentence():
    with pytest.raises(ConfigError, match="--systems=glov is in no name; those of digits are normal distribution"):
        families.main(["families", "--systems=glov"])
