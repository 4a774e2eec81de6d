"""A variational autoencoder whose posterior is a flow.

    z_0 ~ N(mu(x), diag(sigma(x))^2),   z = f(z_0; h(x)),   log q(z | x) = log q_0(z_0) - log |det dz/dz_0|

    iaf       f of masked autoregressive maps            (Kingma et al. 2016, arXiv:1606.04934, eqs. 10-11)
    planar    f of planar or radial maps                 (Rezende & Mohamed 2015, arXiv:1505.05770, eq. 15)

The encoder gives mu, sigma and a context h, on which the maps depend.  The KL has no closed form; the loss uses its
one-sample estimate log q(z | x) - log p(z) over all latent dimensions together, so that `free_bits` is for all of them.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, PyTree
from genjax.families.flow.bijections import Affine, Bijection, Chain, MaskedAutoregressive, Planar, Radial
from genjax.families.vae.vae import VAE
from genjax.model import TrainState
from genjax.nn.distributions import DiagonalGaussian, standard_normal_log_prob


class FlowPosterior(NamedTuple):
    """q_0(z_0 | x) and the context of the flow, shapes [B, latent_dim] twice and [B, context_dim]."""

    mean: Array
    log_scale: Array
    context: Array

    def with_sample_axis(self) -> DiagonalGaussian:
        """q_0 with shapes [1, B, latent_dim]."""
        return DiagonalGaussian(self.mean[None], self.log_scale[None])


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowVAE(VAE):
    """Variational autoencoder with a flow as posterior and a standard normal prior.

    Attributes:
      posterior_flow: iaf, planar or radial.
      num_flow_layers: number of maps from z_0 to z.
      flow_hidden_dims: widths of the masked network of each autoregressive map.
      context_dim: length of the encoder's context h.
    """

    posterior_flow: Literal["iaf", "planar", "radial"] = "iaf"
    num_flow_layers: int = 4
    flow_hidden_dims: tuple[int, ...] = (128,)
    context_dim: int = 32

    def encoder(self) -> Any:
        """The Linen module (x, condition) -> [B, 2 latent_dim + context_dim]."""
        return self.network.encoder(2 * self.latent_dim + self.context_dim, jnp.dtype(self.compute_dtype))

    def flow(self) -> Chain:
        """f, from z_0 to z."""
        layers: list[Bijection] = []
        for index in range(self.num_flow_layers):
            if self.posterior_flow == "iaf":
                transform = Affine(bound=2.0)
                layers.append(
                    MaskedAutoregressive(hidden_dims=self.flow_hidden_dims, transform=transform, reverse=index % 2 == 1)
                )
            else:
                layers.append(Planar() if self.posterior_flow == "planar" else Radial())
        return Chain(layers=tuple(layers))

    def init(self, key: Array, batch: Batch) -> TrainState:
        vae_key, flow_key = jax.random.split(key)
        params = super().init(vae_key, batch).params
        size = batch["x"].shape[0]
        z, context = jnp.zeros((size, self.latent_dim)), jnp.zeros((size, self.context_dim))
        params = {**params, "posterior_flow": self.flow().init(flow_key, z, context)}
        return TrainState.create(params, self.optimizer)

    def posterior(self, params: PyTree, batch: Batch) -> FlowPosterior:
        outputs = self.encoder().apply({"params": params["encoder"]}, batch["x"], self.condition(batch))
        places = [self.latent_dim, 2 * self.latent_dim]
        return FlowPosterior(*jnp.split(outputs.astype(jnp.float32), places, axis=-1))

    def transform(self, params: PyTree, posterior: FlowPosterior, latents: Array) -> tuple[Array, Array]:
        """z and log|det dz/dz_0| of z_0 [S, B, latent_dim], shapes [S, B, latent_dim] and [S, B]."""
        num_samples, size = latents.shape[:2]
        context = jnp.tile(posterior.context, (num_samples, 1))
        z, log_det = self.flow().forward(params["posterior_flow"], latents.reshape(num_samples * size, -1), context)
        return z.reshape(latents.shape), log_det.reshape(num_samples, size)

    def elbo_terms(self, params: PyTree, batch: Batch, key: Array) -> tuple[Array, Array]:
        """One-sample estimates of E_q[log p(x | z)], [B], and of the KL, [B, 1], in nats."""
        posterior = self.posterior(params, batch)
        start = posterior.with_sample_axis().sample(self.noise(key, batch, 1))
        z, log_det = self.transform(params, posterior, start)
        kl = posterior.with_sample_axis().log_prob(start) - log_det - standard_normal_log_prob(z)
        return self.log_likelihood_given(params, batch, z)[0], kl[0][:, None]

    def log_weights(self, params: PyTree, batch: Batch, posterior: FlowPosterior, latents: Array) -> Array:
        """log p(x, z) / q(z | x) in nats for z_0 [S, B, latent_dim], shape [S, B]."""
        z, log_det = self.transform(params, posterior, latents)
        log_q = posterior.with_sample_axis().log_prob(latents) - log_det
        return self.log_likelihood_given(params, batch, z) + standard_normal_log_prob(z) - log_q

    def encode(self, state: TrainState, batch: Batch) -> Array:
        """f at the mean of q_0(z_0 | x), shape [B, latent_dim]."""
        posterior = self.posterior(state.eval_params, batch)
        return self.transform(state.eval_params, posterior, posterior.mean[None])[0][0]
