"""Advantages beside direct sums and beside numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.batch import DEVICE_AXIS
from genjax.families.alignment import advantages, policy_losses
from genjax.families.alignment.reinforce_plus_plus import token_rewards

RANDOM = np.random.default_rng(0)
LENGTHS = np.array([5, 1, 3, 4])
MASK = np.arange(5)[None] < LENGTHS[:, None]
REWARDS, VALUES = RANDOM.normal(size=(2, 4, 5)).astype(np.float32)


def spoiled(a):
    """The same values at tokens, and large ones behind their ends."""
    return jnp.where(MASK, a, 1e6)


def test_gae_equals_the_direct_double_sum():
    discount, decay = 0.9, 0.8
    found, returns = advantages.generalized_advantages(REWARDS, VALUES, MASK, discount, decay)
    for row, length in enumerate(LENGTHS):
        values = np.append(VALUES[row, :length], 0.0).astype(np.float64)
        errors = REWARDS[row, :length] + discount * values[1:] - values[:-1]
        expected = [sum((discount * decay) ** k * errors[t + k] for k in range(length - t)) for t in range(length)]
        np.testing.assert_allclose(found[row, :length], expected, atol=1e-6)
        np.testing.assert_allclose(returns[row, :length], expected + values[:-1], atol=1e-6)
        assert not found[row, length:].any() and not returns[row, length:].any()


def test_padding_does_not_leak_into_advantages():
    # alibaba/ROLL PR 447, NovaSky-AI/SkyRL #1305, AReaL PR 1346: into GAE, whitening and means.
    for function in (
        lambda r, v: advantages.generalized_advantages(r, v, MASK),
        lambda r, v: advantages.rewards_to_go(r, MASK, 0.9),
        lambda r, v: advantages.whitened(r, MASK),
    ):
        clean, dirty = function(REWARDS, VALUES), function(spoiled(REWARDS), spoiled(VALUES))
        for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty)):
            np.testing.assert_array_equal(np.where(MASK, a, 0), np.where(MASK, b, 0))


def test_rewards_to_go_of_one_reward_at_the_end():
    rewards = token_rewards(jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.zeros((4, 5)), jnp.asarray(MASK))
    # huggingface/trl #1893 and #3750: the score stands at the end token, not behind it.
    assert [row.nonzero()[0].tolist() for row in np.asarray(rewards)] == [[4], [0], [2], [3]]
    found = advantages.rewards_to_go(rewards, jnp.asarray(MASK))
    np.testing.assert_array_equal(found, MASK * np.array([[1.0], [2.0], [3.0], [4.0]]))


def test_whitening_is_over_all_tokens_and_leaves_a_single_one():
    found = np.asarray(advantages.whitened(jnp.asarray(REWARDS), jnp.asarray(MASK)))[MASK]
    tokens = REWARDS[MASK]
    np.testing.assert_allclose(found, (tokens - tokens.mean()) / tokens.std(ddof=1), atol=1e-6)
    # alibaba/ROLL #475: one token has no deviation.
    one = np.zeros((2, 3), bool)
    one[0, 0] = True
    np.testing.assert_array_equal(advantages.whitened(jnp.full((2, 3), 7.0), jnp.asarray(one))[0, 0], 7.0)


GROUPS = np.array([[0.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0], [5.0, 0.0, 0.0, 0.0]], np.float32)


def test_group_advantages_by_hand():
    centered = GROUPS - GROUPS.mean(1, keepdims=True)
    np.testing.assert_allclose(advantages.group_advantages(GROUPS, "none"), centered, atol=1e-6)
    by_group = centered / (GROUPS.std(1, ddof=1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(advantages.group_advantages(GROUPS, "group"), by_group, atol=1e-6)
    # huggingface/trl #3991: the scale of the batch was the group's.
    by_batch = centered / (GROUPS.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(advantages.group_advantages(GROUPS, "batch"), by_batch, atol=1e-6)
    others = [[np.delete(row, i).mean() for i in range(4)] for row in GROUPS]
    np.testing.assert_allclose(advantages.leave_one_out_advantages(GROUPS), GROUPS - others, atol=1e-6)


def test_statistics_of_the_batch_are_of_all_devices():
    rewards = RANDOM.normal(size=(8, 4)).astype(np.float32)
    tokens, mask = RANDOM.normal(size=(8, 6)), np.arange(6)[None] < RANDOM.integers(1, 7, size=(8, 1))
    whole = advantages.group_advantages(rewards, "batch"), advantages.whitened(tokens, mask)
    whole = (*whole, policy_losses.token_weights(jnp.asarray(mask), "tokens"))

    def of_device(r, t, m):
        return (
            advantages.group_advantages(r, "batch"),
            advantages.whitened(t, m),
            policy_losses.token_weights(m, "tokens"),
        )

    split = [a.reshape(4, 2, *a.shape[1:]) for a in (rewards, tokens, mask)]
    parts = jax.pmap(of_device, DEVICE_AXIS)(*split)
    for a, b in zip(whole, parts):
        np.testing.assert_allclose(a, b.reshape(a.shape), atol=2e-6)


@pytest.mark.parametrize("normalization, expected", [("answer", 1.0), ("tokens", 13 / 13), ("longest", 13 / 20)])
def test_weights_of_tokens_sum_to_their_normalization(normalization, expected):
    weights = np.asarray(policy_losses.token_weights(jnp.asarray(MASK), normalization))
    assert weights.sum(1).mean() == pytest.approx(expected) and not weights[~MASK].any()
    if normalization != "answer":
        # Liu et al. 2025: no token weighs less because its answer is long (trl PR 3138).
        assert len(np.unique(weights[MASK])) == 1


def test_the_clipped_losses_by_hand():
    ratio, advantage = np.log([0.5, 0.9, 1.5, 1.5]), np.array([1.0, 1.0, 1.0, -1.0])
    found = policy_losses.clipped_loss(jnp.asarray(ratio), jnp.asarray(advantage), 0.2, 0.28)
    np.testing.assert_allclose(found, [-0.5, -0.9, -1.28, 1.5], atol=1e-6)
    cut = policy_losses.clip_fraction(
        jnp.asarray(ratio)[:, None], jnp.asarray(advantage)[:, None], jnp.ones((4, 1), bool), 0.2, 0.28
    )
    assert cut.value() == pytest.approx(0.25)
    arguments = (jnp.array([[0.0, 3.0]]), jnp.array([[0.1, 1.0]]), jnp.array([[1.0, 1.0]]))
    np.testing.assert_allclose(policy_losses.clipped_value_loss(*arguments, 0.2), [[0.5, 2.0]], atol=1e-6)
