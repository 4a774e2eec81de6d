"""Diffusion of tokens against exact answers, and what its models refuse."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.families.diffusion.discrete import D3PM, MaskedDiffusion
from genjax.gradients import value_and_gradient

TOKENS = {"vocab_size": 3, "sequence_length": 4, "hidden_dim": 8, "num_layers": 1, "num_heads": 2}
PROBABILITIES = jnp.array([0.2, 0.5, 0.3])


def independent(cls):
    """A model that knows the distribution of independent tokens."""

    class Exact(cls):
        def log_probs(self, params, z, t, dropout_keys=None):
            shape = (*z.shape, self.vocab_size)
            prior = jnp.broadcast_to(PROBABILITIES, shape)
            if getattr(self, "noise", "absorbing") == "absorbing":
                return jnp.log(prior)
            alpha = self.keep_probability(t)[:, None, None]
            likelihood = alpha * jax.nn.one_hot(z, self.vocab_size) + (1 - alpha) / self.vocab_size
            return jax.nn.log_softmax(jnp.log(prior * likelihood))

    return Exact


def test_masked_diffusion_with_the_true_conditionals_has_the_true_likelihood():
    model = independent(MaskedDiffusion)(**TOKENS, num_bound_samples=256, num_steps_sampling=8)
    tokens = jnp.array(list(itertools.product(range(3), repeat=4)))
    state = MaskedDiffusion(**TOKENS).init(jax.random.key(0), {"tokens": tokens})
    value = jax.jit(model.log_prob_bound)(state, {"tokens": tokens}, jax.random.key(1))
    exact = jnp.log(PROBABILITIES)[tokens].sum(-1)
    np.testing.assert_allclose(value.mean(), exact.mean(), rtol=0.03)
    samples = jax.jit(lambda s, k: model.sample(s, k, 2000))(state, jax.random.key(2))
    frequency = np.bincount(np.asarray(samples).ravel(), minlength=4) / samples.size
    np.testing.assert_allclose(frequency, [*PROBABILITIES, 0.0], atol=0.02)


@pytest.mark.parametrize("noise", ["uniform", "absorbing"])
def test_d3pm_posterior_is_bayes_rule(noise):
    model = D3PM(**TOKENS, noise=noise, num_timesteps=10)
    size = 4 if noise == "absorbing" else 3
    keep = lambda t: float(model.keep_probability(jnp.array(t)))

    def transition(ratio):
        matrix = ratio * np.eye(size)
        if noise == "absorbing":
            matrix[:, 3] += 1 - ratio
        else:
            matrix += (1 - ratio) / 3
        return matrix

    to_s, s_to_t = transition(keep(0.5)), transition(keep(0.6) / keep(0.5))
    for x, z in itertools.product(range(3), range(size)):
        joint = to_s[x] * s_to_t[:, z]
        if joint.sum() == 0.0:
            continue
        ours = model.log_posterior(
            jnp.array([[z]]), jax.nn.one_hot(jnp.array([[x]]), 3), *jnp.array([[keep(0.6)], [keep(0.5)]])
        )
        np.testing.assert_allclose(jnp.exp(ours[0, 0, :size]), joint / joint.sum(), atol=1e-5)


@pytest.mark.parametrize("noise", ["uniform", "absorbing"])
def test_d3pm_with_the_true_conditionals_is_close_to_the_true_likelihood(noise):
    model = independent(D3PM)(**TOKENS, noise=noise, num_timesteps=200, num_bound_samples=400)
    tokens = jnp.array(list(itertools.product(range(3), repeat=4)))
    tokens = jnp.concatenate([tokens] * 4)
    weight = jnp.exp(jnp.log(PROBABILITIES)[tokens].sum(-1)) / 4
    state = MaskedDiffusion(**TOKENS).init(jax.random.key(0), {"tokens": tokens})
    value = jax.jit(model.log_prob_bound)(state, {"tokens": tokens}, jax.random.key(1))
    entropy = -4 * float((PROBABILITIES * jnp.log(PROBABILITIES)).sum())
    # Averaged over the data, a bound; tight for independent tokens and many steps.
    assert abs(float(-(value * weight).sum()) - entropy) < 0.15
    samples = jax.jit(lambda s, k: model.sample(s, k, 2000))(state, jax.random.key(2))
    frequency = np.bincount(np.asarray(samples).ravel(), minlength=3) / samples.size
    np.testing.assert_allclose(frequency, PROBABILITIES, atol=0.03)


@pytest.mark.parametrize("model", [MaskedDiffusion(**TOKENS, num_steps_sampling=3), D3PM(**TOKENS, num_timesteps=5)])
def test_token_models_train_and_sample(model):
    batch = {"tokens": jax.random.randint(jax.random.key(0), (4, 4), 0, 3)}
    state = model.init(jax.random.key(1), batch)
    state, metrics = jax.jit(model.train_step)(state, batch, jax.random.key(2))
    assert np.isfinite(metrics["loss"])
    samples = model.sample(state, jax.random.key(3), 5)
    assert samples.shape == (5, 4) and int(samples.min()) >= 0 and int(samples.max()) < 3
    # Sequences of other lengths: nats a token are those of all tokens, and microbatches add up to the batch.
    ragged = {**batch, "mask": jnp.arange(4)[None] < jnp.array([1, 4, 1, 3])[:, None]}
    update = jax.jit(
        lambda count: value_and_gradient(model.loss, state.params, ragged, jax.random.key(2), count)[:2],
        static_argnums=0,
    )
    (gradient, whole), (other, parts) = update(1), update(2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), gradient, other)
    means = [m["nll_bound_per_token"].value() for m in (whole, parts)]
    values = jax.jit(model.evaluate)(state, ragged, jax.random.key(2))
    np.testing.assert_allclose(means[0], means[1], rtol=1e-5)
    share = jax.tree.map(jnp.mean, values["nll_bound_per_token"]).value()
    np.testing.assert_allclose(share, values["nll_bound"].sum() / 9, rtol=1e-5)


def test_prompts_stay_and_bad_ones_are_refused():
    model = MaskedDiffusion(**TOKENS, num_steps_sampling=3)
    state = model.init(jax.random.key(0), {"tokens": jnp.zeros((1, 4), jnp.int32)})
    prompt = jnp.array([[2, -1, -1, 1]])
    samples = model.sample(state, jax.random.key(1), 1, prompt=prompt)
    assert samples[0, 0] == 2 and samples[0, 3] == 1
    with pytest.raises(ValueError, match="prompt has shape"):
        model.sample(state, jax.random.key(1), 2, prompt=prompt)
    for wrong, message in (
        (dataclasses.replace(model, num_heads=3), "must divide"),
        (dataclasses.replace(model, num_bound_samples=0), "num_bound_samples=0"),
        (dataclasses.replace(model, temperature=0.0), "temperature=0.0"),
        (D3PM(**TOKENS, num_timesteps=0), "num_timesteps=0"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong.module()
