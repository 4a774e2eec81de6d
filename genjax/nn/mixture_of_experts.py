"""Mixture-of-experts feed-forward layer with top-k routing and a capacity (Shazeer et al. 2017; GShard, Lepikhin et al.
2021; Switch Transformer, Fedus et al. 2022).

    p = softmax(W_r x),   y = sum over the k likeliest experts e of  g_e E_e(x),   g = p over those k, renewed to sum 1
    (g = p for k = 1, Switch, eq. 2: renewed it would always be 1, and the loss would teach the router nothing)
    balance loss = E sum_e f_e P_e   (Switch, eq. 4),   f_e share of tokens whose first choice is e, P_e mean of p_e

In training each sequence is a group of its own: expert e takes at most C = ceil(capacity_factor k T / E) of its tokens,
and further tokens skip the expert on the residual path.  So the result of an example does not depend on its batch.
Encoders fill the slots in order of choice and then of place (GShard); causal stacks in order of place and then of
choice, so that no token takes a slot from one before it.  Documents of a packed row share the slots.

In evaluation nothing is dropped, so likelihoods, cached steps, packed and separate documents agree: every expert
computes every token, E / k times the products of training.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from genjax.batch import Array
from genjax.errors import UserError


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
      mask: True at tokens that are no padding, [B, T]; padding chooses none.

    Returns:
      Gates g [B, T, k] and choices, one-hot [B, T, k, E].
    """
    gates, chosen = jax.lax.top_k(probabilities, num_selected)
    one_hot = jax.nn.one_hot(chosen, probabilities.shape[-1], dtype=jnp.float32)
    if mask is not None:
        one_hot = one_hot * mask.astype(jnp.float32)[:, :, None, None]
    return gates if num_selected == 1 else gates / gates.sum(-1, keepdims=True), one_hot


def place_at_slots(gates: Array, one_hot: Array, capacity: int, causal: bool) -> Array:
    """Places tokens at experts' slots.

    Args:
      gates, one_hot: results of `choose`.
      capacity: slots C of an expert.
      causal: whether slots are filled in the order of tokens; otherwise all first choices
        come before all second choices.

    Returns:
      Weights of the combination [B, T, E, C], zero except at a token's slots.
    """
    shape = one_hot.shape if causal else one_hot.swapaxes(1, 2).shape
    ordered = (one_hot if causal else one_hot.swapaxes(1, 2)).reshape(shape[0], shape[1] * shape[2], shape[3])
    place = (jnp.cumsum(ordered, axis=1) - ordered).reshape(shape)
    place = place if causal else place.swapaxes(1, 2)
    place = (place * one_hot).sum(-1).astype(jnp.int32)  # [B, T, k]
    slot = jax.nn.one_hot(place, capacity, dtype=jnp.float32)  # zero where place >= capacity
    return jnp.einsum("btk,btke,btkc->btec", gates, one_hot, slot)


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
        """
        settings, width = self.settings, x.shape[-1]
        experts, hidden = settings.num_experts, self.hidden_dim

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
        gates, one_hot = choose(probabilities, settings.num_selected, mask)
        x = x.astype(self.dtype)
        if training:
            combine = place_at_slots(gates, one_hot, settings.capacity(x.shape[1]), causal)
            slots = jnp.einsum("btec,btm->ebcm", (combine > 0).astype(self.dtype), x)
            out = jnp.einsum("btec,ebcm->btm", combine.astype(self.dtype), jax.vmap(expert)(weights, slots))
        else:
            shares = jnp.einsum("btk,btke->ebt", gates, one_hot).astype(self.dtype)
            add = lambda total, e: (total + e[1][:, :, None] * expert(e[0], x), None)
            out, _ = jax.lax.scan(add, jnp.zeros_like(x), (weights, shares))

        valid = jnp.ones(x.shape[:2], jnp.float32) if mask is None else mask.astype(jnp.float32)
        count = jnp.maximum(valid.sum(1), 1.0)
        share = one_hot[:, :, 0].sum(1) / count[:, None]
        mean = (probabilities * valid[:, :, None]).sum(1) / count[:, None]
        balance = experts * (share * mean).sum(-1)
        z = (jax.nn.logsumexp(logits, axis=-1) ** 2 * valid).sum(1) / count
        return out, settings.balance_weight * balance + settings.router_z_weight * z
