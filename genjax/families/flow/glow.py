"""Glow: generative flow with invertible 1x1 convolutions (Kingma & Dhariwal 2018, arXiv:1807.03039).

A step is ActNorm, an invertible 1x1 convolution and an affine coupling on channels:

    h = (x + b) exp(s),   y = W h with W = P L (U + diag),   z_a = y_a,  z_b = (y_b + t(y_a)) sigmoid(r(y_a) + 2)

A level is a squeeze, K steps, and the factoring out of half of the channels; the removed half is normalised given the
other half by one more affine coupling, which is the paper's learned prior N(z_b; mu(z_a), sigma(z_a)).

The paper's networks also have ActNorm after their first two convolutions and a learned scale on the outputs of the last
one; the networks here have neither.
"""

from __future__ import annotations

import dataclasses

from genjax.families.flow.bijections import (
    ActNorm,
    Affine,
    Bijection,
    Chain,
    Coupling,
    InvertibleLinear,
    MultiScale,
    Repeat,
    Squeeze,
)
from genjax.families.flow.flow import Flow
from genjax.families.flow.networks import ConvNet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Glow(Flow):
    """Multi-scale flow for pictures (H, W, C).

    Attributes:
      num_levels: number L of levels; height and width must be divisible by 2^L.
      num_steps_per_level: number K of steps a level.
      width: number of channels of the couplings' networks.
      learned_prior: normalise the channels that are factored out given the other channels.
      scan: compile one step a level and scan over depth; quicker to compile, slower to run on CPUs.  The steps of a
        level then share the fixed permutation P and signs of their matrices, but not the initial rotations.
    """

    num_levels: int = 2
    num_steps_per_level: int = 8
    width: int = 128
    learned_prior: bool = True
    scan: bool = False

    def layers(self) -> tuple[Bijection, ...]:
        network = ConvNet(width=self.width, dtype=self.dtype)
        coupling = Coupling(network=network, transform=Affine(scale="sigmoid"))
        levels = []
        for level in range(self.num_levels):
            layers: list[Bijection] = [Squeeze()]
            if self.scan:
                step = Chain(layers=(ActNorm(), InvertibleLinear(seed=level), coupling))
                layers.append(Repeat(bijection=step, count=self.num_steps_per_level, recompute=self.recompute))
            else:
                for step in range(self.num_steps_per_level):
                    seed = level * self.num_steps_per_level + step
                    layers += [ActNorm(), InvertibleLinear(seed=seed), coupling]
            if self.learned_prior and level < self.num_levels - 1:
                layers.append(Coupling(network=network, transform=Affine()))
            layers.append(ActNorm())
            levels.append(Chain(layers=tuple(layers), recompute=self.recompute and not self.scan))
        return (MultiScale(shape=self.shape, levels=tuple(levels)),)
