"""Energy-based models with a replay buffer (Du & Mordatch 2019, arXiv:1903.08689).

    p(x) = exp(-E(x)) / Z;    L = E(x+) - E(x-) + alpha (E(x+)^2 + E(x-)^2)
    x- by K steps of Langevin dynamics,  x <- x - lambda dE(x) + sigma N(0, 1),

that start from the buffer of earlier x-, or, with probability `restart_rate`, from noise.  The paper's lambda is far
above sigma^2 / 2, so the chains sample exp(-E(x) / t) with the temperature t = sigma^2 / (2 lambda), as long as
steps are not clipped.  Learning adapts the energies to t: with the defaults t is 1.25e-6, and a difference of
energies of 1e-4 means 80 nats.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from genjax.batch import (
    Array,
    Batch,
    ComputeDtype,
    Metrics,
    PyTree,
    batch_size,
    cross_device_gather,
    cross_device_sum,
    example_keys,
    own_part,
)
from genjax.errors import UserError
from genjax.gradients import gradient_step, unless_skipped
from genjax.model import TrainState
from genjax.nn.convolution import Convolution, Downsample
from genjax.nn.tokens import logits_product
from genjax.optimizers import Adam, Optimizer
from genjax.values import Support


class EnergyNetwork(nn.Module):
    """Energies [B] of pictures [B, H, W, C] by convolutions that halve the picture, or of vectors [B, D] by an MLP."""

    hidden_dims: tuple[int, ...]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = x.astype(self.dtype)
        for i, width in enumerate(self.hidden_dims):
            if x.ndim == 4 and i == 0:
                x = Convolution(width, self.dtype)(x)
            elif x.ndim == 4:
                # Only even sizes can be halved.
                x = Downsample(width, self.dtype)(
                    jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
                )
            else:
                x = nn.Dense(width, dtype=self.dtype)(x)
            x = nn.swish(x)
        x = x.reshape(x.shape[0], -1)
        # In float32: bfloat16 cannot resolve the small differences of energies.
        return nn.Dense(1, dtype=self.dtype, dot_general=logits_product)(x)[:, 0].astype(jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnergyBasedModel:
    """Energy-based model of `x` [B, H, W, C] or [B, D] within [low, high].

    Attributes:
      hidden_dims: channels of the convolutions, or widths of the layers for vectors.
      buffer_size: number of earlier samples that the state keeps.
      restart_rate: share of chains that start from noise.
      num_langevin_steps: number K of Langevin steps of a chain in a training step.
      step_size: factor lambda on the energy's gradient in a Langevin step.
      noise_scale: standard deviation sigma of the noise of a Langevin step.
      gradient_clip: bound on each coordinate of the energy's gradient in a Langevin step.
      energy_penalty: weight alpha of the penalty that keeps energies near 0.
      data_noise: standard deviation of noise added to the data, which smooths discrete values.
      num_sampling_steps: number of Langevin steps of a sample.
      low: smallest value of the data, and of chains.
      high: largest value of the data, and of chains.
      data_shape: shape of an example; None takes the data set's.
      compute_dtype: type that the network computes in.
      optimizer: optimizer and learning-rate schedule.
    """

    hidden_dims: tuple[int, ...] = (32, 64, 64)
    buffer_size: int = 4096
    restart_rate: float = 0.05
    num_langevin_steps: int = 40
    step_size: float = 10.0
    noise_scale: float = 0.005
    gradient_clip: float = 0.03
    energy_penalty: float = 0.1
    data_noise: float = 0.005
    num_sampling_steps: int = 500
    low: float = -1.0
    high: float = 1.0
    data_shape: tuple[int, ...] | None = None
    compute_dtype: ComputeDtype = "float32"
    optimizer: Optimizer = Adam(learning_rate=1e-4, b1=0.0, clip_norm=0.1)

    def __post_init__(self) -> None:
        if self.low >= self.high or not 0 <= self.restart_rate <= 1 or self.num_langevin_steps < 1:
            raise UserError("an energy-based model needs low < high, restart_rate from 0 to 1, num_langevin_steps >= 1")

    def energy(self, params: PyTree, x: Array) -> Array:
        """E(x), [B, ...] -> [B], up to a constant; E(x) / t is in nats."""
        return EnergyNetwork(self.hidden_dims, jnp.dtype(self.compute_dtype)).apply({"params": params}, x)

    def _noise(self, key: Array, count: int, shape: tuple[int, ...]) -> Array:
        return jax.random.uniform(key, (count, *shape), minval=self.low, maxval=self.high)

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step; the buffer holds noise."""
        keys = jax.random.split(key)
        network = EnergyNetwork(self.hidden_dims, jnp.dtype(self.compute_dtype))
        params = network.init(keys[0], batch["x"])["params"]
        buffer = self._noise(keys[1], max(self.buffer_size, batch_size(batch)), batch["x"].shape[1:])
        return TrainState.create(params, self.optimizer, {"buffer": buffer})

    def langevin(self, params: PyTree, key: Array, x: Array, num_steps: int) -> Array:
        """Langevin dynamics from x [B, ...]."""
        gradient = jax.grad(lambda x: self.energy(params, x).sum())
        everywhere = (cross_device_sum(len(x)), *x.shape[1:])

        def step(x: Array, key: Array) -> tuple[Array, None]:
            noise = own_part(jax.random.normal(key, everywhere), len(x))
            x = jnp.clip(x + self.noise_scale * noise, self.low, self.high)
            move = jnp.clip(gradient(x), -self.gradient_clip, self.gradient_clip)
            return jnp.clip(x - self.step_size * move, self.low, self.high), None

        return jax.lax.scan(step, x, jax.random.split(key, num_steps))[0]

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One step.  `loss` is L; `energy_gap` is mean energy of samples less mean energy of data, in units of E."""
        buffer, own_count, shape = state.extra["buffer"], batch_size(batch), batch["x"].shape[1:]
        keys, count = jax.random.split(key, 5), cross_device_sum(own_count)
        places = jax.random.permutation(keys[0], len(buffer))[:count]
        fresh = jax.random.bernoulli(keys[1], self.restart_rate, (count, *[1] * len(shape)))
        start = jnp.where(fresh, self._noise(keys[2], count, shape), buffer[places])
        samples = self.langevin(state.params, keys[3], own_part(start, own_count), self.num_langevin_steps)
        noise = own_part(jax.random.normal(keys[4], (count, *shape)), own_count)
        x = jnp.clip(batch["x"] + self.data_noise * noise, self.low, self.high)
        # Values out of range would be clipped silently; NaN stops the run, as an error cannot be raised under jit.
        x = jnp.where((batch["x"] >= self.low) & (batch["x"] <= self.high), x, jnp.nan)

        def loss(params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
            real, fake = self.energy(params, batch["x"]), self.energy(params, samples)
            penalty = self.energy_penalty * ((real**2).mean() + (fake**2).mean())
            return real.mean() - fake.mean() + penalty, {"energy": real.mean(), "energy_gap": fake.mean() - real.mean()}

        state, metrics = gradient_step(loss, self.optimizer)(state, {**batch, "x": x}, keys[4])
        buffer = unless_skipped(metrics, buffer.at[places].set(cross_device_gather(samples)), buffer)
        return state.replace(extra={**state.extra, "buffer": buffer}), metrics

    def support(self) -> Support:
        """The values that chains reach."""
        remedy = "model.low and model.high, or data.preprocessing"
        return Support(name="the range of the chains", remedy=remedy, low=self.low, high=self.high)

    def diagnose(self, state: TrainState, batch: Batch, key: Array) -> None:
        """Looks for values out of range, outside of `jit`.

        Raises:
          UserError: naming the range.
        """
        self.support().check(batch["x"])

    def score(self, state: TrainState, x: Array) -> Array:
        """Gradient of -E by x, its shape."""
        return -jax.grad(lambda x: self.energy(state.eval_params, x).sum())(x)

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """`energy` of the examples up to a constant, and of uniform noise, one for each; in nats
        after division by t.
        """
        params, x = state.eval_params, batch["x"]
        noise = jax.vmap(lambda k: self._noise(k, 1, x.shape[1:])[0])(example_keys(key, batch))
        return {"energy": self.energy(params, x), "noise_energy": self.energy(params, noise)}

    def sample(self, state: TrainState, key: Array, num_samples: int) -> Array:
        """Draws examples [num_samples, *data_shape] by Langevin dynamics from noise."""
        keys = jax.random.split(key)
        start = self._noise(keys[0], num_samples, state.extra["buffer"].shape[1:])
        return self.langevin(state.eval_params, keys[1], start, self.num_sampling_steps)
