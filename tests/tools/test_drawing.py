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


def test_attention_and_embeddings_are_drawn(tmp_path):
    weights = np.full((2, 3, 4), 0.25)
    png, page = drawing.write_attention([weights, weights], ["a", "<", " "], list("wxyz"), tmp_path / "attention")
    content = page.read_text()
    assert png.stat().st_size > 0 and content.count("<table>") == 4 and "<th>&lt;" in content and "z 0.250" in content
    with pytest.raises(ValueError, match="does not fit 2 rows"):
        drawing.write_attention([weights], ["a", "b"], list("wxyz"), tmp_path / "attention")
    # Points of a plane in five dimensions keep their distances.
    rng = np.random.default_rng(0)
    points = rng.normal(size=(20, 2)) @ np.linalg.qr(rng.normal(size=(5, 2)))[0].T
    flat, shares = drawing.principal_plane(points)
    np.testing.assert_allclose(np.linalg.norm(flat[3] - flat[7]), np.linalg.norm(points[3] - points[7]))
    assert shares.sum() == pytest.approx(1)
    assert drawing.write_embeddings(points, ["$"] * 20, tmp_path / "map.png").stat().st_size > 0
    with pytest.raises(ValueError, match="a name for each"):
        drawing.write_embeddings(points, ["a"], tmp_path / "map.png")


def test_a_density_is_drawn_beside_its_data(tmp_path):
    rng, corner = np.random.default_rng(0), np.full(2, 3.0)
    drawing.draw_density(rng.random((60, 60)), -corner, corner, rng.normal(size=(100, 2)), tmp_path / "density.png")
    assert (tmp_path / "density.png").stat().st_size > 1000
