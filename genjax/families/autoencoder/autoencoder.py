"""The autoencoder (Hinton & Salakhutdinov 2006), base of the regularised autoencoders.

    h = encoder(x),    loss = -log p(x | decoder(h)) + regulariser

With `output=Gaussian()` the reconstruction term is half the squared error and a constant, with `Bernoulli()` the
cross-entropy.  An autoencoder has no prior; to sample, a Gaussian is fitted to its codes (Ghosh et al. 2020,
arXiv:1903.12436, ex-post density estimation), whose mean and second moments are kept as moving averages while training:

    h ~ N(m, S - m m^T),    x = decoder(h)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from genjax.batch import (
    Array,
    Batch,
    ComputeDtype,
    Metrics,
    PyTree,
    batch_size,
    check_data_shape,
    cross_device_mean,
    example_keys,
)
from genjax.errors import filled
from genjax.gradients import gradient_step, unless_skipped
from genjax.model import TrainState
from genjax.nn.distributions import Bernoulli, OutputDistribution
from genjax.nn.encoder_decoder import MLPNetwork, Network, OutputDecoder
from genjax.nn.mlp import Activation, activation_function
from genjax.optimizers import Adam, Optimizer
from genjax.values import Support, only_of_support


@dataclasses.dataclass(frozen=True, kw_only=True)
class Autoencoder:
    """Autoencoder; subclasses override `corrupt` or `regulariser`.

    Attributes:
      data_shape: shape of one example; None takes the data set's.
      latent_dim: number of dimensions of the code.
      network: encoder and decoder.
      code_activation: activation of the code.
      output: distribution of the data given the decoder's output; -log p(x | h) is the reconstruction error.
      code_decay: decay of the moving averages of the codes' moments, which samples are drawn from.
      compute_dtype: type that the networks compute in; parameters and losses are float32.
      optimizer: optimizer and learning-rate schedule.
    """

    data_shape: tuple[int, ...] | None = None
    latent_dim: int = 32
    network: Network = MLPNetwork()
    code_activation: Activation = "identity"
    output: OutputDistribution = Bernoulli()
    code_decay: float = 0.99
    compute_dtype: ComputeDtype = "float32"
    optimizer: Optimizer = Adam()

    def support(self) -> Support:
        """The values that the output distribution scores."""
        return self.output.support()

    def encoder(self) -> Any:
        """The Linen module (x, None) -> [B, latent_dim], before the activation of the code."""
        return self.network.encoder(self.latent_dim, jnp.dtype(self.compute_dtype))

    def decoder(self) -> Any:
        """The Linen module (h, None) -> [B, *data_shape, P], parameters of p(x | h)."""
        return OutputDecoder(self.network, self.output, filled(self, "data_shape"), jnp.dtype(self.compute_dtype))

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: the examples have another shape than `data_shape`.
        """
        check_data_shape(batch["x"], self.data_shape)
        encoder_key, decoder_key = jax.random.split(key)
        params = {
            "encoder": self.encoder().init(encoder_key, batch["x"])["params"],
            "decoder": self.decoder().init(decoder_key, jnp.zeros((batch_size(batch), self.latent_dim)))["params"],
        }
        moments = {"code_mean": jnp.zeros(self.latent_dim), "code_second_moment": jnp.eye(self.latent_dim)}
        return TrainState.create(params, self.optimizer, learned=moments)

    def code(self, params: PyTree, x: Array) -> Array:
        """h for examples x [B, *data_shape], shape [B, latent_dim]."""
        outputs = self.encoder().apply({"params": params["encoder"]}, x)
        return activation_function(self.code_activation)(outputs.astype(jnp.float32))

    def output_parameters(self, params: PyTree, codes: Array) -> Array:
        """Parameters of p(x | h) for codes [B, latent_dim], shape [B, *data_shape, P]."""
        return self.decoder().apply({"params": params["decoder"]}, codes)

    def reconstruction_error(self, params: PyTree, codes: Array, x: Array) -> Array:
        """-log p(x | h) in nats, shape [B]; NaN for values of x that have no likelihood."""
        log_prob = self.output.log_prob(self.output_parameters(params, codes), x)
        return -only_of_support(self.support(), log_prob.reshape(x.shape[0], -1).sum(-1), x)

    # What subclasses vary.

    def corrupt(self, x: Array, keys: Array) -> Array:
        """The encoder's input for x [B, ...] in training; `keys` [B] are random keys of the examples."""
        del keys
        return x

    def regulariser(self, params: PyTree, x: Array, codes: Array) -> tuple[Array, Metrics]:
        """A term of the loss, a scalar, and metrics; x is the encoder's input, [B, ...]."""
        del params, x, codes
        return jnp.zeros(()), {}

    # The contract.

    def loss(self, params: PyTree, batch: Batch, key: Array, sums: PyTree) -> tuple[Array, tuple[Metrics, PyTree]]:
        """Mean over examples of the reconstruction error in nats with the regulariser; adds to sums of the codes'
        moments.
        """
        x = batch["x"]
        seen = self.corrupt(x, example_keys(key, batch))
        codes = self.code(params, seen)
        # Codes of the clean data, as `encode` gives them, not of the corrupted data.
        clean = codes if seen is x else self.code(params, x)
        errors = self.reconstruction_error(params, codes, x)
        return self._total(errors, *self.regulariser(params, seen, codes), clean, sums)

    def _total(
        self, errors: Array, penalty: Array, metrics: Metrics, codes: Array, sums: PyTree
    ) -> tuple[Array, tuple[Metrics, PyTree]]:
        """The loss of reconstruction errors [B] and a penalty, metrics, and the sums with the
        moments of codes [B, D].
        """
        reconstruction, clean = errors.mean(), jax.lax.stop_gradient(codes)
        here = {"code_mean": clean.sum(0), "code_second_moment": clean.T @ clean}
        sums = jax.tree.map(jnp.add, sums, here)
        return reconstruction + penalty, ({"reconstruction": reconstruction, **metrics}, sums)

    @property
    def objective(self) -> Callable[..., tuple[Array, tuple[Metrics, PyTree]]]:
        """The loss as `gradient_step` takes it."""
        return self.loss

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update.  Metrics: loss, reconstruction = -log p(x | h) in nats an example, and the regulariser's."""
        zeros = jax.tree.map(jnp.zeros_like, state.learned)
        new, metrics = gradient_step(self.objective, self.optimizer, with_extra=True)(
            state.replace(extra=zeros), batch, key
        )
        means = jax.tree.map(lambda total: cross_device_mean(total) / batch_size(batch), new.extra)
        moments = jax.tree.map(
            lambda old, mean: self.code_decay * old + (1.0 - self.code_decay) * mean, state.learned, means
        )
        return new.replace(learned=unless_skipped(metrics, moments, state.learned), extra=state.extra), metrics

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example, shape [B]: `reconstruction` = -log p(x | h) in nats, and `squared_error`,
        summed, of the mean.
        """
        x, params = batch["x"], state.eval_params
        codes = self.code(params, x)
        squared = jnp.square(x - self.output.mean(self.output_parameters(params, codes)))
        return {
            "reconstruction": self.reconstruction_error(params, codes, x),
            "squared_error": squared.reshape(x.shape[0], -1).sum(-1),
        }

    def diagnose(self, state: TrainState, batch: Batch, key: Array) -> None:
        """Looks for values that have no likelihood under `output`, outside of `jit`.

        Raises:
          UserError: naming them.
        """
        self.support().check(batch["x"])

    def sample(self, state: TrainState, key: Array, num_samples: int) -> Array:
        """Decodes draws of a Gaussian fitted to the codes, shape [num_samples, *data_shape]."""
        mean = state.learned["code_mean"]
        values, vectors = jnp.linalg.eigh(state.learned["code_second_moment"] - jnp.outer(mean, mean))
        noise = jax.random.normal(key, (num_samples, self.latent_dim))
        codes = mean[None] + (noise * jnp.sqrt(jnp.maximum(values, 0.0))[None]) @ vectors.T
        if self.code_activation in ("relu", "sigmoid", "tanh", "softplus"):
            low, high = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}.get(self.code_activation, (0.0, jnp.inf))
            codes = jnp.clip(codes, low, high)
        return self.decode(state, codes)

    # Capabilities.

    def encode(self, state: TrainState, batch: Batch) -> Array:
        """The code of each example, shape [B, latent_dim]."""
        return self.code(state.eval_params, batch["x"])

    def decode(self, state: TrainState, latents: Array) -> Array:
        """Mean of p(x | h), shape [B, *data_shape]."""
        return self.output.mean(self.output_parameters(state.eval_params, latents))

    def reconstruct(self, state: TrainState, batch: Batch, key: Array) -> Array:
        """Mean of p(x | h) at the code of x, the shape of x."""
        del key
        return self.decode(state, self.encode(state, batch))
