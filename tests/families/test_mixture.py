"""Claims about mixtures, against scikit-learn and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from genjax.families.markov.emissions import Bernoulli, Gaussian
from genjax.families.mixture.mixture import MixtureModel, expected_log_sticks

K, D = 3, 2


@pytest.fixture(scope="module")
def points():
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [5, 0], [0, 5]])
    return {"x": jnp.asarray(centres[rng.integers(0, 3, 150)] + rng.normal(size=(150, D)), jnp.float32)}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("covariance", ["spherical", "diagonal", "tied", "full"])
def test_em_equals_that_of_scikit_learn(points, covariance):
    model = MixtureModel(num_components=K, component=Gaussian(covariance=covariance))
    state = model.init(jax.random.key(0), points)
    start = jax.tree.map(np.float64, state.params["parts"])
    full = np.asarray(model.component.covariances(start), np.float64)
    precision = np.linalg.inv(full)
    kind = {"diagonal": "diag"}.get(covariance, covariance)
    precisions = {
        "full": precision,
        "tied": precision[0],
        "diag": np.diagonal(precision, axis1=1, axis2=2),
        "spherical": precision[:, 0, 0],
    }[kind]
    peer = GaussianMixture(
        K, covariance_type=kind, max_iter=5, tol=0, weights_init=np.full(K, 1 / K), means_init=start["mean"],
        precisions_init=precisions,
    )  # fmt: skip
    x = np.asarray(points["x"], np.float64)
    peer.fit(x)
    step, losses = jax.jit(model.train_step), []
    for i in range(5):
        state, metrics = step(state, points, jax.random.key(i))
        losses.append(float(metrics["loss"]))
    assert (np.diff(losses) < 1e-4).all()
    np.testing.assert_allclose(state.params["parts"]["mean"], peer.means_, atol=2e-3)
    np.testing.assert_allclose(-model.log_prob(state, points).mean(), -peer.score(x), atol=1e-4)
    np.testing.assert_allclose(model.bic(state, points), peer.bic(x), rtol=1e-4)
    np.testing.assert_allclose(model.aic(state, points), peer.aic(x), rtol=1e-4)


def test_imputation_is_conditioning(points):
    model = MixtureModel(num_components=1, component=Gaussian(covariance="full"))
    state = model.init(jax.random.key(0), points)
    covariance = jnp.array([[2.0, 1.2], [1.2, 1.0]])
    parts = {"mean": jnp.array([[1.0, -1.0]]), "scale": jnp.linalg.cholesky(covariance)[None]}
    state = state.replace(params={"log_weights": jnp.zeros(1), "parts": parts})
    batch = {"x": jnp.array([[2.0, 99.0]] * 3000), "observed": jnp.array([[True, False]] * 3000)}
    filled = model.impute(state, batch)
    np.testing.assert_allclose(filled[0], [2.0, -1.0 + 1.2 / 2.0], atol=1e-5)
    drawn = np.asarray(model.impute(state, batch, jax.random.key(1)))
    np.testing.assert_allclose(drawn[:, 1].mean(), -0.4, atol=0.05)
    np.testing.assert_allclose(drawn[:, 1].var(), 1.0 - 1.2**2 / 2.0, atol=0.03)


def test_bernoulli_mixture_learns_and_imputes():
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, 200)
    x = jnp.asarray(rng.random((200, 6)) < np.where(kind[:, None] == np.arange(6) % 2, 0.95, 0.05), jnp.float32)
    model = MixtureModel(num_components=2, component=Bernoulli(), data_shape=(2, 3))
    batch = {"x": x.reshape(200, 2, 3)}
    state = model.init(jax.random.key(0), batch)
    step = jax.jit(model.train_step)
    for i in range(20):
        state, metrics = step(state, batch, jax.random.key(i))
    entropy = -(0.95 * np.log(0.95) + 0.05 * np.log(0.05))
    assert abs(metrics["loss"] - (6 * entropy + np.log(2))) < 0.2
    hidden = jnp.zeros((200, 2, 3), bool).at[:, 0].set(True)
    assert np.abs(np.asarray(model.impute(state, {**batch, "observed": hidden}) - batch["x"])).mean() < 0.15
    assert model.sample(state, jax.random.key(0), 3).shape == (3, 2, 3)


def test_a_dirichlet_process_prunes_what_the_data_do_not_need(points):
    model = MixtureModel(num_components=8, component=Gaussian(covariance="spherical", ridge=1e-2), concentration=0.1)
    state = model.init(jax.random.key(1), points)
    step = jax.jit(model.train_step)
    for i in range(300):
        state, metrics = step(state, points, jax.random.key(i))
    assert metrics["active_components"] < 8
    assert np.isfinite(model.log_prob(state, points)).all()


def test_sticks_of_a_large_sample_are_frequencies():
    counts = jnp.array([1e6, 3e6, 6e6])
    np.testing.assert_allclose(jnp.exp(expected_log_sticks(counts, 1.0)), [0.1, 0.3, 0.6], rtol=1e-3)


def test_a_singular_covariance_and_a_lost_component_stay_finite():
    batch = {"x": jnp.zeros((10, D)).at[0].set(1.0)}
    for covariance in ("full", "tied", "diagonal"):
        model = MixtureModel(num_components=4, component=Gaussian(covariance=covariance), start="random")
        state = model.init(jax.random.key(0), batch)
        for i in range(4):
            state, metrics = model.train_step(state, batch, jax.random.key(i))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, metrics)))
