"""Bidirectional GAN, or adversarially learned inference (Donahue et al. 2017, arXiv:1605.09782; Dumoulin et al. 2017,
arXiv:1606.00704).

The discriminator tells pairs of data and their codes (x, E(x)) from pairs of samples and their latents (G(z), z);
generator and encoder together make it err:

    D      E softplus(-D(x, E(x))) + E softplus(D(G(z), z))
    G, E   E softplus(D(x, E(x))) + E softplus(-D(G(z), z))

At the optimum both kinds of pairs follow one distribution, so E inverts G.  With `stochastic_encoder` the code is drawn
from N(m(x), s(x)^2), as in adversarially learned inference; otherwise the code is E(x).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, ComputeDtype, Metrics, PyTree, batch_size, check_data_shape
from genjax.errors import filled
from genjax.families.gan.turns import Turns
from genjax.families.gan.vae_gan import FeatureDiscriminator, normal_latents
from genjax.model import TrainState
from genjax.nn.distributions import DiagonalGaussian
from genjax.nn.encoder_decoder import MLPNetwork, Network
from genjax.nn.mlp import Activation, activation_function
from genjax.optimizers import Adam, Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class BiGAN:
    """Generator, encoder, and a discriminator of pairs.

    Attributes:
      data_shape: shape of one example; None takes the data set's.
      latent_dim: number of latent dimensions.
      network: encoder and generator; the discriminator is a second encoder, which takes the code as its condition.
      num_features: width of the discriminator's last hidden layer.
      stochastic_encoder: whether the code is drawn from a normal distribution.
      output_activation: activation of the generator's outputs; sigmoid keeps pictures in [0, 1].
      compute_dtype: type that the networks compute in; parameters and losses are float32.
      generator_optimizer: optimizer of generator and encoder.
      discriminator_optimizer: optimizer of the discriminator.
    """

    data_shape: tuple[int, ...] | None = None
    latent_dim: int = 32
    network: Network = MLPNetwork(hidden_dims=(256, 256), activation="leaky_relu")
    num_features: int = 256
    stochastic_encoder: bool = False
    output_activation: Activation = "identity"
    compute_dtype: ComputeDtype = "float32"
    generator_optimizer: Optimizer = Adam(learning_rate=2e-4, b1=0.5)
    discriminator_optimizer: Optimizer = Adam(learning_rate=2e-4, b1=0.5)

    def _modules(self) -> dict[str, Any]:
        dtype = jnp.dtype(self.compute_dtype)
        return {
            "generator": self.network.decoder(self.data_shape, dtype),
            "encoder": self.network.encoder(self.latent_dim * (2 if self.stochastic_encoder else 1), dtype),
            "discriminator": FeatureDiscriminator(self.network, self.num_features, 1, dtype),
        }

    def _optimizers(self) -> dict[str, Optimizer]:
        return {"generator_and_encoder": self.generator_optimizer, "discriminator": self.discriminator_optimizer}

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: the examples have another shape than `data_shape`.
        """
        check_data_shape(batch["x"], filled(self, "data_shape"))
        latents, modules = jnp.zeros((batch_size(batch), self.latent_dim)), self._modules()
        generator_key, encoder_key, discriminator_key = jax.random.split(key, 3)
        params = {
            "generator_and_encoder": {
                "generator": modules["generator"].init(generator_key, latents)["params"],
                "encoder": modules["encoder"].init(encoder_key, batch["x"])["params"],
            },
            "discriminator": modules["discriminator"].init(discriminator_key, batch["x"], latents)["params"],
        }
        return TrainState.create(params, self._optimizers())

    def generate(self, params: PyTree, latents: Array) -> Array:
        """G(z) with the generator's parameters, float32 [B, *data_shape]."""
        outputs = self._modules()["generator"].apply({"params": params}, latents).astype(jnp.float32)
        return activation_function(self.output_activation)(outputs)

    def codes(self, params: PyTree, x: Array, noise: Array | None = None) -> Array:
        """E(x) with the encoder's parameters, float32 [B, latent_dim]; its mean without noise [B, latent_dim]."""
        outputs = self._modules()["encoder"].apply({"params": params}, x).astype(jnp.float32)
        if not self.stochastic_encoder:
            return outputs
        posterior = DiagonalGaussian(*jnp.split(outputs, 2, axis=-1))
        return posterior.mean if noise is None else posterior.sample(noise)

    def score(self, params: PyTree, x: Array, latents: Array) -> Array:
        """D of pairs with the discriminator's parameters, float32 [B]."""
        return self._modules()["discriminator"].apply({"params": params}, x, latents)[1]

    def pair_scores(self, params: PyTree, discriminator: PyTree, batch: Batch, key: Array) -> tuple[Array, Array]:
        """Scores of the pairs (x, E(x)) and (G(z), z), float32 [B] each."""
        latent_key, code_key = jax.random.split(key)
        codes = self.codes(params["encoder"], batch["x"], normal_latents(code_key, batch, self.latent_dim))
        latents = normal_latents(latent_key, batch, self.latent_dim)
        samples = self.generate(params["generator"], latents)
        return self.score(discriminator, batch["x"], codes), self.score(discriminator, samples, latents)

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update of the discriminator, then one of generator and encoder.

        Metrics: `loss` (of generator and encoder), `discriminator_loss`, and the scores
        `data_score` and `sample_score`.
        """
        turns = Turns(state, self._optimizers())
        discriminator_key, generator_key = jax.random.split(key)

        def discriminator_loss(params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
            data, samples = self.pair_scores(turns.params["generator_and_encoder"], params, batch, key)
            loss = jax.nn.softplus(-data).mean() + jax.nn.softplus(samples).mean()
            return loss, {"data_score": data.mean(), "sample_score": samples.mean()}

        def generator_loss(params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
            data, samples = self.pair_scores(params, turns.params["discriminator"], batch, key)
            return jax.nn.softplus(data).mean() + jax.nn.softplus(-samples).mean(), {}

        turns.update("discriminator", discriminator_loss, batch, discriminator_key)
        turns.update("generator_and_encoder", generator_loss, batch, generator_key)
        return turns.finish(loss="generator_and_encoder")

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example [B]: `squared_error` of G(E(x)), `latent_squared_error` of E(G(z)), both
        summed, and both scores.
        """
        params = state.eval_params
        nets, latents = params["generator_and_encoder"], normal_latents(key, batch, self.latent_dim)
        again = self.generate(nets["generator"], self.codes(nets["encoder"], batch["x"]))
        found = self.codes(nets["encoder"], self.generate(nets["generator"], latents))
        data, samples = self.pair_scores(nets, params["discriminator"], batch, key)
        return {
            "squared_error": ((again - batch["x"]) ** 2).reshape(latents.shape[0], -1).sum(-1),
            "latent_squared_error": ((found - latents) ** 2).sum(-1),
            "data_score": data,
            "sample_score": samples,
        }

    def sample(self, state: TrainState, key: Array, num_samples: int) -> Array:
        """Draws from the generator, shape [num_samples, *data_shape]."""
        return self.decode(state, jax.random.normal(key, (num_samples, self.latent_dim)))

    def encode(self, state: TrainState, batch: Batch) -> Array:
        """E(x), or its mean, shape [B, latent_dim]."""
        return self.codes(state.eval_params["generator_and_encoder"]["encoder"], batch["x"])

    def decode(self, state: TrainState, latents: Array) -> Array:
        """G(z), shape [B, *data_shape]."""
        return self.generate(state.eval_params["generator_and_encoder"]["generator"], latents)

    def reconstruct(self, state: TrainState, batch: Batch, key: Array) -> Array:
        """G(E(x)), the shape of x."""
        del key
        return self.decode(state, self.encode(state, batch))
