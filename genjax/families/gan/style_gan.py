"""StyleGAN (Karras et al. 2019, arXiv:1812.04948; 2020, arXiv:1912.04958): how its networks are trained and sampled.

A mapping network takes z to w; a synthesis network takes a w for each of its layers, and noise, to a picture.  In
training some pictures get two w, one for the layers before a random place and one for those behind it (style mixing).
Every 16th step the discriminator has the penalty R1, and every few steps the generator has a penalty on an
uneven Jacobian (2020, eq. 4):

    w E (|J^T y| - a)^2,   J^T y = grad_w <G(w), y>,   y ~ N(0, I) / sqrt(H W),   a: running mean of |J^T y|

For StyleGAN3-R the discriminator's input is blurred, at first strongly and then less and less, so that the
discriminator does not win by details that the generator has not learned yet.  Truncation moves w towards its mean over
the training: w' = mean + psi (w - mean).
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from genjax.batch import Array, Batch, Metrics, PyTree, cross_device_mean, example_keys
from genjax.errors import UserError
from genjax.families.gan.gan import GAN, Penalty
from genjax.families.gan.networks import GANNetwork
from genjax.families.gan.style_layers import NOISE, STATISTICS, Mapping, truncate
from genjax.families.gan.upfirdn import blur
from genjax.families.gan.views import View
from genjax.gradients import ema_update
from genjax.model import TrainState
from genjax.optimizers import Adam, Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class StyleNetwork(GANNetwork):
    """Base of the networks of StyleGAN2 and StyleGAN3.

    Attributes:
      style_dim: width of w.
      num_mapping_layers: layers of the mapping network.
      mapping_learning_rate_factor: factor on the learning rate of the mapping network.
      channel_base: a feature map of n x n pixels has channel_base / n channels, at most channel_max.
      channel_max: largest number of channels of a feature map.
      mixing: share of training pictures that get two w.
    """

    style_dim: int = 512
    num_mapping_layers: int = 8
    mapping_learning_rate_factor: float = 0.01
    channel_base: int = 16384
    channel_max: int = 512
    mixing: float = 0.9

    @abc.abstractmethod
    def num_styles(self, data_shape: tuple[int, ...]) -> int:
        """Number of w that the synthesis network takes."""

    def noise_maps(self, data_shape: tuple[int, ...], key: Array, count: int) -> PyTree:
        """Normal noise for all layers of `count` pictures, a tree of maps [count, H, W]; empty if
        layers have no noise.
        """
        del data_shape, key, count
        return {}

    def channels(self, size: int) -> int:
        """Channels of feature maps of size x size pixels."""
        return max(min(self.channel_base // size, self.channel_max), 1)


class StyleGenerator(nn.Module):
    """Mapping and synthesis.

    Attributes:
      network: sizes of the networks.
      synthesis: the module (styles [B, layers, style_dim], keys [B] or None, training) -> pictures.
      num_styles: number of its layers with a style.
    """

    network: StyleNetwork
    synthesis: nn.Module
    num_styles: int

    def setup(self) -> None:
        network = self.network
        self.mapping = Mapping(network.style_dim, network.num_mapping_layers, network.mapping_learning_rate_factor)
        self.mean_path_length = self.variable(STATISTICS, "mean_path_length", jnp.zeros, ())

    def styles(
        self, z: Array, condition: Array | None = None, training: bool = False, keys: Array | None = None
    ) -> Array:
        """Styles [B, layers, style_dim] of latents, mixed in training."""
        style = self.mapping(z, condition, training)
        styles = jnp.broadcast_to(style[:, None], (len(style), self.num_styles, style.shape[-1]))
        if not training or keys is None or not self.network.mixing or self.num_styles < 2:
            return styles

        def draw(key: Array) -> tuple[Array, Array]:
            happens, place, other = jax.random.split(key, 3)
            first = jax.random.randint(place, (), 1, self.num_styles)
            mixed = jax.random.uniform(happens) < self.network.mixing
            return jnp.where(mixed, first, self.num_styles), jax.random.normal(other, z.shape[1:])

        first, other = jax.vmap(draw)(keys)
        behind = jnp.arange(self.num_styles)[None] >= first[:, None]
        return jnp.where(behind[..., None], self.mapping(other, condition)[:, None], styles)

    def synthesize(
        self, styles: Array, keys: Array | None = None, training: bool = False, transform: Array | None = None
    ) -> Array:
        """Pictures of styles; noise is drawn from `keys`, or is 0; StyleGAN3 can turn and shift its input."""
        return self.synthesis(styles, keys, training, *([] if transform is None else [transform]))

    def __call__(
        self, z: Array, condition: Array | None = None, training: bool = False, keys: Array | None = None
    ) -> Array:
        mixing_keys = noise_keys = None
        if keys is not None:
            mixing_keys, noise_keys = (jax.vmap(lambda k, i=i: jax.random.fold_in(k, i))(keys) for i in (0, 1))
        return self.synthesize(self.styles(z, condition, training, mixing_keys), noise_keys, training)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StyleGAN(GAN):
    """StyleGAN2 and StyleGAN3, by their networks.

    Attributes:
      network: the networks.
      path_length_weight: weight w of the generator's penalty; 0 for none, as in StyleGAN3.
      path_length_every: the generator's penalty is computed once in this many steps.
      blur_radius: radius of the blur at the first step, in pixels, where its filter has half
        of its height; 0 for no blur.
      blur_steps: number of steps in which the radius falls linearly to 0.
      truncation: truncation psi of samples; 1 for none.
    """

    latent_dim: int = 512
    network: StyleNetwork
    penalty: Penalty = "r1"
    penalty_every: int = 16
    path_length_weight: float = 2.0
    path_length_every: int = 4
    blur_radius: float = 0.0
    blur_steps: int = 6250
    truncation: float = 1.0
    generator_optimizer: Optimizer = Adam(learning_rate=2e-3, b1=0.0, b2=0.99, ema_decay=0.999)
    discriminator_optimizer: Optimizer = Adam(learning_rate=2e-3, b1=0.0, b2=0.99)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.path_length_every < 1:
            raise UserError(f"model.path_length_every={self.path_length_every} must be at least 1")
        if self.blur_radius < 0.0 or self.blur_steps < 1:
            raise UserError(
                f"model.blur_radius={self.blur_radius} must be at least 0, "
                f"and model.blur_steps={self.blur_steps} at least 1"
            )

    def view(self, state: TrainState, batch: Batch, key: Array) -> View:
        view = super().view(state, batch, key)
        if not self.blur_radius:
            return view
        radius = self.blur_radius * jnp.maximum(1.0 - state.step / self.blur_steps, 0.0)

        def blurred(x: Array) -> Array:
            x = jax.lax.cond(radius > 0.0, lambda y: blur(y, radius, self.blur_radius), lambda y: y, x)
            return x if view.augment is None else view.augment(x)

        return view._replace(augment=blurred)

    def generator_penalty(
        self, params: PyTree, variables: PyTree, batch: Batch, key: Array, step: Array
    ) -> tuple[Array, Metrics, PyTree]:
        """The path length penalty, its metrics, and the statistics with the new mean length."""
        if not self.path_length_weight:
            return jnp.zeros(()), {}, variables
        statistics = variables[STATISTICS]
        old_mean = statistics["mean_path_length"]

        def penalty() -> tuple[Array, Array]:
            lengths = self.path_lengths(params, variables, batch, key)
            mean = old_mean + 0.01 * (jax.lax.stop_gradient(cross_device_mean(lengths.mean())) - old_mean)
            value = self.path_length_weight * jnp.mean((lengths - mean) ** 2)
            return self.path_length_every * value, mean

        due = step % self.path_length_every == 0
        value, mean = jax.lax.cond(due, penalty, lambda: (jnp.zeros(()), old_mean))
        variables = {**variables, STATISTICS: {**statistics, "mean_path_length": mean}}
        return value, {"path_length_penalty": value, "mean_path_length": mean}, variables

    def averaged_variables(self, state: TrainState, batch: Batch, key: Array) -> PyTree:
        """The moving averages of the generator's statistics, which change slowly and are nearly linear in its
        parameters.
        """
        old, new = state.extra["averaged_generator"], state.learned["generator"]
        return ema_update(old, new, self.generator_optimizer.ema_decay, state.step)

    def path_lengths(self, params: PyTree, variables: PyTree, batch: Batch, key: Array) -> Array:
        """|J^T y| of a new sample for each example, shape [B]; the mean over layers is inside the root."""
        latent_key, style_key, noise_key, direction_key = jax.random.split(key, 4)
        module, all_variables = self.generator(), {"params": params, **variables}
        condition = self.condition(batch.get("label"))
        latents, style_keys = self.latents(latent_key, batch), example_keys(style_key, batch)
        styles = module.apply(all_variables, latents, condition, True, style_keys, method="styles")
        normal = jax.vmap(lambda k: jax.random.normal(k, self.data_shape))
        direction = normal(example_keys(direction_key, batch)) / np.sqrt(np.prod(self.data_shape[:2]))
        noise_keys = example_keys(noise_key, batch)

        def product(styles: Array) -> Array:
            pictures = module.apply(all_variables, styles, noise_keys, method="synthesize")
            return jnp.sum(pictures.astype(jnp.float32) * direction)

        gradient = jax.grad(product)(styles)  # [B, layers, style_dim]
        # The gradient of a root is not finite at 0.
        return jnp.sqrt(jnp.mean(jnp.sum(gradient**2, axis=2), axis=1) + 1e-12)

    # ------------------------------------------------------------------------------------------------------------------
    # Use

    def generate(
        self,
        params: PyTree,
        latents: Array,
        condition: Array | None = None,
        variables: PyTree | None = None,
        keys: Array | None = None,
    ) -> Array:
        """G(z) with truncation; see `GAN.generate`."""
        module, all_variables = self.generator(), {"params": params, **variables}
        styles = module.apply(all_variables, latents, condition, method="styles")
        if self.truncation != 1.0:
            styles = truncate(styles, variables[STATISTICS]["mapping"]["mean_style"], self.truncation)
        return module.apply(all_variables, styles, keys, method="synthesize").astype(jnp.float32)

    def styles(
        self, state: TrainState, latents: Array, *, label: Array | None = None, truncation: Array | float = 1.0
    ) -> Array:
        """Styles of latents [B, latent_dim], shape [B, layers, style_dim]."""
        condition = self.condition(self.sampling_label(len(latents), label))
        variables = self.generator_variables(state)
        all_variables = {"params": state.eval_params["generator"], **variables}
        styles = self.generator().apply(all_variables, latents, condition, method="styles")
        return truncate(styles, variables[STATISTICS]["mapping"]["mean_style"], truncation)

    def synthesize(
        self,
        state: TrainState,
        styles: Array,
        keys: Array | None = None,
        transform: Array | None = None,
        noise: PyTree | None = None,
    ) -> Array:
        """Pictures of styles.

        Args:
          state: trained state.
          styles: [B, layers, style_dim].
          keys: keys of the noise, [B]; without keys the noise is 0.
          transform: where StyleGAN3's generator reads its Fourier features, a matrix [3, 3] that takes the place (x, y,
            1) of a pixel, in widths of the picture from its centre, to another.
          noise: noise maps to use instead of drawn maps, in the form of `network.noise_maps`.

        Returns:
          Pictures, float32 [B, *data_shape].
        """
        variables: dict[str, Any] = {"params": state.eval_params["generator"], **self.generator_variables(state)}
        if noise:
            variables[NOISE] = noise
        apply = self.generator().apply
        return apply(variables, styles, keys, False, transform, method="synthesize").astype(jnp.float32)

    def mix_styles(self, state: TrainState, rows: Array, columns: Array, layers: tuple[int, int]) -> Array:
        """Pictures whose layers first .. last - 1 have the column's style, and all other layers the row's style.

        Args:
          state: trained state.
          rows: styles [R, layers, style_dim].
          columns: styles [C, layers, style_dim].
          layers: first and last, as (0, 4) for the coarse ones.

        Returns:
          Pictures [R, C, *data_shape].
        """
        index = jnp.arange(rows.shape[1])[None, None, :, None]
        inside = (index >= layers[0]) & (index < layers[1])
        mixed = jnp.where(inside, columns[None], rows[:, None])
        pictures = self.synthesize(state, mixed.reshape(-1, *mixed.shape[2:]))
        return pictures.reshape(len(rows), len(columns), *pictures.shape[1:])
