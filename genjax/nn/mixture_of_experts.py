"""Mixture-of-experts feed-forward layer with top-k routing and a capacity (Shazeer et al. 2017; GShard, Lepikhin et al.
2021; Switch Transformer, Fedus et al. 2022).

    p = softmax(W_r x),   y = sum over the k likeliest experts e of  g_e E_e(x),   g = p over those k, renewed to sum 1
    balance loss = E sum_e f_e P_e   (Switch, eq. 4),   f_e share of tokens whose first choice is e, P_e mean of p_e

Each sequence is a group of its own: expert e takes at most C = ceil(capacity_factor k T / E) of its tokens, in order
of choice and then of place.  What does not fit passes by on the residual path.  So the result of an example does not
depend on the batch that it is in.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

Array = jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureOfExperts:
    """Settings of the experts.

    Attributes:
      num_experts: number E of experts.
      num_selected: experts k for each token.
      capacity_factor: slots of an expert over its even share of tokens.
      balance_weight: weight of the balance loss.
      router_z_weight: weight of the mean squared log-normalizer of the router (ST-MoE, Zoph et al. 2022, eq. 5).
    """

    num_experts: int = 8
    num_selected: int = 2
    capacity_factor: float = 1.25
    balance_weight: float = 1e-2
    router_z_weight: float = 1e-3

    def capacity(self, length: int) -> int:
        """Slots of an expert for one sequence."""
        return min(length, math.ceil(self.capacity_factor * self.num_selected * length / self.num_experts))


def route(probabilities: Array, num_selected: int, capacity: int, mask: Array | None = None) -> tuple[Array, Array]:
    """Places tokens at experts' slots.

    Args:
      probabilities: of each expert for each token, [B, T, E].
      num_selected: experts for each token.
      capacity: slots of an expert.
      mask: True at tokens that are no padding, [B, T]; padding takes no slot.

    Returns:
      Weights of the combination [B, T, E, C], zero but at a token's slots; and first choices, one-hot [B, T, E].
    """
    length, experts = probabilities.shape[1:]
    gates, chosen = jax.lax.top_k(probabilities, num_selected)  # [B, T, k]
    gates = gates / gates.sum(-1, keepdims=True)
    one_hot = jax.nn.one_hot(chosen, experts, dtype=jnp.float32)  # [B, T, k, E]
    if mask is not None:
        one_hot = one_hot * mask.astype(jnp.float32)[:, :, None, None]
    # All first choices come before all second ones.
    ordered = one_hot.swapaxes(1, 2).reshape(-1, num_selected * length, experts)
    place = (jnp.cumsum(ordered, axis=1) - ordered).reshape(-1, num_selected, length, experts).swapaxes(1, 2)
    place = (place * one_hot).sum(-1).astype(jnp.int32)  # [B, T, k]
    slot = jax.nn.one_hot(place, capacity, dtype=jnp.float32)  # zero where place >= capacity
    combine = jnp.einsum("btk,btke,btkc->btec", gates, one_hot, slot)
    return combine, one_hot[:, :, 0]


class ExpertLayer(nn.Module):
    """Feed-forward experts of one hidden layer each.

    Attributes:
      settings: number of experts and routing.
      hidden_dim: width of an expert's hidden layer.
      activation: its non-linearity.
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
    def __call__(self, x: Array, mask: Array | None = None) -> tuple[Array, Array]:
        """x [B, T, C] -> output [B, T, C] and the weighted auxiliary loss of each example, [B]."""
        settings, width = self.settings, x.shape[-1]
        experts, hidden = settings.num_experts, self.hidden_dim

        def weight(name: str, shape: tuple[int, ...], std: float | None) -> Array:
            init = nn.initializers.normal(shape[-2] ** -0.5 if std is None else std)
            return self.param(name, init, shape).astype(self.dtype)

        router = self.param("router", nn.initializers.normal(width**-0.5), (width, experts))
        logits = jnp.einsum("btc,ce->bte", x.astype(jnp.float32), router)
        probabilities = jax.nn.softmax(logits, axis=-1)
        combine, first = route(probabilities, settings.num_selected, settings.capacity(x.shape[1]), mask)

        slots = jnp.einsum("btec,btm->becm", (combine > 0).astype(self.dtype), x.astype(self.dtype))
        inner = jnp.einsum("becm,emh->bech", slots, weight("up", (experts, width, hidden), self.init_std))
        if self.gated:
            gate = jnp.einsum("becm,emh->bech", slots, weight("gate", (experts, width, hidden), self.init_std))
            inner = self.activation(gate) * inner
        else:
            inner = self.activation(inner)
        std = self.output_init_std or self.init_std
        out = jnp.einsum("bech,ehm->becm", inner, weight("down", (experts, hidden, width), std))
        out = jnp.einsum("btec,becm->btm", combine.astype(self.dtype), out)

        valid = jnp.ones(x.shape[:2], jnp.float32) if mask is None else mask.astype(jnp.float32)
        count = jnp.maximum(valid.sum(1), 1.0)
        share = first.sum(1) / count[:, None]
        mean = (probabilities * valid[:, :, None]).sum(1) / count[:, None]
        balance = experts * (share * mean).sum(-1)
        z = (jax.nn.logsumexp(logits, axis=-1) ** 2 * valid).sum(1) / count
        return out, settings.balance_weight * balance + settings.router_z_weight * z
