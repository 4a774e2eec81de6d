"""The discrete VAE of DALL-E (Ramesh et al. 2021, arXiv:2102.12092, section 2.1 and appendix A).

The encoder gives logits of K codes at each place of a small map, and the decoder sees a code's vector at each place.  A
draw of codes has no gradient, so it is relaxed: with Gumbel noise g and a temperature tau that falls while training,

    z = softmax((logits + g) / tau),    loss = -log p(x | z E) + beta KL(q || uniform),    q = softmax(logits)

with E [K, D] the codes' vectors (the decoder's first 1 x 1 convolution) and the KL in nats, summed over the places of
an example.  Afterwards each place has its likeliest code.

The networks are those of the paper: residual blocks of four convolutions after a ReLU each, whose sum has the factor 1
/ (number of blocks)^2, with the maximum of 2 x 2 places between two levels of the encoder, and repeated places between
those of the decoder.  A model of the codes takes the parameters `encoder`, `decoder` and `codebook` as those of a
VQ-VAE (coded.py).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from genjax.batch import Array, Batch, ComputeDtype, Metrics, PyTree, check_data_shape, example_keys
from genjax.errors import UserError, filled
from genjax.families.vae.vq_vae import check_codes, perplexity
from genjax.gradients import gradient_step
from genjax.model import TrainState
from genjax.nn.convolution import Convolution
from genjax.nn.distributions import Gaussian, LogitLaplace
from genjax.nn.encoder_decoder import check_picture_shape
from genjax.optimizers import Adam, Optimizer
from genjax.values import Support, only_of_support


@dataclasses.dataclass(frozen=True, kw_only=True)
class Annealing:
    """A number that changes while training: half a cosine from one value to another, which then stays.

    Attributes:
      start: value at the first step.
      stop: value at the end.
      num_steps: number of steps that `share` is a part of; None takes the run's length.
      share: part of the steps over which the value changes; 0 for `stop` from the first step on.
    """

    start: float = 1.0
    stop: float = 1.0
    num_steps: int | None = None
    share: float = 1.0

    def at(self, step: Array) -> Array:
        """The value at a step, float32 scalar."""
        length = self.share * filled(self, "num_steps")
        done = jnp.clip(step / length, 0.0, 1.0) if length else jnp.ones(())
        return self.stop + (self.start - self.stop) * 0.5 * (1.0 + jnp.cos(jnp.pi * done))


class _Block(nn.Module):
    """x, or a map of it to other channels, plus `gain` times four convolutions, each after a ReLU."""

    features: int
    kernel_sizes: tuple[int, int, int, int]
    gain: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = x
        for i, size in enumerate(self.kernel_sizes):
            width = self.features if i == 3 else self.features // 4
            h = Convolution(width, self.dtype, kernel_size=size, name=f"conv_{i + 1}")(jax.nn.relu(h))
        if x.shape[-1] != self.features:
            x = Convolution(self.features, self.dtype, kernel_size=1, name="skip")(x)
        return x + self.gain * h


def _largest(x: Array) -> Array:
    """The maximum of every 2 x 2 places, [B, H, W, C] to [B, H/2, W/2, C]."""
    # The gradient of a maximum divides by the number of places equal to it, which is 0 where a compiler rounds the
    # picture otherwise when it computes it again.
    larger = lambda a, b: jnp.where(a >= b, a, b)
    x = larger(x[:, ::2], x[:, 1::2])
    return larger(x[:, :, ::2], x[:, :, 1::2])


def _repeated(x: Array) -> Array:
    """Every place as 2 x 2 places, [B, H, W, C] to [B, 2H, 2W, C]."""
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)


class _Encoder(nn.Module):
    model: DiscreteVAE

    @nn.compact
    def __call__(self, x: Array) -> Array:
        model, dtype = self.model, jnp.dtype(self.model.compute_dtype)
        h = Convolution(model.channels[0], dtype, kernel_size=model.input_kernel, name="input")(x)
        for level, width in enumerate(model.channels):
            for i in range(model.num_blocks):
                h = _Block(width, (3, 3, 3, 1), model.gain, dtype, name=f"block_{level}_{i}")(h)
            if level < len(model.channels) - 1:
                h = _largest(h)
        return Convolution(model.num_codes, kernel_size=1, name="output")(jax.nn.relu(h).astype(jnp.float32))


class _Decoder(nn.Module):
    model: DiscreteVAE

    @nn.compact
    def __call__(self, vectors: Array) -> Array:
        model, dtype = self.model, jnp.dtype(self.model.compute_dtype)
        output, channels = model.output, model.data_shape[-1]
        h = vectors.astype(dtype)
        for level, width in reversed(list(enumerate(model.channels))):
            for i in range(model.num_blocks):
                h = _Block(width, (1, 3, 3, 3), model.gain, dtype, name=f"block_{level}_{i}")(h)
            if level > 0:
                h = _repeated(h)
        h = jax.nn.relu(h).astype(jnp.float32)
        x = Convolution(channels * output.num_parameters, kernel_size=1, name="output")(h)
        # All locations, then all scales.
        x = jnp.moveaxis(x.reshape(*x.shape[:-1], output.num_parameters, channels), -2, -1)
        if output.num_shared_parameters:
            shared = self.param("shared_output", nn.initializers.zeros, (output.num_shared_parameters,))
            x = jnp.concatenate([x, jnp.broadcast_to(shared, (*x.shape[:-1], *shared.shape))], axis=-1)
        return x


def relaxed_codes(logits: Array, noise: Array, temperature: Array | float) -> Array:
    """Gumbel-softmax: weights of the codes, which sum to 1; the lower the temperature, the nearer to one code.

    Args:
      logits: of the codes, [..., K].
      noise: standard Gumbel noise, [..., K].
      temperature: tau, positive.
    """
    return jax.nn.softmax((logits + noise) / temperature)


def kl_to_uniform(logits: Array) -> Array:
    """KL(softmax(logits) || uniform) of each place in nats, [..., K] to [...]."""
    log_q = jax.nn.log_softmax(logits.astype(jnp.float32))
    return (jnp.exp(log_q) * log_q).sum(-1) + math.log(logits.shape[-1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscreteVAE:
    """Autoencoder of pictures whose code is a map of draws from K codes, relaxed while training.

    Attributes:
      data_shape: shape (H, W, C) of one picture; None takes the data set's.
      channels: channels of each level, multiples of 4; height and width are halved between two levels.
      num_blocks: residual blocks of a level.
      input_kernel: height and width of the encoder's first convolution, odd.
      embedding_dim: features D of a code.
      num_codes: number K of codes.
      temperature: tau over the steps; in the paper from 1 to 1/16 in 150000 steps.
      kl_weight: beta over the steps; in the paper from 0 to 6.6 in 5000 steps.
      output: distribution of the data given the decoder's output.
      compute_dtype: type that the networks compute in; parameters, logits and likelihoods are float32.
      optimizer: optimizer and learning-rate schedule.
    """

    data_shape: tuple[int, ...] | None = None
    channels: tuple[int, ...] = (32, 64, 128)
    num_blocks: int = 1
    input_kernel: int = 7
    embedding_dim: int = 64
    num_codes: int = 256
    temperature: Annealing = Annealing(start=1.0, stop=0.0625)
    kl_weight: Annealing = Annealing(start=0.0, stop=6.6, share=0.1)
    output: LogitLaplace | Gaussian = LogitLaplace()
    compute_dtype: ComputeDtype = "float32"
    optimizer: Optimizer = Adam()

    def __post_init__(self) -> None:
        if self.num_codes < 2:
            raise UserError(f"model.num_codes={self.num_codes} must be at least 2")
        if not self.channels or any(width < 4 or width % 4 for width in self.channels):
            raise UserError(f"model.channels={self.channels} must name a level or more, each a multiple of 4")
        if self.input_kernel < 1 or self.input_kernel % 2 == 0:
            raise UserError(f"model.input_kernel={self.input_kernel} must be odd, so that it has a middle")
        if min(self.temperature.start, self.temperature.stop) <= 0.0:
            raise UserError("model.temperature must stay positive: at 0 codes have no gradient")

    def support(self) -> Support:
        """The values that the output distribution scores."""
        return self.output.support()

    @property
    def gain(self) -> float:
        """Factor on the convolutions of every block."""
        return 1.0 / (len(self.channels) * self.num_blocks) ** 2

    @property
    def code_shape(self) -> tuple[int, int]:
        """Height and width of the map of codes."""
        factor = 2 ** (len(self.channels) - 1)
        return self.data_shape[0] // factor, self.data_shape[1] // factor

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: the pictures have another shape than `data_shape`, or cannot be halved often enough.
        """
        check_data_shape(batch["x"], filled(self, "data_shape"))
        check_picture_shape(self.data_shape, len(self.channels) - 1)
        encoder_key, decoder_key, code_key = jax.random.split(key, 3)
        vectors = jnp.zeros((1, *self.code_shape, self.embedding_dim))
        params = {
            "encoder": _Encoder(self).init(encoder_key, batch["x"][:1])["params"],
            "decoder": _Decoder(self).init(decoder_key, vectors)["params"],
            # One code is seen at a place, whereas a 1 x 1 convolution is drawn as if all K were.
            "codebook": jax.random.normal(code_key, (self.num_codes, self.embedding_dim)),
        }
        return TrainState.create(params, self.optimizer)

    def code_logits(self, params: PyTree, x: Array) -> Array:
        """Logits of q(code | x) at each place, float32 [B, h, w, K]."""
        return _Encoder(self).apply({"params": params["encoder"]}, x)

    def log_likelihood_given(self, params: PyTree, x: Array, vectors: Array) -> Array:
        """log p(x | codes) in nats for codes' vectors [B, h, w, D], shape [B]; NaN for values of x that have no
        likelihood.
        """
        parameters = _Decoder(self).apply({"params": params["decoder"]}, vectors)
        log_likelihood = self.output.log_prob(parameters, x).reshape(x.shape[0], -1).sum(-1)
        return only_of_support(self.support(), log_likelihood, x)

    # Learning.

    def loss(self, params: PyTree, batch: Batch, key: Array, step: Array) -> tuple[Array, Metrics]:
        """Mean over examples of -log p(x | z) + beta KL in nats, and metrics."""
        x, keys = batch["x"], example_keys(key, batch)
        logits = self.code_logits(params, x)
        noise = jax.vmap(lambda k: jax.random.gumbel(k, logits.shape[1:]))(keys)
        temperature, weight = self.temperature.at(step), self.kl_weight.at(step)
        vectors = relaxed_codes(logits, noise, temperature) @ params["codebook"]
        reconstruction = -self.log_likelihood_given(params, x, vectors).mean()
        kl = kl_to_uniform(logits).sum((1, 2)).mean()
        return reconstruction + weight * kl, {
            "reconstruction": reconstruction,
            "kl": kl,
            "perplexity": perplexity(jax.nn.softmax(logits).mean((0, 1, 2))),
            "temperature": temperature,
            "kl_weight": weight,
        }

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update.

        Metrics: loss; reconstruction and kl in nats an example; perplexity of the codes' mean probability in this part
        of the batch, between 1 and K; temperature; kl_weight.
        """
        return gradient_step(functools.partial(self.loss, step=state.step), self.optimizer)(state, batch, key)

    # Evaluation and samples.

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example, shape [B] each, of the likeliest codes.

        `reconstruction` = -log p(x | codes) and `nll_bound` = reconstruction + P log K in nats, of the data before
        its transform where the batch has `log_abs_det`; `kl` of the encoder's distribution to the uniform one in nats;
        `mean_squared_error` of the decoder's mean.
        """
        del key
        x, params = batch["x"], state.eval_params
        logits = self.code_logits(params, x)
        vectors = params["codebook"][logits.argmax(-1)]
        parameters = _Decoder(self).apply({"params": params["decoder"]}, vectors)
        reconstruction = -self.log_likelihood_given(params, x, vectors)
        error = jnp.square(self.output.mean(parameters) - x).reshape(x.shape[0], -1).mean(-1)
        code_length = math.prod(self.code_shape) * math.log(self.num_codes)
        return {
            "nll_bound": reconstruction + code_length - batch.get("log_abs_det", 0.0),
            "reconstruction": reconstruction,
            "kl": kl_to_uniform(logits).sum((1, 2)),
            "mean_squared_error": error,
        }

    def diagnose(self, state: TrainState, batch: Batch, key: Array) -> None:
        """Looks for values that have no likelihood under `output`, outside of `jit`.

        Raises:
          UserError: naming them.
        """
        self.support().check(batch["x"])

    def encode_codes(self, state: TrainState, batch: Batch) -> Array:
        """The likeliest codes of pictures, int32 [B, h, w]; what a prior over codes learns."""
        return self.code_logits(state.eval_params, batch["x"]).argmax(-1).astype(jnp.int32)

    def decode_codes(self, state: TrainState, codes: Array) -> Array:
        """Mean of p(x | codes) for codes [B, h, w], shape [B, *data_shape].

        Raises:
          UserError: there is no such code.
        """
        check_codes(codes, self.num_codes)
        params = state.eval_params
        vectors = params["codebook"][codes]
        return self.output.mean(_Decoder(self).apply({"params": params["decoder"]}, vectors))

    def encode(self, state: TrainState, batch: Batch) -> Array:
        """Logits of the codes, shape [B, h, w, K]."""
        return self.code_logits(state.eval_params, batch["x"])

    def decode(self, state: TrainState, latents: Array) -> Array:
        """Mean of p(x | the likeliest codes) for logits [B, h, w, K], shape [B, *data_shape]."""
        return self.decode_codes(state, latents.argmax(-1))

    def reconstruct(self, state: TrainState, batch: Batch, key: Array) -> Array:
        """Pictures through code and back, the shape of x."""
        del key
        return self.decode_codes(state, self.encode_codes(state, batch))

    def sample(self, state: TrainState, key: Array, num_samples: int, **condition: Any) -> Array:
        """Decodes uniform draws of codes, as the model's own prior has them; shape [num_samples, *data_shape].

        Good pictures need a learned prior over codes; give its draws as `codes` [num_samples, h, w].
        """
        codes = condition.pop("codes", None)
        if condition:
            raise UserError(f"{', '.join(condition)} is not a condition of DiscreteVAE; it has codes")
        if codes is None:
            codes = jax.random.randint(key, (num_samples, *self.code_shape), 0, self.num_codes)
        return self.decode_codes(state, codes)
