"""What a user of the autoregressive models can do wrong on the command line ends in one sentence."""

import pytest

from tests.training.tiny_runs import call, flags

SMALL = {
    "data.name": "digits",
    "data.batch_size": 8,
    "training.num_steps": 2,
    "training.steps_per_dispatch": 1,
    "training.tensorboard": False,
    "training.compilation_cache": "",
}


@pytest.mark.parametrize(
    ("experiment", "overrides", "message"),
    [
        (
            "fvsbn_mnist",
            {**SMALL, "data.preprocessing": "levels"},
            "examples have values from 0 to 16, but Bernoulli declares 0 to 1; change model.output or data.preprocessing",
        ),
        ("vq_prior_digits", SMALL, "give its run by --training.init_from=RUN"),
    ],
)
def test_a_run_that_would_learn_nothing_true_stops(experiment, overrides, message, tmp_path):
    result = call("train", f"--experiment={experiment}", f"--workdir={tmp_path / 'run'}", *flags(overrides))
    assert result.returncode == 1 and message in result.stderr, result.stderr
    assert "Traceback" not in result.stderr
