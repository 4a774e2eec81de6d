"""The contract of every generative model in genjax; read this file first.

Training is a pure function of a configuration and a seed:

    batch_t = data(seed, t)
    key_t   = fold_in(key(seed), t)
    state'  = model.train_step(state, batch_t, key_t)

A model is a frozen dataclass of hyper-parameters that holds no arrays.  It is therefore its own
configuration, hashable, and a static argument of `jit`.  All arrays live in a `TrainState`.

A batch is a flat dict of arrays whose first axis is the batch axis: `x` is the modelled variable of
continuous and image models, `tokens` of token models; `label`, `mask` and others accompany it.  In evaluations `padding`
[B] is True at examples that only fill up the last batch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from genjax.errors import UserError
from genjax.metrics import Ratio
from genjax.optimizers import tree_norm

Array = jax.Array
PyTree = Any
Batch = Mapping[str, Array]
Metrics = dict[str, Array | Ratio]
#: Types that a network can compute in; parameters, losses and likelihoods are float32 whatever it is.
ComputeDtype = Literal["float32", "bfloat16", "float16"]

#: Name of the device axis in the `pmap` mode of the engine.
DEVICE_AXIS = "device"


class TrainState(flax.struct.PyTreeNode):
    """Everything that must survive a restart, as one pytree.

    Attributes:
      step: int32 scalar, the number of completed updates.
      params: learned parameters.
      opt_state: state of the optimizer, or a dict of them, one a network.
      ema_params: exponential moving average of `params`, or None.
      extra: what a family adds, by name (batch statistics, codebook counts, chain positions).
    """

    step: Array
    params: PyTree
    opt_state: PyTree = ()
    ema_params: PyTree = None
    extra: dict[str, PyTree] = flax.struct.field(default_factory=dict)

    @classmethod
    def create(cls, params: PyTree, optimizer: Any = None, extra: dict[str, PyTree] | None = None) -> TrainState:
        """Returns the state before the first update.

        Args:
          params: learned parameters.
          optimizer: an `optimizers.Optimizer`; or a dict of them whose keys are keys of `params`,
            for families that train several networks; or None.
          extra: what the family adds.
        """
        if optimizer is None:
            opt_state, ema = (), None
        elif isinstance(optimizer, Mapping):
            opt_state = {name: each.build().init(params[name]) for name, each in optimizer.items()}
            ema = {name: params[name] for name, each in optimizer.items() if each.ema_decay is not None} or None
        else:
            opt_state = optimizer.build().init(params)
            ema = params if optimizer.ema_decay is not None else None
        # A copy, because the step donates its state and one buffer cannot be donated twice.
        ema = jax.tree.map(jnp.copy, ema)
        return cls(step=jnp.zeros((), jnp.int32), params=params, opt_state=opt_state, ema_params=ema, extra=extra or {})

    def with_params(self, params: PyTree) -> TrainState:
        """The state of a model with these parameters, for whatever evaluates, samples or generates with `eval_params`.

        A caller inside of training, who wants the parameters of this step and not their average, gives `state.params` or
        those that a loss is differentiated by.
        """
        return self.replace(params=params, ema_params=None)

    @property
    def eval_params(self) -> PyTree:
        """The parameters to evaluate and sample with: averaged ones where they are kept."""
        if self.ema_params is None:
            return self.params
        if isinstance(self.params, Mapping) and set(self.ema_params) != set(self.params):
            return {**self.params, **self.ema_params}
        return self.ema_params


@runtime_checkable
class GenerativeModel(Protocol):
    """What the engine asks of a model.  All four methods are pure and traceable."""

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step; `batch` gives shapes (and values to data-dependent starts)."""
        ...

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update.  Metrics are float scalars or a `Ratio` of two, and `loss` is among them."""
        ...

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Returns one value per example under each name, [B], or a `Ratio` of two; the engine masks padding and averages."""
        ...

    def sample(self, state: TrainState, key: Array, num_samples: int, **condition: Any) -> Array:
        """Draws `num_samples` examples in the form that the batches have, shape [num_samples, ...]."""
        ...


# Optional capabilities, looked for by `isinstance`.


@runtime_checkable
class HasPretrained(Protocol):
    """A model that can start from a checkpoint of another library, named by its field `pretrained`."""

    pretrained: str | None

    def with_pretrained_sizes(self) -> GenerativeModel:
        """The model with the sizes of the checkpoint; itself where none is named."""
        ...

    def pretrained_params(self, params: PyTree) -> PyTree:
        """Parameters of the checkpoint, placed as `params` are, which they replace; new ones for what it does not have."""
        ...


@runtime_checkable
class HasLearnedExtra(Protocol):
    """A model that learns arrays of `state.extra` with its parameters, so that a run which starts from all of these takes both.

    Attributes:
      learned_extra: their names, those among them that a configuration does not have included.
    """

    learned_extra: tuple[str, ...]


@runtime_checkable
class ChecksStart(Protocol):
    """A model that cannot start from any parameters, as one that is distilled from a teacher."""

    def check_start(self, source: GenerativeModel | None) -> None:
        """Called before the first step of a run.

        Args:
          source: the model of the run `training.init_from` that parameters are taken from, or None where there is none.

        Raises:
          UserError: the run cannot start from these.
        """
        ...


@runtime_checkable
class ChecksData(Protocol):
    """A model that some data sets do not suit."""

    def check_data(self, spec: Mapping[str, Any]) -> None:
        """Called with what a data set says of itself, before anything is computed.

        Raises:
          UserError: the model cannot learn from such data.
        """
        ...


@runtime_checkable
class ChecksCondition(Protocol):
    """A model whose `sample` takes conditions with values that can be wrong, which it cannot see where it is compiled."""

    def check_condition(self, **condition: Any) -> None:
        """Called with what `sample` will be given.

        Raises:
          UserError: a value is not one that the model knows, such as a token outside its vocabulary.
        """
        ...


@runtime_checkable
class ChecksLabels(Protocol):
    """A model that can be conditional on classes."""

    def check_labels(self, label: Array) -> None:
        """Called with the classes [N] that samples are asked of.

        Raises:
          UserError: the model is not conditional on classes, or there is no such class.
        """
        ...


@runtime_checkable
class HasLogProb(Protocol):
    def log_prob(self, state: TrainState, batch: Batch) -> Array:
        """Exact log-density or log-probability of each example in nats, shape [B]."""
        ...


@runtime_checkable
class HasLogProbBound(Protocol):
    def log_prob_bound(self, state: TrainState, batch: Batch, key: Array) -> Array:
        """A lower bound on the log-probability of each example in nats, shape [B]."""
        ...


@runtime_checkable
class HasLatents(Protocol):
    def encode(self, state: TrainState, batch: Batch) -> Array:
        """Returns the latent code of each example, shape [B, latent_dim] (the posterior mean where there is one)."""
        ...

    def decode(self, state: TrainState, latents: Array, **condition: Any) -> Array:
        """Returns the mean of the output distribution for each latent, shape [B, *data_shape]."""
        ...


@runtime_checkable
class HasLogits(Protocol):
    def logits(self, state: TrainState, tokens: Array, **condition: Any) -> Array:
        """Next-token logits of token sequences [B, T], shape [B, T, vocab_size]."""
        ...


@runtime_checkable
class HasScore(Protocol):
    def score(self, state: TrainState, x: Array, *args: Any) -> Array:
        """Gradient of the log-density by x, shape of x."""
        ...


@runtime_checkable
class HasDenoise(Protocol):
    def denoise(self, state: TrainState, x: Array, noise_level: Array, **condition: Any) -> Array:
        """Posterior mean of the clean data given noisy x, shape of x."""
        ...


@runtime_checkable
class HasWarnings(Protocol):
    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        """What the means of the training metrics since the last line should tell the user; mostly nothing."""
        ...


@runtime_checkable
class CanDiagnose(Protocol):
    def diagnose(self, state: TrainState, batch: Batch, key: Array) -> None:
        """Runs a step's forward pass outside of `jit`; called with a sound state after a step's loss was not finite.

        Raises:
          UserError: naming the layer or the input that is to blame, as a part of a sentence.
        """
        ...


def batch_size(batch: Batch) -> int:
    """Number of examples in a batch."""
    return jax.tree.leaves(dict(batch))[0].shape[0]


def example_places(batch: Batch) -> Array:
    """The place of each example in the whole batch, of which this may be a part, [B].

    Without `example_index` the devices of the `pmap` mode hold equal parts, one after the other.
    """
    if "example_index" in batch:
        return batch["example_index"]
    places = jnp.arange(batch_size(batch))
    try:
        return places + jax.lax.axis_index(DEVICE_AXIS) * len(places)
    except NameError:
        return places


def example_keys(key: Array, batch: Batch) -> Array:
    """One random key per example, shape [B].

    Noise that is drawn from these belongs to the example and not to its place in memory, so that
    accumulation, `pmap` and evaluation in batches of another size all give the same numbers:

        epsilon = jax.vmap(lambda k: jax.random.normal(k, (latent_dim,)))(example_keys(key, batch))

    The engine puts `example_index` into the batch wherever the batch at hand is a part of a larger one.
    """
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, example_places(batch))


def check_label_range(label: Array, num_classes: int | None) -> None:
    """Refuses labels [B] outside of 0 .. num_classes - 1; inside of compiled functions their values are not known.

    Raises:
      UserError: one is none of the classes, or nobody has said how many there are.
    """
    if num_classes is None:
        raise UserError("model.num_classes is None; give it, or choose a data set with classes")
    if isinstance(label, jax.core.Tracer):
        return
    # In numpy, as jnp's answer would be traced where the caller is compiled.
    label = np.asarray(label)
    if label.size and (label.min() < 0 or label.max() >= num_classes):
        raise UserError(f"labels must lie between 0 and {num_classes - 1}, not {label.min()} and {label.max()}")


def one_hot_classes(label: Array, num_classes: int | None) -> Array:
    """Classes [B] as float32 [B, num_classes].

    Inside of compiled functions, where values are not known, a label outside of the classes gives NaN and stops the run.

    Raises:
      UserError: as `check_label_range`.
    """
    check_label_range(label, num_classes)
    known = (label >= 0) & (label < num_classes)
    return jnp.where(known[:, None], jax.nn.one_hot(label, num_classes), jnp.nan)


def cross_device_mean(tree: PyTree) -> PyTree:
    """Mean over the devices of the `pmap` mode; elsewhere the identity (under `jit` means are global already)."""
    try:
        jax.lax.axis_index(DEVICE_AXIS)
    except NameError:
        return tree
    return jax.lax.pmean(tree, DEVICE_AXIS)


def cross_device_sum(tree: PyTree) -> PyTree:
    """Sum over the devices of the `pmap` mode; elsewhere the identity.  For sufficient statistics."""
    try:
        jax.lax.axis_index(DEVICE_AXIS)
    except NameError:
        return tree
    return jax.lax.psum(tree, DEVICE_AXIS)


def cross_device_gather(tree: PyTree) -> PyTree:
    """The global batch from its parts on the devices of the `pmap` mode; elsewhere the identity."""
    try:
        jax.lax.axis_index(DEVICE_AXIS)
    except NameError:
        return tree
    return jax.tree.map(lambda a: jax.lax.all_gather(a, DEVICE_AXIS, tiled=True), tree)


def own_part(tree: PyTree, count: int) -> PyTree:
    """Of arrays over the global batch the rows of this device's `count` examples in the `pmap` mode; elsewhere the identity.

    What a device draws in the shape of the global batch, and takes its part of, is what one device would draw.
    """
    try:
        device = jax.lax.axis_index(DEVICE_AXIS)
    except NameError:
        return tree
    return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, device * count, count), tree)


@dataclasses.dataclass(frozen=True)
class BatchLoss:
    """A loss that is no mean over examples, as one that contrasts each with all others.

    With accumulation, the outputs of all microbatches are computed first; then each microbatch's share of the gradient
    follows from the gradient of the loss by its outputs (Gao et al. 2021, arXiv:2101.06983).  This takes a second forward
    pass, and gives the value and the gradient of the whole batch.

    Attributes:
      outputs: `(params, batch, key) -> outputs`, floating-point arrays [B, ...] whose rows belong to the examples.
      loss: `(outputs, batch, key) -> (loss, metrics)` of the whole batch, or of the device's part of it; with `extra`,
        `(outputs, batch, key, extra) -> (loss, (metrics, extra))`.
    """

    outputs: Callable[[PyTree, Batch, Array], PyTree]
    loss: Callable[..., tuple[Array, Any]]

    def __call__(self, params: PyTree, batch: Batch, key: Array, *extra: PyTree) -> tuple[Array, Any]:
        """The loss of a batch that is computed in one piece."""
        return self.loss(self.outputs(params, batch, key), batch, key, *extra)


def _microbatches(batch: PyTree, count: int) -> PyTree:
    """Arrays [B, ...] as [count, B / count, ...].

    Example i goes to microbatch i mod count: every device keeps a share of each microbatch.
    """
    return jax.tree.map(lambda a: a.reshape(a.shape[0] // count, count, *a.shape[1:]).swapaxes(0, 1), batch)


def value_and_gradient(
    loss: Callable[..., tuple[Array, Metrics]],
    params: PyTree,
    batch: Batch,
    key: Array,
    accumulation_steps: int = 1,
    extra: PyTree = None,
) -> tuple[PyTree, Metrics, PyTree]:
    """Gradient of a mean-over-examples loss, accumulated over microbatches and averaged over devices.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`, means over the examples of its batch, or a `Ratio` of two among
        the metrics; with `extra`, `(params, batch, key, extra) -> (loss, (metrics, extra))`.  Or a `BatchLoss`.
      params: differentiated argument.
      batch: global batch; its size must be a multiple of `accumulation_steps`.
      key: random key, the same for every microbatch (see `example_keys`).
      accumulation_steps: number of microbatches that are taken one after the other to save memory.
      extra: state that the loss carries from one microbatch to the next, or None.

    Returns:
      Gradients, metrics (with `loss`), and the new `extra`.

    Raises:
      UserError: the batch cannot be divided into the microbatches.
    """

    def call(function: Callable, x: PyTree, b: Batch, e: PyTree) -> tuple[Array, tuple[Metrics, PyTree]]:
        if e is None:
            value, metrics = function(x, b, key)
        else:
            value, (metrics, e) = function(x, b, key, e)
        return value, ({"loss": value, **metrics}, e)

    gradient = jax.grad(functools.partial(call, loss), has_aux=True)
    if accumulation_steps == 1:
        gradients, (metrics, extra) = gradient(params, batch, extra)
        return *cross_device_mean((gradients, metrics)), extra
    size = batch_size(batch)
    if size % accumulation_steps:
        raise UserError(
            f"a batch of {size} examples cannot be divided into accumulation_steps={accumulation_steps} equal parts"
        )
    batch = {"example_index": example_places(batch), **batch}
    microbatches = _microbatches(batch, accumulation_steps)
    # XLA compiles gradients of convolutions badly inside of loops on CPU; a few microbatches need none.
    unroll = jax.default_backend() == "cpu" and accumulation_steps <= 4
    zeros = jax.tree.map(jnp.zeros_like, params)
    if isinstance(loss, BatchLoss):
        parts = jax.lax.scan(
            lambda _, part: (None, loss.outputs(params, part, key)), None, microbatches, unroll=unroll
        )[1]
        whole = jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(size, *a.shape[2:]), parts)
        by_outputs, (metrics, extra) = jax.grad(functools.partial(call, loss.loss), has_aux=True)(whole, batch, extra)

        def add(total: PyTree, inputs: tuple[Batch, PyTree]) -> tuple[PyTree, None]:
            part, by_own = inputs
            pullback = jax.vjp(lambda p: loss.outputs(p, part, key), params)[1]
            return jax.tree.map(jnp.add, total, pullback(by_own)[0]), None

        inputs = (microbatches, _microbatches(by_outputs, accumulation_steps))
        gradients, _ = jax.lax.scan(add, zeros, inputs, unroll=unroll)
    else:

        def body(carry, microbatch):
            total, e = carry
            g, (metrics, e) = gradient(params, microbatch, e)
            return (jax.tree.map(jnp.add, total, g), e), metrics

        (gradients, extra), metrics = jax.lax.scan(body, (zeros, extra), microbatches, unroll=unroll)
        gradients = jax.tree.map(lambda g: g / accumulation_steps, gradients)
        metrics = jax.tree.map(lambda m: m.mean(0), metrics)
    return *cross_device_mean((gradients, metrics)), extra


def after_backward_pass(gradients: PyTree, norm: Array) -> PyTree:
    """Makes every gradient wait for the norm of all on CPU; values stay, but a norm that is NaN makes all of them NaN.

    Else XLA, free to update a parameter before the backward pass has read it for the last time, first copies them all.
    """
    if jax.default_backend() != "cpu":
        return gradients
    return jax.tree.map(lambda g: jnp.where(jnp.isnan(norm), norm.astype(g.dtype), g), gradients)


def gradient_update(
    loss: Callable[..., tuple[Array, Metrics]],
    optimizer: Any,
    params: PyTree,
    opt_state: PyTree,
    batch: Batch,
    key: Array,
    extra: PyTree = None,
) -> tuple[PyTree, PyTree, Metrics, PyTree]:
    """One optimizer update of one network; families with several networks alternate these.

    Arguments are those of `value_and_gradient`; `optimizer` is an `optimizers.Optimizer`.

    Returns:
      New params, new optimizer state, metrics (with `loss` and `gradient_norm`), new extra.
    """
    gradients, metrics, new_extra = value_and_gradient(loss, params, batch, key, optimizer.accumulation_steps, extra)
    metrics["gradient_norm"] = tree_norm(gradients)
    gradients = after_backward_pass(gradients, metrics["gradient_norm"])
    updates, new_opt_state = optimizer.build().update(gradients, opt_state, params)
    new_params = optax.apply_updates(params, updates)
    if optimizer.skip_nonfinite:
        watched = jax.tree.leaves((metrics["loss"], metrics["gradient_norm"]))
        finite = jnp.isfinite(jnp.stack(watched)).all()
        keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)  # noqa: E731
        new_params, new_opt_state = keep(new_params, params), keep(new_opt_state, opt_state)
        new_extra = keep(new_extra, extra)
        metrics = jax.tree.map(lambda value: jnp.where(finite, value, 0.0), metrics)
        metrics["skipped"] = 1.0 - finite.astype(jnp.float32)
    return new_params, new_opt_state, metrics, new_extra


def unless_skipped(metrics: Metrics, new: PyTree, old: PyTree, name: str = "skipped") -> PyTree:
    """`new`, or `old` where an update was skipped; for state that a family renews beside an update.

    Args:
      metrics: of the update, where `name` is 1 if it was skipped (see `Optimizer.skip_nonfinite`).
      new, old: the state after the step and before it.
      name: which metric says so.
    """
    if name not in metrics:
        return new
    return jax.tree.map(lambda n, o: jnp.where(metrics[name] == 1.0, o, n), new, old)


def ema_update(ema_params: PyTree, params: PyTree, decay: float, step: Array) -> PyTree:
    """Moving average of parameters; `step` counts from 0 and warms the decay up, so that early averages are not stale."""
    step = step.astype(jnp.float32)
    decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda e, p: (decay * e + (1.0 - decay) * p).astype(e.dtype), ema_params, params)


def gradient_step(
    loss: Callable[..., tuple[Array, Metrics]], optimizer: Any, with_extra: bool = False
) -> Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]:
    """Turns a loss into a `train_step` with accumulation, clipping, moving average and cross-device means.

    Args:
      loss: `(params, batch, key) -> (loss, metrics)`; with_extra, `(params, batch, key, extra) ->
        (loss, (metrics, extra))`.  Both are means over the examples of the batch.
      optimizer: an `optimizers.Optimizer`.
      with_extra: whether the loss reads and renews `state.extra`.
    """

    def train_step(state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        params, opt_state, metrics, extra = gradient_update(
            loss, optimizer, state.params, state.opt_state, batch, key, state.extra if with_extra else None
        )
        ema = state.ema_params
        if optimizer.ema_decay is not None:
            ema = unless_skipped(metrics, ema_update(ema, params, optimizer.ema_decay, state.step), ema)
        state = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema_params=ema,
            extra=extra if with_extra else state.extra,
        )
        return state, metrics

    return train_step
