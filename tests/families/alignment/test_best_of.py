"""Best of n and rejection sampling on a set of 15 answers, by enumeration."""

import itertools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import genjax
from genjax import config
from genjax.families.alignment import best_of
from genjax.families.alignment.rewards import Regex
from tests.families.alignment.tabular import PARAMS, REFERENCE, REWARDS, Tabular, experience, log_probs

#: Some answers have equal rewards.
ROUNDED = np.round(REWARDS)


@pytest.mark.parametrize("rewards", [REWARDS, ROUNDED])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_best_of_n_by_enumeration(rewards, count):
    own = np.exp(np.asarray(log_probs(REFERENCE), np.float64))
    expected = np.zeros(15)
    for drawn in itertools.product(range(15), repeat=count):
        expected[max(drawn, key=lambda i: rewards[i])] += np.prod(own[list(drawn)])
    found = best_of.best_of_log_probs(log_probs(REFERENCE), rewards, count)
    np.testing.assert_allclose(np.exp(found), expected, atol=2e-6)
    exact = (expected * np.log(expected / own)).sum()
    np.testing.assert_allclose(best_of.best_of_kl(log_probs(REFERENCE), rewards, count), exact, atol=1e-5)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_the_usual_formula_is_an_upper_bound_alone(count):
    exact = float(best_of.best_of_kl(log_probs(REFERENCE), REWARDS, count))
    assert 0 < exact < 0.95 * best_of.best_of_kl_bound(count)
    # It becomes exact where no element has much probability.
    many = np.full(4000, -np.log(4000.0), np.float32)
    spread = float(best_of.best_of_kl(many, np.arange(4000), count))
    assert spread == pytest.approx(best_of.best_of_kl_bound(count), abs=2e-3)


def test_rejection_sampling_keeps_the_tilted_reference():
    own = log_probs(REFERENCE)
    kept = np.exp(own) * best_of.acceptance(REWARDS[None], 0.7)[0]
    np.testing.assert_allclose(kept / kept.sum(), jax.nn.softmax(own + REWARDS / 0.7), atol=1e-6)


@pytest.mark.parametrize("keep", ["best", "tilted"])
def test_a_group_gives_its_best_answer_or_all_as_rejection_would_keep_them(keep):
    model = best_of.RejectionSampling(policy=Tabular(), num_rollouts=3, keep=keep, temperature=0.5)
    index = np.array([3, 7, 11, 0, 1, 2])
    found = model.with_advantages(None, experience(index), REWARDS[index])["advantages"][:, 0].reshape(2, 3)
    groups = REWARDS[index].reshape(2, 3)
    expected = 3 * np.eye(3)[groups.argmax(1)] if keep == "best" else 3 * jax.nn.softmax(groups / 0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_gradient_is_that_of_the_weighted_likelihood_of_whole_answers():
    model = best_of.RejectionSampling(policy=Tabular(), num_rollouts=3, keep="tilted")
    index = np.array([3, 7, 11, 0, 1, 2])
    found = model.with_advantages(None, experience(index), REWARDS[index])
    found["weights"] = model.weights(found["mask"])
    value, gradient = jax.value_and_grad(lambda params: model.loss(params, found, None)[0])(jnp.asarray(PARAMS))
    kept = jax.nn.softmax(REWARDS[index].reshape(2, 3)).reshape(-1)
    likelihood = lambda params: -(kept * log_probs(params)[index]).sum() / 2
    np.testing.assert_allclose(gradient, jax.grad(likelihood)(jnp.asarray(PARAMS)), atol=1e-6)
    np.testing.assert_allclose(value, -1.0, rtol=1e-6)


def test_the_file_of_the_documents_is_an_experiment_of_rejection_sampling(tmp_path):
    text = (Path(genjax.__file__).parents[1] / "docs" / "alignment.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "methods.py").write_text(code)
    model = config.find_experiment(f"{tmp_path / 'methods.py'}:rejection").build().model
    assert isinstance(model, best_of.RejectionSampling) and isinstance(model.reward, Regex) and model.beta == 0.0
