"""Masked and inverse autoregressive flows.

    MAF   z_i = (x_i + t(x_{<i})) exp(s(x_{<i}))     fast density   (Papamakarios et al. 2017, arXiv:1705.07057)
    IAF   x_i = (z_i + t(z_{<i})) exp(s(z_{<i}))     fast samples   (Kingma et al. 2016, arXiv:1606.04934)

The order of the numbers is reversed from one layer to the next.  ActNorm replaces batch normalisation.
"""

from __future__ import annotations

import dataclasses

from genjax.families.flow.bijections import ActNorm, Affine, Bijection, Flatten, Invert, MaskedAutoregressive
from genjax.families.flow.flow import Flow


@dataclasses.dataclass(frozen=True, kw_only=True)
class MAF(Flow):
    """Masked autoregressive flow; the density takes one pass a layer, a sample D passes.

    Attributes:
      num_layers: number of autoregressive layers.
      hidden_dims: widths of each layer's masked network.
      bound: largest log-scale of one layer.
      actnorm: whether an ActNorm precedes each layer.
    """

    num_layers: int = 5
    hidden_dims: tuple[int, ...] = (1024,)
    bound: float = 5.0
    actnorm: bool = True

    def layers(self) -> tuple[Bijection, ...]:
        layers: list[Bijection] = [Flatten(shape=self.shape)]
        for index in range(self.num_layers):
            if self.actnorm:
                layers.append(ActNorm())
            layers.append(self._layer(reverse=index % 2 == 1))
        return tuple(layers)

    def _layer(self, reverse: bool) -> Bijection:
        transform = Affine(bound=self.bound)
        return MaskedAutoregressive(
            hidden_dims=self.hidden_dims, transform=transform, reverse=reverse, dtype=self.dtype
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class IAF(MAF):
    """Inverse autoregressive flow: a sample takes one pass a layer, the density of given data D passes."""

    hidden_dims: tuple[int, ...] = (64,)

    def _layer(self, reverse: bool) -> Bijection:
        return Invert(bijection=super()._layer(reverse))
