"""The measurement of watermarks: what is edited, how often chance looks marked, and both kinds of runs."""

import json

import numpy as np
import pytest

from genjax.config import ConfigError
from genjax.decoding import Watermark
from genjax.errors import UserError
from genjax.tools import watermarks
from genjax.tools.watermarks import CHANGES, Options, area, edit, p_value_of_texts
from tests.tools.untrained import untrained


def test_as_many_tokens_are_replaced_as_asked_for():
    rows = np.zeros((5, 40), np.int32)
    for share, count in ((0.0, 0), (0.25, 10), (1.0, 40)):
        edited = edit(rows, share, np.array([1, 2]), np.random.default_rng(0))
        assert ((edited != 0).sum(1) == count).all() and rows.sum() == 0


def test_random_tokens_look_marked_as_often_as_the_detector_says():
    # Large vocabulary and long texts: the score is nearly normal, and no pair stands twice.
    rows = np.random.default_rng(0).integers(0, 97, (1000, 60)).astype(np.int32)
    p_values = p_value_of_texts(Watermark(seed=1, green_fraction=0.5), 97)(rows)
    for level in (0.5, 0.1, 0.01):
        assert abs((p_values < level).mean() - level) < 4.0 * (level * (1 - level) / 1000) ** 0.5 + 0.2 * level, level


def test_the_area_is_the_share_of_pairs_in_the_right_order():
    assert area(np.array([0.0, 0.1]), np.array([0.2, 0.3])) == 1.0
    assert area(np.array([0.2, 0.2]), np.array([0.2, 0.1])) == 0.25


def test_changes_keep_the_shape_of_a_picture_and_the_turn_is_a_turn():
    x = np.random.default_rng(0).integers(0, 256, (8, 8, 1)).astype(np.uint8)
    for name, change in CHANGES.items():
        assert change(x).shape == x.shape and change(x).dtype == np.uint8, name
    np.testing.assert_array_equal(CHANGES["turned"](x)[:, 0], x[0, ::-1])
    assert not np.array_equal(CHANGES["noise 0.1"](x), x)


def test_texts_of_a_run_are_found_and_edits_hide_them(tmp_path):
    run = untrained("gpt_reviews", tmp_path / "run")
    options = Options(num_samples=16, num_windows=100, lengths=(10, 40), edits=(1.0,), delta=8.0)
    found = watermarks.measure(run, options)
    rows = {(row["what"], row["tokens"], row["edited"]): row for row in found.figures}
    # The untrained model is nearly uniform, so that nearly every token is green.
    assert rows["marked", 40, 0.0]["p<1e-05"] == 1.0 and rows["marked", 40, 1.0]["p<1e-05"] == 0.0
    assert rows["human", 10, 0.0]["texts"] == 100 and rows["human", 40, 0.0]["p<1e-05"] < 0.05
    assert json.loads((run.workdir / "watermark.json").read_text())["figures"] == list(found.figures)
    with pytest.raises(ConfigError, match="context has 64 tokens"):
        watermarks.texts(run, Options(num_samples=2, lengths=(64,)))


def test_pictures_of_a_run_are_found(tmp_path):
    network = {
        "model.network": "residual_mlp", "model.network.hidden_dim": 4, "model.network.num_blocks": 1,
        "model.sampler.num_steps": 5,
    }  # fmt: skip
    run = untrained("edm_digits", tmp_path / "run", network)
    found = watermarks.measure(run, Options(num_samples=20, radius=2, num_steps=8))
    rows = {(row["what"], row["change"]): row for row in found.figures}
    # What an untrained network draws is its noise, smaller: the way back is nearly exact.
    assert rows["marked", "none"]["area"] > 0.9 and rows["unmarked", "none"]["p<0.001"] <= 0.1
    with pytest.raises(UserError, match="radius=4 must be less than half"):
        watermarks.pictures(run, Options(radius=4))


def test_options_and_runs_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="--edits=1.5 must be shares"):
        Options(edits=(1.5,))
    with pytest.raises(ConfigError, match="at least two tokens"):
        Options(lengths=(1,))
    run = untrained("edm_points", tmp_path / "run", {"model.network": "residual_mlp"})
    with pytest.raises(ConfigError, match="watermarks are for models that continue text"):
        watermarks.measure(run)
