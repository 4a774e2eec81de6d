"""Mixture-of-experts feed-forward layer with top-k routing and a capacity (Shazeer et al. 2017; GShard, Lepikhin et al.
2021; Switch Transformer, Fedus et al. 2022).

    p = softmax(W_r x),   y = sum over the k likeliest experts e of  g_e E_e(x),   g = p over those k, renewed to sum 1
    (g = p for k = 1, Switch, eq. 2: renewed it would always be 1, and the loss would teach the router nothing)
    balance loss = E sum_e f_e P_e   (Switch, eq. 4),   f_e share of tokens whose first choice is e, P_e mean of p_e

In training each sequence is a group of its own: expert e takes at most C = ceil(capacity_factor k T / E) of its tokens,
and further tokens skip the expert on the residual path.  So the result of an example does not depend on its batch.
Encoders fill the slots in order of choice and then of place (GShard); causal stacks in order of place and then of
choice, so that no token takes a slot from one before it.  Documents of a packed row share the slots.

Tokens are written to the slots and read from them by their numbers, so that memory and time grow with T, not with T C.
Where the axis `expert` of a mesh splits the experts, devices exchange slots by all-to-all, to the experts and back.

In evaluation nothing is dropped, so likelihoods, cached steps, packed and separate documents agree: every expert
computes every token, E / k times the products of training.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from genjax.batch import Array
from genjax.errors import UserError
from genjax.nn import sharding


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureOfExperts:
    """Settings of the experts.

    Attributes:
      num_experts: number E of experts.
      num_selected: number k of experts for each token.
      capacity_factor: number of slots of an expert, divided by its even share of tokens.
      balance_weight: weight of the balance loss.
      router_z_weight: weight of the mean squared log-normalizer of the router (ST-MoE, Zoph et al. 2022, eq. 5).
    """

    num_experts: int = 8
    num_selected: int = 2
    capacity_factor: float = 1.25
    balance_weight: float = 1e-2
    router_z_weight: float = 1e-3

    def __post_init__(self) -> None:
        if not 1 <= self.num_selected <= self.num_experts:
            raise UserError(
                f"experts.num_selected={self.num_selected} must lie between 1 and "
                f"experts.num_experts={self.num_experts}"
            )

    def capacity(self, length: int) -> int:
        """Slots of an expert for one sequence."""
        return min(length, math.ceil(self.capacity_factor * self.num_selected * length / self.num_experts))


def refuse_experts(experts: MixtureOfExperts | None) -> None:
    """For networks whose loss has no balance loss, without which few experts would learn.

    Raises:
      UserError: the network has experts.
    """
    if experts is not None:
        raise UserError(
            "this network is trained without the balance loss that a mixture of experts needs; "
            "leave the experts of its transformer out, or take a model of text: GPT, GPTForTask, T5, BART"
        )


def choose(probabilities: Array, num_selected: int, mask: Array | None = None) -> tuple[Array, Array]:
    """The experts of each token.

    Args:
      probabilities: probability of each expert for each token, [B, T, E].
      num_selected: experts k for each token.
      mask: True at tokens that are no padding, [B, T]; padding chooses expert E, which is none.

    Returns:
      Gates g [B, T, k] and numbers of the experts [B, T, k].
    """
    gates, chosen = [], []
    left = probabilities
    for _ in range(num_selected):
        # Not `top_k`, for which XLA gathers the whole batch on every device.
        best = left.argmax(-1, keepdims=True)
        here = jax.lax.broadcasted_iota(best.dtype, left.shape, 2) == best
        gates.append(jnp.where(here, probabilities, 0.0).sum(-1))
        chosen.append(best[..., 0])
        left = jnp.where(here, -1.0, left)
    weights, experts = jnp.stack(gates, -1), jnp.stack(chosen, -1)
    if mask is not None:
        experts = jnp.where(mask.astype(bool)[:, :, None], experts, probabilities.shape[-1])
    return weights if num_selected == 1 else weights / weights.sum(-1, keepdims=True), experts


def places_at_slots(chosen: Array, num_experts: int, capacity: int, causal: bool, stride: int | None = None) -> Array:
    """The slot of each token at each of its experts: e S + c for slot c of expert e, E S for none; [B, T, k].

    Args:
      chosen: numbers of the experts [B, T, k], E for none.
      num_experts, capacity: E, and slots C of an expert.
      causal: whether slots are filled in the order of tokens; otherwise all first choices
        come before all second choices.
      stride: distance S between the first slots of two experts, None for C.
    """
    stride = capacity if stride is None else stride
    batch, length, count = chosen.shape
    ordered = (chosen if causal else chosen.swapaxes(1, 2)).reshape(batch, -1)
    counted = jax.nn.one_hot(ordered, num_experts, dtype=jnp.int32)  # [B, k T, E]
    place = (jnp.cumsum(counted, axis=1) * counted).sum(-1) - 1
    slot = jnp.where((place >= 0) & (place < capacity), ordered * stride + place, num_experts * stride)
    return slot.reshape(batch, length, count) if causal else slot.reshape(batch, count, length).swapaxes(1, 2)


def tokens_at_slots(slots: Array, num_slots: int) -> Array:
    """The inverse: the token at each slot, [B, N], and T at an empty slot; `slots` is [B, T, k]."""
    batch, length, count = slots.shape
    tokens = jnp.repeat(jnp.arange(length), count)
    fill = lambda own: jnp.full((num_slots + 1,), length).at[own].set(tokens)[:num_slots]
    return jax.vmap(fill)(slots.reshape(batch, -1))


def _rows(x: Array, index: Array) -> Array:
    """Rows of x [B, N, C] by index [B, ...], [B, ..., C]; zeros for the index N."""
    return jax.vmap(lambda x, index: x.at[index].get(mode="fill", fill_value=0))(x, index)


@dataclasses.dataclass(frozen=True)
class _Dispatch:
    """Carries tokens to their experts' slots and back.

    Each device fills the slots of its own examples, and exchanges them with the devices of `expert`.  Devices of
    `sequence` share the slots of an expert.

    Attributes:
      num_experts, capacity, causal: see `places_at_slots`.
    """

    num_experts: int
    capacity: int
    causal: bool

    def to_experts(self, x: Array, chosen: Array) -> tuple[Array, Array]:
        """Tokens [B, T, C] at their slots [E, B, S, C], and the slots of each token [B, T, k]."""
        mesh = sharding.mesh_of_examples(x.shape[0])
        parts = 1 if mesh is None else mesh.shape["sequence"]
        whole = x.shape[1] % parts > 0
        stride = -(-self.capacity // parts) * parts

        def local(x: Array, chosen: Array) -> tuple[Array, Array]:
            shared = parts > 1 and not whole
            if shared:
                x, chosen = (jax.lax.all_gather(a, "sequence", axis=1, tiled=True) for a in (x, chosen))
            slots = places_at_slots(chosen, self.num_experts, self.capacity, self.causal, stride)
            tokens = tokens_at_slots(slots, self.num_experts * stride).reshape(-1, self.num_experts, stride)
            if parts > 1:
                place = jax.lax.axis_index("sequence")
                tokens = jax.lax.dynamic_slice_in_dim(tokens, place * (stride // parts), stride // parts, axis=2)
            if shared:
                size = slots.shape[1] // parts
                slots = jax.lax.dynamic_slice_in_dim(slots, place * size, size, axis=1)
            given = _rows(x, tokens).swapaxes(0, 1)
            if mesh is not None and mesh.shape["expert"] > 1:
                given = jax.lax.all_to_all(given, "expert", split_axis=0, concat_axis=1, tiled=True)
            return given, slots

        tokens = PartitionSpec(sharding.BATCH_AXES, None if whole else "sequence")
        at_experts = PartitionSpec("expert", sharding.GROUP_AXES, "sequence")
        return sharding.on_devices(local, mesh, (tokens, tokens), (at_experts, tokens))(x, chosen)

    def from_experts(self, found: Array, slots: Array, gates: Array) -> Array:
        """What the experts found [E, B, S, C], weighted by gates [B, T, k], as the output [B, T, C]."""
        mesh = sharding.mesh_of_examples(gates.shape[0])
        parts = 1 if mesh is None else mesh.shape["sequence"]
        whole = gates.shape[1] % parts > 0

        def local(found: Array, slots: Array, gates: Array) -> Array:
            if mesh is not None and mesh.shape["expert"] > 1:
                found = jax.lax.all_to_all(found, "expert", split_axis=1, concat_axis=0, tiled=True)
            if parts > 1:
                found = jax.lax.all_gather(found, "sequence", axis=2, tiled=True)
            found = found.swapaxes(0, 1)
            rows = _rows(found.reshape(found.shape[0], -1, found.shape[-1]), slots)  # [B, T, k, C]
            return jnp.einsum("btk,btkc->btc", gates, rows)

        tokens = PartitionSpec(sharding.BATCH_AXES, None if whole else "sequence")
        at_experts = PartitionSpec("expert", sharding.GROUP_AXES, "sequence")
        return sharding.on_devices(local, mesh, (at_experts, tokens, tokens), tokens)(found, slots, gates)


def _all_experts(
    expert: Callable[[dict[str, Array], Array], Array], weights: dict[str, Array], shares: Array, x: Array
) -> Array:
    """The sum over experts of shares [E, B, T] times expert(x), [B, T, C]: one expert of each device at a time."""
    parts = sharding.num_parts("expert")
    divided = lambda a: a.reshape(parts, -1, *a.shape[1:]).swapaxes(0, 1)  # [E / N, N, ...]
    split = sharding.examples_for_experts
    whole = split(jnp.broadcast_to(x[None], (parts, *x.shape)))

    def add(total: Array, each: tuple[dict[str, Array], Array]) -> tuple[Array, None]:
        return split(total + split(each[1])[..., None] * jax.vmap(expert)(each[0], whole)), None

    out, _ = jax.lax.scan(add, jnp.zeros_like(whole), (jax.tree.map(divided, weights), divided(shares)))
    return out.sum(0)


class ExpertLayer(nn.Module):
    """Feed-forward experts of one hidden layer each.

    Attributes:
      settings: number of experts and routing.
      hidden_dim: width of an expert's hidden layer.
      activation: activation of the hidden layer.
      gated: multiply it by a second linear map (GLU).
      dtype: compute type of the experts; the router computes in float32.
      init_std, output_init_std: standard deviations of the weights.
    """

    settings: MixtureOfExperts
    hidden_dim: int
    activation: Any = jax.nn.gelu
    gated: bool = False
    dtype: Any = jnp.float32
    init_std: float | None = 0.02
    output_init_std: float | None = None

    @nn.compact
    def __call__(
        self, x: Array, mask: Array | None = None, *, training: bool = False, causal: bool = False
    ) -> tuple[Array, Array]:
        """Mixes the experts.

        Args:
          x: tokens, [B, T, C].
          mask: True at tokens that are no padding, [B, T].
          training: whether experts drop tokens beyond their capacity.
          causal: whether the choice of dropped tokens must not depend on later tokens.

        Returns:
          The output [B, T, C] and the weighted auxiliary loss of each example, [B].

        Raises:
          UserError: the axis `expert` of the mesh does not divide the experts.
        """
        settings, width = self.settings, x.shape[-1]
        experts, hidden = settings.num_experts, self.hidden_dim
        sharding.check_divides("expert", num_experts=experts)

        def weight(name: str, shape: tuple[int, ...], std: float | None) -> Array:
            init = nn.initializers.normal(shape[-2] ** -0.5 if std is None else std)
            return self.param(name, init, shape).astype(self.dtype)

        router = self.param("router", nn.initializers.normal(width**-0.5), (width, experts))
        weights = {"up": weight("up", (experts, width, hidden), self.init_std)}
        if self.gated:
            weights["gate"] = weight("gate", (experts, width, hidden), self.init_std)
        weights["down"] = weight("down", (experts, hidden, width), self.output_init_std or self.init_std)

        def expert(weights: dict[str, Array], x: Array) -> Array:
            inner = x @ weights["up"]
            inner = self.activation(x @ weights["gate"]) * inner if self.gated else self.activation(inner)
            return inner @ weights["down"]

        logits = jnp.einsum("btc,ce->bte", x.astype(jnp.float32), router)
        probabilities = jax.nn.softmax(logits, axis=-1)
        gates, chosen = choose(probabilities, settings.num_selected, mask)
        x = x.astype(self.dtype)
        if training:
            dispatch = _Dispatch(experts, settings.capacity(x.shape[1]), causal)
            given, slots = dispatch.to_experts(x, chosen)
            found = sharding.examples_for_experts(jax.vmap(expert)(weights, given))
            out = dispatch.from_experts(found, slots, gates.astype(self.dtype))
        else:
            shares = jnp.einsum("btk,btke->ebt", gates, jax.nn.one_hot(chosen, experts)).astype(self.dtype)
            out = _all_experts(expert, weights, shares, x)
        out = sharding.split_tokens(out)

        valid = jnp.ones(x.shape[:2], jnp.float32) if mask is None else mask.astype(jnp.float32)
        count = jnp.maximum(valid.sum(1), 1.0)
        share = jax.nn.one_hot(chosen[:, :, 0], experts).sum(1) / count[:, None]
        mean = (probabilities * valid[:, :, None]).sum(1) / count[:, None]
        balance = experts * (share * mean).sum(-1)
        z = (jax.nn.logsumexp(logits, axis=-1) ** 2 * valid).sum(1) / count
        return out, settings.balance_weight * balance + settings.router_z_weight * z
