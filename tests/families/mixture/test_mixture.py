"""Claims about mixtures, against scikit-learn and closed forms."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import betaln, multigammaln
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture

from genjax.families.mixture.dirichlet_process import DirichletProcessMixture, stick_posterior
from genjax.families.mixture.mixture import MixtureModel
from genjax.nn.emissions import Bernoulli, Gaussian
from tests.compiled import compiled

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
    state = compiled(model).init(jax.random.key(0), points)
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
        K, covariance_type=kind, max_iter=5, tol=0,
        weights_init=np.full(K, 1 / K), means_init=start["mean"],
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
    np.testing.assert_allclose(-compiled(model).log_prob(state, points).mean(), -peer.score(x), atol=1e-4)
    np.testing.assert_allclose(model.bic(state, points), peer.bic(x), rtol=1e-4)
    np.testing.assert_allclose(model.aic(state, points), peer.aic(x), rtol=1e-4)


def test_imputation_is_conditioning(points):
    model = MixtureModel(num_components=1, component=Gaussian(covariance="full"))
    state = compiled(model).init(jax.random.key(0), points)
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
    state = compiled(model).init(jax.random.key(0), batch)
    step = jax.jit(model.train_step)
    for i in range(20):
        state, metrics = step(state, batch, jax.random.key(i))
    entropy = -(0.95 * np.log(0.95) + 0.05 * np.log(0.05))
    assert abs(metrics["loss"] - (6 * entropy + np.log(2))) < 0.2
    hidden = jnp.zeros((200, 2, 3), bool).at[:, 0].set(True)
    assert np.abs(np.asarray(model.impute(state, {**batch, "observed": hidden}) - batch["x"])).mean() < 0.15
    assert compiled(model).sample(state, jax.random.key(0), 3).shape == (3, 2, 3)


def test_imputation_by_several_components_is_conditioning_of_their_density():
    model = MixtureModel(num_components=2, component=Gaussian(covariance="full"))
    factors = jnp.array([[[1.0, 0.0], [0.8, 0.5]], [[0.6, 0.0], [-0.9, 0.7]]])
    parts = {"mean": jnp.array([[0.0, 1.0], [1.0, -2.0]]), "scale": factors}
    params = {"log_weights": jnp.log(jnp.array([0.3, 0.7])), "parts": parts}
    state = compiled(model).init(jax.random.key(0), {"x": jnp.ones((2, 2))}).replace(params=params)
    grid = np.linspace(-10, 10, 4001)
    density = np.exp(
        compiled(model).log_prob(state, {"x": jnp.stack([jnp.full(4001, 0.4), jnp.asarray(grid, jnp.float32)], 1)})
    )
    density = np.float64(density) / density.sum()
    batch = {"x": jnp.array([[0.4, 99.0]] * 4000), "observed": jnp.array([[True, False]] * 4000)}
    mean = (grid * density).sum()
    np.testing.assert_allclose(model.impute(state, batch)[0, 1], mean, atol=1e-4)
    drawn = np.asarray(model.impute(state, batch, jax.random.key(1)))[:, 1]
    np.testing.assert_allclose(drawn.mean(), mean, atol=0.08)
    np.testing.assert_allclose(drawn.var(), ((grid - mean) ** 2 * density).sum(), rtol=0.08)
    np.testing.assert_allclose((drawn < 0).mean(), density[grid < 0].sum(), atol=0.03)


def run(model, batch, num_steps):
    """The state after a number of steps, and the losses."""
    step = lambda state, _: model.train_step(state, batch, jax.random.key(0))
    scan = jax.jit(lambda s: jax.lax.scan(step, s, length=num_steps))
    return scan(compiled(model).init(jax.random.key(1), batch))


def test_a_dirichlet_process_prunes_what_the_data_do_not_need_as_scikit_learn_does(points):
    model = DirichletProcessMixture(num_components=8, concentration=0.1)
    state, metrics = run(model, points, 400)
    assert (np.diff(metrics["loss"]) < 1e-4).all()
    assert metrics["active_components"][-1] == 3
    x = np.asarray(points["x"], np.float64)
    peer = BayesianGaussianMixture(
        n_components=8, weight_concentration_prior_type="dirichlet_process", weight_concentration_prior=0.1, tol=1e-6,
        max_iter=400, mean_precision_prior=1.0, degrees_of_freedom_prior=D, covariance_prior=D * np.cov(x.T, ddof=0),
        random_state=0,
    ).fit(x)  # fmt: skip
    mine, other = np.argsort(-state.params["log_weights"])[:3], np.argsort(-peer.weights_)[:3]
    parts = state.params["parts"]
    # The peer breaks the stick in the order of its start, which tells in the weights.
    np.testing.assert_allclose(jnp.exp(state.params["log_weights"])[mine], peer.weights_[other], atol=0.02)
    np.testing.assert_allclose(parts["mean"][mine], peer.means_[other], atol=0.01)
    np.testing.assert_allclose(model.component.covariances(parts)[mine], peer.covariances_[other], atol=0.02)
    np.testing.assert_allclose(jnp.exp(state.params["log_weights"]).sum(), 1.0, rtol=1e-5)


def test_bits_and_diagonal_normals_are_pruned_as_well(points):
    rng = np.random.default_rng(0)
    bits = rng.random((200, 8)) < np.where(rng.integers(0, 2, (200, 1)) == np.arange(8) % 2, 0.95, 0.05)
    for component, x, count in (
        (Bernoulli(pseudo_count=1.0), jnp.asarray(bits, jnp.float32), 2),
        (Gaussian(), points["x"], 3),
    ):
        state, metrics = run(DirichletProcessMixture(num_components=6, component=component), {"x": x}, 300)
        assert (np.diff(metrics["loss"]) < 1e-4).all()
        assert metrics["active_components"][-1] == count


@pytest.mark.parametrize("component", [Gaussian(covariance="full", ridge=0.0), Gaussian(ridge=0.0), Bernoulli()])
def test_the_bound_of_one_component_is_the_evidence(points, component):
    x = np.asarray(points["x"], np.float64)
    if isinstance(component, Bernoulli):
        x = np.float64(x > 0)
    model = DirichletProcessMixture(num_components=1, component=component, mean_precision=0.5)
    loss = float(run(model, {"x": jnp.asarray(x, jnp.float32)}, 2)[1]["loss"][-1])

    def normal(x):
        """Normal-Wishart evidence (Murphy 2007, eq. 266) of x [N, d]."""
        n, d = x.shape
        start, beta, nu = d * np.cov(x.T, ddof=0).reshape(d, d), 0.5 + n, d + n
        # The prior mean is that of the data.
        scatter = start + n * np.cov(x.T, ddof=0).reshape(d, d)
        log_det = lambda a: np.linalg.slogdet(a)[1]
        return (
            -0.5 * n * d * np.log(np.pi) + multigammaln(nu / 2, d) - multigammaln(d / 2, d)
            + 0.5 * (d * log_det(start) - nu * log_det(scatter) + d * np.log(0.5 / beta))
        )  # fmt: skip

    if isinstance(component, Bernoulli):
        a, ones = component.pseudo_count, x.sum(0)
        evidence = (betaln(a + ones, a + len(x) - ones) - betaln(a, a)).sum()
    else:
        evidence = normal(x) if component.covariance == "full" else sum(normal(column[:, None]) for column in x.T)
    np.testing.assert_allclose(loss, -evidence / len(x), rtol=1e-4)


def test_sticks_of_a_large_sample_are_frequencies():
    for log_weights in stick_posterior(jnp.array([1e6, 3e6, 6e6]), 1.0)[:2]:
        np.testing.assert_allclose(jnp.exp(log_weights), [0.1, 0.3, 0.6], rtol=1e-3)
    with pytest.raises(ValueError, match="full or diagonal"):
        DirichletProcessMixture(component=Gaussian(covariance="tied"))
    with pytest.raises(ValueError, match="degrees_of_freedom=1.0"):
        DirichletProcessMixture(degrees_of_freedom=1.0).init(jax.random.key(0), {"x": jnp.eye(3)})
    with pytest.raises(ValueError, match="above 0"):
        DirichletProcessMixture(concentration=0.0)


def test_a_singular_covariance_and_a_lost_component_stay_finite():
    batch = {"x": jnp.zeros((10, D)).at[0].set(1.0)}
    for covariance in ("full", "tied", "diagonal"):
        model = MixtureModel(num_components=4, component=Gaussian(covariance=covariance), start="random")
        state = model.init(jax.random.key(0), batch)
        for i in range(4):
            state, metrics = model.train_step(state, batch, jax.random.key(i))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, metrics)))
        if covariance != "diagonal":
            assert any("singular but for the ridge" in text for text in model.warnings(metrics))


def test_a_component_without_examples_begins_again_as_wide_as_all(points):
    model = MixtureModel(num_components=2, component=Gaussian(covariance="diagonal"))
    state = model.init(jax.random.key(0), points)
    far = {**state.params["parts"], "mean": state.params["parts"]["mean"].at[0].set(1e4)}
    step = jax.jit(model.train_step)
    state, metrics = step(state.replace(params={**state.params, "parts": far}), points, jax.random.key(1))
    assert metrics["empty_components"] == 1
    np.testing.assert_allclose(state.params["parts"]["scale"][0], points["x"].std(0), rtol=1e-3)
    for i in range(4):
        state, metrics = step(state, points, jax.random.key(i))
    # No component of a single example.
    assert np.exp(state.params["log_weights"]).min() > 0.05


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_a_number_far_from_all_others_costs_no_digits(points, covariance):
    x = jnp.concatenate([points["x"], jnp.full((1, D), 1e3)])
    parts = {"mean": jnp.concatenate([x[:K], x[-1:]]), "scale": jnp.ones((K + 1, D))}
    if covariance == "full":
        parts["scale"] = jnp.tile(jnp.eye(D), (K + 1, 1, 1))
    model = MixtureModel(num_components=K + 1, component=Gaussian(covariance=covariance))
    state = model.init(jax.random.key(0), {"x": x})
    state = state.replace(params={**state.params, "parts": parts})
    peer = GaussianMixture(
        K + 1, covariance_type={"diagonal": "diag"}.get(covariance, covariance), max_iter=5, tol=0,
        weights_init=np.full(K + 1, 1 / (K + 1)),
        means_init=np.float64(parts["mean"]), precisions_init=np.float64(parts["scale"]),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer.fit(np.float64(x))
    step = jax.jit(model.train_step)
    for i in range(5):
        state, _ = step(state, {"x": x}, jax.random.key(i))
    log_prob = model.log_prob(state, {"x": x[:-1]})
    np.testing.assert_allclose(log_prob.mean(), peer.score_samples(np.float64(x[:-1])).mean(), atol=1e-3)
    np.testing.assert_allclose(state.params["parts"]["mean"], peer.means_, atol=5e-3)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_averaged_counts_give_the_covariance_although_the_means_move(points, covariance):
    model = MixtureModel(num_components=1, component=Gaussian(covariance=covariance), averaging=0.6)
    state = model.init(jax.random.key(0), points)
    state = state.replace(params={**state.params, "parts": {**state.params["parts"], "mean": jnp.full((1, D), 50.0)}})
    for i in range(2):
        state, _ = model.train_step(state, points, jax.random.key(i))
    found, expected = model.component.covariances(state.params["parts"])[0], np.cov(points["x"].T, bias=True)
    np.testing.assert_allclose(found, expected if covariance == "full" else np.diag(np.diag(expected)), atol=1e-2)
