"""The vector-quantised autoencoder VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937).

The encoder gives a vector z_e at each place of a small map, which is replaced by the nearest of K codes e_k:

    k(x) = argmin_k |z_e(x) - e_k|^2,    z_q(x) = e_k(x)                                                     (eq. 1, 2)
    loss = -log p(x | z_q) + |sg(z_e) - e|^2 + beta |z_e - sg(e)|^2                                              (eq. 3)

with the gradient of z_q copied to z_e (straight through).  The middle term trains the codes by gradient; instead of it,
they can be moving averages of the vectors that chose them (appendix A.1):

    N_k <- gamma N_k + (1 - gamma) n_k,    m_k <- gamma m_k + (1 - gamma) sum of z_e that chose k,    e_k = m_k / N_k

A code that is hardly chosen any more starts anew at a vector of the batch (Jukebox, Dhariwal et al. 2020, section 3.2).

With a uniform prior over the codes of the P places, the code is a bound in nats:  -log p(x) <= -log p(x | z_q) + P log
K.  With a learned prior over `encode_codes`, its -log p replaces P log K, and `decode_codes`
turns its samples into data.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from genjax.batch import Array, Batch, ComputeDtype, Metrics, PyTree, batch_size, check_data_shape, cross_device_sum
from genjax.errors import UserError, filled
from genjax.gradients import gradient_step, unless_skipped
from genjax.model import TrainState
from genjax.nn.convolution import Convolution
from genjax.nn.distributions import Gaussian, OutputDistribution
from genjax.nn.encoder_decoder import ConvolutionalDecoder, ConvolutionalEncoder, check_picture_shape
from genjax.nn.mlp import Activation
from genjax.optimizers import Adam, Optimizer
from genjax.values import Support, only_of_support


class _Encoder(nn.Module):
    model: VQVAE

    @nn.compact
    def __call__(self, x: Array) -> Array:
        model, dtype = self.model, jnp.dtype(self.model.compute_dtype)
        x = ConvolutionalEncoder(model.channels, model.num_residual_blocks, model.activation, dtype)(x)
        return Convolution(model.embedding_dim, dtype, kernel_size=1)(x).astype(jnp.float32)


class _Decoder(nn.Module):
    model: VQVAE

    @nn.compact
    def __call__(self, z: Array) -> Array:
        model, dtype = self.model, jnp.dtype(self.model.compute_dtype)
        output = model.output
        channels = model.data_shape[-1]
        x = Convolution(model.channels[-1], dtype)(z)
        x = ConvolutionalDecoder(
            model.channels, channels * output.num_parameters, model.num_residual_blocks, model.activation, dtype
        )(x)
        x = x.astype(jnp.float32).reshape(z.shape[0], *model.data_shape, output.num_parameters)
        if output.num_shared_parameters:
            shared = self.param("shared_output", nn.initializers.zeros, (output.num_shared_parameters,))
            x = jnp.concatenate([x, jnp.broadcast_to(shared, (*x.shape[:-1], *shared.shape))], axis=-1)
        return x


def nearest_codes(vectors: Array, codebook: Array) -> Array:
    """Index of the nearest code of each vector (eq. 1).

    Args:
      vectors: [..., D].
      codebook: [K, D].

    Returns:
      int32 [...].
    """
    # |z|^2 is the same for all codes.
    scores = vectors @ codebook.T - 0.5 * jnp.sum(jnp.square(codebook), axis=-1).reshape(*[1] * (vectors.ndim - 1), -1)
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)


def perplexity(counts: Array) -> Array:
    """exp of the entropy of the codes' use, between 1 and K, for counts [K]."""
    share = counts / jnp.maximum(counts.sum(), 1e-12)
    return jnp.exp(-jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.maximum(share, 1e-12)), 0.0)))


def check_codes(codes: Array, num_codes: int) -> None:
    """Refuses codes outside of the codebook where their values are known, which compiled code cannot see.

    Raises:
      UserError: names a code.
    """
    if isinstance(codes, jax.core.Tracer):
        return
    known = np.asarray(codes)
    bad = known[(known < 0) | (known >= num_codes)]
    if bad.size:
        raise UserError(f"a map has the code {bad[0]}, and the codebook has the codes 0 to {num_codes - 1}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQVAE:
    """Autoencoder of pictures whose code is a map of indices into a learned codebook.

    Attributes:
      data_shape: shape (H, W, C) of one picture; None takes the data set's.
      channels: channels of the n feature maps; each map halves height and width, so that the code
        has H / 2^n x W / 2^n places.
      num_residual_blocks: number of residual blocks at each resolution.
      activation: activation of the networks.
      embedding_dim: length D of a code.
      num_codes: size K of the codebook.
      codebook: "ema", moving averages of the vectors that chose a code; or "gradient", learned by the loss.
      commitment_weight: beta, weight of the term that keeps the encoder's output near its codes.
      codebook_decay: gamma, decay of the moving averages of codes, and of the frequencies that `sample` draws from.
      restart_below: a code that is chosen fewer than this many times a batch, on average, starts anew; 0 for never.
      output: distribution of the data given the decoder's output.
      compute_dtype: type that the networks compute in; parameters, codes and likelihoods are float32.
      optimizer: optimizer and learning-rate schedule.
    """

    data_shape: tuple[int, ...] | None = None
    channels: tuple[int, ...] = (32, 64)
    num_residual_blocks: int = 1
    activation: Activation = "relu"
    embedding_dim: int = 32
    num_codes: int = 256
    codebook: Literal["ema", "gradient"] = "ema"
    commitment_weight: float = 0.25
    codebook_decay: float = 0.99
    restart_below: float = 0.01
    output: OutputDistribution = Gaussian(scale=0.1)
    compute_dtype: ComputeDtype = "float32"
    optimizer: Optimizer = Adam()

    def __post_init__(self) -> None:
        if self.num_codes < 2:
            raise UserError(f"model.num_codes={self.num_codes} must be at least 2")
        if not 0.0 <= self.codebook_decay < 1.0:
            raise UserError(f"model.codebook_decay={self.codebook_decay} must be at least 0 and below 1")

    # Networks.

    def support(self) -> Support:
        """The values that the output distribution scores."""
        return self.output.support()

    @property
    def code_shape(self) -> tuple[int, int]:
        """Height and width of the map of codes."""
        factor = 2 ** len(self.channels)
        return self.data_shape[0] // factor, self.data_shape[1] // factor

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step; codes start at vectors of the batch.

        Raises:
          UserError: the pictures have another shape than `data_shape`, or cannot be halved often enough.
        """
        check_data_shape(batch["x"], filled(self, "data_shape"))
        check_picture_shape(self.data_shape, len(self.channels))
        encoder_key, decoder_key, code_key, noise_key = jax.random.split(key, 4)
        encoder, vectors_key = _Encoder(self), jax.random.fold_in(code_key, 1)
        params = {"encoder": encoder.init(encoder_key, batch["x"])["params"]}
        vectors = encoder.apply({"params": params["encoder"]}, batch["x"])
        params["decoder"] = _Decoder(self).init(decoder_key, vectors)["params"]
        rows = vectors.reshape(-1, self.embedding_dim)
        chosen = rows[jax.random.randint(vectors_key, (self.num_codes,), 0, len(rows))]
        # Small noise, so that two codes that start at the same vector can move apart.
        codes = chosen + 0.01 * rows.std() * jax.random.normal(noise_key, chosen.shape)
        places = math.prod(self.code_shape)
        # As if all codes had been chosen equally often so far.
        learned = {"place_counts": jnp.full((places, self.num_codes), batch_size(batch) / self.num_codes)}
        if self.codebook == "gradient":
            params["codebook"] = codes
        else:
            learned |= {"codebook": codes, "sums": codes * learned["place_counts"].sum(0)[:, None]}
        extra = {"batch_size": jnp.asarray(batch_size(batch), jnp.int32)}
        return TrainState.create(params, self.optimizer, extra, learned)

    def codes_of(self, params: PyTree, learned: PyTree) -> Array:
        """The codebook, [K, D]."""
        return params["codebook"] if self.codebook == "gradient" else learned["codebook"]

    def encode_vectors(self, params: PyTree, x: Array) -> Array:
        """z_e of pictures [B, H, W, C], shape [B, h, w, D]."""
        return _Encoder(self).apply({"params": params["encoder"]}, x)

    def log_likelihood_given(self, params: PyTree, x: Array, codes: Array) -> Array:
        """log p(x | z_q) in nats for vectors z_q [B, h, w, D], shape [B]; NaN for values of x that
        have no likelihood.
        """
        parameters = _Decoder(self).apply({"params": params["decoder"]}, codes)
        log_likelihood = self.output.log_prob(parameters, x).reshape(x.shape[0], -1).sum(-1)
        return only_of_support(self.support(), log_likelihood, x)

    # Learning.

    def loss(self, params: PyTree, batch: Batch, key: Array, extra: PyTree) -> tuple[Array, tuple[Metrics, PyTree]]:
        """Mean over examples of eq. 3 in nats, metrics, and `extra` with what this batch chose added to its totals."""
        x = batch["x"]
        vectors = self.encode_vectors(params, x)
        codebook = self.codes_of(params, extra)
        index = nearest_codes(jax.lax.stop_gradient(vectors), jax.lax.stop_gradient(codebook))
        chosen = codebook[index]
        straight_through = vectors + jax.lax.stop_gradient(chosen - vectors)
        reconstruction = -self.log_likelihood_given(params, x, straight_through).mean()
        per_example = lambda a: jnp.square(a).reshape(x.shape[0], -1).sum(-1).mean()
        commitment = per_example(vectors - jax.lax.stop_gradient(chosen))
        loss = reconstruction + self.commitment_weight * commitment
        if self.codebook == "gradient":
            loss += per_example(jax.lax.stop_gradient(vectors) - chosen)
        totals = jax.lax.stop_gradient(self._totals(batch, key, vectors, index, extra))
        extra = {**extra, "totals": jax.tree.map(jnp.add, extra["totals"], totals)}
        return loss, ({"reconstruction": reconstruction, "commitment": commitment}, extra)

    def _totals(self, batch: Batch, key: Array, vectors: Array, index: Array, extra: PyTree) -> dict[str, Array]:
        """Sums over this part of the batch: counts of each code, vectors that chose it, and a
        vector to restart it at.
        """
        size, places = vectors.shape[0], math.prod(self.code_shape)
        one_hot = jax.nn.one_hot(index.reshape(size, places), self.num_codes)  # [B, P, K]
        rows = vectors.reshape(size, places, -1)
        totals = {"place_counts": one_hot.sum(0), "sums": jnp.einsum("bpk,bpd->kd", one_hot, rows)}
        if self.restart_below:
            # For each code one example of the whole batch and one place; the device that has
            # the example adds the vector.
            example_key, place_key = jax.random.split(key)
            example = jax.random.randint(example_key, (self.num_codes,), 0, extra["batch_size"])
            place = jax.random.randint(place_key, (self.num_codes,), 0, places)
            here = (batch.get("example_index", jnp.arange(size))[:, None] == example[None]).astype(
                jnp.float32
            )  # [B, K]
            totals["candidates"] = jnp.einsum("bk,bkd->kd", here, rows[:, place])
        return totals

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update of networks and codes.

        Metrics: loss, reconstruction = -log p(x | z_q) in nats an example, commitment, perplexity of the codes chosen
        in this batch, and the number of codes restarted.
        """
        zeros = {
            "place_counts": jnp.zeros_like(state.learned["place_counts"]),
            "sums": jnp.zeros((self.num_codes, self.embedding_dim)),
        }
        if self.restart_below:
            zeros["candidates"] = jnp.zeros((self.num_codes, self.embedding_dim))
        started = state.replace(extra={**state.extra, **state.learned, "totals": zeros})
        new, metrics = gradient_step(self.loss, self.optimizer, with_extra=True)(started, batch, key)
        totals = cross_device_sum(new.extra["totals"])
        learned = dict(state.learned)
        metrics["perplexity"] = perplexity(totals["place_counts"].sum(0))
        average = lambda old, new: self.codebook_decay * old + (1.0 - self.codebook_decay) * new
        learned["place_counts"] = average(learned["place_counts"], totals["place_counts"])
        counts = learned["place_counts"].sum(0)
        params = new.params
        if self.codebook == "ema":
            learned["sums"] = average(learned["sums"], totals["sums"])
            codes = learned["sums"] / jnp.maximum(counts, 1e-6)[:, None]
        else:
            codes = params["codebook"]
        if self.restart_below:
            dead = counts < self.restart_below
            metrics["restarted"] = dead.sum().astype(jnp.float32)
            codes = jnp.where(dead[:, None], totals["candidates"], codes)
            # A restarted code begins with the count of a code that is chosen once a batch.
            places = learned["place_counts"].shape[0]
            learned["place_counts"] = jnp.where(dead[None], 1.0 / places, learned["place_counts"])
            if self.codebook == "ema":
                learned["sums"] = jnp.where(dead[:, None], codes, learned["sums"])
        if self.codebook == "ema":
            learned["codebook"] = codes
        else:
            params = {**params, "codebook": codes}
        # A skipped update has counted nothing: codes would fade and restart at zero.
        params, learned = unless_skipped(metrics, (params, learned), (state.params, state.learned))
        return new.replace(params=params, learned=learned, extra=state.extra), metrics

    # Evaluation and samples.

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example, shape [B] each.

        `reconstruction` = -log p(x | z_q) and `nll_bound` = reconstruction + P log K, in nats, of the data before its
        transform where the batch has `log_abs_det`; `mean_squared_error` of the decoder's mean.
        """
        del key
        x, params = batch["x"], state.eval_params
        codes = self.codes_of(params, state.learned)[self.encode_codes(state, batch)]
        reconstruction = -self.log_likelihood_given(params, x, codes)
        error = jnp.square(self._decode_vectors(params, codes) - x).reshape(x.shape[0], -1).mean(-1)
        code_length = math.prod(self.code_shape) * math.log(self.num_codes)
        bound = reconstruction + code_length - batch.get("log_abs_det", 0.0)
        return {"nll_bound": bound, "reconstruction": reconstruction, "mean_squared_error": error}

    def diagnose(self, state: TrainState, batch: Batch, key: Array) -> None:
        """Looks for values that have no likelihood under `output`, outside of `jit`.

        Raises:
          UserError: naming them.
        """
        self.support().check(batch["x"])

    def encode_codes(self, state: TrainState, batch: Batch) -> Array:
        """Indices of the codes of pictures, int32 [B, h, w]; what a prior over codes learns."""
        params = state.eval_params
        return nearest_codes(self.encode_vectors(params, batch["x"]), self.codes_of(params, state.learned))

    def decode_codes(self, state: TrainState, codes: Array) -> Array:
        """Mean of p(x | z_q) for indices [B, h, w], shape [B, *data_shape].

        Raises:
          UserError: there is no such code.
        """
        check_codes(codes, self.num_codes)
        params = state.eval_params
        return self._decode_vectors(params, self.codes_of(params, state.learned)[codes])

    def _decode_vectors(self, params: PyTree, vectors: Array) -> Array:
        return self.output.mean(_Decoder(self).apply({"params": params["decoder"]}, vectors))

    def encode(self, state: TrainState, batch: Batch) -> Array:
        """z_e before it is quantised, shape [B, h, w, D]."""
        return self.encode_vectors(state.eval_params, batch["x"])

    def decode(self, state: TrainState, latents: Array) -> Array:
        """Mean of p(x | z_q) for vectors [B, h, w, D], which are quantised first, shape [B, *data_shape]."""
        codebook = self.codes_of(state.eval_params, state.learned)
        return self.decode_codes(state, nearest_codes(latents, codebook))

    def reconstruct(self, state: TrainState, batch: Batch, key: Array) -> Array:
        """Pictures through code and back, the shape of x."""
        del key
        return self.decode_codes(state, self.encode_codes(state, batch))

    def sample(self, state: TrainState, key: Array, num_samples: int, **condition: Any) -> Array:
        """Decodes codes that are drawn independently at each place, by their frequencies; shape [num_samples,
        *data_shape].

        Good pictures need a prior over codes; give its draws as `codes` [num_samples, h, w].
        """
        codes = condition.pop("codes", None)
        if condition:
            raise UserError(f"{', '.join(condition)} is not a condition of VQVAE; it has codes")
        if codes is None:
            logits = jnp.log(state.learned["place_counts"] + 1e-12)
            codes = jax.random.categorical(key, logits[None], shape=(num_samples, logits.shape[0]))
            codes = codes.reshape(num_samples, *self.code_shape)
        return self.decode_codes(state, codes)
