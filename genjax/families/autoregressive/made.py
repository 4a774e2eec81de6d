"""MADE, the masked autoencoder for distribution estimation (Germain et al. 2015, arXiv:1502.03509).

One pass of a masked network gives all conditionals; the masks are in genjax/nn/masked_dense.py.  Training may cycle
through `num_masks` sets of masks (algorithm 1): order-agnostic, with the inputs' order drawn anew in each set, or
connectivity-agnostic, with the degrees of the hidden units drawn anew.  The density is then the mixture

    p(x) = 1/M sum_m p_m(x)                                                                     (section 4.3, ensembles)

whose components share all parameters, which is a density again.  A sample draws its component first.  If the
order was drawn anew in several sets, a partly hidden example is completed in an order of its own: all known values
first, then the unknown values in their component's order, so that each unknown value sees all known values.  The
component is drawn by its posterior given the known values, which all come before the first unknown value.

To sample, hidden units are sorted by degree: at the t-th value only the units of degree t become final.
The first layer is a running sum over the inputs.  So all D values together cost about one pass.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from genjax.batch import Array, PyTree
from genjax.errors import UserError
from genjax.families.autoregressive.base import Conditionals, VectorModel, whole_passes
from genjax.nn.masked_dense import MADE as MaskedNetwork
from genjax.nn.masked_dense import natural_order, random_degrees, sequential_degrees


@dataclasses.dataclass(frozen=True, kw_only=True)
class MADE(VectorModel):
    """Masked network of D inputs.

    Attributes:
      output: distribution of one value given the values before it.
      hidden_dims: widths of the hidden layers.
      direct: add a masked linear map from the inputs straight to the outputs.
      order_agnostic: draw the order of the inputs, in each set of masks.
      connectivity_agnostic: draw the degrees of the hidden units, in each set of masks.
      num_masks: number of sets that training cycles through, that evaluation averages over and that samples draw from.
      mask_seed: random seed of the sets of masks.
    """

    hidden_dims: tuple[int, ...] = (500,)
    direct: bool = False
    order_agnostic: bool = False
    connectivity_agnostic: bool = False
    num_masks: int = 1
    mask_seed: int = 0

    def network(self) -> Any:
        """The Linen module (x, condition, order, degrees) -> [B, D, P]."""
        return MaskedNetwork(
            self.dim,
            self.hidden_dims,
            self.output.num_parameters,
            direct=self.direct,
            dtype=jnp.dtype(self.compute_dtype),
        )

    def masks(self, index: Any) -> tuple[Any, list[Any]]:
        """Places [D] of the inputs, and degrees of each hidden layer, of a set of masks (whose index may be traced)."""
        key = jax.random.fold_in(jax.random.key(self.mask_seed), index)
        order_key, degree_key = jax.random.split(key)
        places = natural_order(self.dim)
        if self.order_agnostic:
            places = jax.random.permutation(order_key, jnp.asarray(places))
        if self.connectivity_agnostic:
            return places, random_degrees(degree_key, self.dim, self.hidden_dims)
        return places, sequential_degrees(self.dim, self.hidden_dims)

    def first_places(self) -> np.ndarray:
        """Places of the first set as a numpy array, also while a function is traced."""
        with jax.ensure_compile_time_eval():
            return np.asarray(self.masks(0)[0])

    def order(self) -> np.ndarray:
        return np.argsort(self.first_places())

    def init_params(self, key: Array, x: Array, label: Array | None) -> PyTree:
        if self.num_masks < 1:
            raise UserError(f"num_masks={self.num_masks} must be at least 1")
        return self.network().init(key, x.reshape(-1, self.dim), self.one_hot(label))["params"]

    def parameters(self, params: PyTree, x: Array, label: Array | None, mask_index: Any = 0) -> Array:
        return self.masked_parameters(params, x, label, *self.masks(mask_index))

    def masked_parameters(self, params: PyTree, x: Array, label: Array | None, places: Any, degrees: Any) -> Array:
        """Parameters of all conditionals under a set of masks, [B, D, P]."""
        return self.network().apply({"params": params}, self.scaled(x), self.one_hot(label), places, degrees)

    def component_log_likelihood(self, params: PyTree, x: Array, label: Array | None, mask_index: Any) -> Array:
        """log p_m(x) in nats, shape [B]."""
        x = x.reshape(-1, self.dim)
        return self.output.log_prob(self.parameters(params, x, label, mask_index), x).sum(-1)

    def training_log_likelihood(self, params: PyTree, x: Array, label: Array | None, keys: Array, step: Array) -> Array:
        return self.component_log_likelihood(params, x, label, step % self.num_masks)

    def log_likelihood(self, params: PyTree, x: Array, label: Array | None) -> Array:
        if self.num_masks == 1:
            return self.component_log_likelihood(params, x, label, 0)
        component = lambda index: self.component_log_likelihood(params, x, label, index)
        log_likelihoods = jax.lax.map(component, jnp.arange(self.num_masks))  # [M, B]
        return jax.nn.logsumexp(log_likelihoods, axis=0) - np.log(self.num_masks)

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
        if self.num_masks == 1:
            return super().generate(params, key, x, known, label, temperature, cached)
        component_key, draw_key = jax.random.split(key)
        size = x.shape[0]
        evidence = jax.lax.cond(
            known.any(),
            lambda: self.log_evidence(params, x, known, label),
            lambda: jnp.zeros((size, self.num_masks)),
        )
        components = jax.random.categorical(component_key, evidence)
        groups = self.unit_groups()

        def one(key: Array, component: Array, x: Array, known: Array, label: Array | None) -> Array:
            x, known, label = jax.tree.map(lambda a: a[None], (x, known, label))
            places, degrees = self.completing_masks(component, known.reshape(-1))
            if cached:
                steps = self.incremental(params, label, 1, places, [table[component] for table in groups])
            else:
                steps = whole_passes(lambda canvas: self.masked_parameters(params, canvas, label, places, degrees))
            return self.draw_in_order(jnp.argsort(places), steps, key, x, known, temperature)[0]

        return jax.vmap(one)(jax.random.split(draw_key, x.shape[0]), components, x, known, label)

    def completing_masks(self, index: Any, known: Array) -> tuple[Any, list[Any]]:
        """A set of masks, as from `masks`, to complete an example; a drawn order begins with the values `known` [D]."""
        places, degrees = self.masks(index)
        return (known_first(places, known) if self.order_agnostic else places), degrees

    def log_evidence(self, params: PyTree, x: Array, known: Array, label: Array | None) -> Array:
        """log p_m of the known values that come before the first unknown one, [B, M]."""

        def of_example(example: tuple[Array, Array, Array | None]) -> Array:
            x, known, label = example

            def of_component(index: Array) -> Array:
                places, degrees = self.completing_masks(index, known)
                parameters = self.masked_parameters(params, x[None], label, places, degrees)
                log_prob = self.output.log_prob(parameters, x[None])[0]
                first_unknown = jnp.where(known, self.dim + 1, places).min()
                return jnp.where(places < first_unknown, log_prob, 0.0).sum()

            return jax.lax.map(of_component, jnp.arange(self.num_masks))

        flat = [a.reshape(x.shape[0], self.dim) for a in (x, known)]
        return jax.lax.map(of_example, (*flat, None if label is None else label[:, None]))

    def unit_groups(self) -> list[Array]:
        """For each hidden layer, the units of each degree 1..D in each set of masks, [M, D, largest group].

        Groups are padded with the number of units.
        """
        with jax.ensure_compile_time_eval():
            sets = [self.masks(index)[1] for index in range(self.num_masks)]
            layers = [np.stack([np.asarray(d) for d in layer]) for layer in zip(*sets)]
        return [jnp.asarray(_groups(degrees, self.dim)) for degrees in layers]

    def incremental(
        self, params: PyTree, label: Array | None, batch_size: int, places: Any = None, groups: Any = None
    ) -> Conditionals:
        """As in `VectorModel`; of the first set of masks, or given the places [D] and for each layer its groups of
        units.
        """
        places = jnp.asarray(self.first_places() if places is None else places)
        groups = [table[0] for table in self.unit_groups()] if groups is None else groups
        condition = self.one_hot(label)
        width = self.output.num_parameters

        def bias(name: str, condition_name: str) -> Array:
            start = jnp.broadcast_to(params[f"{name}_bias"][None], (batch_size, params[f"{name}_bias"].size))
            return start if condition is None else start + condition @ params[condition_name]["kernel"]

        layers = len(self.hidden_dims)
        sums = [bias(f"hidden_{i}", f"condition_{i}") for i in range(layers)]
        out = bias("output", "condition_output")  # [B, D P]

        # The carry holds sums over final inputs and units.  They also reach units and outputs that
        # must not see them, but only
        # after those have been read.
        def observe(carry, d: Array, value: Array):
            sums, out = carry
            sums = list(sums)
            if not layers or self.direct:
                name = "direct" if layers else "output"
                out = out + value[:, None] * params[f"{name}_kernel"][d][None]
            if layers:
                sums[0] = sums[0] + value[:, None] * params["hidden_0_kernel"][d][None]
            for i in range(layers):
                units = groups[i][places[d] - 1]  # units of this place's degree, padded with an index beyond the last
                final = nn.relu(jnp.take(sums[i], units, axis=1, mode="fill", fill_value=0.0))
                name = f"hidden_{i + 1}" if i + 1 < layers else "output"
                kernel = jnp.take(params[f"{name}_kernel"], units, axis=0, mode="fill", fill_value=0.0)
                if i + 1 < layers:
                    sums[i + 1] = sums[i + 1] + final @ kernel
                else:
                    out = out + final @ kernel
            return tuple(sums), out

        def parameters_of(carry, d: Array) -> Array:
            out = carry[1].reshape(batch_size, self.dim, width)
            if self.direct and layers:
                out = out + params["direct_bias"].reshape(1, self.dim, width)
            return jnp.take(out, d, axis=1)

        return (tuple(sums), out), parameters_of, observe


def known_first(places: Array, known: Array) -> Array:
    """Places 1 .. D of the values when the known values [D] come first; within known and unknown, as in `places`."""
    order = jnp.argsort(jnp.where(known, places, places + places.size))
    return jnp.argsort(order) + 1


def _groups(degrees: np.ndarray, dim: int) -> np.ndarray:
    """Units of each degree 1..D in each set of degrees [M, units]: [M, D, largest group], padded with the number of
    units.
    """
    num_sets, num_units = degrees.shape
    members = [[np.flatnonzero(row == degree) for degree in range(1, dim + 1)] for row in degrees]
    largest = max(1, max(len(units) for row in members for units in row))
    table = np.full((num_sets, dim, largest), num_units)
    for index, row in enumerate(members):
        for place, units in enumerate(row):
            table[index, place, : len(units)] = units
    return table
