"""Generative adversarial networks (Goodfellow et al. 2014, arXiv:1406.2661) with any objective, penalty and network.

A step updates the discriminator D one or more times and the generator G once.  objectives.py defines their losses and
the penalties of D's gradients, which have weight w.  Two more terms can be added to D's loss, the second to G's loss
too:

    consistency  c E (D(x) - D(T(x)))^2; if balanced, also with G(z) for x  (Zhang et al. 2020, arXiv:1910.12027;
                                                                             Zhao et al. 2021, arXiv:2002.04724)
    auxiliary    a times the cross entropy of the class of data and samples (Odena et al. 2017, arXiv:1610.09585)

With `augmentation`, D sees augmented pictures only.  A penalty that is computed every k-th step counts k times, so that
its mean is the same (Karras et al. 2020, arXiv:1912.04958, section 3.1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

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
    check_label_range,
    counted_examples,
    cross_device_sum,
    example_keys,
    one_hot_classes,
)
from genjax.errors import UserError, filled
from genjax.families.gan.augmentation import Augmentation, DiffAugment
from genjax.families.gan.networks import Conditioning, GANNetwork, PlainNetwork
from genjax.families.gan.objectives import (
    RELATIVISTIC,
    Objective,
    Penalty,
    class_cross_entropy,
    discriminator_objective,
    generator_objective,
    gradient_penalty,
    lazily,
    score_boundary,
)
from genjax.families.gan.turns import shares_of, with_skipped
from genjax.families.gan.views import UNCHANGED, View, view_of
from genjax.gradients import ema_update, gradient_update, unless_skipped
from genjax.model import TrainState
from genjax.nn.encoder_decoder import ConvNetwork, MLPNetwork
from genjax.optimizers import Adam, Optimizer
from genjax.values import Support


@dataclasses.dataclass(frozen=True, kw_only=True)
class GAN:
    """Generator and discriminator that are trained in turns.

    Attributes:
      data_shape: shape of one example; None takes the data set's.
      num_classes: number of classes of a model that is conditional on classes; None takes the data set's.
      latent_dim: number of latent dimensions.
      network: networks of generator and discriminator, or the decoder and the encoder of an autoencoder's network.
      conditioning: how generator and discriminator see the class; see genjax/families/gan/networks.py.
      class_weight: weight a of the cross entropy with conditioning=auxiliary.
      objective: losses of generator and discriminator.
      penalty: gradient penalty of the discriminator.
      penalty_weight: weight w of the penalty.
      penalty_every: the penalty is computed once in this many steps.
      consistency: penalise scores that change with transformations T of data (real), or of data and samples (balanced).
      consistency_weight: weight c of the consistency.
      consistency_augmentation: the transformations T.
      augmentation: random transformations of everything that the discriminator sees, or None.
      clip_weights: bound on the absolute value of every weight of the discriminator (the first WGAN), or None.
      num_discriminator_steps: updates of the discriminator before each update of the generator, on fresh samples.
      fresh_examples: give every discriminator update its own examples: the batch then holds num_discriminator_steps
        times the examples of one update.
      compute_dtype: type that the networks compute in; parameters and losses are float32.
      generator_optimizer: optimizer of the generator.
      discriminator_optimizer: optimizer of the discriminator; its schedule counts training steps, not updates.
    """

    data_shape: tuple[int, ...] | None = None
    num_classes: int | None = None
    latent_dim: int = 32
    network: GANNetwork | MLPNetwork | ConvNetwork = MLPNetwork(hidden_dims=(128, 128), activation="relu")
    conditioning: Conditioning = "none"
    class_weight: float = 1.0
    objective: Objective = "non_saturating"
    penalty: Penalty = "none"
    penalty_weight: float = 10.0
    penalty_every: int = 1
    consistency: Literal["none", "real", "balanced"] = "none"
    consistency_weight: float = 10.0
    consistency_augmentation: DiffAugment = DiffAugment(policy=("flip", "translation"))
    augmentation: Augmentation | None = None
    clip_weights: float | None = None
    num_discriminator_steps: int = 1
    fresh_examples: bool = False
    compute_dtype: ComputeDtype = "float32"
    generator_optimizer: Optimizer = Adam(learning_rate=2e-4, b1=0.5)
    discriminator_optimizer: Optimizer = Adam(learning_rate=2e-4, b1=0.5)

    def __post_init__(self) -> None:
        for name in ("num_discriminator_steps", "penalty_every"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name}={getattr(self, name)} must be at least 1")

    # ------------------------------------------------------------------------------------------------------------------
    # Networks

    def _network(self) -> GANNetwork:
        return self.network if isinstance(self.network, GANNetwork) else PlainNetwork(network=self.network)

    def generator(self) -> Any:
        """The Linen module (z, condition, training, keys) -> [B, *data_shape]."""
        return self._network().generator(filled(self, "data_shape"), jnp.dtype(self.compute_dtype))

    def discriminator(self) -> Any:
        """The Linen module (x, condition, training, keys, counted) -> [B, 1] or, with class logits, [B, 1 + K]."""
        return self._network().discriminator(self.conditioning, jnp.dtype(self.compute_dtype))

    def _discriminator_rule(self) -> Optimizer:
        """The discriminator's optimizer, with a schedule that counts updates and not training steps."""
        rule = self.discriminator_optimizer
        return dataclasses.replace(rule, schedule=rule.schedule.stretched(self.num_discriminator_steps))

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the arrays that `sample` takes."""
        return () if self.conditioning == "none" else ("label",)

    def check_labels(self, label: Array) -> None:
        """Raises UserError if the model is not conditional on classes, or a label is no class."""
        if self.conditioning == "none":
            raise UserError("the model is not conditional on classes; train it with another model.conditioning")
        check_label_range(label, self.num_classes)

    def condition(self, label: Array | None) -> Array | None:
        """Classes [B] as one-hot vectors [B, K]; None without conditioning.

        Inside of compiled steps, where values are not known, a label outside the classes gives NaN and stops the run.

        Raises:
          UserError: there are no labels, or one is outside the classes.
        """
        if self.conditioning == "none":
            return None
        if label is None:
            raise UserError(f"conditioning={self.conditioning} needs a labelled data set")
        return one_hot_classes(label, self.num_classes)

    def support(self) -> Support | None:
        """The range of the augmentation's pictures; None without one."""
        return None if self.augmentation is None else self.augmentation.support()

    def diagnose(self, state: TrainState, batch: Batch, key: Array) -> None:
        """Raises UserError if labels of the batch are no classes, or values lie outside the augmentation's range."""
        self.condition(batch.get("label"))
        if self.augmentation is not None:
            self.augmentation.support().check(batch["x"])

    def warnings(self, metrics: Mapping[str, float]) -> list[str]:
        """A sentence for the user if all updates are skipped: labels may lie outside the classes."""
        skipped = [value for name, value in metrics.items() if name.endswith("_skipped")]
        if not skipped or min(skipped) < 1.0:
            return []
        cause = (
            "" if self.conditioning == "none" else f", as with labels that are not between 0 and {self.num_classes - 1}"
        )
        return [f"every update since the last line was skipped, because a loss or a gradient was not finite{cause}"]

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: the examples have another shape than `data_shape`, labels are missing or outside the classes, or
            the penalty does not go with the network.
        """
        if self.penalty != "none" and self._network().mixes_examples:
            raise UserError(
                f"penalty={self.penalty} is a statement about single examples, but the discriminator has batch norm; "
                "choose another model.network.discriminator_norm"
            )
        check_data_shape(batch["x"], self.data_shape)
        generator_key, discriminator_key = jax.random.split(key)
        condition = self.condition(batch.get("label"))
        generator = self.generator().init(
            generator_key, self.latents(key, batch), condition, True, example_keys(key, batch)
        )
        discriminator = self.discriminator().init(discriminator_key, batch["x"], condition, True)
        params = {"generator": generator.pop("params"), "discriminator": self._clipped(discriminator.pop("params"))}
        learned = {name: v for name, v in (("generator", generator), ("discriminator", discriminator)) if v}
        extra = {}
        if self.augmentation is not None and self.augmentation.adaptive:
            extra["augmentation_probability"] = jnp.float32(self.augmentation.initial_probability)
        if generator and self.generator_optimizer.ema_decay is not None:
            # A copy, because the step donates its state and one buffer cannot be donated twice.
            extra["averaged_generator"] = jax.tree.map(jnp.copy, generator)
        optimizers = {"generator": self.generator_optimizer, "discriminator": self.discriminator_optimizer}
        return TrainState.create(params, optimizers, extra, learned)

    def generator_variables(self, state: TrainState) -> PyTree:
        """Running statistics that belong to the generator's `eval_params`."""
        return state.extra.get("averaged_generator", state.learned.get("generator", {}))

    def generate(
        self,
        params: PyTree,
        latents: Array,
        condition: Array | None = None,
        variables: PyTree | None = None,
        keys: Array | None = None,
    ) -> Array:
        """G(z), as in samples.

        Args:
          params: the generator's parameters.
          latents: z, [B, latent_dim].
          condition: classes as one-hot vectors [B, K], for a model conditional on classes.
          variables: the generator's running statistics, `generator_variables(state)`.
          keys: keys of the noise inside the generator, [B]; without keys the noise is at its mean.

        Returns:
          Samples, float32 [B, *data_shape].
        """
        apply = self.generator().apply
        return apply({"params": params, **(variables or {})}, latents, condition, False, keys).astype(jnp.float32)

    def score(
        self,
        params: PyTree,
        x: Array,
        condition: Array | None = None,
        variables: PyTree | None = None,
        counted: Array | None = None,
    ) -> Array:
        """D(x) with the discriminator's parameters: a logit, or the critic's value, float32 [B].

        A discriminator that compares examples uses only the examples that are `counted`, bool [B]; None for all.
        """
        variables = {"params": params, **(variables or {})}
        outputs = self.discriminator().apply(variables, x, condition, False, counted=counted)
        return outputs[:, 0].astype(jnp.float32)

    def latents(self, key: Array, batch: Batch) -> Array:
        """Standard normal latents that belong to the examples, [B, latent_dim]."""
        return jax.vmap(lambda k: jax.random.normal(k, (self.latent_dim,)))(example_keys(key, batch))

    def _clipped(self, params: PyTree) -> PyTree:
        if self.clip_weights is None:
            return params
        return jax.tree.map(lambda p: jnp.clip(p, -self.clip_weights, self.clip_weights), params)

    # ------------------------------------------------------------------------------------------------------------------
    # Training

    def _fake(self, params: PyTree, variables: PyTree, batch: Batch, key: Array) -> tuple[Array, PyTree]:
        """Samples in training mode, one for each example, and the generator's new variables."""
        latent_key, noise_key = jax.random.split(key)
        fake, variables = self.generator().apply(
            {"params": params, **variables},
            self.latents(latent_key, batch),
            self.condition(batch.get("label")),
            True,
            example_keys(noise_key, batch),
            mutable=list(variables),
        )
        return fake.astype(jnp.float32), variables

    def _discriminate(
        self, params: PyTree, variables: PyTree, x: Array, condition: Array | None, view: View = UNCHANGED
    ) -> tuple[Array, PyTree]:
        """The discriminator's output in training mode, float32 [B, 1 or 1 + K], and its new variables."""
        x = x if view.augment is None else view.augment(x)
        outputs, variables = self.discriminator().apply(
            {"params": params, **variables}, x, condition, True, view.noise_keys, mutable=list(variables)
        )
        return outputs.astype(jnp.float32), variables

    def gradient_penalty(
        self,
        params: PyTree,
        x: Array,
        fake: Array,
        mixture: Array,
        condition: Array | None = None,
        variables: PyTree | None = None,
        view: View = UNCHANGED,
    ) -> Array:
        """The weighted penalty's mean over examples [B, ...]; `mixture` [B] in [0, 1] is e of wgan_gp."""

        def score(y: Array) -> Array:
            return self._discriminate(params, variables or {}, y, condition, view)[0][:, 0]

        return self.penalty_weight * gradient_penalty(self.penalty, score, x, fake, mixture)

    def view(self, state: TrainState, batch: Batch, key: Array) -> View:
        """How the discriminator sees the examples of a batch in training."""
        return view_of(self.augmentation, state, batch, key)

    def discriminator_update(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update of the discriminator; `state.step` does not change.

        Metrics: `discriminator_loss`, `discriminator_gradient_norm`, `penalty`, `real_score`, `fake_score`, and those
        of the options in use: `class_accuracy`, `consistency`, `augmentation_probability`, `discriminator_skipped`.
        """
        generator, frozen = state.params["generator"], state.learned.get("generator", {})

        def loss(params, batch, key, variables):
            keys = jax.random.split(key, 5)
            x, condition = batch["x"], self.condition(batch.get("label"))
            if self.augmentation is not None:
                x = self.augmentation.only_within(x)
            fake = jax.lax.stop_gradient(self._fake(generator, frozen, batch, keys[0])[0])
            view_real, view_fake = (self.view(state, batch, k) for k in (keys[1], keys[2]))
            real_outputs, variables = self._discriminate(params, variables, x, condition, view_real)
            fake_outputs, variables = self._discriminate(params, variables, fake, condition, view_fake)
            real, generated = real_outputs[:, 0], fake_outputs[:, 0]
            value = discriminator_objective(self.objective, real, generated).mean()
            metrics = {"real_score": real.mean(), "fake_score": generated.mean()}
            if self.penalty != "none":
                mixture = jax.vmap(jax.random.uniform)(example_keys(keys[3], batch))
                arguments = (params, x, fake, mixture, condition, variables, view_real)
                penalty = lazily(lambda: self.gradient_penalty(*arguments), self.penalty_every, state.step)
                value, metrics["penalty"] = value + penalty, penalty
            if self.conditioning == "auxiliary":
                entropy = [class_cross_entropy(o[:, 1:], condition).mean() for o in (real_outputs, fake_outputs)]
                value += self.class_weight * sum(entropy)
                metrics["class_accuracy"] = (real_outputs[:, 1:].argmax(-1) == condition.argmax(-1)).mean()
            if self.consistency != "none":
                change = self.consistency_augmentation
                change_keys = example_keys(keys[4], batch)
                pairs = [(x, real, view_real)]
                if self.consistency == "balanced":
                    pairs.append((fake, generated, view_fake))
                consistency = jnp.zeros(())
                for pictures, scores, view in pairs:
                    changed = change(pictures, change_keys, jnp.float32(1.0))
                    outputs, _ = self._discriminate(params, variables, changed, condition, view)
                    consistency += jnp.mean((outputs[:, 0] - scores) ** 2)
                value, metrics["consistency"] = value + self.consistency_weight * consistency, consistency
            if "augmentation_probability" in state.extra:
                boundary = score_boundary(self.objective, real, generated)
                metrics["real_score_sign"] = jnp.sign(real - boundary).mean()
            return value, (metrics, variables)

        discriminator, opt_state, metrics, variables = gradient_update(
            loss,
            self._discriminator_rule(),
            state.params["discriminator"],
            state.opt_state["discriminator"],
            batch,
            key,
            state.learned.get("discriminator", {}),
            average_extra=True,
        )
        extra = dict(state.extra)
        if "augmentation_probability" in extra:
            count = cross_device_sum(jnp.float32(batch_size(batch)))
            before = extra["augmentation_probability"]
            adapted = self.augmentation.adapted(before, metrics["real_score_sign"], count)
            probability = unless_skipped(metrics, adapted, before)
            metrics["augmentation_probability"] = extra["augmentation_probability"] = probability
        for own in {"loss", "gradient_norm", "skipped"} & set(metrics):
            metrics[f"discriminator_{own}"] = metrics.pop(own)
        state = state.replace(
            params={**state.params, "discriminator": self._clipped(discriminator)},
            opt_state={**state.opt_state, "discriminator": opt_state},
            learned={**state.learned, "discriminator": variables} if variables else state.learned,
            extra=extra,
        )
        return state, metrics

    def generator_update(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update of the generator; `state.step` does not change.

        Metrics: `loss`, `gradient_norm`, and `generator_skipped` where such updates are skipped.
        """
        discriminator, frozen = state.params["discriminator"], state.learned.get("discriminator", {})

        def loss(params, batch, key, variables):
            keys = jax.random.split(key, 4)
            condition = self.condition(batch.get("label"))
            fake, new_variables = self._fake(params, variables, batch, keys[0])
            view_fake = self.view(state, batch, keys[1])
            outputs, _ = self._discriminate(discriminator, frozen, fake, condition, view_fake)
            real = None
            if self.objective in RELATIVISTIC:
                view_real = self.view(state, batch, keys[2])
                real = self._discriminate(discriminator, frozen, batch["x"], condition, view_real)[0][:, 0]
            value = generator_objective(self.objective, outputs[:, 0], real).mean()
            if self.conditioning == "auxiliary":
                value += self.class_weight * class_cross_entropy(outputs[:, 1:], condition).mean()
            penalty, metrics, new_variables = self.generator_penalty(params, new_variables, batch, keys[3], state.step)
            return value + penalty, (metrics, new_variables)

        generator, opt_state, metrics, variables = gradient_update(
            loss,
            self.generator_optimizer,
            state.params["generator"],
            state.opt_state["generator"],
            batch,
            key,
            state.learned.get("generator", {}),
            average_extra=True,
        )
        if "skipped" in metrics:
            metrics["generator_skipped"] = metrics.pop("skipped")
        state = state.replace(
            params={**state.params, "generator": generator},
            opt_state={**state.opt_state, "generator": opt_state},
            learned={**state.learned, "generator": variables} if variables else state.learned,
        )
        return state, metrics

    def generator_penalty(
        self, params: PyTree, variables: PyTree, batch: Batch, key: Array, step: Array
    ) -> tuple[Array, Metrics, PyTree]:
        """A term to add to the generator's loss, its metrics, and the generator's new variables; here the term is 0."""
        return jnp.zeros(()), {}, variables

    def averaged_variables(self, state: TrainState, batch: Batch, key: Array) -> PyTree:
        """Running statistics of batch norm for the averaged generator, updated every fourth step on new latents.

        Averages of the generator's own statistics would be wrong: moments are no linear functions of the parameters.
        """
        old = state.extra["averaged_generator"]
        due = state.step % 4 == 0
        return jax.lax.cond(due, lambda: self._fake(state.ema_params["generator"], old, batch, key)[1], lambda: old)

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """`num_discriminator_steps` updates of the discriminator, then one update of the generator.

        Keys: fold_in(key, 0) for the generator, 1 .. n for the n discriminator updates, n + 1 for statistics of the
        averaged generator.  Metrics of the discriminator come from its last update, except `discriminator_skipped`, the
        share of skipped updates; `loss` is the generator's loss.
        """
        if self.num_discriminator_steps == 1:
            state, critic_metrics = self.discriminator_update(state, batch, jax.random.fold_in(key, 1))
            share = batch
        else:
            shares = shares_of(batch, self.num_discriminator_steps, self.fresh_examples)

            def body(state, inputs):
                i, share = inputs
                return self.discriminator_update(state, share, jax.random.fold_in(key, i))

            state, critic_metrics = jax.lax.scan(body, state, (jnp.arange(1, self.num_discriminator_steps + 1), shares))
            critic_metrics = {name: m.mean() if "skipped" in name else m[-1] for name, m in critic_metrics.items()}
            share = jax.tree.map(lambda a: a[0], shares)
        state, metrics = self.generator_update(state, share, jax.random.fold_in(key, 0))
        metrics = {**critic_metrics, **metrics}
        ema = state.ema_params
        if ema is not None:
            rules = {"generator": self.generator_optimizer, "discriminator": self.discriminator_optimizer}
            averaged = {
                name: ema_update(ema[name], state.params[name], rules[name].ema_decay, state.step) for name in ema
            }
            ema = {name: unless_skipped(metrics, averaged[name], ema[name], f"{name}_skipped") for name in averaged}
        state = state.replace(ema_params=ema)
        if "averaged_generator" in state.extra:
            variables = self.averaged_variables(state, share, jax.random.fold_in(key, self.num_discriminator_steps + 1))
            variables = unless_skipped(metrics, variables, state.extra["averaged_generator"], "generator_skipped")
            state = state.replace(extra={**state.extra, "averaged_generator": variables})
        return state.replace(step=state.step + 1), with_skipped(metrics)

    # ------------------------------------------------------------------------------------------------------------------
    # Use

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per example [B]: `real_score` D(x), `fake_score` D(G(z)), and the two objectives for these scores."""
        params, condition = state.eval_params, self.condition(batch.get("label"))
        latents, counted = self.latents(key, batch), counted_examples(batch)
        fake = self.generate(params["generator"], latents, condition, self.generator_variables(state))
        real, generated = (
            self.score(params["discriminator"], x, condition, state.learned.get("discriminator"), counted)
            for x in (batch["x"], fake)
        )
        return {
            "real_score": real,
            "fake_score": generated,
            "discriminator_objective": discriminator_objective(self.objective, real, generated, counted),
            "generator_objective": generator_objective(self.objective, generated, real, counted),
        }

    def sampling_label(self, num_samples: int, label: Array | None) -> Array | None:
        """The classes [num_samples] to sample: the given classes, or one for all samples, or by default all in turn."""
        if label is not None:
            self.check_labels(label)
            return jnp.broadcast_to(jnp.asarray(label, jnp.int32), (num_samples,))
        return None if self.conditioning == "none" else jnp.arange(num_samples) % self.num_classes

    def sample(self, state: TrainState, key: Array, num_samples: int, *, label: Array | None = None) -> Array:
        """Draws from the generator, shape [num_samples, *data_shape].

        Args:
          state: trained state.
          key: random key; the same key gives the same latents at every step of a run.
          num_samples: how many.
          label: classes [num_samples], or one for all samples, for a model conditional on classes; by
            default all classes in turn.

        Raises:
          UserError: a label is no class, or the model is not conditional on classes.
        """
        latents = jax.random.normal(key, (num_samples, self.latent_dim))
        return self.decode(state, latents, label=label, key=jax.random.fold_in(key, 1))

    def decode(
        self, state: TrainState, latents: Array, *, label: Array | None = None, key: Array | None = None
    ) -> Array:
        """G(z) of latents [B, latent_dim], shape [B, *data_shape]; `key` decides noise inside the generator, if any."""
        condition = self.condition(self.sampling_label(len(latents), label))
        keys = None if key is None else jax.random.split(key, len(latents))
        variables = self.generator_variables(state)
        return self.generate(state.eval_params["generator"], latents, condition, variables, keys)
