"""Expected gradients of every estimator, by enumeration of all groups of answers of a policy over 15 sequences."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from genjax.families.alignment import policy_losses
from genjax.families.alignment.grpo import GRPO, GSPO
from genjax.families.alignment.ppo import CRITIC, PPO
from genjax.families.alignment.reinforce_plus_plus import ReinforcePlusPlus
from genjax.families.alignment.rloo import RLOO
from tests.families.alignment.tabular import (
    PARAMS,
    REFERENCE,
    REWARDS,
    SEQUENCES,
    Tabular,
    cosine,
    expected_gradient,
    experience,
    log_probs,
    objective,
    residual,
)


@pytest.fixture(autouse=True, scope="module")
def double_precision():
    with jax.enable_x64(True):
        yield


with jax.enable_x64(True):
    TRUE = jax.grad(objective)(PARAMS, REWARDS, REFERENCE, 0.0)
    KL_GRADIENT = jax.grad(objective)(PARAMS, 0.0 * REWARDS, REFERENCE, 1.0)


def method(kind, **fields):
    return kind(policy=Tabular(), num_rollouts=2, **{"beta": 0.0, **fields})


def test_the_gradient_of_rloo_is_that_of_the_reward():
    found = expected_gradient(method(RLOO), PARAMS, REWARDS, REFERENCE)
    np.testing.assert_allclose(found, TRUE, atol=1e-12)


def test_the_gradient_of_dr_grpo_is_half_of_that_of_the_reward_in_groups_of_two():
    found = expected_gradient(method(GRPO), PARAMS, REWARDS, REFERENCE)
    np.testing.assert_allclose(found, TRUE / 2 / 3, atol=1e-12)  # divided by the longest length, 3


@pytest.mark.parametrize(
    "kind, fields, left, angle",
    [
        (GRPO, {"scale": "group", "normalization": "sum"}, 0.189, 0.982),
        (GRPO, {"normalization": "answer"}, 0.347, 0.938),
        (GRPO, {"normalization": "tokens"}, 0.152, 0.988),
        (ReinforcePlusPlus, {}, 0.379, 0.925),
    ],
)
def test_what_the_other_methods_divide_by_turns_the_gradient_as_their_docstrings_say(kind, fields, left, angle):
    # trl 3138, understand-r1-zero 25: length bias.
    found = expected_gradient(method(kind, **fields), PARAMS, REWARDS, REFERENCE)
    assert residual(found, TRUE) == pytest.approx(left, abs=1e-3)
    assert cosine(found, TRUE) == pytest.approx(angle, abs=1e-3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOWithKnownValues(PPO):
    """PPO whose value network is exact, or as it is at the first step: 0."""

    exact: bool = False

    def values(self, critic, rest, experience):
        if not self.exact:
            return jnp.zeros(experience["mask"].shape)
        tokens, all_tokens = experience["rows"]["tokens"][:, 1:], jnp.array(SEQUENCES)
        weights = jnp.exp(log_probs(PARAMS))
        places = range(tokens.shape[1])
        begins = [(tokens[:, None, :t] == all_tokens[None, :, :t]).all(-1) * weights[None] for t in places]
        expected = jnp.stack([w @ REWARDS / w.sum(1) for w in begins], axis=1)
        return jnp.where(experience["mask"], expected, 0.0)

    def with_advantages(self, state, experience, rewards):
        return super().with_advantages(types.SimpleNamespace(extra={CRITIC: None}, params=None), experience, rewards)


@pytest.mark.parametrize("exact, left, angle", [(False, 0.422, 0.907), (True, 0.149, 0.989)])
def test_the_gradient_of_ppo_is_turned_as_its_docstring_says(exact, left, angle):
    found = expected_gradient(method(PPOWithKnownValues, exact=exact), PARAMS, REWARDS, REFERENCE)
    assert residual(found, TRUE) == pytest.approx(left, abs=1e-3)
    assert cosine(found, TRUE) == pytest.approx(angle, abs=1e-3)


def test_ppo_without_values_and_with_whole_traces_is_reinforce_plus_plus():
    found = expected_gradient(method(PPOWithKnownValues, trace_decay=1.0), PARAMS, REWARDS, REFERENCE)
    expected = expected_gradient(method(ReinforcePlusPlus), PARAMS, REWARDS, REFERENCE)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_the_gradient_of_gspo_at_its_first_epoch_is_that_of_grpo_with_its_own_length():
    found = expected_gradient(method(GSPO), PARAMS, REWARDS, REFERENCE)
    expected = expected_gradient(method(GRPO, scale="group", normalization="answer"), PARAMS, REWARDS, REFERENCE)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("kind, scale", [(RLOO, 1.0), (GRPO, 1 / 6)])
def test_the_penalty_in_the_reward_has_the_gradient_of_the_kl(kind, scale):
    found = expected_gradient(method(kind, beta=0.7), PARAMS, REWARDS, REFERENCE)
    np.testing.assert_allclose(found, scale * (TRUE + 0.7 * KL_GRADIENT), atol=1e-12)


@pytest.mark.parametrize("kl", ["k2", "k3_with_gradient_of_k2", "weighted_k3"])
@pytest.mark.parametrize("kind, scale", [(RLOO, 1.0), (GRPO, 1 / 3)])
def test_penalties_in_the_loss_of_sequences_have_the_gradient_of_the_kl(kl, kind, scale):
    found = expected_gradient(method(kind, beta=0.7, kl=kl), PARAMS, 0.0 * REWARDS, REFERENCE)
    np.testing.assert_allclose(found, scale * 0.7 * KL_GRADIENT, atol=1e-12)


def kl_gradients(estimate):
    """Expectation, over answers of the policy itself, of the gradient of an estimate [15] of the KL."""
    weights = jnp.exp(log_probs(PARAMS))
    return jax.grad(lambda params: (weights * estimate(params)).sum())(PARAMS)


def scores(params):
    found = experience(jnp.arange(15), old=params, reference=REFERENCE)
    return found["old_log_probs"], found["reference_log_probs"], found["mask"]


def test_k1_in_the_loss_has_no_gradient_at_all():
    # allenai/open-instruct #534, verl PR 2953, OpenRLHF PR 1309, slime PR 1004: it does not keep the policy near the
    # reference.
    found = kl_gradients(lambda params: log_probs(params) - log_probs(REFERENCE))
    assert np.abs(found).max() < 1e-14 < 0.1 < np.abs(KL_GRADIENT).max()


def test_k3_in_the_loss_has_the_gradient_of_the_forward_kl():
    found = kl_gradients(lambda params: jnp.exp(log_probs(REFERENCE) - log_probs(params)) - 1 + log_probs(params))
    base = log_probs(REFERENCE)
    forward = jax.grad(lambda params: (jnp.exp(base) * (base - log_probs(params))).sum())(PARAMS)
    np.testing.assert_allclose(found, forward, atol=1e-12)
    assert np.linalg.norm(found - KL_GRADIENT) / np.linalg.norm(KL_GRADIENT) == pytest.approx(0.304, abs=1e-3)


def test_the_sum_of_k3_of_tokens_has_the_value_of_the_kl_and_another_gradient():
    def estimate(params):
        own, base, mask = scores(params)
        return jnp.where(mask, policy_losses.token_k3(own, base, mask), 0.0).sum(1)

    kl = objective(PARAMS, 0.0 * REWARDS, REFERENCE, 1.0)
    np.testing.assert_allclose((jnp.exp(log_probs(PARAMS)) * estimate(PARAMS)).sum(), kl, rtol=1e-12)
    found = kl_gradients(estimate)
    assert np.linalg.norm(found - KL_GRADIENT) / np.linalg.norm(KL_GRADIENT) == pytest.approx(0.359, abs=1e-3)


@pytest.mark.parametrize("estimator", ["k3_with_gradient_of_k2", "weighted_k3"])
def test_values_of_k3_are_the_kl(estimator):
    own, base, mask = scores(PARAMS)
    found = policy_losses.sequence_kl(estimator, own, base, mask, own)
    kl = objective(PARAMS, 0.0 * REWARDS, REFERENCE, 1.0)
    np.testing.assert_allclose((jnp.exp(log_probs(PARAMS)) * found).sum(), kl, rtol=1e-12)


def test_weighted_k3_is_right_for_answers_of_an_older_policy():
    found = expected_gradient(
        method(RLOO, beta=0.7, kl="weighted_k3", num_epochs=2, clip_low=0.99, clip_high=1e9),
        PARAMS, 0.0 * REWARDS, REFERENCE, old=REFERENCE,
    )  # fmt: skip
    np.testing.assert_allclose(found, 0.7 * KL_GRADIENT, atol=1e-12)


@pytest.mark.parametrize("beta", [2.0])
def test_policy_optimisation_ends_at_the_tilted_reference(beta):
    rloo = method(RLOO, beta=beta)
    own = log_probs(REFERENCE) + REWARDS / beta
    optimum = own - jax.nn.logsumexp(own)

    def value_and_gradient(flat):
        params = flat.reshape(7, 3)
        gradient = expected_gradient(rloo, params, REWARDS, REFERENCE)
        return float(objective(params, REWARDS, REFERENCE, beta)), np.ravel(gradient)

    ended = scipy.optimize.minimize(value_and_gradient, np.ravel(PARAMS), jac=True, method="BFGS", tol=1e-9)
    np.testing.assert_allclose(log_probs(ended.x.reshape(7, 3)), optimum, atol=1e-5)
    best = -beta * jax.nn.logsumexp(own)
    np.testing.assert_allclose(ended.fun, best, atol=1e-12)
