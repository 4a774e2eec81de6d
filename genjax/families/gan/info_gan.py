"""InfoGAN: samples depend on codes that can be read from them (Chen et al. 2016, arXiv:1606.03657).

The generator takes noise z ~ N(0, I) and a code c of categorical variables (one-hot, uniform) and continuous ones,
U(-1, 1).  A second head of the discriminator, Q(c | x), predicts the code from the sample; it gives a lower bound on
the mutual information of code and sample (eq. 4 and 5):

    I(c; G(z, c)) >= L_I = E log Q(c | G(z, c)) + H(c)

    D and Q   E softplus(-D(x)) + E softplus(D(G(z, c))) - w L_I + r / 2 E |grad D(x)|^2
    G         E softplus(-D(G(z, c))) - w L_I                                                               (eq. 6)

Q is categorical for the discrete variables, and normal for the continuous variables.  The continuous part of L_I has a
weight of its own, since a differential entropy is on another scale (section 6).  The paper has no penalty R1 (r = 0;
Mescheder et al. 2018, arXiv:1801.04406).  Without it, D learns a small set by heart and samples keep few modes.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, ComputeDtype, Metrics, PyTree, batch_size, check_data_shape, example_keys
from genjax.errors import UserError, filled
from genjax.families.gan.objectives import centred_penalty
from genjax.families.gan.turns import Turns
from genjax.families.gan.vae_gan import FeatureDiscriminator, normal_latents
from genjax.model import TrainState
from genjax.nn.distributions import gaussian_log_prob
from genjax.nn.encoder_decoder import MLPNetwork, Network
from genjax.nn.mlp import Activation, activation_function
from genjax.optimizers import Adam, Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfoGAN:
    """Generator with codes, and a discriminator that predicts the codes.

    Attributes:
      data_shape: shape of one example; None takes the data set's.
      noise_dim: number of dimensions of the noise z.
      categories: number of values of each categorical variable of the code.
      num_continuous: number of continuous variables of the code.
      network: generator (the network's decoder) and discriminator (its encoder).
      num_features: width of the last layer that D and Q share.
      information_weight: weight w of the bound for the categorical variables.
      continuous_weight: weight w of the bound for the continuous variables.
      penalty_weight: weight r of the gradient penalty.
      output_activation: activation of the generator's outputs; sigmoid keeps pictures in [0, 1].
      compute_dtype: type that the networks compute in; parameters and losses are float32.
      generator_optimizer: optimizer of the generator.
      discriminator_optimizer: optimizer of discriminator and Q.
    """

    data_shape: tuple[int, ...] | None = None
    noise_dim: int = 32
    categories: tuple[int, ...] = (10,)
    num_continuous: int = 2
    network: Network = MLPNetwork(hidden_dims=(256, 256), activation="leaky_relu")
    num_features: int = 128
    information_weight: float = 1.0
    continuous_weight: float = 0.1
    penalty_weight: float = 0.0
    output_activation: Activation = "identity"
    compute_dtype: ComputeDtype = "float32"
    generator_optimizer: Optimizer = Adam(learning_rate=2e-4, b1=0.5)
    discriminator_optimizer: Optimizer = Adam(learning_rate=2e-4, b1=0.5)

    def __post_init__(self) -> None:
        if self.num_continuous < 0 or any(count < 2 for count in self.categories) or not self.code_dim:
            raise UserError(
                f"a code of categories={self.categories} and num_continuous={self.num_continuous} variables is none; "
                "every categorical variable needs at least two values, and there must be at least one variable"
            )

    @property
    def code_dim(self) -> int:
        """Width of a code: one-hot vectors, then continuous variables."""
        return sum(self.categories) + self.num_continuous

    @property
    def num_variables(self) -> int:
        """Number of variables of the code."""
        return len(self.categories) + self.num_continuous

    @property
    def code_entropy(self) -> float:
        """H(c) in nats (differential for the continuous variables)."""
        return sum(math.log(count) for count in self.categories) + self.num_continuous * math.log(2.0)

    def _modules(self) -> dict[str, Any]:
        dtype = jnp.dtype(self.compute_dtype)
        num_outputs = 1 + sum(self.categories) + 2 * self.num_continuous
        return {
            "generator": self.network.decoder(self.data_shape, dtype),
            "discriminator": FeatureDiscriminator(self.network, self.num_features, num_outputs, dtype),
        }

    def _optimizers(self) -> dict[str, Optimizer]:
        return {"generator": self.generator_optimizer, "discriminator": self.discriminator_optimizer}

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: the examples have another shape than `data_shape`.
        """
        check_data_shape(batch["x"], filled(self, "data_shape"))
        generator_key, discriminator_key = jax.random.split(key)
        latents, modules = jnp.zeros((batch_size(batch), self.noise_dim + self.code_dim)), self._modules()
        params = {
            "generator": modules["generator"].init(generator_key, latents)["params"],
            "discriminator": modules["discriminator"].init(discriminator_key, batch["x"])["params"],
        }
        return TrainState.create(params, self._optimizers())

    def draw_codes(self, key: Array, batch: Batch) -> Array:
        """Codes that belong to the examples, [B, code_dim]."""

        def draw(key: Array) -> Array:
            keys = jax.random.split(key, len(self.categories) + 1)
            parts = [
                jax.nn.one_hot(jax.random.randint(k, (), 0, count), count)
                for k, count in zip(keys, self.categories, strict=False)
            ]
            return jnp.concatenate([*parts, jax.random.uniform(keys[-1], (self.num_continuous,), minval=-1.0)])

        return jax.vmap(draw)(example_keys(key, batch))

    def generate(self, params: PyTree, noise: Array, codes: Array) -> Array:
        """G(z, c) of noise [B, noise_dim] and codes [B, code_dim] with the generator's parameters, [B, *data_shape]."""
        inputs = jnp.concatenate([noise, codes], axis=-1)
        outputs = self._modules()["generator"].apply({"params": params}, inputs).astype(jnp.float32)
        return activation_function(self.output_activation)(outputs)

    def discriminate(self, params: PyTree, x: Array) -> tuple[Array, Array]:
        """The logit of D [B], and the parameters of Q [B, sum(categories) + 2 num_continuous]."""
        outputs = self._modules()["discriminator"].apply({"params": params}, x)[1]
        return outputs[:, 0], outputs[:, 1:]

    def code_log_prob(self, parameters: Array, codes: Array) -> tuple[Array, Array]:
        """log Q(c | x) in nats of the categorical and of the continuous variables of codes [B, code_dim], [B] each."""
        total, start = jnp.zeros(codes.shape[0]), 0
        for count in self.categories:
            part = slice(start, start + count)
            total += (codes[:, part] * jax.nn.log_softmax(parameters[:, part])).sum(-1)
            start += count
        mean, log_scale = jnp.split(parameters[:, start:], 2, axis=-1)
        # Bounded below: a scale that shrinks without end would let one variable dominate the bound.
        return total, gaussian_log_prob(codes[:, start:], mean, jnp.maximum(log_scale, -3.0)).sum(-1)

    def information_bound(self, parameters: Array, codes: Array) -> Array:
        """Each example's term of L_I in nats, [B]."""
        return sum(self.code_log_prob(parameters, codes)) + self.code_entropy

    def information_loss(self, parameters: Array, codes: Array) -> tuple[Array, Array]:
        """- w L_I up to a constant, which discriminator and generator minimise, and L_I in nats: scalars."""
        categorical, continuous = self.code_log_prob(parameters, codes)
        loss = -self.information_weight * categorical.mean() - self.continuous_weight * continuous.mean()
        return loss, (categorical + continuous).mean() + self.code_entropy

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update of discriminator and Q, then one of the generator.

        Metrics: `loss` (the generator's), `discriminator_loss`, `information_bound` (nats), `real_score`, `fake_score`.
        """
        turns = Turns(state, self._optimizers())
        discriminator_key, generator_key = jax.random.split(key)

        def samples(params: PyTree, batch: Batch, key: Array) -> tuple[Array, Array]:
            noise_key, code_key = jax.random.split(key)
            codes = self.draw_codes(code_key, batch)
            return self.generate(params, normal_latents(noise_key, batch, self.noise_dim), codes), codes

        def discriminator_loss(params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
            fake, codes = samples(turns.params["generator"], batch, key)
            real_score, _ = self.discriminate(params, batch["x"])
            fake_score, parameters = self.discriminate(params, fake)
            information_loss, information = self.information_loss(parameters, codes)
            loss = jax.nn.softplus(-real_score).mean() + jax.nn.softplus(fake_score).mean()
            loss += centred_penalty(self.penalty_weight, lambda y: self.discriminate(params, y)[0], batch["x"])
            metrics = {"real_score": real_score.mean(), "fake_score": fake_score.mean()}
            return loss + information_loss, {**metrics, "information_bound": information}

        def generator_loss(params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
            fake, codes = samples(params, batch, key)
            score, parameters = self.discriminate(turns.params["discriminator"], fake)
            return jax.nn.softplus(-score).mean() + self.information_loss(parameters, codes)[0], {}

        turns.update("discriminator", discriminator_loss, batch, discriminator_key)
        turns.update("generator", generator_loss, batch, generator_key)
        return turns.finish(loss="generator")

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example [B]: the term of the `information_bound` in nats of one sample, `real_score` and `fake_score`."""
        noise_key, code_key = jax.random.split(key)
        codes = self.draw_codes(code_key, batch)
        fake = self.generate(state.eval_params["generator"], normal_latents(noise_key, batch, self.noise_dim), codes)
        fake_score, parameters = self.discriminate(state.eval_params["discriminator"], fake)
        return {
            "information_bound": self.information_bound(parameters, codes),
            "real_score": self.discriminate(state.eval_params["discriminator"], batch["x"])[0],
            "fake_score": fake_score,
        }

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the arrays that `sample` takes."""
        return ("codes",)

    def sample(self, state: TrainState, key: Array, num_samples: int, codes: Array | None = None) -> Array:
        """Draws from the generator, with codes [num_samples, code_dim] or random ones, [num_samples, *data_shape]."""
        noise_key, code_key = jax.random.split(key)
        if codes is None:
            codes = self.draw_codes(code_key, {"example_index": jnp.arange(num_samples)})
        noise = jax.random.normal(noise_key, (num_samples, self.noise_dim))
        return self.generate(state.eval_params["generator"], noise, codes)

    def traverse(self, state: TrainState, key: Array, variable: int, num_rows: int, num_values: int = 10) -> Array:
        """Samples in rows: one variable of the code changes along a row, everything else changes from row to row.

        Args:
          state: a state.
          key: draws noise and codes of the rows.
          variable: number of the variable; categorical variables come first, then continuous
            variables, which go from -1 to 1.
          num_rows: number of rows.
          num_values: number of columns for a continuous variable; a categorical variable has a column for each value.

        Returns:
          [num_rows, columns, *data_shape].

        Raises:
          UserError: there is no such variable.
        """
        if not 0 <= variable < self.num_variables:
            raise UserError(f"the code has the variables 0 to {self.num_variables - 1}, not {variable}")
        if variable < len(self.categories):
            start, columns = sum(self.categories[:variable]), self.categories[variable]
            values = jnp.eye(columns)
        else:
            start, columns = sum(self.categories) + variable - len(self.categories), num_values
            values = jnp.linspace(-1.0, 1.0, columns)[:, None]
        noise_key, code_key = jax.random.split(key)
        codes = self.draw_codes(code_key, {"example_index": jnp.arange(num_rows)})
        codes = jnp.repeat(codes, columns, axis=0)
        codes = codes.at[:, start : start + values.shape[1]].set(jnp.tile(values, (num_rows, 1)))
        noise = jnp.repeat(jax.random.normal(noise_key, (num_rows, self.noise_dim)), columns, axis=0)
        samples = self.generate(state.eval_params["generator"], noise, codes)
        return samples.reshape(num_rows, columns, *samples.shape[1:])

    def encode(self, state: TrainState, batch: Batch) -> Array:
        """The mean of Q(c | x): probabilities of the categories, then means, [B, code_dim]."""
        _, parameters = self.discriminate(state.eval_params["discriminator"], batch["x"])
        parts, start = [], 0
        for count in self.categories:
            parts.append(jax.nn.softmax(parameters[:, start : start + count]))
            start += count
        return jnp.concatenate([*parts, parameters[:, start : start + self.num_continuous]], axis=-1)

    def decode(self, state: TrainState, latents: Array) -> Array:
        """G(0, c) of codes [B, code_dim], with the noise at its mean, [B, *data_shape]."""
        noise = jnp.zeros((latents.shape[0], self.noise_dim))
        return self.generate(state.eval_params["generator"], noise, latents)
