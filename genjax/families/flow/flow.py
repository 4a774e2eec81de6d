"""Base of all normalising flows: exact log-likelihood by change of variables, encoding and sampling.

    log p(x) = log p_Z(z) + log |det dz/dx|,   z = f(x)          (Rezende & Mohamed 2015, arXiv:1505.05770, eq. 5)

A paper's file subclasses `Flow` and defines the bijections that f is made of.

Metrics.  `nll`, in nats, is about the batch's x: the density if x is continuous, the bound on the probability of the
levels if the model dequantises.  `bits_per_dim` is always about the data before any transform (the levels of a
picture, the raw columns of a table): -(log p(x) + log_abs_det) / (D log 2), where `log_abs_det` [B] belongs to the map
from (dequantised) raw data to x; the batch gives it, or the model knows it.  If log-determinants are estimated at
random, the metrics are called `nll_estimate` and `bits_per_dim_estimate`: the estimate of log p(x) has the right mean
for each example, and some variance.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

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
from genjax.families.flow.base import Base, StandardNormal
from genjax.families.flow.bijections import Bijection, Chain, Logit
from genjax.families.flow.bijections.linear import check_range
from genjax.families.flow.dequantization import Dequantization
from genjax.gradients import gradient_step
from genjax.model import TrainState
from genjax.optimizers import Adam, Optimizer
from genjax.values import Support


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flow(abc.ABC):
    """A normalising flow.

    Attributes:
      data_shape: shape of one example.
      num_classes: number of classes of the data.
      class_conditional: model p(x | label).
      condition_dim: length of a vector that the batch gives as `condition` [B, K] to model p(x | condition), 0 for
        none; None takes the length of the data's condition, if they have one.
      base: distribution of z.
      dequantization: method that turns levels into continuous values inside the model; none if x is continuous.
      logit_alpha: alpha of a first map logit(alpha + (1 - 2 alpha) x), for x in [0, 1]; none for no such map.
      temperature: factor on the standard deviation of z in samples; below 1, samples are likelier and less diverse.
      recompute: save memory by recomputing activations through the inverse.
      compute_dtype: type in which networks compute; maps and densities stay float32.
      optimizer: optimizer and learning-rate schedule.
    """

    data_shape: tuple[int, ...] | None = None
    num_classes: int | None = None
    class_conditional: bool = False
    condition_dim: int | None = None
    base: Base = StandardNormal()
    dequantization: Dequantization | None = None
    logit_alpha: float | None = None
    temperature: float = 1.0
    recompute: bool = False
    compute_dtype: ComputeDtype = "float32"
    optimizer: Optimizer = Adam(learning_rate=1e-3, clip_norm=50.0)

    @abc.abstractmethod
    def layers(self) -> tuple[Bijection, ...]:
        """The maps from x (after the logit) to z; the last map returns vectors [B, D]."""

    @property
    def dtype(self) -> Any:
        """`compute_dtype` in the form that networks take."""
        return None if self.compute_dtype == "float32" else jnp.dtype(self.compute_dtype)

    def check_float32(self) -> None:
        """For flows whose networks compute in float32 only.

        Raises:
          UserError: `compute_dtype` is another type.
        """
        if self.compute_dtype != "float32":
            raise UserError(f"{type(self).__name__} computes in float32 alone, not in {self.compute_dtype}")

    @property
    def shape(self) -> tuple[int, ...]:
        """`data_shape`, which must be known."""
        return filled(self, "data_shape")

    @property
    def estimates_density(self) -> bool:
        """Whether training and evaluation estimate log-determinants at random."""
        return False

    @property
    def dim(self) -> int:
        """Number D of dimensions."""
        return math.prod(self.shape)

    def bijection(self) -> Chain:
        """f, from x in the model's continuous space to z [B, D]."""
        front = () if self.logit_alpha is None else (Logit(alpha=self.logit_alpha),)
        layers = self.layers()
        # A single layer is a multi-scale map, whose levels have their own setting of `recompute`.
        return Chain(layers=(*front, Chain(layers=layers, recompute=self.recompute and len(layers) > 1)))

    def _condition(self, batch: Batch) -> Array | None:
        parts = []
        if self.class_conditional:
            if self.num_classes is None:
                raise UserError("a class-conditional flow needs num_classes, and data with labels")
            if "label" not in batch:
                raise UserError("a class-conditional flow needs labels; the batch has none")
            parts.append(one_hot_classes(batch["label"], self.num_classes))
        if self.condition_dim:
            given = batch["condition"].shape[-1] if "condition" in batch else 0
            if given != self.condition_dim:
                raise UserError(f"condition_dim={self.condition_dim}, but the batch's condition has {given} numbers")
            parts.append(batch["condition"])
        return jnp.concatenate(parts, -1) if parts else None

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the arrays that `sample` takes."""
        return ("label",) * self.class_conditional + ("condition",) * bool(self.condition_dim)

    def check_labels(self, label: Array) -> None:
        """Refuses labels outside of the classes; inside of compiled functions their values are not known.

        Raises:
          UserError: the flow is not conditional on classes, or there is no such class.
        """
        if not self.class_conditional:
            raise UserError("the flow is not conditional on classes; train it with class_conditional=true")
        check_label_range(label, self.num_classes)

    def support(self) -> Support:
        """Levels if the flow dequantises them, otherwise values with a density, which levels do not have."""
        if self.dequantization is not None:
            remedy = "data.preprocessing to unit, or model.dequantization, none for data that are dequantised already"
            return self.dequantization.lattice().as_support("dequantization", remedy)
        return Support(
            name="a flow",
            remedy="data.preprocessing to dequantize, or to unit with model.dequantization=uniform; "
            "or model.logit_alpha",
            levels=False,
            **({} if self.logit_alpha is None else {"low": 0.0, "high": 1.0}),
        )

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step; layers that normalise start from `batch`.

        Raises:
          UserError: the examples do not fit the flow.
        """
        x = batch["x"]
        check_data_shape(x, self.shape)
        self.base.check(self.dim)
        base_key, bijection_key, dequantization_key, noise_key = jax.random.split(key, 4)
        params: dict[str, PyTree] = {}
        if self.dequantization is not None:
            own = self.dequantization.init(dequantization_key, x)
            x, _ = self.dequantization(own, x, example_keys(noise_key, batch))
            if own:
                params["dequantization"] = own
        params["bijection"] = self.bijection().init(bijection_key, x, self._condition(batch))
        base = self.base.init(base_key, self.dim)
        if base:
            params["base"] = base
        return TrainState.create(params, self.optimizer)

    def _density(self, params: PyTree, x: Array, condition: Array | None, keys: Array | None) -> Array:
        """log p(x) in nats of continuous x, [B]."""
        z, log_det = self.bijection().forward(params["bijection"], x, condition, keys)
        return self.base.log_prob(params.get("base", {}), z) + log_det

    def _log_prob(
        self, params: PyTree, batch: Batch, key: Array | None, exact: bool = False
    ) -> tuple[Array, Array | None]:
        """log p of the batch's x [B], and log p of the levels [B] or None; with `exact` no determinant is estimated."""
        x, condition = batch["x"], self._condition(batch)
        keys = None if key is None else example_keys(key, batch)
        if self.dequantization is None:
            log_prob = self._density(params, x, condition, keys)
            return log_prob, log_prob + batch["log_abs_det"] if "log_abs_det" in batch else None
        y, correction = self.dequantization(params.get("dequantization", {}), x, keys)
        log_prob = self._density(params, y, condition, None if exact else keys) + correction
        return log_prob, log_prob

    def _metrics(self, log_prob: Array, levels: Array | None) -> Metrics:
        suffix = "_estimate" if self.estimates_density else ""
        metrics = {f"nll{suffix}": -log_prob}
        if levels is not None:
            metrics[f"bits_per_dim{suffix}"] = -levels / (self.dim * math.log(2.0))
        return metrics

    def loss(self, params: PyTree, batch: Batch, key: Array) -> tuple[Array, Metrics]:
        """Mean negative log-likelihood in nats."""
        log_prob, levels = self._log_prob(params, batch, key)
        metrics = {name: value.mean() for name, value in self._metrics(log_prob, levels).items()}
        return -log_prob.mean(), metrics

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        return gradient_step(self.loss, self.optimizer)(state, batch, key)

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        return self._metrics(*self._log_prob(state.eval_params, batch, key))

    def log_prob(self, state: TrainState, batch: Batch) -> Array:
        """Exact log-density of continuous x in nats, [B].

        Raises:
          UserError: the model dequantises (use `log_prob_bound`), or values lie outside of its range.
        """
        if self.dequantization is not None:
            raise UserError("a flow that dequantises has no density of its levels; use log_prob_bound")
        return self._log_prob(state.eval_params, batch, None)[0]

    def log_prob_bound(self, state: TrainState, batch: Batch, key: Array, num_samples: int = 1) -> Array:
        """Importance-weighted lower bound on log p of x in nats, [B]: a mean over draws of the dequantisation noise.

        Log-determinants are exact: the mean of exponentials of estimates would lie above the likelihood.
        """
        draw = lambda k: self._log_prob(state.eval_params, batch, k, exact=True)[0]
        draws = jax.lax.map(draw, jax.random.split(key, num_samples))
        return jax.nn.logsumexp(draws, axis=0) - math.log(num_samples)

    def encode(self, state: TrainState, batch: Batch) -> Array:
        """z of each example, [B, D]; levels count as the middle of their interval."""
        x = batch["x"]
        if self.dequantization is not None:
            d = self.dequantization
            check_range(x, d.minimum, d.maximum)
            unit = (x - d.minimum) / (d.maximum - d.minimum)
            x = (unit * (d.levels - 1) + 0.5) / d.levels
        return self.bijection().forward(state.eval_params["bijection"], x, self._condition(batch))[0]

    def decode(
        self, state: TrainState, latents: Array, *, label: Array | None = None, condition: Array | None = None
    ) -> Array:
        """x of each z [B, D], in the form of batches, given classes [B] (or one for all) or vectors [B, K].

        Raises:
          UserError: the flow is not conditional on a given condition, its own condition is missing, or a label is no
            class.
        """
        if label is not None:
            self.check_labels(label)
            label = jnp.broadcast_to(jnp.asarray(label), latents.shape[:1])
        if condition is not None and not self.condition_dim:
            raise UserError("the flow is not conditional on vectors; train it with data that have a condition")
        given = {"label": label, "condition": condition}
        vector = self._condition({name: value for name, value in given.items() if value is not None})
        x = self.bijection().inverse(state.eval_params["bijection"], latents, vector)[0]
        return x if self.dequantization is None else self.dequantization.quantize(x)

    def sample(
        self,
        state: TrainState,
        key: Array,
        num_samples: int,
        label: Array | None = None,
        condition: Array | None = None,
        temperature: float | Array | None = None,
    ) -> Array:
        """Draws examples, [num_samples, *data_shape].

        Args:
          state: trained state.
          key: random key.
          num_samples: how many.
          label: classes [num_samples] for a class-conditional flow, or one class for all; by
            default all classes in turn.
          condition: vectors [num_samples, K] for a flow with condition_dim; by default zeros.
          temperature: temperature to use instead of the model's.

        Raises:
          UserError: the flow is not conditional on a given condition, or a label is no class.
        """
        if self.class_conditional and label is None:
            label = jnp.arange(num_samples) % (self.num_classes or 1)
        if self.condition_dim and condition is None:
            condition = jnp.zeros((num_samples, self.condition_dim))
        temperature = self.temperature if temperature is None else temperature
        z = self.base.sample(state.eval_params.get("base", {}), key, num_samples, self.dim, temperature)
        return self.decode(state, z, label=label, condition=condition)

    def diagnose(self, state: TrainState, batch: Batch, key: Array) -> None:
        """Runs the flow layer by layer outside of `jit`.

        Raises:
          UserError: values are out of the declared range, or a layer (which is named) has a log-determinant that is not
            finite.
        """
        self._log_prob(state.params, batch, key)
