"""A diffusion model: a forward process, a prediction target, a network and a sampler, freely combined.

    z_t = alpha(t) x + sigma(t) epsilon,    t ~ p(t),    epsilon ~ N(0, I)

    loss = E w(t) |target(x, epsilon, t) - network(z_t, t, condition)|^2 / D

Named methods are settings of this one: see ddpm.py, score_sde.py, edm.py and flow_matching.py.  Conditions are dropped
at random while training, so that one network also knows the unconditional distribution (Ho & Salimans 2022).  With
self-conditioning the network also sees its last estimate of x (Chen et al. 2022, arXiv:2208.04202).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array, Batch, ComputeDtype, Metrics, PyTree, check_data_shape, check_label_range, example_keys
from genjax.errors import UserError, filled
from genjax.families.diffusion import ode, targets
from genjax.families.diffusion.caption_encoder import TEXT_PARTS, CaptionEncoder
from genjax.families.diffusion.guidance import Guidance
from genjax.families.diffusion.levels import levels_support
from genjax.families.diffusion.networks import Condition, DenoisingNetwork
from genjax.families.diffusion.processes import Discrete, GaussianProcess, Process, expand
from genjax.families.diffusion.samplers import DDIM, Denoiser, Estimate, Sampler
from genjax.families.diffusion.targets import Target, Weighting
from genjax.families.diffusion.times import TimeDistribution, UniformTime
from genjax.families.diffusion.unet import UNet
from genjax.gradients import gradient_step
from genjax.model import TrainState
from genjax.nn import lora
from genjax.optimizers import Adam, Optimizer
from genjax.values import Support

#: Arrays that `sample` takes of a model conditional on text.
_TEXT_CONDITIONS = ("tokens", "mask", "negative_tokens", "negative_mask")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diffusion:
    """Diffusion model of continuous data.

    Attributes:
      data_shape: shape of one example; None takes the data set's.
      num_classes: number of classes of a model that is conditional on classes; None takes the data set's.
      num_levels: number of levels of a pixel, for likelihoods of pictures in [-1, 1]; None takes the data set's, if it
        has any.  Not used if the data are dequantised (data.preprocessing=dequantize_signed), as likelihoods by
        the ODE need.
      process: forward process.
      target: prediction target of the network.
      weighting: which error is averaged over the times; `target` is the error of the network's target itself.
      weighting_gamma: parameter of the weightings min_snr and p2.
      sigma_data: standard deviation of the data, for `scale_input` and the target edm.
      scale_input: divide the network's input z by its standard deviation.
      times: distribution of the training times.
      network: denoising network.
      condition_on: which of label, vector, context and image in a batch the network sees; and text, the captions
        `tokens` and `mask` as a context that `text` makes.
      text: the encoder of captions.
      condition_dropout: probability that an example is trained without its conditions.
      self_conditioning: feed the last estimate of x back to the network.
      clip_x0: clip estimates of x to [-1, 1] while sampling, and in the bound of DDPM's samples.
      sampler: method by which `sample` goes from noise to data.
      guidance: classifier-free guidance of `sample`.
      likelihood_steps: steps of the probability-flow ODE for the `nll` of `evaluate`; 0 leaves it out.
      likelihood_trace: exact divergence of the probability-flow ODE, or Hutchinson's estimate of it.
      compute_dtype: type that the network computes in; parameters and losses are float32.
      optimizer: optimizer and learning-rate schedule.
    """

    data_shape: tuple[int, ...] | None = None
    num_classes: int | None = None
    num_levels: int | None = None
    process: Process = Discrete()
    target: Target = "epsilon"
    weighting: Weighting = "simple"
    weighting_gamma: float = 5.0
    sigma_data: float = 1.0
    scale_input: bool = False
    times: TimeDistribution = UniformTime()
    network: DenoisingNetwork = UNet()
    condition_on: tuple[str, ...] = ()
    text: CaptionEncoder = CaptionEncoder()
    condition_dropout: float = 0.1
    self_conditioning: bool = False
    clip_x0: bool = False
    sampler: Sampler = DDIM()
    guidance: Guidance = Guidance()
    likelihood_steps: int = 0
    likelihood_trace: Literal["exact", "hutchinson"] = "hutchinson"
    compute_dtype: ComputeDtype = "float32"
    optimizer: Optimizer = Adam(learning_rate=2e-4, ema_decay=0.9999)

    #: Whether `estimate` gives the end of the ODE's path through z, as in a consistency model, and not E[x | z].
    gives_path_ends: ClassVar[bool] = False

    @classmethod
    def from_saved(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Fields of a saved configuration; the weighting `simple` was called `target` before."""
        return {**fields, "weighting": "simple"} if fields.get("weighting") == "target" else fields

    def check(self) -> None:
        """Raises UserError if the parts do not fit together.

        Not called at construction, because flags change one part after the other.
        """
        if self.reads_text and "context" in self.condition_on:
            raise UserError(
                "condition_on=text makes the context that the network attends to, so a batch can have no other"
            )
        wanted = ["context" if name == "text" else name for name in self.condition_on]
        unknown = [name for name in wanted if name not in self.network.conditions]
        if unknown:
            hint = "; a context needs DiT, or UNet with attention_levels" if "context" in unknown else ""
            raise UserError(
                f"condition_on={','.join(unknown)}: {type(self.network).__name__} takes "
                f"{', '.join(self.network.conditions)}{hint}"
            )
        if self.process.ends_in_pure_noise and self.target in ("epsilon", "score"):
            raise UserError(
                f"target={self.target} says nothing of the data where {type(self.process).__name__} ends in pure "
                "noise; choose v, velocity, x0 or edm"
            )
        if self.sampler.needs_path_ends and not self.gives_path_ends:
            raise UserError(
                f"{type(self.sampler).__name__} takes the mean that {type(self).__name__} gives for a sample and would "
                "blur; choose another sampler, or a consistency model"
            )
        if self.likelihood_steps:
            self._check_has_likelihood("likelihood_steps=0")
        self.sampler.check(self.sampler.on_grid(self.process))

    # ------------------------------------------------------------------------------------------------------------------
    # The network

    def module(self) -> Any:
        """The Linen module of the network."""
        self.check()
        filled(self, "data_shape")
        if "label" in self.condition_on and self.num_classes is None:
            raise UserError("condition_on=label needs num_classes; the data set has none, so give it")
        num_classes = self.num_classes if "label" in self.condition_on else None
        return self.network.build(self.num_outputs, num_classes, jnp.dtype(self.compute_dtype))

    @property
    def num_outputs(self) -> int:
        """Channels of the network's output."""
        return self.data_shape[-1]

    def process_of(self, params: PyTree) -> GaussianProcess:
        """The forward process, which may have learned parameters."""
        del params
        return self.process

    def on_grid(self) -> Diffusion:
        """The model with the process that its sampler steps through; a published grid knows it at its nodes alone."""
        return dataclasses.replace(self, process=self.sampler.on_grid(self.process))

    def network_params(self, params: PyTree) -> PyTree:
        """The network's part of the parameters."""
        return {name: part for name, part in params.items() if name not in TEXT_PARTS} if self.reads_text else params

    @property
    def reads_text(self) -> bool:
        """Whether the model is conditional on captions."""
        return "text" in self.condition_on

    def condition(self, batch: Batch) -> dict[str, Array]:
        """What of a batch the network sees.

        Raises:
          UserError: something is missing.
        """
        arrays = {"text": ("tokens", "mask"), "context": ("context", "context_mask")}
        optional = ("context_mask",)
        missing = [
            name
            for name in self.condition_on
            if any(part not in batch and part not in optional for part in arrays.get(name, (name,)))
        ]
        if missing:
            raise UserError(f"condition_on={','.join(missing)}, but the batch has only {', '.join(sorted(batch))}")
        names = [part for name in self.condition_on for part in arrays.get(name, (name,))]
        return {name: batch[name] for name in names if name in batch}

    def with_context(self, params: PyTree, condition: Condition) -> Condition:
        """The conditions with their captions encoded; as they are where there are none, or they are encoded already."""
        if "tokens" not in condition:
            return condition
        rest = {name: value for name, value in condition.items() if name not in ("tokens", "mask")}
        dtype = jnp.dtype(self.compute_dtype)
        return {**rest, **self.text.encode(params, condition["tokens"], condition["mask"], dtype)}

    def support(self) -> Support | None:
        """What has a density, where likelihood_steps asks for it."""
        if not self.likelihood_steps:
            return None
        remedy = "data.preprocessing to dequantize_signed, or model.likelihood_steps to 0"
        return Support(name="the ODE's likelihood", remedy=remedy, levels=False)

    def levels_of(self, batch: Batch) -> int | None:
        """Number of levels of x, or None if x is continuous (the data have no levels, or are dequantised)."""
        return None if "log_abs_det" in batch else self.num_levels

    def without(self, condition: Condition, drop: Array | None = None) -> dict[str, Array]:
        """Empties the conditions of all examples, or of the examples where `drop` [B] is true.

        The empty class is number num_classes, the empty caption has no words; all other empty conditions are 0.
        """
        empty = {}
        for name, value in condition.items():
            if name == "context_mask":
                empty[name] = value
                continue
            if name in ("tokens", "mask"):
                nothing = jnp.broadcast_to(self.text.empty_prompt()[name == "mask"][None], value.shape)
            else:
                nothing = jnp.full_like(value, self.num_classes) if name == "label" else jnp.zeros_like(value)
            empty[name] = nothing if drop is None else jnp.where(expand(drop, value), nothing, value)
        return empty

    def drop_conditions(self, condition: Condition, keys: Array) -> dict[str, Array]:
        """The conditions, emptied for each example with probability condition_dropout, by its key [B]."""
        if not condition or not self.condition_dropout:
            return dict(condition)
        return self.without(condition, jax.vmap(lambda k: jax.random.bernoulli(k, self.condition_dropout))(keys))

    def apply(
        self,
        params: PyTree,
        z: Array,
        t: Array,
        condition: Condition,
        x0_before: Array | None = None,
        dropout_keys: Array | None = None,
        process: GaussianProcess | None = None,
    ) -> Array:
        """The network's prediction of the target for z [B, ...] at times [B], float32 [B, ..., num_outputs].

        `process` replaces the process that the parameters describe.
        """
        process = self.process_of(params) if process is None else process
        condition = self.with_context(params, condition)
        if self.scale_input:
            z = z / expand(jnp.sqrt((process.alpha(t) * self.sigma_data) ** 2 + process.sigma(t) ** 2), z)
        return self.module().apply(
            {"params": self.network_params(params)},
            self.network_input(z, x0_before),
            process.network_time(t),
            condition,
            dropout_keys,
        )

    def network_input(self, z: Array, x0_before: Array | None) -> Array:
        """The network's input: z [B, ...], and with self-conditioning the last estimate of x as further channels."""
        if not self.self_conditioning:
            return z
        return jnp.concatenate([z, jnp.zeros_like(z) if x0_before is None else x0_before], axis=-1)

    def estimate(
        self, params: PyTree, z: Array, t: Array, condition: Condition, x0_before: Array | None = None
    ) -> Estimate:
        """E[x | z_t] of the model, for z [B, ...] at times [B]."""
        output = self.apply(params, z, t, condition, x0_before)
        return Estimate(targets.to_x0(self.target, self.process_of(params), t, z, output, self.sigma_data))

    def denoiser(
        self,
        params: PyTree,
        condition: Condition,
        guidance: Guidance | None = None,
        weak_params: PyTree | None = None,
        empty: Condition | None = None,
    ) -> Denoiser:
        """The denoiser for samplers.

        With guidance it extrapolates away from the model with `weak_params`, if given, else from the estimate with the
        conditions `empty`, by default an empty text or no class.  Without guidance (a scale that is known to be 0) it
        is the model itself.  Captions are encoded once.
        """
        guidance = self.guidance if guidance is None else guidance
        guided = guidance.is_used
        if weak_params is None:
            guidance.check(self.condition_on, self.condition_dropout)
        process = self.process_of(params)
        other = self.with_context(params, {**self.without(condition), **(empty or {})})
        weak_condition = condition if weak_params is None else self.with_context(weak_params, condition)
        condition = self.with_context(params, condition)

        def denoise(z: Array, t: Array, x0_before: Array) -> Estimate:
            count = z.shape[0]
            if guided and weak_params is not None:
                times = jnp.broadcast_to(t, (count,))
                estimate = self.estimate(params, z, times, condition, x0_before)
                weak = self.estimate(weak_params, z, times, weak_condition, x0_before)
                estimate = estimate._replace(x0=guidance.combine(estimate.x0, weak.x0, t, process.t_max))
            elif guided:
                twice = lambda a: jnp.concatenate([a, a])
                both = {name: jnp.concatenate([a, other[name]]) for name, a in condition.items()}
                times = jnp.broadcast_to(t, (2 * count,))
                estimate = self.estimate(params, twice(z), times, both, twice(x0_before))
                fraction = estimate.variance_fraction
                x0 = guidance.combine(estimate.x0[:count], estimate.x0[count:], t, process.t_max)
                estimate = Estimate(x0, None if fraction is None else fraction[:count])
            else:
                estimate = self.estimate(params, z, jnp.broadcast_to(t, (count,)), condition, x0_before)
            return self.clipped(estimate)

        return denoise

    def clipped(self, estimate: Estimate) -> Estimate:
        """The estimate that sampling uses: clipped to [-1, 1] with clip_x0."""
        return estimate._replace(x0=jnp.clip(estimate.x0, -1.0, 1.0)) if self.clip_x0 else estimate

    # ------------------------------------------------------------------------------------------------------------------
    # The contract

    def check_start(self, source: Any) -> None:
        """Refuses to train a model that could not be sampled during the run.

        Args:
          source: the model of the run `training.init_from`, or None.

        Raises:
          UserError: guidance that the model cannot have.
        """
        self.guidance.check(self.condition_on, self.condition_dropout)

    @property
    def guidance_scale(self) -> float:
        """Weight of the guidance."""
        return self.guidance.scale

    def with_guidance_scale(self, scale: float) -> Self:
        """The model with another weight of its guidance."""
        model = dataclasses.replace(self, guidance=dataclasses.replace(self.guidance, scale=scale))
        model.guidance.check(model.condition_on, model.condition_dropout)
        return model

    def diagnose(self, state: TrainState, batch: Batch, key: Array) -> None:
        """Looks for labels outside of the classes, whose embedding is NaN, outside of `jit`.

        Raises:
          UserError: naming them.
        """
        if "label" in self.condition_on:
            check_label_range(batch["label"], self.num_classes)

    def check_levels(self, batch: Batch) -> None:
        """Refuses values of x that the bound does not score, outside of `jit`.

        Raises:
          UserError: naming them.
        """
        support = levels_support(self.levels_of(batch))
        if support is not None:
            support.check(batch["x"])

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: the examples have another shape than `data_shape`, or lack a condition.
        """
        # Empty vectors, contexts and images for sampling; only the batch tells their shapes.
        names = [name for name in self.condition_on if name not in ("label", "text") and name in batch]
        empty = {name: jnp.zeros(batch[name].shape[1:]) for name in names}
        params, extra = self.init_params(key, batch), {"empty_condition": empty} if empty else None
        return TrainState.create(params, self.optimizer, extra, trained=self.trained_params(params))

    @property
    def trained(self) -> Callable[[str], bool] | None:
        """Which parameters are trained, by their paths: all but a frozen encoder of captions; None if all are."""
        if not (self.reads_text and self.text.frozen):
            return None
        return lambda path: path.split("/")[0] not in TEXT_PARTS

    def trained_params(self, params: PyTree) -> PyTree:
        """The parameters that are trained, a part of the tree `params`."""
        return params if self.trained is None else lora.split(params, self.trained)[0]

    def init_params(self, key: Array, batch: Batch) -> PyTree:
        """Parameters before the first step."""
        check_data_shape(batch["x"], self.data_shape)
        z = self.network_input(batch["x"][:1], None)
        condition = jax.tree.map(lambda a: a[:1], self.condition(batch))
        text = self.text.init(jax.random.fold_in(key, 1)) if self.reads_text else {}
        condition = self.with_context(text, condition)
        return {**self.module().init(key, z, jnp.ones((1,)), condition)["params"], **text}

    def draw(self, batch: Batch, key: Array, process: GaussianProcess) -> tuple[Array, Array, Array]:
        """Times [B], noise [B, ...] and further keys [B] of the examples."""

        def one(key: Array) -> tuple[Array, Array, Array]:
            time_key, noise_key, rest = jax.random.split(key, 3)
            return self.times.sample(time_key, process), jax.random.normal(noise_key, batch["x"].shape[1:]), rest

        return jax.vmap(one)(example_keys(key, batch))

    def example_losses(
        self, params: PyTree, batch: Batch, key: Array, training: bool
    ) -> tuple[Array, dict[str, Array]]:
        """Weighted squared error of each example, mean over dimensions, shape [B], and further values [B] by name."""
        process = self.process_of(params)
        x = batch["x"]
        t, epsilon, keys = self.draw(batch, key, process)
        z = expand(process.alpha(t), x) * x + expand(process.sigma(t), x) * epsilon
        condition, dropout_keys, x0_before = self.condition(batch), None, None
        if training:
            keys = jax.vmap(lambda k: jax.random.split(k, 3))(keys)
            dropout_keys = keys[:, 0]
            condition = self.drop_conditions(condition, keys[:, 1])
            if self.self_conditioning:
                first = jax.lax.stop_gradient(self.estimate(params, z, t, condition).x0)
                use = jax.vmap(jax.random.bernoulli)(keys[:, 2])
                x0_before = jnp.where(expand(use, first), first, 0.0)
        output = self.apply(params, z, t, condition, x0_before, dropout_keys)
        wanted = targets.make_target(self.target, process, t, x, epsilon, self.sigma_data)
        error = _mean(jnp.square(output[..., : x.shape[-1]] - wanted))
        weight = targets.loss_weight(self.weighting, self.target, process, t, self.sigma_data, self.weighting_gamma)
        return self.whole_loss(weight * error, batch, z, t, output), {"target_error": error}

    def whole_loss(self, error: Array, batch: Batch, z: Array, t: Array, output: Array) -> Array:
        """The loss of each example [B], from its weighted error [B] and the output for z [B, ...] at times t [B]."""
        return error

    def loss(self, params: PyTree, batch: Batch, key: Array, step: Array) -> tuple[Array, Metrics]:
        """Mean loss and metrics."""
        del step
        losses, values = self.example_losses(params, batch, key, training=True)
        return losses.mean(), {name: value.mean() for name, value in values.items()}

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update.

        Metrics: loss, target_error = the unweighted squared error of the target, mean over dimensions.
        """
        loss = functools.partial(self.loss, step=state.step)
        return gradient_step(loss, self.optimizer, trained=self.trained)(state, batch, key)

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example, shape [B]: `loss` at a random time, and with likelihood_steps `nll` in nats, of the data before
        their transform where the batch has `log_abs_det`, and `bits_per_dim`.
        """
        losses, values = self.example_losses(state.eval_params, batch, key, training=False)
        metrics = {"loss": losses, **values}
        if self.likelihood_steps:
            nll = -self.ode_log_prob(state, batch, key) - batch.get("log_abs_det", 0.0)
            metrics["nll"] = nll
            metrics["bits_per_dim"] = nll / (math.prod(self.data_shape) * math.log(2.0))
        return metrics

    def sample(
        self,
        state: TrainState,
        key: Array,
        num_samples: int,
        *,
        label: Array | None = None,
        trajectory: bool = False,
        **condition: Array,
    ) -> Array:
        """Draws samples.

        Args:
          state: trained state; parameters of a weaker model in `extra["weak_params"]` guide the samples, with the
            weight guidance.scale.
          key: random key.
          num_samples: how many.
          label: classes [num_samples], or one for all samples, for a model conditional on
            classes; by default all in turn.
          trajectory: return all steps, [num_steps + 1, num_samples, *data_shape].
          **condition: vector, context, context_mask, image, or tokens and mask of captions, with leading axis
            num_samples; conditions that are not given are empty, as dropped conditions are in training.  Guidance leads
            away from negative_tokens and negative_mask, if given.

        Raises:
          UserError: a condition that the model does not have or of another shape, a label that is no class, or guidance
            that the model cannot have.
        """
        noise_key, step_key = jax.random.split(key)
        process = self.on_grid().process_of(state.eval_params)
        z = process.prior_scale * jax.random.normal(noise_key, (num_samples, *self.data_shape))
        return self.sample_from(state, z, step_key, label=label, trajectory=trajectory, **condition)

    def sample_from(
        self,
        state: TrainState,
        z: Array,
        key: Array,
        *,
        label: Array | None = None,
        trajectory: bool = False,
        **condition: Array,
    ) -> Array:
        """Samples of given noise z [N, *data_shape], which has the deviation `prior_scale` of the process.

        The key draws what the sampler adds on its way; for the rest see `sample`.
        """
        condition, negative = self.sampling_conditions(state, len(z), label, condition)
        model = self.on_grid()
        denoise = model.denoiser(
            state.eval_params, condition, weak_params=state.extra.get("weak_params"), empty=negative
        )
        return self.sampler.run(denoise, model.process_of(state.eval_params), z, key, trajectory)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the arrays that `sample` takes."""
        names = [name for name in self.condition_on if name != "text"]
        names += ["context_mask"] if "context" in self.condition_on else []
        return (*names, *(_TEXT_CONDITIONS if self.reads_text else ()))

    def check_labels(self, label: Array) -> None:
        """Refuses labels outside of the classes; `num_classes` itself stands for no class.

        Raises:
          UserError: the model is not conditional on classes, or there is no such class.
        """
        if "label" not in self.condition_on:
            raise UserError("the model is not conditional on classes; train it with condition_on=label")
        if isinstance(label, jax.core.Tracer):
            return
        # In numpy, as jnp's answer would be traced where the caller is compiled.
        label = np.asarray(label)
        if label.size and (int(label.min()) < 0 or int(label.max()) > self.num_classes):
            raise UserError(f"labels must lie between 0 and {self.num_classes - 1} ({self.num_classes} for no class)")

    def sampling_conditions(
        self, state: TrainState, num_samples: int, label: Array | None, given: Condition
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """The conditions given to `sample`, checked and completed, and those that guidance leads away from.

        Raises:
          UserError: see `sampling_condition`; or there is nothing that leads away from negative conditions.
        """
        condition = self.sampling_condition(state, num_samples, label, given)
        negative = {
            name: condition.pop(f"negative_{name}") for name in ("tokens", "mask") if f"negative_{name}" in condition
        }
        if negative and not self.guidance.is_used:
            raise UserError("negative_tokens are what guidance leads away from, and guidance.scale is 0")
        return condition, negative

    def sampling_condition(
        self, state: TrainState, num_samples: int, label: Array | None, given: Condition
    ) -> dict[str, Array]:
        """Checks the conditions given to `sample` and completes them.

        Raises:
          UserError: a condition that the model does not know or of another shape, or a label outside the classes.
        """
        for name in given:
            if name not in (*self.conditions, "context_mask"):
                raise UserError(f"the model is not conditional on {name}; condition_on={','.join(self.condition_on)}")
        condition = dict(given)
        if label is not None:
            self.check_labels(label)
        if "label" in self.condition_on:
            label = jnp.arange(num_samples) % self.num_classes if label is None else jnp.asarray(label, jnp.int32)
            condition["label"] = jnp.broadcast_to(label, (num_samples,)) if label.ndim == 0 else label
        if self.reads_text and "tokens" not in condition:
            empty = self.text.empty_prompt()
            rows = (jnp.broadcast_to(part[None], (num_samples, *part.shape)) for part in empty)
            condition |= dict(zip(("tokens", "mask"), rows))
        for name, shape in self.condition_shapes(state).items():
            value = condition.setdefault(name, jnp.zeros((num_samples, *shape)))
            # Contexts may have any length.
            free = 1 if name == "context" else 0
            if value.ndim != 1 + len(shape) or value.shape[1 + free :] != shape[free:]:
                raise UserError(
                    f"{name} has shape {value.shape}, which does not fit {(num_samples, *shape)} of the training"
                )
        for name, value in condition.items():
            if value.shape[0] != num_samples:
                raise UserError(f"{name} has {value.shape[0]} rows, but num_samples is {num_samples}")
        return condition

    def condition_shapes(self, state: TrainState) -> dict[str, tuple[int, ...]]:
        """Shapes of an example's vector, context and image, if the model is conditional on them."""
        return {name: empty.shape for name, empty in state.extra.get("empty_condition", {}).items()}

    # ------------------------------------------------------------------------------------------------------------------
    # Capabilities

    def denoise(self, state: TrainState, x: Array, noise_level: Array, **condition: Array) -> Array:
        """E[x | z_t] for x = z_t [B, ...] at times [B]."""
        return self.estimate(state.eval_params, x, noise_level, condition).x0

    def score(self, state: TrainState, x: Array, noise_level: Array, **condition: Array) -> Array:
        """grad log q(z_t) at x = z_t [B, ...], times [B]."""
        x0 = self.denoise(state, x, noise_level, **condition)
        return targets.score_of(self.process_of(state.eval_params), noise_level, x, x0)

    def _check_has_likelihood(self, remedy: str) -> None:
        if self.self_conditioning:
            raise UserError(
                "with self_conditioning a sample depends on the estimates of all steps before, "
                f"so that the likelihood of single steps is not the likelihood of samples; give {remedy}, "
                "or self_conditioning=false"
            )

    def _check_density(self, batch: Batch) -> None:
        levels = self.levels_of(batch)
        if levels is not None:
            raise UserError(
                f"the ODE's likelihood is a density, which x with {levels} levels does not have; dequantise it with "
                "data.preprocessing=dequantize_signed"
            )

    def ode_log_prob(self, state: TrainState, batch: Batch, key: Array) -> Array:
        """Log-density of x along the probability-flow ODE in nats, [B]; `key` draws the probes of
        Hutchinson's trace.
        """
        self._check_has_likelihood("another model")
        self._check_density(batch)
        params = state.eval_params
        denoise = self.denoiser(params, self.condition(batch), Guidance())
        # Each example draws signs from its own key.
        keys = example_keys(key, batch)
        probes = jax.vmap(lambda k: jax.random.rademacher(k, batch["x"].shape[1:], jnp.float32))(keys)
        exact = self.likelihood_trace == "exact"
        return ode.log_likelihood(
            denoise, self.process_of(params), batch["x"], None if exact else probes, self.likelihood_steps or 100
        )


class ODELikelihood:
    """Mixin of a `Diffusion` whose likelihood is the exact one of its probability-flow ODE, and no bound."""

    def log_prob(self, state: TrainState, batch: Batch) -> Array:
        """Log-density of x in nats along the probability-flow ODE, by likelihood_trace, shape [B].

        Raises:
          UserError: x has levels, and so no density; or the model has self_conditioning, and so no likelihood.
        """
        return self.ode_log_prob(state, batch, jax.random.key(0))


def _mean(a: Array) -> Array:
    """Mean over all axes but the first."""
    return a.reshape(a.shape[0], -1).mean(-1)
