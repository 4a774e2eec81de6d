"""Latent diffusion: a diffusion model of the codes of a fixed autoencoder (Rombach et al. 2022, arXiv:2112.10752).

    c = (z - shift) scale,  z ~ q(z | x),    a diffusion model of c,    samples G(c / scale + shift)     (sec. 3.2, 3.3)

`scale` is 1 over the standard deviation of the codes of the first batch (appendix G), and is kept in the state, or it
is the autoencoder's `scaling_factor`.  Train an `AutoencoderKL`, and give its run by --training.init_from with
--training.init_prefix=autoencoder.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, Metrics, PyTree, check_data_shape, cross_device_mean, example_keys
from genjax.errors import UserError, filled
from genjax.families.diffusion.diffusion import Diffusion
from genjax.families.vae.autoencoder_kl import AutoencoderKL
from genjax.fine_tuning import FineTuned
from genjax.model import TrainState
from genjax.nn.lora import LoRA
from genjax.optimizers import Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentDiffusion(FineTuned):
    """A fixed autoencoder, and a diffusion model that learns its codes.

    Attributes:
      data_shape: shape (H, W, C) of one picture; None takes the data set's.
      num_classes: number of classes of a diffusion model that is conditional on classes; None takes the data set's.
      autoencoder: the trained autoencoder.
      diffusion: model of the codes with its optimizer; its data_shape follows from the codes.
      untrained_autoencoder: start without a trained autoencoder, to try a configuration out.
      frozen: beginnings of the paths of parameters that are not trained.
      lora: train low-rank updates of the diffusion model's linear maps and nothing else, or None.
    """

    data_shape: tuple[int, ...] | None = None
    num_classes: int | None = None
    autoencoder: AutoencoderKL = AutoencoderKL()
    diffusion: Diffusion = Diffusion()
    untrained_autoencoder: bool = False
    frozen: tuple[str, ...] = ("autoencoder",)
    lora: LoRA | None = None

    @property
    def optimizer(self) -> Optimizer:
        """The diffusion model's optimizer."""
        return self.diffusion.optimizer

    @property
    def coder(self) -> AutoencoderKL:
        """The autoencoder of pictures of this size."""
        return dataclasses.replace(self.autoencoder, data_shape=self.data_shape)

    def code_model(self) -> Diffusion:
        """The diffusion model of codes.

        Raises:
          UserError: the size of the pictures is not known, or is no multiple of what the autoencoder halves.
        """
        filled(self, "data_shape")
        return dataclasses.replace(
            self.diffusion, data_shape=self.coder.code_shape, num_classes=self.num_classes, num_levels=None
        )

    def learner(self) -> Diffusion:
        """The diffusion model whose loss is learned."""
        return self.code_model()

    def check_start(self, source: Any) -> None:
        """Refuses to learn the codes of an autoencoder that was not trained.

        Args:
          source: the model of the run `training.init_from`, or None.

        Raises:
          UserError: it is missing, or neither an autoencoder nor a model of its codes.
        """
        if source is None and self.untrained_autoencoder:
            return
        if not isinstance(source, (AutoencoderKL, LatentDiffusion)):
            what = "" if source is None else f", and {type(source).__name__} is none"
            raise UserError(
                f"latent diffusion learns the codes of a trained AutoencoderKL{what}; give its run by "
                "--training.init_from=RUN --training.init_prefix=autoencoder"
            )
        theirs = source if isinstance(source, AutoencoderKL) else source.autoencoder
        if theirs.latent_channels != self.autoencoder.latent_channels:
            raise UserError(
                f"model.autoencoder.latent_channels={self.autoencoder.latent_channels}, but the codes of "
                f"training.init_from have {theirs.latent_channels}"
            )

    # ------------------------------------------------------------------------------------------------------------------
    # Codes

    def codes(self, params: PyTree, x: Array, keys: Array | None) -> Array:
        """Codes [B, h, w, D] before their scale: draws by keys [B], or modes without keys."""
        posterior = self.coder.posterior(jax.lax.stop_gradient(params["autoencoder"]), x)
        if keys is None:
            return posterior.mean
        noise = jax.vmap(lambda k: jax.random.normal(k, posterior.mean.shape[1:]))(keys)
        return posterior.sample(noise)

    def scale_of(self, learned: PyTree) -> Array | float:
        """The factor on codes; 1 before it is known."""
        if self.autoencoder.scaling_factor is not None:
            return self.autoencoder.scaling_factor
        return jnp.where(learned["scale"] == 0.0, 1.0, learned["scale"])

    def scaled(self, learned: PyTree, z: Array) -> Array:
        """What the diffusion model sees of codes."""
        return (z - self.autoencoder.shift_factor) * self.scale_of(learned)

    def decode_codes(self, state: TrainState, codes: Array) -> Array:
        """Pictures [B, H, W, C] of scaled codes [B, h, w, D]."""
        z = codes / self.scale_of(state.learned) + self.autoencoder.shift_factor
        return self.coder.decode_maps(state.eval_params["autoencoder"], z)

    def encode_pictures(self, state: TrainState, x: Array) -> Array:
        """Scaled codes [B, h, w, D] of pictures: the modes."""
        return self.scaled(state.learned, self.codes(state.eval_params, x, None))

    def coded(self, params: PyTree, learned: PyTree, batch: Batch, key: Array, training: bool) -> Batch:
        """The diffusion model's batch: scaled draws of codes in place of x, and what else it is conditional on."""
        del training
        z = self.codes(params, batch["x"], example_keys(jax.random.fold_in(key, 1), batch))
        return {**self.with_conditions(params, batch, key), "x": self.scaled(learned, z)}

    def with_conditions(self, params: PyTree, batch: Batch, key: Array) -> Batch:
        """The batch with the conditions of the diffusion model."""
        del params, key
        return batch

    # ------------------------------------------------------------------------------------------------------------------
    # The contract

    def diffusion_state(self, state: TrainState) -> TrainState:
        """The state of the diffusion model as far as evaluation and sampling need it."""
        params = self.merged_params(state.eval_params)["diffusion"]
        return TrainState(step=state.step, params=params, extra=state.extra)

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: the pictures have another shape than `data_shape`.
        """
        check_data_shape(batch["x"], self.data_shape)
        model = self.code_model()
        coder_key, diffusion_key, start_key, condition_key = jax.random.split(key, 4)
        params = self.fixed_params(coder_key, batch)
        codes = jnp.zeros((batch["x"].shape[0], *model.data_shape))
        inner = model.init(diffusion_key, {**self.with_conditions(params, batch, condition_key), "x": codes})
        state = self.start(start_key, {**params, "diffusion": inner.params})
        learned = {} if self.autoencoder.scaling_factor is not None else {"scale": jnp.zeros(())}
        return state.replace(extra=inner.extra, learned=learned)

    def _trained(self, path: str) -> bool:
        first, _, rest = path.partition("/")
        inner = self.diffusion.trained
        return super()._trained(path) and (first != "diffusion" or inner is None or inner(rest))

    def adapted(self, params: PyTree) -> PyTree:
        return {"diffusion": params["diffusion"]}

    def fixed_params(self, key: Array, batch: Batch) -> dict[str, PyTree]:
        """Parameters of the parts other than the diffusion model."""
        return {"autoencoder": self.coder.autoencoder_params(key, batch["x"])}

    def loss(self, params: PyTree, batch: Batch, key: Array, learned: PyTree | None = None) -> tuple[Array, Metrics]:
        """Mean loss of the diffusion model, and its metrics."""
        merged = self.merged_params(params)
        inner = self.coded(merged, learned, batch, key, training=True)
        return self.learner().loss(merged["diffusion"], inner, key, jnp.zeros((), jnp.int32))

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update of the diffusion model; the first one also fixes the scale of the codes.

        Metrics: those of the diffusion model.
        """
        learned = state.learned
        if "scale" in learned:
            z = self.codes(state.params, batch["x"], example_keys(jax.random.fold_in(key, 1), batch))
            mean, square = cross_device_mean((z.mean(), jnp.square(z).mean()))
            first = jax.lax.rsqrt(jnp.maximum(square - jnp.square(mean), 1e-12))
            # A run that starts from another model of codes keeps its scale.
            learned = {**learned, "scale": jnp.where(learned["scale"] == 0.0, first, learned["scale"])}
        state, metrics = self.update(functools.partial(self.loss, learned=learned), state, batch, key)
        return state.replace(learned=learned), metrics

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Metrics of the diffusion model on codes, and `code_std`, the deviation of an example's scaled code, [B]."""
        params = self.merged_params(state.eval_params)
        inner = self.coded(params, state.learned, batch, key, training=False)
        spread = jnp.sqrt(jnp.square(inner["x"]).reshape(inner["x"].shape[0], -1).mean(-1))
        return {**self.code_model().evaluate(self.diffusion_state(state), inner, key), "code_std": spread}

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the arrays that `sample` takes."""
        return self.diffusion.conditions

    @property
    def guidance_scale(self) -> float:
        """Weight of the guidance."""
        return self.diffusion.guidance_scale

    def with_guidance_scale(self, scale: float) -> LatentDiffusion:
        """The model with another weight of its guidance."""
        return dataclasses.replace(self, diffusion=self.diffusion.with_guidance_scale(scale))

    def check_labels(self, label: Array) -> None:
        """Refuses labels outside of the classes; see `Diffusion.check_labels`."""
        self.code_model().check_labels(label)

    def sample(self, state: TrainState, key: Array, num_samples: int, **condition: Any) -> Array:
        """Decoded samples of the diffusion model, [num_samples, *data_shape]; see `Diffusion.sample`."""
        codes = self.code_model().sample(self.diffusion_state(state), key, num_samples, **condition)
        return self.decode_codes(state, codes)

    def reconstruct(self, state: TrainState, batch: Batch, key: Array) -> Array:
        """Pictures through code and back, the shape of x."""
        del key
        params = state.eval_params["autoencoder"]
        return self.coder.decode_maps(params, self.codes(state.eval_params, batch["x"], None))
