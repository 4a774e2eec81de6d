"""Neural spline flows (Durkan, Bekasov, Murray & Papamakarios 2019, arXiv:1906.04032).

    RQ-NSF (C)    couplings,        z_b = spline(x_b; theta(x_a))
    RQ-NSF (AR)   autoregressive,   z_i = spline(x_i; theta(x_{<i}))

with monotone rational-quadratic splines on [-bound, bound], between linear layers in LU form (section 4.1).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from genjax.families.flow.bijections import (
    ActNorm,
    Bijection,
    Coupling,
    Flatten,
    InvertibleLinear,
    MaskedAutoregressive,
    Spline,
)
from genjax.families.flow.flow import Flow
from genjax.families.flow.networks import MLP


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeuralSplineFlow(Flow):
    """Rational-quadratic spline flow of vectors (pictures are taken as vectors).

    Attributes:
      steering: couplings, RQ-NSF (C), or autoregressive, RQ-NSF (AR).
      num_layers: number of spline layers.
      hidden_dims: widths of each layer's network.
      num_bins: number of bins of each spline.
      bound: half the width of the interval on which splines live; data are normalised to unit variance first.
      linear: mix all numbers by a learned matrix before each layer; otherwise reverse their order.
    """

    steering: Literal["coupling", "autoregressive"] = "coupling"
    num_layers: int = 6
    hidden_dims: tuple[int, ...] = (64, 64)
    num_bins: int = 8
    bound: float = 4.0
    linear: bool = True

    def layers(self) -> tuple[Bijection, ...]:
        transform = Spline(num_bins=self.num_bins, bound=self.bound)
        layers: list[Bijection] = [Flatten(shape=self.shape), ActNorm()]
        for index in range(self.num_layers):
            turned = index % 2 == 1
            if self.linear:
                layers.append(InvertibleLinear(seed=index))
            if self.steering == "coupling":
                network = MLP(hidden_dims=self.hidden_dims, dtype=self.dtype)
                layers.append(Coupling(network=network, transform=transform, partition="alternate", flip=turned))
            else:
                layers.append(
                    MaskedAutoregressive(
                        hidden_dims=self.hidden_dims, transform=transform, reverse=turned, dtype=self.dtype
                    )
                )
        return (*layers, ActNorm())
