"""Claims about hidden Markov models, against enumeration of all state paths and against hmmlearn."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.families.markov import inference
from genjax.families.markov.hidden_markov_model import HiddenMarkovModel
from genjax.nn.emissions import Bernoulli, Categorical, Gaussian, Mixture
from genjax.optimizers import SGD
from tests.compiled import compiled

B, T, K, D = 3, 5, 3, 2


@pytest.fixture(scope="module")
def chain():
    keys = jax.random.split(jax.random.key(0), 3)
    initial = jax.nn.log_softmax(jax.random.normal(keys[0], (K,)))
    transition = jax.nn.log_softmax(2 * jax.random.normal(keys[1], (K, K)))
    return initial, transition, 2 * jax.random.normal(keys[2], (B, T, K))


@pytest.fixture(scope="module")
def paths(chain):
    """Every path with its joint log-probability, [K^T, T] and [B, K^T]."""
    initial, transition, likelihood = map(np.asarray, chain)
    paths = np.array(list(itertools.product(range(K), repeat=T)))
    log_prior = initial[paths[:, 0]] + transition[paths[:, :-1], paths[:, 1:]].sum(1)
    return paths, log_prior + likelihood[:, np.arange(T), paths].sum(-1)


@pytest.mark.parametrize("parallel", [False, True])
def test_posteriors_equal_enumeration(chain, paths, parallel):
    every, joint = paths
    total = np.logaddexp.reduce(joint, 1)
    posterior = jax.jit(lambda *a: inference.smooth(*a, None, parallel, 2))(*chain)
    np.testing.assert_allclose(posterior.log_prob, total, rtol=1e-5)
    weights = np.exp(joint - total[:, None])
    marginals = np.einsum("bp,ptk->btk", weights, np.eye(K)[every])
    np.testing.assert_allclose(posterior.marginals, marginals, atol=1e-5)
    pairs = np.einsum("bp,pti,ptj->ij", weights, np.eye(K)[every[:, :-1]], np.eye(K)[every[:, 1:]])
    np.testing.assert_allclose(posterior.transitions, pairs, atol=1e-4)


@pytest.mark.parametrize("parallel", [False, True])
def test_viterbi_finds_the_best_of_all_paths(chain, paths, parallel):
    every, joint = paths
    best, log_prob = jax.jit(inference.viterbi, static_argnums=(3, 4))(*chain, parallel, 2)
    np.testing.assert_array_equal(best, every[joint.argmax(1)])
    np.testing.assert_allclose(log_prob, joint.max(1), rtol=1e-5)


@pytest.mark.parametrize("parallel", [False, True])
def test_the_best_path_of_a_padded_sequence_is_that_of_the_sequence_alone(chain, parallel):
    initial, transition, likelihood = chain
    # The state that is likely to stay would win by the transitions behind the end.
    transition = jnp.log(jnp.full((K, K), 0.33).at[1].set(jnp.array([0.01, 0.98, 0.01])))
    mask = np.arange(T)[None] < np.array([1, 3, T])[:, None]
    hidden = inference.masked_likelihood(0.1 * likelihood, jnp.asarray(mask))
    viterbi = jax.jit(inference.viterbi, static_argnums=(3, 4))
    paths, log_prob = viterbi(initial, transition, hidden, parallel, 2, jnp.asarray(mask))
    for i, length in enumerate(mask.sum(1)):
        alone, best = viterbi(initial, transition, hidden[i : i + 1, :length], False, 2)
        np.testing.assert_array_equal(paths[i, :length], alone[0])
        np.testing.assert_array_equal(paths[i, length:], alone[0, -1])
        np.testing.assert_allclose(log_prob[i], best[0], rtol=1e-5)


def test_parallel_scans_equal_sequential_ones_on_long_sequences(chain):
    initial, transition, _ = chain
    likelihood = 5 * jax.random.normal(jax.random.key(3), (2, 150, K))
    keys = jax.random.split(jax.random.key(4), 2)

    def infer(parallel):
        def every(*chain):
            draws = inference.sample_states(keys, *chain, parallel)
            frames = inference.predict(*chain, parallel, 64), inference.frame_log_prob(*chain, parallel, 64)
            return inference.smooth(*chain, None, parallel, 64), draws, frames, inference.viterbi(*chain, parallel)

        return jax.jit(every)(initial, transition, likelihood)

    (one, draws, frames, (path, score)), (other, *rest) = infer(False), infer(True)
    other_draws, other_frames, (other_path, other_score) = rest
    np.testing.assert_allclose(one.log_prob, other.log_prob, rtol=1e-5)
    np.testing.assert_allclose(one.marginals, other.marginals, atol=1e-5)
    np.testing.assert_array_equal(draws, other_draws)
    for a, b in zip(frames, other_frames):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_array_equal(path, other_path)
    np.testing.assert_allclose(score, other_score, rtol=1e-5)


def test_drawn_states_have_the_posterior_marginals(chain):
    initial, transition, likelihood = chain
    many = np.repeat(likelihood[:1], 4000, 0)
    states = jax.jit(inference.sample_states)(jax.random.split(jax.random.key(5), 4000), initial, transition, many)
    frequencies = np.eye(K)[np.asarray(states)].mean(0)
    np.testing.assert_allclose(frequencies, jax.jit(inference.smooth)(*chain).marginals[0], atol=0.04)


def test_hidden_frames_cost_nothing_and_predictions_are_the_transition_of_the_filter(chain):
    initial, transition, likelihood = chain
    forward = jax.jit(inference.forward)
    hidden = inference.masked_likelihood(likelihood, jnp.arange(T)[None].repeat(B, 0) < 3)
    np.testing.assert_allclose(
        forward(initial, transition, hidden)[0],
        forward(initial, transition, likelihood[:, :3])[0],
        rtol=1e-5,
    )
    predicted = jax.jit(inference.predict)(initial, transition, likelihood)
    alpha = forward(initial, transition, likelihood)[1]
    expected = jax.nn.softmax(alpha, -1) @ jnp.exp(transition)
    np.testing.assert_allclose(predicted[:, 1:], expected, atol=1e-5)
    nothing = inference.masked_likelihood(likelihood, jnp.zeros((B, T), bool))
    np.testing.assert_allclose(forward(initial, transition, nothing)[0], 0.0, atol=1e-5)


def hard_chain(kind):
    """Starts, transitions and frames [B, T, K] that products of floats lose, or that are impossible."""
    rng = np.random.default_rng(0)
    initial, transition = np.log(rng.dirichlet(np.ones(K))), np.log(rng.dirichlet(np.ones(K), K))
    likelihood = 3 * rng.normal(size=(B, T, K))
    if kind == "left to right, one improbable path":
        initial[1:] = transition[np.tril_indices(K, -1)] = likelihood[:, -1, :2] = -np.inf
        transition[:2] = [[0, -60, -np.inf], [-np.inf, 0, -60]]
    else:
        transition[:] = np.where(np.eye(K), 0.0, -np.inf)
    if kind == "the best of branches ends nowhere":
        initial[:], likelihood[:, :4, 0], likelihood[0, -1, 0] = [-0.1, -3, -50], 150, -np.inf
        likelihood[1, -1, 0], likelihood[2, -1, :2] = -700, -np.inf
    elif kind == "a state that neither start nor end favours":
        initial[:], likelihood[:, :3, 1], likelihood[:, 3:, 2] = [-200, 0, 0], -300, -300
    elif kind == "impossible":
        initial[1:] = likelihood[0, 2] = likelihood[1, 0, 0] = -np.inf
    return initial, transition, likelihood


@pytest.mark.parametrize("parallel", [False, True])
def test_impossible_transitions_and_hopeless_branches_equal_enumeration(parallel):
    def infer(initial, transition, likelihood):
        chain = initial, transition, likelihood
        gradient = jax.grad(lambda *a: jnp.maximum(inference.log_prob(*a, parallel, 2), -1e4).sum(), (1, 2))
        frames, best = inference.frame_log_prob(*chain, parallel, 2), inference.viterbi(*chain, parallel, 2)
        return inference.smooth(*chain, None, parallel, 2), gradient(*chain), frames, best

    infer = jax.jit(infer)
    for kind in (
        "left to right, one improbable path",
        "the best of branches ends nowhere",
        "a state that neither start nor end favours",
        "impossible",
    ):
        initial, transition, likelihood = hard_chain(kind)
        every = np.array(list(itertools.product(range(K), repeat=T)))
        joint = initial[every[:, 0]] + transition[every[:, :-1], every[:, 1:]].sum(1)
        joint = joint + likelihood[:, np.arange(T), every].sum(-1)
        total = np.logaddexp.reduce(joint, 1)
        weights = np.exp(joint - np.maximum(total, -1e4)[:, None])
        marginals = np.einsum("bp,ptk->btk", weights, np.eye(K)[every])
        pairs = np.einsum("bp,pti,ptj->ij", weights, np.eye(K)[every[:, :-1]], np.eye(K)[every[:, 1:]])
        chain = [jnp.asarray(a, jnp.float32) for a in (initial, transition, likelihood)]
        posterior, gradient, frames, (path, best) = infer(*chain)
        for log_prob in (posterior.log_prob, frames.sum(1)):
            np.testing.assert_allclose(log_prob, total, rtol=1e-5, atol=1e-4, err_msg=kind)
        for a, b in (
            (posterior.marginals, marginals),
            (posterior.transitions, pairs),
            *zip(gradient, (pairs, marginals)),
        ):
            np.testing.assert_allclose(a, b, atol=2e-5, err_msg=kind)
        np.testing.assert_allclose(best, joint.max(1), rtol=1e-5, err_msg=kind)
        possible = np.isfinite(total)
        np.testing.assert_array_equal(path[possible], every[joint.argmax(1)][possible], err_msg=kind)


@pytest.mark.parametrize("algorithm", ["em", "gibbs", "gradient"])
def test_transitions_given_as_impossible_stay_so(algorithm):
    model, batch = HiddenMarkovModel(num_states=2, emission=Bernoulli(), algorithm=algorithm), batch_of("bits")
    state = model.with_start(compiled(model).init(jax.random.key(0), batch), [1, 0], [[1, 1], [0, 1]])
    state, metrics = jax.jit(model.train_step)(state, batch, jax.random.key(1))
    assert np.isfinite(metrics["loss"].value()) and not any(np.isnan(a).any() for a in jax.tree.leaves(state.params))
    np.testing.assert_array_equal(jnp.exp(state.params["transition"][0, 1]), [0.0, 1.0])
    np.testing.assert_array_equal(jnp.exp(state.params["initial"][0]), [1.0, 0.0])


def test_chunks_of_a_parallel_scan_of_any_length_join_to_the_same(chain):
    initial, transition, _ = chain
    likelihood = 3 * jax.random.normal(jax.random.key(7), (1, 11, K))
    whole = jax.jit(inference.smooth)(initial, transition, likelihood)
    for size in (1, 4, 10, 99):
        parts = jax.jit(lambda *a, size=size: inference.smooth(*a, None, True, size))(initial, transition, likelihood)
        np.testing.assert_allclose(parts.log_prob, whole.log_prob, rtol=1e-5)
        np.testing.assert_allclose(parts.marginals, whole.marginals, atol=1e-5)
        np.testing.assert_allclose(parts.transitions, whole.transitions, atol=1e-4)


def test_predictions_of_frames_make_up_the_probability_of_the_sequence(chain):
    frames, (log_prob, _) = jax.jit(lambda *a: (inference.frame_log_prob(*a), inference.forward(*a)[:2]))(*chain)
    np.testing.assert_allclose(frames.sum(1), log_prob, rtol=1e-5)


def test_a_chain_mixes_to_its_stationary_distribution_at_the_rate_of_its_second_eigenvalue():
    transition = jnp.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.0, 0.3, 0.7]])
    p = inference.stationary_distribution(transition)
    np.testing.assert_allclose(p @ transition, p, atol=1e-6)
    np.testing.assert_allclose(p.sum(), 1.0, rtol=1e-6)
    powers = [np.linalg.matrix_power(np.float64(transition), t) for t in range(60)]
    distances = [0.5 * np.abs(power - np.float64(p)[None]).sum(1).max() for power in powers]
    np.testing.assert_allclose(inference.distances_to_stationary(transition, 60), distances, atol=1e-5)
    time = inference.mixing_time(transition, 0.25)
    assert distances[time] <= 0.25 < distances[time - 1]
    with pytest.raises(ValueError, match="does not mix"):
        inference.mixing_time(jnp.array([[0.0, 1.0], [1.0, 0.0]]), num_steps=50)


def test_starts_that_cannot_be_normalised_are_named_and_others_are_normalised():
    model = HiddenMarkovModel(num_states=2, emission=Bernoulli(), num_restarts=2)
    state = compiled(model).init(jax.random.key(0), batch_of("bits"))
    for initial, transition in (
        ([0.0, 0.0], np.eye(2)),
        ([1.0, np.nan], np.eye(2)),
        ([2.0, -1.0], np.eye(2)),
        ([0.5, 0.5], [[1.0, 0.0], [0.0, 0.0]]),
        ([1.0], np.eye(2)),
    ):
        with pytest.raises(ValueError, match="cannot be normalised"):
            model.with_start(state, initial, transition)
    state = model.with_start(state, [1, 3], [[1, 1], [0, 2]])
    np.testing.assert_allclose(jnp.exp(state.params["initial"][1]), [0.25, 0.75], rtol=1e-6)
    np.testing.assert_allclose(jnp.exp(state.params["transition"][0]), [[0.5, 0.5], [0.0, 1.0]], atol=1e-6)


def test_restarts_are_reported_one_by_one_and_can_be_chosen():
    model, batch = HiddenMarkovModel(num_states=2, emission=Bernoulli(), num_restarts=2), batch_of("bits")
    state = compiled(model).init(jax.random.key(0), batch)
    values = compiled(model).evaluate(state, batch, jax.random.key(0))
    chosen = dataclasses.replace(model, restart=1).evaluate(state, batch, jax.random.key(0))
    np.testing.assert_allclose(chosen["nll"], values["nll_restart_1"], rtol=1e-5)
    means = model.summarize({name: float(v.mean()) for name, v in values.items()})
    assert {"nll_per_frame", "nll_per_frame_restart_0", "nll_per_frame_restart_1"} < set(means)
    with pytest.raises(ValueError, match="restart=2"):
        HiddenMarkovModel(num_restarts=2, restart=2)


def test_a_batch_without_frames_and_one_with_a_singular_covariance_stay_finite():
    for covariance in ("diagonal", "full", "tied"):
        model = HiddenMarkovModel(num_states=2, emission=Gaussian(covariance=covariance))
        batch = {"x": jnp.ones((2, 4, D)), "mask": jnp.ones((2, 4), bool)}
        for hidden in (False, True):
            batch = {**batch, "mask": batch["mask"] & (not hidden)}
            state = compiled(model).init(jax.random.key(0), batch)
            step = jax.jit(model.train_step)
            for i in range(2):
                state, metrics = step(state, batch, jax.random.key(i))
            assert all(np.isfinite(a).all() for a in jax.tree.leaves((state.params, metrics))), (covariance, hidden)


def batch_of(kind):
    rng = np.random.default_rng(0)
    mask = np.arange(8)[None] < np.array([8, 6, 0, 3])[:, None]
    if kind == "tokens":
        return {"tokens": jnp.asarray(rng.integers(0, 4, (4, 8))), "mask": jnp.asarray(mask)}
    x = rng.normal(size=(4, 8, D)).astype(np.float32)
    return {"x": jnp.asarray(x if kind == "x" else (x > 0).astype(np.float32)), "mask": jnp.asarray(mask)}


EMISSIONS = {
    "categorical": (Categorical(vocab_size=4, pseudo_count=0.0), "tokens"),
    "bernoulli": (Bernoulli(pseudo_count=0.0), "bits"),
    "diagonal": (Gaussian(), "x"),
    "full": (Gaussian(covariance="full", ridge=1e-3), "x"),
    "tied": (Gaussian(covariance="tied"), "x"),
    "gaussian_mixture": (Mixture(component=Gaussian(ridge=1e-2)), "x"),
    "pattern_mixture": (Mixture(component=Bernoulli(pseudo_count=0.0), pseudo_count=0.0), "bits"),
}


@pytest.mark.parametrize("name", EMISSIONS)
def test_baum_welch_never_lowers_the_likelihood(name):
    emission, kind = EMISSIONS[name]
    model = HiddenMarkovModel(
        num_states=2,
        emission=emission,
        initial_pseudo_count=0.0,
        transition_pseudo_count=0.0,
        num_restarts=2,
        sequence_length=4,
    )
    batch = batch_of(kind)
    state = compiled(model).init(jax.random.key(0), batch)
    step, losses = jax.jit(model.train_step), []
    for i in range(8):
        state, metrics = step(state, batch, jax.random.key(i))
        losses.append(metrics["mean_loss"].value())
    assert np.isfinite(losses).all() and (np.diff(losses) < 1e-3).all(), losses
    assert losses[-1] < losses[0]
    assert np.isfinite(compiled(model).evaluate(state, batch, jax.random.key(0))["nll"]).all()
    samples = compiled(model).sample(state, jax.random.key(1), 3)
    assert samples.shape == ((3, 4) if kind == "tokens" else (3, 4, D))


@pytest.mark.parametrize("algorithm", ["stochastic_em", "gradient", "gibbs"])
def test_other_algorithms_learn_too(algorithm):
    emission = Bernoulli(pseudo_count=0.1)
    rng = np.random.default_rng(1)
    states = (np.arange(12)[None] + rng.integers(0, 2, (8, 1))) % 2
    x = rng.random((8, 12, 4)) < np.where(states[..., None] == np.arange(4) % 2, 0.95, 0.05)
    batch = {"x": jnp.asarray(x, jnp.float32)}
    model = HiddenMarkovModel(
        num_states=2, emission=emission, algorithm=algorithm, optimizer=HiddenMarkovModel().optimizer
    )
    state = compiled(model).init(jax.random.key(0), batch)
    step = jax.jit(model.train_step)
    first = None
    for i in range(60):
        state, metrics = step(state, batch, jax.random.key(i))
        first = metrics["loss"].value() if first is None else first
    assert metrics["loss"].value() < first - 0.3
    assert int(state.step) == 60


def test_microbatches_of_ragged_sequences_give_the_gradient_of_the_batch():
    batch, states = batch_of("tokens"), []
    for count in (1, 2):
        optimizer = SGD(learning_rate=1.0, accumulation_steps=count)
        model = HiddenMarkovModel(
            num_states=2, emission=EMISSIONS["categorical"][0], algorithm="gradient", optimizer=optimizer
        )
        start = lambda key, m=model: m.train_step(m.init(key, batch), batch, key)
        states.append(jax.jit(start)(jax.random.key(0)))
    (one, first), (other, second) = states
    np.testing.assert_allclose(first["loss"].value(), second["loss"].value(), rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one.params, other.params)


def test_an_empty_state_leaves_what_all_states_share():
    emission = Mixture(component=Gaussian(covariance="tied"))
    model, batch = HiddenMarkovModel(num_states=2, emission=emission), batch_of("x")
    one = jax.jit(lambda key: jax.tree.map(lambda a: a[0], model.init(key, batch).params))(jax.random.key(0))
    counts = jax.jit(lambda params: model._statistics(params, batch)[0])(one)
    counts = {**counts, "occupancy": jnp.array([0.0, counts["occupancy"].sum()])}
    expected = jax.jit(emission.maximize)(counts["emission"], one["emission"])
    new, empty = jax.jit(model._maximize)(counts, one, batch, jax.random.key(1))
    assert empty == 1
    np.testing.assert_array_equal(new["emission"]["parts"]["scale"], expected["parts"]["scale"])
    assert (new["emission"]["parts"]["mean"][:2] != expected["parts"]["mean"][:2]).any()


def test_an_empty_state_is_seeded_anew_and_counted():
    model = HiddenMarkovModel(num_states=2, emission=Bernoulli())
    batch = batch_of("bits")
    state = compiled(model).init(jax.random.key(0), batch)
    params = jax.tree.map(jnp.copy, state.params)
    params["initial"] = jnp.array([[0.0, -200.0]])
    params["transition"] = jnp.array([[[0.0, -200.0], [0.0, -200.0]]])
    state, metrics = compiled(model).train_step(state.replace(params=params), batch, jax.random.key(1))
    assert metrics["empty_states"] == 1
    assert "began again" in model.warnings({"empty_states": 1.0})[0] and not model.warnings({"empty_states": 0.0})
    assert all(np.isfinite(p).all() for p in jax.tree.leaves(state.params))


def normalized(log_p):
    return np.exp(log_p) / np.exp(log_p).sum(-1, keepdims=True)


def peer_of(hmm, name, params):
    """The model of hmmlearn with these parameters, without its priors."""
    emission, options = params["emission"], {"n_iter": 1, "tol": 0.0, "init_params": ""}
    if name == "categorical":
        peer = hmm.CategoricalHMM(K, n_features=4, **options)
        peer.emissionprob_ = normalized(emission["logits"])
    elif name == "gaussian_mixture":
        peer = hmm.GMMHMM(K, 2, covariance_type="diag", **options)
        peer.weights_ = normalized(emission["log_weights"])
        peer.means_ = emission["parts"]["mean"].reshape(K, 2, D)
        peer.covars_ = emission["parts"]["scale"].reshape(K, 2, D) ** 2
    else:
        kind, scale = {"diagonal": "diag"}.get(name, name), emission["scale"]
        peer = hmm.GaussianHMM(K, kind, covars_prior=0, covars_weight=1, min_covar=0, **options)
        peer.means_ = emission["mean"]
        peer.covars_ = scale**2 if kind == "diag" else scale @ scale.swapaxes(-1, -2)
    peer.startprob_, peer.transmat_ = normalized(params["initial"]), normalized(params["transition"])
    if name != "categorical":
        peer.n_features = D  # which full covariances are made of
    return peer


@pytest.mark.parametrize("name", ["categorical", "diagonal", "full", "tied", "gaussian_mixture"])
def test_inference_and_a_baum_welch_step_on_ragged_sequences_equal_those_of_hmmlearn(name):
    hmm = pytest.importorskip("hmmlearn.hmm")
    rng = np.random.default_rng(0)
    lengths = [20, 13]
    mask = np.arange(20)[None] < np.array(lengths)[:, None]
    emission = EMISSIONS[name][0]
    if name != "categorical":
        gaussian = Gaussian(covariance="diagonal" if name == "gaussian_mixture" else name, ridge=0.0)
        emission = Mixture(component=gaussian, pseudo_count=0.0) if name == "gaussian_mixture" else gaussian
    model = HiddenMarkovModel(num_states=K, emission=emission, initial_pseudo_count=0.0, transition_pseudo_count=0.0)
    with jax.enable_x64(True):
        x = rng.integers(0, 4, (2, 20)) if name == "categorical" else rng.normal(size=(2, 20, D))
        batch = {"tokens" if name == "categorical" else "x": jnp.asarray(x), "mask": jnp.asarray(mask)}
        state = compiled(model).init(jax.random.key(0), batch)
        peer = peer_of(hmm, name, jax.tree.map(np.asarray, model.best(state)))
        flat = x[mask].reshape(sum(lengths), -1)
        np.testing.assert_allclose(compiled(model).log_prob(state, batch).sum(), peer.score(flat, lengths), rtol=1e-5)
        np.testing.assert_array_equal(
            np.asarray(compiled(model).decode_states(state, batch)[0])[mask], peer.predict(flat, lengths)
        )
        marginals = np.asarray(compiled(model).posterior(state, batch).marginals)[mask]
        np.testing.assert_allclose(marginals, peer.predict_proba(flat, lengths), atol=1e-5)
        state, _ = jax.jit(model.train_step)(state, batch, jax.random.key(0))
        before = getattr(peer, "means_", None)
        peer.fit(flat, lengths)
        expected = peer_of(hmm, name, jax.tree.map(np.asarray, model.best(state)))
        if name == "gaussian_mixture":
            expected.covars_ += (expected.means_ - before) ** 2  # hmmlearn takes them about the means of before
        for attribute in ("startprob_", "transmat_", "emissionprob_", "weights_", "means_", "covars_"):
            if hasattr(peer, attribute):
                np.testing.assert_allclose(
                    getattr(expected, attribute), getattr(peer, attribute), atol=1e-5, err_msg=attribute
                )


@pytest.mark.parametrize("name", ["bernoulli", "pattern_mixture"])
def test_a_baum_welch_step_on_bits_equals_enumeration_of_paths_and_patterns(name):
    batch, emission = batch_of("bits"), EMISSIONS[name][0]
    batch = {key: a[:, :4] for key, a in batch.items()}
    model = HiddenMarkovModel(num_states=2, emission=emission, initial_pseudo_count=0.0, transition_pseudo_count=0.0)
    state = compiled(model).init(jax.random.key(2), batch)
    params = jax.tree.map(np.float64, model.best(state))
    patterns = params["emission"].get("parts", params["emission"])["logits"].reshape(2, -1, D)
    weights = normalized(params["emission"].get("log_weights", np.zeros((2, 1))))
    p = 1 / (1 + np.exp(-patterns))  # [K, M, D]
    size = p.shape[1]
    first, pairs, ones, count, total = np.zeros(2), np.zeros((2, 2)), np.zeros((2, size, D)), np.zeros((2, size)), []
    for x, mask in zip(np.asarray(batch["x"]), np.asarray(batch["mask"])):
        x = x[: mask.sum()]
        # Every path of states and patterns.
        terms = []
        for path in itertools.product(itertools.product(range(2), range(size)), repeat=len(x)):
            joint = 1.0
            for t, (k, m) in enumerate(path):
                joint *= normalized(params["transition"])[path[t - 1][0], k] if t else normalized(params["initial"])[k]
                joint *= weights[k, m] * np.where(x[t] > 0, p[k, m], 1 - p[k, m]).prod()
            terms.append((joint, path))
        evidence = sum(joint for joint, _ in terms)
        total.append(np.log(evidence))
        for joint, path in terms:
            for t, (k, m) in enumerate(path):
                ones[k, m] += joint / evidence * x[t]
                count[k, m] += joint / evidence
                first[k] += joint / evidence * (t == 0)
                if t:
                    pairs[path[t - 1][0], k] += joint / evidence
    np.testing.assert_allclose(compiled(model).log_prob(state, batch), total, atol=1e-5)
    new = model.best(jax.jit(model.train_step)(state, batch, jax.random.key(0))[0])
    found = new["emission"].get("parts", new["emission"])["logits"].reshape(2, -1, D)
    np.testing.assert_allclose(jax.nn.sigmoid(found), ones / count[..., None], atol=1e-4)
    np.testing.assert_allclose(jnp.exp(new["initial"]), first / first.sum(), atol=1e-5)
    np.testing.assert_allclose(jnp.exp(new["transition"]), pairs / pairs.sum(1, keepdims=True), atol=1e-5)
    if name == "pattern_mixture":
        expected = count / count.sum(1, keepdims=True)
        np.testing.assert_allclose(jnp.exp(new["emission"]["log_weights"]), expected, atol=1e-5)


def test_gibbs_draws_predict_as_the_sum_over_all_paths_under_dirichlet_priors_does():
    seen, new = np.array([[0, 0, 1, 0], [1, 1, 1, 0]]), np.array([[0, 0, 1]])

    def evidence(sequences):
        """p of the sequences under Dirichlet(1) priors of all rows: a sum over paths of ratios of Gamma functions."""
        total = 0.0
        for path in itertools.product(range(2), repeat=sum(map(len, sequences))):
            states = np.split(np.array(path), np.cumsum([len(s) for s in sequences])[:-1])
            counts = np.zeros((5, 2))  # first states, transitions from each, tokens of each
            for s, z in zip(sequences, states):
                counts[0, z[0]] += 1
                np.add.at(counts, (1 + z[:-1], z[1:]), 1)
                np.add.at(counts, (3 + z, s), 1)
            gamma = np.vectorize(math.factorial)
            total += (gamma(counts.astype(int)).prod(1) / gamma(counts.sum(1).astype(int) + 1)).prod()
        return total

    model = HiddenMarkovModel(
        num_states=2, emission=Categorical(vocab_size=2, pseudo_count=1.0), algorithm="gibbs", num_restarts=64,
        initial_pseudo_count=1.0, transition_pseudo_count=1.0,
    )  # fmt: skip
    batch, test = {"tokens": jnp.asarray(seen)}, {"tokens": jnp.asarray(new)}

    def step(state, key):
        state, _ = model.train_step(state, batch, key)
        return state, jnp.exp(jax.vmap(model._log_prob, in_axes=(0, None))(state.params, test)).mean()

    state = compiled(model).init(jax.random.key(0), batch)
    p = jax.jit(lambda s: jax.lax.scan(step, s, jax.random.split(jax.random.key(1), 400)))(state)[1]
    np.testing.assert_allclose(p[50:].mean(), evidence([*seen, *new]) / evidence(seen), rtol=0.02)


def test_online_em_averages_expected_counts_by_its_schedule():
    options = {"num_states": 2, "emission": Bernoulli(), "step_exponent": 0.6}
    batch, other = batch_of("bits"), jax.tree.map(lambda a: a[::-1], batch_of("bits"))
    online = HiddenMarkovModel(algorithm="stochastic_em", **options)
    state = compiled(online).init(jax.random.key(0), batch)
    first = compiled(online).train_step(state, batch, jax.random.key(0))[0]
    plain = HiddenMarkovModel(**options)
    start = compiled(plain).init(jax.random.key(0), batch)
    jax.tree.map(
        np.testing.assert_array_equal,
        first.params,
        compiled(plain).train_step(start, batch, jax.random.key(0))[0].params,
    )
    second = compiled(online).train_step(first, other, jax.random.key(0))[0]
    fresh = jax.jit(jax.vmap(lambda params: online._statistics(params, other)[0]))(first.params)
    rate = 3**-0.6
    expected = jax.tree.map(lambda old, new: (1 - rate) * old + rate * new, first.extra["statistics"], fresh)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), second.extra["statistics"], expected)


@pytest.mark.parametrize("algorithm", ["em", "stochastic_em"])
def test_a_mask_that_hides_everything_teaches_nothing_and_is_named(algorithm):
    model, batch = HiddenMarkovModel(num_states=2, emission=Bernoulli(), algorithm=algorithm), batch_of("bits")
    step = jax.jit(model.train_step)
    state, metrics = step(compiled(model).init(jax.random.key(0), batch), batch, jax.random.key(0))
    assert not model.warnings(metrics)
    hidden = {**batch, "mask": jnp.zeros_like(batch["mask"])}
    after, metrics = step(state, hidden, jax.random.key(1))
    jax.tree.map(np.testing.assert_array_equal, (after.params, after.extra), (state.params, state.extra))
    assert metrics["frames"] == 0 and "hides everything" in model.warnings(metrics)[0]


@pytest.mark.parametrize("covariance", ["diagonal", "full", "tied"])
def test_singular_covariances_of_large_numbers_stay_finite_and_are_named(covariance):
    x = 1e4 * np.random.default_rng(0).normal(size=(2, 6, 1)).astype(np.float32)
    batch = {"x": jnp.asarray(np.concatenate([x, x if covariance != "diagonal" else 0 * x], -1))}
    for ridge in (1e-6, 0.0):
        model = HiddenMarkovModel(num_states=2, emission=Gaussian(covariance=covariance, ridge=ridge))
        state, metrics = jax.jit(lambda key, m=model: m.train_step(m.init(key, batch), batch, key))(jax.random.key(0))
        assert all(np.isfinite(a).all() for a in jax.tree.leaves((state.params, metrics)))
        assert "singular but for the ridge" in model.warnings(metrics)[0]
    with pytest.raises(ValueError, match="ridge"):
        Gaussian(ridge=-1.0)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="step_exponent"):
        HiddenMarkovModel(step_exponent=0.2)
    with pytest.raises(ValueError, match="chunk_size"):
        HiddenMarkovModel(chunk_size=0)
    with pytest.raises(ValueError, match="num_states"):
        HiddenMarkovModel(num_states=0)


@pytest.mark.parametrize("name", EMISSIONS)
def test_hidden_frames_may_hold_anything(name):
    emission, kind = EMISSIONS[name]
    batch = batch_of(kind)
    field = "tokens" if kind == "tokens" else "x"
    seen = batch["mask"].reshape(*batch["mask"].shape, *[1] * (batch[field].ndim - 2))
    values = (0, -7 if kind == "tokens" else np.nan)
    batches = [{**batch, field: np.where(seen, batch[field], value).astype(batch[field].dtype)} for value in values]
    model = HiddenMarkovModel(num_states=2, emission=emission)
    step = jax.jit(lambda batch: model.train_step(model.init(jax.random.key(0), batch), batch, jax.random.key(1))[0])
    with jax.debug_nans(False):
        zeros, anything = (step(b).params for b in batches)
    jax.tree.map(np.testing.assert_array_equal, anything, zeros)
    if kind == "tokens":
        state = compiled(model).init(jax.random.key(0), batches[1])
        for token in (99, -1):
            bad = {**batch, "tokens": batch["tokens"].at[0, 0].set(token)}
            for call in (model.log_prob, model.posterior, model.decode_states):
                with pytest.raises(ValueError, match="lies outside the vocabulary of 4"):
                    call(state, bad)
