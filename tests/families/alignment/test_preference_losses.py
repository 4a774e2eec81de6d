"""Losses of preferences against closed forms: optima of tables of probabilities, and the equations written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from genjax.families.alignment.preference_losses import DPO, IPO, KTO, ORPO, Hinge, PairScores, SimPO
from genjax.families.alignment.reward import bradley_terry_loss

RNG = np.random.default_rng(0)
#: Six answers to one prompt: their rewards, and a reference's probabilities.
REWARD = RNG.normal(size=6)
REFERENCE = np.log(RNG.dirichlet(np.ones(6)))
LEFT, RIGHT = (a.ravel() for a in np.meshgrid(range(6), range(6), indexing="ij"))
PREFERRED = scipy.special.expit(REWARD[LEFT] - REWARD[RIGHT])


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def pairs_of(log_probs, **fields):
    log_probs, reference = jnp.asarray(log_probs), jnp.asarray(REFERENCE)
    ones = jnp.ones(len(LEFT))
    return PairScores(log_probs[LEFT], log_probs[RIGHT], reference[LEFT], reference[RIGHT], ones, ones, **fields)


def minimised(loss):
    """The minimum of an expected loss of six logits, and the loss there."""
    value = jax.jit(jax.value_and_grad(loss))
    found = scipy.optimize.minimize(
        lambda x: tuple(np.asarray(v, np.float64) for v in value(jnp.asarray(x))),
        np.zeros(6), jac=True, method="BFGS", options={"gtol": 1e-12, "maxiter": 2000},
    )  # fmt: skip
    return found.x, found.fun


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_the_optimum_of_dpo_is_that_of_the_reward_under_a_kl_penalty(beta):
    expected = lambda logits: (DPO(beta=beta)(pairs_of(jax.nn.log_softmax(logits))) * PREFERRED).sum() / 18.0
    logits, loss = minimised(lambda x: expected(x + REFERENCE))
    policy = logits + REFERENCE - scipy.special.logsumexp(logits + REFERENCE)
    best = REFERENCE + REWARD / beta
    np.testing.assert_allclose(policy, best - scipy.special.logsumexp(best), atol=1e-5)
    # ln 2 at the reference, and the entropy of the preferences at the optimum.
    np.testing.assert_allclose(expected(jnp.asarray(REFERENCE)), np.log(2.0), rtol=1e-12)
    entropy = -(PREFERRED * np.log(PREFERRED)).sum() / 18.0
    np.testing.assert_allclose(loss, entropy, rtol=1e-9)


def test_bradley_terry_finds_the_rewards_up_to_a_constant():
    rewards, _ = minimised(lambda r: (bradley_terry_loss(r[LEFT], r[RIGHT]) * PREFERRED).sum() / 18.0)
    np.testing.assert_allclose(rewards - rewards.mean(), REWARD - REWARD.mean(), atol=1e-6)
    # A small weight of the sum fixes the constant, too: rewards with the mean 0 of their pairs.
    centred, _ = minimised(lambda r: (bradley_terry_loss(r[LEFT], r[RIGHT], 0.0, 1e-3) * PREFERRED).sum() / 18.0)
    np.testing.assert_allclose(centred.mean(), 0.0, atol=1e-6)
    # With margins, rewards differ by more than they would without them.
    value = bradley_terry_loss(jnp.asarray(1.0), jnp.asarray(0.25), 0.5)
    np.testing.assert_allclose(value, np.log1p(np.exp(-0.25)), rtol=1e-12)


def drawn():
    """Log-probabilities and lengths of five pairs."""
    rng = np.random.default_rng(1)
    scores = [jnp.asarray(rng.normal(-6.0, 2.0, 5)) for _ in range(4)]
    lengths = [jnp.asarray(rng.integers(1, 6, 5), jnp.float64) for _ in range(2)]
    return PairScores(*scores, *lengths)


def log_sigmoid(x):
    return -np.logaddexp(0.0, -np.asarray(x))


def test_losses_are_the_equations():
    s = drawn()
    h = 0.3 * ((s.chosen - s.chosen_reference) - (s.rejected - s.rejected_reference))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12)
    close(DPO(beta=0.3)(s), -log_sigmoid(h))
    close(DPO(beta=0.3, label_smoothing=0.2)(s), -0.8 * log_sigmoid(h) - 0.2 * log_sigmoid(-h))
    # Labels that are wrong with the probability e: the mean of the robust loss is the loss of right labels.
    robust = DPO(beta=0.3, label_smoothing=0.2, robust=True)
    flipped = s._replace(
        chosen=s.rejected,
        rejected=s.chosen,
        chosen_reference=s.rejected_reference,
        rejected_reference=s.chosen_reference,
    )
    close(0.8 * robust(s) + 0.2 * robust(flipped), -log_sigmoid(h))
    close(Hinge(beta=0.3)(s), np.maximum(1.0 - h, 0.0))
    means = [
        (a - b) / n
        for a, b, n in (
            (s.chosen, s.chosen_reference, s.chosen_length),
            (s.rejected, s.rejected_reference, s.rejected_length),
        )
    ]
    close(IPO(beta=0.3)(s), (means[0] - means[1] - 1.0 / 0.6) ** 2)
    close(IPO(beta=0.3, token_means=False)(s), (h / 0.3 - 1.0 / 0.6) ** 2)
    r = [s.chosen - s.chosen_reference, s.rejected - s.rejected_reference]
    kto = KTO(beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)(s._replace(drift=0.7))
    sigma = scipy.special.expit
    close(kto, 0.5 * (1.5 * (1 - sigma(0.3 * (r[0] - 0.7))) + 0.5 * (1 - sigma(0.3 * (0.7 - r[1])))))
    p = [np.exp(s.chosen / s.chosen_length), np.exp(s.rejected / s.rejected_length)]
    odds = np.log(p[0] / (1 - p[0])) - np.log(p[1] / (1 - p[1]))
    close(ORPO(weight=0.4)(s), -s.chosen / s.chosen_length - 0.4 * log_sigmoid(odds))
    close(
        SimPO(beta=2.0, gamma=0.5)(s),
        -log_sigmoid(2.0 * (s.chosen / s.chosen_length - s.rejected / s.rejected_length) - 0.5),
    )


@pytest.mark.parametrize("method", [DPO(), Hinge(), IPO(), KTO(), ORPO(), SimPO()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_values_and_gradients_are_finite_at_the_ends(method, dtype):
    # Certain answers, impossible ones, and answers without a token (trl 6548: 0 / 0).
    ends = jnp.asarray([0.0, -1e-9, -1e4, -3.0, 0.0], dtype)
    scores = PairScores(ends, ends[::-1], *(jnp.zeros(5, dtype),) * 2, *(jnp.asarray([1, 1, 9, 2, 0], dtype),) * 2)
    total = lambda a, b: method(scores._replace(chosen=a, rejected=b)).sum()
    value, gradients = jax.value_and_grad(total, argnums=(0, 1))(scores.chosen, scores.rejected)
    assert np.isfinite(value) and all(np.isfinite(g).all() and g.dtype == dtype for g in gradients)
