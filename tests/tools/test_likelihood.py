"""What the likelihood of a run is held against is made like the pictures of the run."""

import jax
import numpy as np
import pytest

from genjax.config import ConfigError
from genjax.data import Images, Points
from genjax.tools import likelihood
from genjax.tools.likelihood import Options, altered, compare, fitted, has_density, other_set
from tests.experiments.commands import call
from tests.tools.untrained import untrained


def test_levels_of_another_set_keep_black_and_white():
    binary = np.array([0, 1], np.uint8).reshape(1, 2, 1, 1)
    np.testing.assert_array_equal(fitted(binary, (2, 1, 1), 2, 256).ravel(), [0, 255])
    grey = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    np.testing.assert_array_equal(fitted(grey, (16, 16, 1), 256, 256), grey)
    few = fitted(grey, (16, 16, 1), 256, 17)
    assert few.min() == 0 and few.max() == 16 and (np.diff(few.ravel().astype(int)) >= 0).all()


def test_pictures_are_scaled_and_lose_their_colours():
    colour = np.zeros((2, 4, 4, 3), np.uint8)
    colour[:, :2] = 255
    np.testing.assert_array_equal(fitted(colour, (2, 2, 1), 256, 256)[0, ..., 0], [[255, 255], [0, 0]])
    assert fitted(colour[..., :1], (8, 8, 3), 256, 256).shape == (2, 8, 8, 3)
    with pytest.raises(ConfigError, match="3 channels cannot be made into those of 4"):
        fitted(colour, (4, 4, 4), 256, 256)


def test_another_set_is_read_in_the_form_of_the_run():
    others = other_set(Images(name="digits", classes=(1, 2)), "shapes", "test", (8, 8, 1), 5)["x"]
    assert others.shape == (5, 8, 8, 1) and others.dtype == np.uint8
    own = Images(name="shapes").load("test").arrays()["x"][:5]
    np.testing.assert_allclose(others.mean() / 16, own.mean() / 255, atol=0.05)
    with pytest.raises(ConfigError, match="the run \\(3,\\)"):
        other_set(Points(num_held_out=4, num_train=4), "circles", "test", (3,), 4)


def test_only_densities_stand_beside_a_normal_distribution():
    for preprocessing, expected in (
        ("dequantize", True),
        ("logit", True),
        ("binarize_dynamic", False),
        ("unit", False),
    ):
        data = Images(preprocessing=preprocessing)
        examples = data.load("test").gather(np.arange(2))
        assert has_density(data, examples, jax.random.key(0)) is expected
    points = Points(num_train=4, num_held_out=4)
    assert has_density(points, points.load("test").gather(np.arange(2)), jax.random.key(0))


@pytest.mark.parametrize("kind", ["uniform", "constant", "black", "inverted", "shuffled"])
def test_altered_pictures_keep_their_levels(kind):
    x = np.random.default_rng(0).integers(0, 17, (3, 8, 8, 1)).astype(np.uint8)
    other = altered(kind, x, 17)
    assert other.shape == x.shape and other.dtype == x.dtype and other.max() <= 16
    if kind == "shuffled":
        np.testing.assert_array_equal(np.sort(other.reshape(3, -1)), np.sort(x.reshape(3, -1)))


def test_a_density_stands_beside_a_normal_distribution_and_other_sets(tmp_path, monkeypatch):
    run = untrained("real_nvp_two_moons", tmp_path / "run")
    found = compare(run, Options(ood=("circles",), num_examples=50))
    assert list(found.likelihoods) == ["RealNVP", "full-covariance normal"] and list(found.roc_auc) == ["circles"]
    assert all(row.exact for row in found.likelihoods.values()) and 0.0 <= found.roc_auc["circles"] <= 1.0
    # A square a unit wider than the data holds most of the normal distribution that the flow begins with.
    assert 0.5 < found.integral < 1.001 and found.picture.stat().st_size > 1000
    nats = found.likelihoods["RealNVP"]
    assert nats.bits_per_dim == pytest.approx(-nats.log_likelihood / (2 * np.log(2)), rel=1e-5)
    with pytest.raises(ConfigError, match="--ood=black is made from pictures, but two_moons has none"):
        compare(run, Options(ood=("black",)))
    monkeypatch.setattr(likelihood, "compare", lambda run, options: found)
    shown = call("likelihood", str(tmp_path / "run"), "--ood=circles", "--num_examples=50")
    assert f"against circles          ROC-AUC {found.roc_auc['circles']:.4f}" in shown.stdout
    assert f"log-likelihood {nats.log_likelihood:10.4f} nats" in shown.stdout
