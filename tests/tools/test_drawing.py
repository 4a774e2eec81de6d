"""Claims about the pictures and files that show chains, states and components."""

import numpy as np
import pytest
from PIL import Image

from genjax.tools import drawing


def test_draws_are_named_by_place_and_come_back_as_an_object_of_arviz(tmp_path):
    rng = np.random.default_rng(0)
    posterior = {"mu": rng.normal(size=(2, 50)), "theta": rng.normal(size=(2, 50, 3))}
    names, draws = drawing.columns(posterior)
    assert names == ["mu", "theta[0]", "theta[1]", "theta[2]"]
    np.testing.assert_array_equal(draws[:, :, 2], posterior["theta"][:, :, 1])
    drawing.plot_traces(names, draws, tmp_path / "trace.png")
    with Image.open(tmp_path / "trace.png") as picture:
        assert picture.size[0] == 900
    pytest.importorskip("arviz")
    flat = {f"posterior/{name}": a for name, a in posterior.items()}
    np.savez(tmp_path / "chains.npz", **flat, **{"sample_stats/diverging": np.zeros((2, 50), bool)})
    data = drawing.load_arviz(tmp_path / "chains.npz")
    np.testing.assert_array_equal(data["posterior"]["theta"].values, posterior["theta"])


def test_transitions_paths_and_ellipses_are_drawn(tmp_path):
    rng = np.random.default_rng(0)
    drawing.draw_transitions(np.float32([[0.9, 0.1], [0.5, 0.5]]), tmp_path / "transition.png")
    drawing.draw_paths(
        rng.integers(0, 2, (4, 9)), np.arange(9)[None] < np.array([[9], [4], [0], [7]]), 2, tmp_path / "p.png"
    )
    covariance = np.stack([np.eye(2), [[1.0, 0.8], [0.8, 1.0]]])
    x, mean = rng.normal(size=(50, 2)), rng.normal(size=(2, 2))
    drawing.draw_ellipses(x, mean, covariance, np.array([0.9, 0.1]), tmp_path / "e.png")
    for name in ("transition", "p", "e"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert np.asarray(picture.convert("L")).std() > 5
