"""Base of autoregressive models: the chain rule, its bookkeeping, and the sampler of vectors.

    log p(x | y) = sum_d log p(x_d | x_<d, y)

One draw takes D steps; step d needs only the parameters of x_d.  Models keep the activations of the values so far, so
that a step costs the work of one value and not of a whole pass; both ways draw the same values from the same key.  To
complete a partly hidden example, known values replace drawn values.  Temperature T raises every conditional to the
power 1/T and normalises it again.

Every output has a lattice of possible values.  Other values have no probability: `log_prob` of an example with such a
value is NaN, so that a cross-entropy is not taken for a likelihood.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import (
    Array,
    Batch,
    ComputeDtype,
    Metrics,
    PyTree,
    check_data_shape,
    check_label_range,
    example_keys,
    one_hot_classes,
)
from genjax.errors import UserError, filled
from genjax.gradients import gradient_step
from genjax.model import TrainState
from genjax.nn.distributions import Bernoulli, Categorical
from genjax.optimizers import Adam, Optimizer
from genjax.values import Lattice, Support, only_of_support


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoregressiveModel(abc.ABC):
    """Base of models with log p(x) by the chain rule.

    Attributes:
      data_shape: shape of one example; None takes the data set's.
      class_conditional: whether the model is p(x | label).
      num_classes: number of classes; None takes the data set's.
      temperature: temperature T of samples; below 1, samples are likelier and more alike.
      compute_dtype: type that the network computes in; parameters and likelihoods are float32.
      optimizer: optimizer and learning-rate schedule.
    """

    data_shape: tuple[int, ...] | None = None
    class_conditional: bool = False
    num_classes: int | None = None
    temperature: float = 1.0
    compute_dtype: ComputeDtype = "float32"
    optimizer: Optimizer = Adam()

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise UserError(f"model.temperature={self.temperature} must be positive")

    # What a model defines.

    @abc.abstractmethod
    def init_params(self, key: Array, x: Array, label: Array | None) -> PyTree:
        """Initial parameters."""

    @abc.abstractmethod
    def log_likelihood(self, params: PyTree, x: Array, label: Array | None) -> Array:
        """log p(x | label) in nats for x [B, *data_shape], shape [B]."""

    @abc.abstractmethod
    def generate(
        self,
        params: PyTree,
        key: Array,
        x: Array,
        known: Array,
        label: Array | None,
        temperature: Any = 1.0,
        cached: bool = True,
    ) -> Array:
        """Draws the unknown values.

        Args:
          params: the network's.
          key: random key.
          x: values [B, *data_shape], read where they are known.
          known: boolean, shape of x.
          label: classes [B] or None.
          temperature: T above; 1 draws from the model.
          cached: False runs the whole network for every value, which is slow and gives the same draws.
        """

    def training_log_likelihood(self, params: PyTree, x: Array, label: Array | None, keys: Array, step: Array) -> Array:
        """The log-likelihoods [B] that `loss` averages, given keys [B]; models override it if training differs."""
        return self.log_likelihood(params, x, label)

    # Bookkeeping.

    def shape(self) -> tuple[int, ...]:
        """`data_shape`, which must be known."""
        return tuple(filled(self, "data_shape"))

    def labels(self, batch: Batch) -> Array | None:
        """Classes of a batch, [B], or None where the model takes none."""
        if not self.class_conditional:
            return None
        if self.num_classes is None:
            raise UserError("a class_conditional model needs num_classes; give it, or use a labelled data set")
        if "label" not in batch:
            raise UserError("a class_conditional model needs batches with a label")
        return batch["label"]

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the arrays that `sample` takes."""
        return ("label",) if self.class_conditional else ()

    def check_labels(self, label: Array) -> None:
        """Refuses labels outside of the classes.

        Raises:
          UserError: the model is not conditional on classes, or there is no such class.
        """
        if not self.class_conditional:
            raise UserError("this model takes no label; train it with model.class_conditional=true")
        check_label_range(label, self.num_classes)

    def support(self) -> Support:
        """The values that the output gives a probability."""
        remedy = "data.preprocessing (binarize_dynamic for a Bernoulli), model.output or its num_levels"
        return lattice_of(self.output).as_support(type(self.output).__name__, remedy)

    def one_hot(self, label: Array | None) -> Array | None:
        """Classes [B] as float32 [B, num_classes]."""
        return None if label is None else one_hot_classes(label, self.num_classes)

    # The contract.

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: the examples have another shape than `data_shape`.
        """
        x = batch["x"]
        check_data_shape(x, self.shape())
        return TrainState.create(self.init_params(key, x, self.labels(batch)), self.optimizer)

    def loss(self, params: PyTree, batch: Batch, key: Array, step: Array) -> tuple[Array, Metrics]:
        """Mean negative log-likelihood in nats an example, and it in bits a dimension."""
        x, keys = batch["x"], example_keys(key, batch)
        log_likelihood = self.training_log_likelihood(params, x, self.labels(batch), keys, step)
        loss = -only_of_support(self.support(), log_likelihood, x).mean()
        return loss, {"nll": loss, "bits_per_dim": loss / (math.log(2.0) * math.prod(self.shape()))}

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update.  Metrics: loss = nll (nats an example), bits_per_dim."""
        loss = lambda params, part, part_key: self.loss(params, part, part_key, state.step)
        return gradient_step(loss, self.optimizer)(state, batch, key)

    def log_prob(self, state: TrainState, batch: Batch) -> Array:
        """Exact log p(x) (given the label, where the model is class-conditional) in nats, shape [B].

        NaN for examples with values to which the output gives no probability: out of its range, or between its levels.
        """
        log_likelihood = self.log_likelihood(state.eval_params, batch["x"], self.labels(batch))
        return only_of_support(self.support(), log_likelihood, batch["x"])

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Exact `nll` in nats and `bits_per_dim` of each example, shape [B]."""
        nll = -self.log_prob(state, batch)
        return {"nll": nll, "bits_per_dim": nll / (math.log(2.0) * math.prod(self.shape()))}

    def diagnose(self, state: TrainState, batch: Batch, key: Array) -> None:
        """Looks for values that the output gives no probability, outside of `jit`.

        Raises:
          UserError: naming them.
        """
        self.support().check(batch["x"])

    def sample(
        self,
        state: TrainState,
        key: Array,
        num_samples: int,
        label: Array | None = None,
        temperature: Any = None,
        cached: bool = True,
    ) -> Array:
        """Draws examples, shape [num_samples, *data_shape].

        Args:
          state: the trained state.
          key: random key.
          num_samples: how many.
          label: classes [num_samples] for a class-conditional model, or one class for all; by
            default all classes in turn.
          temperature: temperature to use instead of the model's.
          cached: False samples by whole passes of the network; for comparison.

        Raises:
          UserError: the model takes no labels, a label is no class, or the temperature is not positive.
        """
        x = jnp.zeros((num_samples, *self.shape()))
        return self.complete(state, key, x, jnp.zeros(self.shape(), bool), label, temperature, cached)

    def complete(
        self,
        state: TrainState,
        key: Array,
        x: Array,
        known: Array,
        label: Array | None = None,
        temperature: Any = None,
        cached: bool = True,
    ) -> Array:
        """Draws the unknown values given the known ones before them in the order, shape of x.

        Args:
          state: the trained state.
          key: random key.
          x: examples [B, *data_shape]; values at unknown places are ignored.
          known: boolean, of shape data_shape or of the shape of x.
          label, temperature, cached: as in `sample`.
        """
        temperature = self.temperature if temperature is None else temperature
        if isinstance(temperature, (int, float)) and temperature <= 0:
            raise UserError(f"temperature={temperature} must be positive")
        if label is not None:
            self.check_labels(label)
        if self.class_conditional:
            label = jnp.arange(x.shape[0]) % (self.num_classes or 1) if label is None else jnp.asarray(label)
            label = self.labels({"label": jnp.broadcast_to(label, x.shape[:1])})
        known = jnp.broadcast_to(known if known.ndim == x.ndim else known[None], x.shape)
        return self.generate(state.eval_params, key, jnp.where(known, x, 0.0), known, label, temperature, cached)

    def reconstruct(self, state: TrainState, batch: Batch, key: Array) -> Array:
        """Examples whose second half (the lower half of a picture) is drawn anew given the first, shape of x."""
        size = math.prod(self.shape())
        known = (jnp.arange(size) < size // 2).reshape(self.shape())
        return self.complete(state, key, batch["x"], known, self.labels(batch))


def lattice_of(output: Any) -> Lattice:
    """The values that an output distribution gives a probability."""
    return output if isinstance(output, Lattice) else Lattice(num_levels=2)


#: See `VectorModel.incremental`.
Conditionals = tuple[Any, Callable[[Any, Array], Array], Callable[[Any, Array, Array], Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorModel(AutoregressiveModel):
    """Autoregressive models that take an example as a vector of D values, in the order of memory unless they say so.

    Attributes:
      output: distribution of one value given the values before it."""

    output: Bernoulli | Categorical = Bernoulli()

    @property
    def dim(self) -> int:
        """Number D of values."""
        return math.prod(self.shape())

    def scaled(self, x: Array) -> Array:
        """Values as the network sees them, in [0, 1]."""
        return lattice_of(self.output).unit(x)

    @abc.abstractmethod
    def parameters(self, params: PyTree, x: Array, label: Array | None) -> Array:
        """Parameters of all conditionals for vectors x [B, D], shape [B, D, P]."""

    @abc.abstractmethod
    def incremental(self, params: PyTree, label: Array | None, batch_size: int) -> Conditionals:
        """The conditionals one after the other.

        Returns:
          The carry before the first value; `parameters_of(carry, d)`, which gives the distribution parameters of x_d,
          [B, P]; and `observe(carry, d, value)`, which gives the carry once x_d is known, for scaled values [B].
        """

    def order(self) -> np.ndarray:
        """Indices of the values in the order in which they are drawn, [D]."""
        return np.arange(self.dim)

    def log_likelihood(self, params: PyTree, x: Array, label: Array | None) -> Array:
        x = x.reshape(-1, self.dim)
        return self.output.log_prob(self.parameters(params, x, label), x).sum(-1)

    def generate(
        self,
        params: PyTree,
        key: Array,
        x: Array,
        known: Array,
        label: Array | None,
        temperature: Any = 1.0,
        cached: bool = True,
    ) -> Array:
        if cached:
            steps = self.incremental(params, label, x.shape[0])
        else:
            steps = whole_passes(lambda canvas: self.parameters(params, canvas, label))
        return self.draw_in_order(jnp.asarray(self.order()), steps, key, x, known, temperature)

    def draw_in_order(self, order: Array, steps: Any, key: Array, x: Array, known: Array, temperature: Any) -> Array:
        """Draws the unknown values one after the other, each for all examples at once.

        Args:
          order: indices of the values, [D].
          steps: result of `incremental`; a carry of None stands for the values so far.
          key: random key.
          x: values [B, *data_shape], read where they are known.
          known: boolean, shape of x.
          temperature: T.
        """
        size = x.shape[0]
        given, known = x.reshape(size, self.dim), known.reshape(size, self.dim)
        carry, parameters_of, observe = steps

        def body(t, state):
            canvas, carry = state
            d = order[t]
            parameters = parameters_of(canvas if carry is None else carry, d)
            draw = self.output.sample(parameters / temperature, jax.random.fold_in(key, t))
            value = jnp.where(jnp.take(known, d, axis=1), jnp.take(given, d, axis=1), draw)
            return canvas.at[:, d].set(value), observe(carry, d, self.scaled(value))

        canvas, _ = jax.lax.fori_loop(0, self.dim, body, (jnp.zeros_like(given), carry))
        return canvas.reshape(x.shape)


def whole_passes(parameters: Callable[[Array], Array]) -> tuple[None, Callable, Callable]:
    """The result of `incremental` for a network that runs whole passes for every value.

    Args:
      parameters: maps vectors [B, D] to the parameters of all conditionals, [B, D, P].
    """
    return None, lambda canvas, d: jnp.take(parameters(canvas), d, axis=1), lambda carry, d, value: None
