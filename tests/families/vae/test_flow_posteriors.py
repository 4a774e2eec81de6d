"""Claims about variational autoencoders with a flow as posterior."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.families.flow.flow_vae import FlowVAE
from genjax.families.vae.vae import VAE
from genjax.nn.distributions import standard_normal_log_prob
from genjax.nn.encoder_decoder import MLPNetwork

TINY = {"data_shape": (6,), "latent_dim": 2, "network": MLPNetwork(hidden_dims=(8,))}
KINDS = ("iaf", "planar", "radial")


def model_of(kind):
    return FlowVAE(posterior_flow=kind, num_flow_layers=2, flow_hidden_dims=(8,), context_dim=3, **TINY)


def prepared(kind):
    """A model away from its start, so that the flow is no identity, and a batch."""
    model = model_of(kind)
    x = jnp.asarray(np.random.default_rng(0).integers(0, 2, (4, 6)), jnp.float32)
    state = model.init(jax.random.key(0), {"x": x})
    leaves, tree = jax.tree.flatten(state.params["posterior_flow"])
    noise = [0.2 * jax.random.normal(jax.random.key(i), p.shape) for i, p in enumerate(leaves)]
    params = {**state.params, "posterior_flow": tree.unflatten([p + n for p, n in zip(leaves, noise)])}
    return model, state.replace(params=params), {"x": x}


@pytest.mark.parametrize("kind", KINDS)
def test_the_posterior_is_a_density(kind):
    model, state, batch = prepared(kind)
    posterior = model.posterior(state.params, batch)
    edges = np.linspace(-12.0, 12.0, 161)
    z = np.stack(np.meshgrid(edges, edges, indexing="ij"), -1).reshape(-1, 1, 2)
    z = jnp.broadcast_to(jnp.asarray(z, jnp.float32), (len(z), 4, 2))

    @jax.jit
    def density(z):
        context = jnp.tile(posterior.context, (z.shape[0], 1))
        start, log_det = model.flow().inverse(state.params["posterior_flow"], z.reshape(-1, 2), context)
        log_q = posterior.with_sample_axis().log_prob(start.reshape(z.shape))
        return jnp.exp(log_q + log_det.reshape(z.shape[:2]))

    np.testing.assert_allclose(density(z).sum(0) * (edges[1] - edges[0]) ** 2, np.ones(4), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_importance_weights_give_the_likelihood_of_integration(kind):
    model, state, batch = prepared(kind)
    edges = np.linspace(-8.0, 8.0, 121)
    z = jnp.asarray(np.stack(np.meshgrid(edges, edges, indexing="ij"), -1).reshape(-1, 1, 2), jnp.float32)
    z = jnp.broadcast_to(z, (len(edges) ** 2, 4, 2))
    joint = model.log_likelihood_given(state.params, batch, z) + standard_normal_log_prob(z)
    exact = jax.nn.logsumexp(joint, axis=0) + 2 * np.log(edges[1] - edges[0])
    estimate = jax.jit(lambda k: model.log_likelihood(state, batch, k, 20000))(jax.random.key(1))
    np.testing.assert_allclose(estimate, exact, atol=0.05)
    bounds = [model.log_prob_bound(state, batch, k) for k in jax.random.split(jax.random.key(2), 50)]
    assert (np.mean(bounds, axis=0) < exact).all()


def test_it_starts_as_the_variational_autoencoder_with_the_same_weights():
    model = model_of("iaf")
    batch = {"x": jnp.ones((4, 6))}
    params = model.init(jax.random.key(0), batch).params
    plain = VAE(**TINY)
    encode = model.posterior(params, batch)
    z, log_det = model.transform(params, encode, encode.mean[None])
    np.testing.assert_allclose(z[0], encode.mean, atol=1e-6)
    np.testing.assert_allclose(log_det, np.zeros((1, 4)), atol=1e-6)
    assert params["encoder"].keys() == plain.init(jax.random.key(0), batch).params["encoder"].keys()


def test_a_step_changes_every_parameter():
    model, state, batch = prepared("planar")
    model = dataclasses.replace(model, num_importance_samples=2)
    assert all(np.isfinite(p).all() for p in jax.tree.leaves(state.params))
    new, metrics = jax.jit(model.train_step)(state, batch, jax.random.key(0))
    assert np.isfinite(metrics["loss"])
    assert all((a != b).any() for a, b in zip(jax.tree.leaves(new.params), jax.tree.leaves(state.params)))
    assert model.evaluate(new, batch, jax.random.key(0))["nll"].shape == (4,)
