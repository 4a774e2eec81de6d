"""NICE: non-linear independent components estimation (Dinh, Krueger & Bengio 2014, arXiv:1410.8516).

Additive couplings on alternate places, volume-preserving, then one diagonal scaling:

    z_a = x_a,  z_b = x_b + m(x_a)    ...    z = exp(s) * h
"""

from __future__ import annotations

import dataclasses

from genjax.families.flow.base import Base, StandardLogistic
from genjax.families.flow.bijections import Additive, Bijection, Coupling, Flatten, Scale
from genjax.families.flow.flow import Flow
from genjax.families.flow.networks import MLP


@dataclasses.dataclass(frozen=True, kw_only=True)
class NICE(Flow):
    """Additive couplings with dense networks; pictures are taken as vectors.

    Attributes:
      num_couplings: number of coupling layers.
      hidden_dims: widths of each coupling's network.
    """

    base: Base = StandardLogistic()
    num_couplings: int = 4
    hidden_dims: tuple[int, ...] = (1000, 1000, 1000, 1000, 1000)

    def layers(self) -> tuple[Bijection, ...]:
        network = MLP(hidden_dims=self.hidden_dims, dtype=self.dtype)
        couplings = [
            Coupling(network=network, transform=Additive(), partition="alternate", flip=index % 2 == 1)
            for index in range(self.num_couplings)
        ]
        return (Flatten(shape=self.shape), *couplings, Scale())
