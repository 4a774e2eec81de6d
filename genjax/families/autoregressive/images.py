"""Base of autoregressive models of pictures: input, output and the compiled samplers.

    p(x) = prod_{i, j} prod_c p(x_ijc | x_<(i, j), x_ij,<c)                      pixels in raster order, then channels

A network is one or two Linen modules, which also run stepwise (see genjax/nn/causal_conv.py):

    row    (x, condition, place) -> context              what rows above tell each row, or no such module
    pixel  (x, context, condition, place) -> features    what is known of each pixel from those before it

In training, networks with dropout take one more argument, a key for each example.

Where a pixel has several channels, features and the channels before give the parameters of each channel, in place of
the masked groups of features of van den Oord et al. 2016; a mixture of logistics couples them as PixelCNN++ does.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax.batch import Array, PyTree
from genjax.errors import UserError
from genjax.families.autoregressive.base import AutoregressiveModel, lattice_of
from genjax.nn.causal_conv import Mode
from genjax.nn.distributions import Bernoulli, Categorical
from genjax.nn.logistic_mixture import DiscretizedLogisticMixture
from genjax.nn.tokens import logits_product


class OutputHead(nn.Module):
    """Features [..., F] and pixels [..., C] -> float32 parameters, [..., C, P], or [..., P] of a mixture of logistics.

    Attributes:
      output: distribution of the pixels.
      channels: number C.
      dtype: compute type.
    """

    output: Any
    channels: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Array, x: Array) -> Array:
        features = nn.relu(features)
        # In float32: bfloat16 cannot tell neighbouring levels of 256 apart.
        dense = lambda width, name: nn.Dense(width, dtype=self.dtype, dot_general=logits_product, name=name)
        if isinstance(self.output, DiscretizedLogisticMixture):
            return dense(self.output.num_parameters(self.channels), "output")(features)
        width = self.output.num_parameters
        parts = [dense(width, "output_0")(features)]
        for c in range(1, self.channels):
            hidden = nn.Dense(features.shape[-1], dtype=self.dtype, name=f"hidden_{c}")(features)
            hidden = hidden + nn.Dense(features.shape[-1], dtype=self.dtype, name=f"channels_{c}")(x[..., :c])
            parts.append(dense(width, f"output_{c}")(nn.relu(hidden)))
        return jnp.stack(parts, -2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageModel(AutoregressiveModel):
    """Base of models of pictures [H, W, C].

    Attributes:
      output: distribution of a pixel given the pixels before it.
      input_encoding: the network's input: values scaled to [-1, 1], or one_hot, the level of
        each value, which suits codes.
    """

    output: Bernoulli | Categorical | DiscretizedLogisticMixture = Bernoulli()
    input_encoding: Literal["scaled", "one_hot"] = "scaled"

    @abc.abstractmethod
    def networks(self, mode: Mode | None = None) -> tuple[nn.Module | None, nn.Module]:
        """The modules `row` (or None) and `pixel`, whole ("full") or stepwise ("pixel")."""

    def dropout_rate(self) -> float:
        """Probability with which training drops units; 0 where the networks take no keys."""
        return 0.0

    def head(self) -> OutputHead:
        """The module that maps features to distribution parameters."""
        return OutputHead(self.output, self.shape()[-1], jnp.dtype(self.compute_dtype))

    def shape(self) -> tuple[int, ...]:
        shape = super().shape()
        if len(shape) != 3:
            raise UserError(f"{type(self).__name__} models pictures [H, W, C], but model.data_shape is {shape}")
        return shape

    def encoded(self, x: Array) -> Array:
        """The network's input for pixels [..., C]."""
        lattice = lattice_of(self.output)
        if self.input_encoding == "scaled":
            return 2.0 * lattice.unit(x) - 1.0
        return jax.nn.one_hot(lattice.level(x), lattice.levels).reshape(*x.shape[:-1], -1)

    def init_params(self, key: Array, x: Array, label: Array | None) -> PyTree:
        row, pixel = self.networks("full")
        keys = jax.random.split(key, 3)
        encoded, condition, context, params = self.encoded(x), self.one_hot(label), None, {}
        if row is not None:
            context, variables = row.init_with_output(keys[0], encoded, condition, None)
            params["row"] = variables["params"]
        features, variables = pixel.init_with_output(keys[1], encoded, context, condition, None)
        params["pixel"] = variables["params"]
        params["head"] = self.head().init(keys[2], features, x)["params"]
        return params

    def hidden(self, params: PyTree, x: Array, label: Array | None, keys: Array | None = None) -> Array:
        """Features of each pixel from the pixels before it, [B, H, W, F]; with keys [B], units are dropped."""
        row, pixel = self.networks("full")
        encoded, condition = self.encoded(x), self.one_hot(label)
        noise = () if keys is None else (keys,)
        context = None if row is None else row.apply({"params": params["row"]}, encoded, condition, None, *noise)
        return pixel.apply({"params": params["pixel"]}, encoded, context, condition, None, *noise)

    def head_parameters(self, params: PyTree, features: Array, x: Array) -> Array:
        """Distribution parameters for features [..., F] and pixels x [..., C]."""
        # Moved to [0, 1], so that the unit of x does not matter.
        return self.head().apply({"params": params["head"]}, features, lattice_of(self.output).unit(x))

    def parameters(self, params: PyTree, x: Array, label: Array | None, keys: Array | None = None) -> Array:
        """Parameters of all pixels of x [B, H, W, C]: [B, H, W, C, P], or [B, H, W, P] of a mixture of logistics."""
        return self.head_parameters(params, self.hidden(params, x, label, keys), x)

    def training_log_likelihood(self, params: PyTree, x: Array, label: Array | None, keys: Array, step: Array) -> Array:
        return self.log_likelihood(params, x, label, keys if self.dropout_rate() else None)

    def log_likelihood(self, params: PyTree, x: Array, label: Array | None, keys: Array | None = None) -> Array:
        log_prob = self.output.log_prob(self.parameters(params, x, label, keys), x)
        return log_prob.reshape(x.shape[0], -1).sum(-1)

    # Sampling.

    def draw_pixel(
        self, params: PyTree, features: Array, key: Array, given: Array, known: Array, temperature: Any
    ) -> Array:
        """Draws a pixel [B, C] from its features [B, F], channel after channel.

        Known channels have their values from `given`, both [B, C]; the channels after them are drawn given these.
        """
        x = jnp.zeros_like(given)
        if isinstance(self.output, DiscretizedLogisticMixture):
            return self.output.sample(self.head_parameters(params, features, x), key, given, known, temperature)
        for c in range(given.shape[-1]):
            parameters = self.head_parameters(params, features, x)[:, c]
            draw = self.output.sample(parameters / temperature, jax.random.fold_in(key, c))
            x = x.at[:, c].set(jnp.where(known[:, c], given[:, c], draw))
        return x

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
        if not cached:
            return self._generate_naively(params, key, x, known, label, temperature)
        size, height, width, _ = x.shape
        row, pixel = self.networks("pixel")
        condition = self.one_hot(label)
        depth = self.encoded(x[:1, :1, :1]).shape[-1]
        zero_row, zero_pixel = jnp.zeros((size, 1, width, depth)), jnp.zeros((size, 1, 1, depth))
        origin = (jnp.zeros((), jnp.int32),) * 2

        def start(module, *arguments):
            shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *arguments))
            return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes.get("cache", {}))

        def run(module, name, cache, *arguments):
            # Where both are parts of one network, it is all under `pixel`.
            own = params.get(name, params["pixel"])
            out, new = module.apply({"params": own, "cache": cache}, *arguments, mutable=["cache"])
            return out, new.get("cache", cache)

        row_cache, context = {}, None
        if row is not None:
            row_cache = start(row, zero_row, condition, origin)
            context, _ = run(row, "row", row_cache, zero_row, condition, origin)
            context = jax.tree.map(lambda a: a[:, :, :1], context)
        pixel_cache = start(pixel, zero_pixel, context, condition, origin)

        def one_pixel(carry, inputs):
            cache, previous, context, i = carry
            j, given, is_known = inputs
            # Contexts of half the width have half the columns.
            column = lambda a: jax.lax.dynamic_slice_in_dim(a, j // (width // a.shape[2]), 1, axis=2)
            here = jax.tree.map(column, context)
            features, cache = run(pixel, "pixel", cache, previous, here, condition, (i, j))
            pixel_key = jax.random.fold_in(key, i * width + j)
            value = self.draw_pixel(params, features[:, 0, 0], pixel_key, given, is_known, temperature)
            return (cache, self.encoded(value)[:, None, None], context, i), value

        def one_row(carry, inputs):
            row_cache, pixel_cache, above, previous = carry
            i, given, is_known = inputs
            context = None
            if row is not None:
                context, row_cache = run(row, "row", row_cache, above, condition, (i, origin[1]))
            (pixel_cache, previous, _, _), values = jax.lax.scan(
                one_pixel, (pixel_cache, previous, context, i), (jnp.arange(width), given, is_known)
            )
            above = self.encoded(values.swapaxes(0, 1))[:, None]  # [B, 1, W, E]
            return (row_cache, pixel_cache, above, previous), values

        rows = (jnp.arange(height), x.transpose(1, 2, 0, 3), known.transpose(1, 2, 0, 3))
        _, values = jax.lax.scan(one_row, (row_cache, pixel_cache, zero_row, zero_pixel), rows)
        return values.transpose(2, 0, 1, 3)

    def _generate_naively(self, params, key, x, known, label, temperature) -> Array:
        _, height, width, _ = x.shape

        def body(t, canvas):
            i, j = t // width, t % width
            at = lambda a: jax.lax.dynamic_slice(a, (0, i, j, 0), (a.shape[0], 1, 1, a.shape[-1]))[:, 0, 0]
            features = at(self.hidden(params, canvas, label))
            pixel_key = jax.random.fold_in(key, t)
            return canvas.at[:, i, j].set(self.draw_pixel(params, features, pixel_key, at(x), at(known), temperature))

        return jax.lax.fori_loop(0, height * width, body, jnp.zeros_like(x))
