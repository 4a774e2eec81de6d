"""RealNVP (Dinh, Sohl-Dickstein & Bengio 2017, arXiv:1605.08803).

    z_a = x_a,   z_b = (x_b + t(x_a)) exp(s(x_a)),   log|det| = sum s(x_a)

Pictures: each level has three couplings on a checkerboard, a squeeze, three couplings on channels, and factors half of
the channels out; the last level has four on a checkerboard (section 3.6).  ActNorm replaces batch normalisation, which
would make the density of an example depend on its batch.  Vectors: couplings on the two halves in turn.
"""

from __future__ import annotations

import dataclasses

from genjax.families.flow.bijections import ActNorm, Affine, Bijection, Chain, Coupling, Flatten, MultiScale, Squeeze
from genjax.families.flow.flow import Flow
from genjax.families.flow.networks import MLP, ConvResNet


@dataclasses.dataclass(frozen=True, kw_only=True)
class RealNVP(Flow):
    """Affine couplings: multi-scale with convolutions for pictures (H, W, C), dense for vectors (D,).

    Attributes:
      num_couplings: number of couplings of a vector flow.
      hidden_dims: widths of a vector coupling's network.
      num_levels: number of scales of a picture flow; height and width must be divisible by 2^(num_levels - 1).
      couplings_per_mask: number of couplings on each mask of a level of a picture flow; the last level has one more.
      width: number of channels of a picture coupling's residual network.
      num_blocks: number of residual blocks of a picture coupling's network.
      bound: largest log-scale of one coupling.
      actnorm: whether an ActNorm precedes each coupling.
    """

    num_couplings: int = 8
    hidden_dims: tuple[int, ...] = (256, 256)
    num_levels: int = 2
    couplings_per_mask: int = 3
    width: int = 32
    num_blocks: int = 2
    bound: float = 3.0
    actnorm: bool = True

    def layers(self) -> tuple[Bijection, ...]:
        if len(self.shape) == 3:
            return (self._multi_scale(),)
        network = MLP(hidden_dims=self.hidden_dims, dtype=self.dtype)
        front = (Flatten(shape=self.shape),) if len(self.shape) != 1 else ()
        return front + self._couplings(network, "half", self.num_couplings)

    def _couplings(self, network: MLP | ConvResNet, partition: str, count: int) -> tuple[Bijection, ...]:
        layers: list[Bijection] = []
        for index in range(count):
            if self.actnorm:
                layers.append(ActNorm())
            transform = Affine(bound=self.bound)
            layers.append(Coupling(network=network, transform=transform, partition=partition, flip=index % 2 == 1))
        return tuple(layers)

    def _multi_scale(self) -> MultiScale:
        network = ConvResNet(width=self.width, num_blocks=self.num_blocks, dtype=self.dtype)
        levels = []
        for level in range(self.num_levels):
            if level == self.num_levels - 1:
                layers = self._couplings(network, "checkerboard", self.couplings_per_mask + 1)
            else:
                checkerboard = self._couplings(network, "checkerboard", self.couplings_per_mask)
                layers = (*checkerboard, Squeeze(), *self._couplings(network, "half", self.couplings_per_mask))
            levels.append(Chain(layers=layers, recompute=self.recompute))
        return MultiScale(shape=self.shape, levels=tuple(levels))
