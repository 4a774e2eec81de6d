"""Planar and radial flows (Rezende & Mohamed 2015, "Variational inference with normalizing flows", arXiv:1505.05770).

In models of data, x goes through the layers to z, so that the density needs no root; samples solve for one number in
each layer.  In posteriors of a variational autoencoder, the encoder sets the layers' parameters.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from genjax.families.flow.bijections import ActNorm, Bijection, Flatten, Planar, Radial
from genjax.families.flow.flow import Flow


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanarFlow(Flow):
    """Planar or radial layers after one normalisation.

    Attributes:
      kind: planar or radial.
      num_layers: number of layers.
    """

    kind: Literal["planar", "radial"] = "planar"
    num_layers: int = 32

    def layers(self) -> tuple[Bijection, ...]:
        self.check_float32()
        layer = Planar() if self.kind == "planar" else Radial()
        return (Flatten(shape=self.shape), ActNorm(), *(layer,) * self.num_layers)
