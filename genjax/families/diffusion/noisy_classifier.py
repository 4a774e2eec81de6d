"""A classifier of noisy data, whose gradient guides diffusion models (Dhariwal & Nichol 2021, arXiv:2105.05233, section
4).

    loss = -E log p(y | z_t, t),    z_t = alpha(t) x + sigma(t) epsilon,    t ~ p(t)

Its logits are the mean, over all places, of a denoising network's outputs.  `guidance.with_classifier` adds the
gradient by z to the score of a diffusion model of the same process.  Its samples show its idea of each class: it guides
the denoiser of a normal distribution,

    x0 = alpha s^2 z / (alpha^2 s^2 + sigma^2) + w sigma^2 / alpha grad_z log p(y | z, t)

with s = sigma_data.  Samples are not draws from the distribution of the data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from genjax.batch import Array, Batch, ComputeDtype, Metrics, PyTree, check_label_range, example_keys
from genjax.errors import UserError
from genjax.families.diffusion.guidance import with_classifier
from genjax.families.diffusion.networks import DenoisingNetwork
from genjax.families.diffusion.processes import Karras, Process, expand
from genjax.families.diffusion.samplers import Estimate, Heun, Sampler
from genjax.families.diffusion.times import LogNormalNoise, TimeDistribution
from genjax.families.diffusion.unet import UNet
from genjax.gradients import gradient_step
from genjax.model import TrainState
from genjax.optimizers import Adam, Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoisyClassifier:
    """Classifier of z_t at every time t of a process.

    Attributes:
      data_shape: shape of one example; None takes the data set's.
      num_classes: number of classes; None takes the data set's.
      process: forward process; it must be the process of the model to be guided.
      times: distribution of the training times; it should be wide, as guidance needs all times.
      sigma_data: standard deviation of the data, to scale the network's input.
      network: network whose outputs at all places are averaged.
      scale: weight w of the guidance of `sample`.
      sampler: method by which `sample` goes from noise to data.
      compute_dtype: type that the network computes in; parameters and losses are float32.
      optimizer: optimizer and learning-rate schedule.
    """

    data_shape: tuple[int, ...] | None = None
    num_classes: int | None = None
    process: Process = Karras()
    times: TimeDistribution = LogNormalNoise(mean=0.0, scale=2.0)
    sigma_data: float = 0.5
    network: DenoisingNetwork = UNet()
    scale: float = 1.0
    sampler: Sampler = Heun(num_steps=18)
    compute_dtype: ComputeDtype = "float32"
    optimizer: Optimizer = Adam(learning_rate=1e-3)

    def module(self) -> Any:
        """The Linen module of the network.

        Raises:
          UserError: the number of classes is not known, or the sampler does not suit the process.
        """
        if self.num_classes is None:
            raise UserError("NoisyClassifier.num_classes is None; give it, or train on a labelled set")
        self.sampler.check(self.process)
        return self.network.build(self.num_classes, None, jnp.dtype(self.compute_dtype))

    def class_logits(self, params: PyTree, z: Array, t: Array, dropout_keys: Array | None = None) -> Array:
        """Logits [B, num_classes] of noisy data z [B, ...] at times [B]."""
        deviation = jnp.sqrt((self.process.alpha(t) * self.sigma_data) ** 2 + self.process.sigma(t) ** 2)
        time = self.process.network_time(t)
        out = self.module().apply({"params": params}, z / expand(deviation, z), time, {}, dropout_keys)
        return out.reshape(out.shape[0], -1, self.num_classes).mean(1)

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: the examples have no labels.
        """
        if "label" not in batch:
            raise UserError("a classifier needs a labelled set; this one has no labels")
        params = self.module().init(key, batch["x"][:1], jnp.ones((1,)), {})["params"]
        return TrainState.create(params, self.optimizer)

    def _judge(self, logits: Array, label: Array) -> Metrics:
        accuracy = (logits.argmax(-1) == label).astype(jnp.float32)
        return {"cross_entropy": optax.softmax_cross_entropy_with_integer_labels(logits, label), "accuracy": accuracy}

    def _noised(self, params: PyTree, batch: Batch, key: Array, training: bool) -> Metrics:
        """Cross-entropy and accuracy [B] of each example at a random time."""

        def one(key: Array) -> tuple[Array, Array, Array]:
            time_key, noise_key, rest = jax.random.split(key, 3)
            return self.times.sample(time_key, self.process), jax.random.normal(noise_key, batch["x"].shape[1:]), rest

        t, epsilon, keys = jax.vmap(one)(example_keys(key, batch))
        x = batch["x"]
        z = expand(self.process.alpha(t), x) * x + expand(self.process.sigma(t), x) * epsilon
        return self._judge(self.class_logits(params, z, t, keys if training else None), batch["label"])

    def loss(self, params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        """Mean cross-entropy in nats over examples and times; metric `accuracy`."""
        values = self._noised(params, batch, key, training=True)
        return values["cross_entropy"].mean(), {"accuracy": values["accuracy"].mean()}

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update.  Metrics: loss (cross-entropy, nats) and accuracy, both over all noise levels."""
        return gradient_step(self.loss, self.optimizer)(state, batch, key)

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example, shape [B]: `cross_entropy` (nats) and `accuracy` (0 or 1) at a random time, `accuracy_clean` at
        the earliest.
        """
        metrics = self._noised(state.eval_params, batch, key, training=False)
        t = jnp.full(batch["label"].shape, self.process.earliest_time)
        z = expand(self.process.alpha(t), batch["x"]) * batch["x"]
        clean = self._judge(self.class_logits(state.eval_params, z, t), batch["label"])
        return {**metrics, "accuracy_clean": clean["accuracy"]}

    def log_likelihood(self, state: TrainState, label: Array) -> Callable[[Array, Array], Array]:
        """(z [B, ...], t scalar) -> log p(label | z, t) [B] for classes `label` [B], as `guidance.with_classifier`
        takes it.
        """

        def value(z: Array, t: Array) -> Array:
            logits = self.class_logits(state.eval_params, z, jnp.broadcast_to(t, label.shape))
            return -self._judge(logits, label)["cross_entropy"]

        return value

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the arrays that `sample` takes."""
        return ("label",)

    def check_labels(self, label: Array) -> None:
        """Refuses labels outside of the classes; inside of compiled functions their values are not known.

        Raises:
          UserError: there is no such class.
        """
        check_label_range(label, self.num_classes)

    def sample(self, state: TrainState, key: Array, num_samples: int, label: Array | None = None) -> Array:
        """Pictures that the classifier takes for classes `label` [num_samples], or for one
        class; by default all in turn.

        Returns:
          [num_samples, *data_shape].

        Raises:
          UserError: a label is no class.
        """
        if label is None:
            label = jnp.arange(num_samples) % self.num_classes
        self.check_labels(label)
        label = jnp.broadcast_to(jnp.asarray(label), (num_samples,))

        def normal(z: Array, t: Array, x0_before: Array) -> Estimate:
            alpha, sigma = self.process.alpha(t), self.process.sigma(t)
            return Estimate(alpha * self.sigma_data**2 / ((alpha * self.sigma_data) ** 2 + sigma**2) * z)

        denoise = with_classifier(normal, self.process, self.log_likelihood(state, label), self.scale)
        noise_key, step_key = jax.random.split(key)
        z = self.process.prior_scale * jax.random.normal(noise_key, (num_samples, *self.data_shape))
        return self.sampler.run(denoise, self.process, z, step_key)
