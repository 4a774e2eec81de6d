"""Invertible maps as small pure modules; `base.py` has their interface."""

from genjax.families.flow.bijections.autoregressive import MaskedAutoregressive
from genjax.families.flow.bijections.base import Bijection, Chain, Invert, MultiScale
from genjax.families.flow.bijections.coupling import Coupling
from genjax.families.flow.bijections.elementwise import Additive, Affine, Elementwise, Spline
from genjax.families.flow.bijections.linear import ActNorm, Flatten, InvertibleLinear, Logit, Permute, Scale, Squeeze
from genjax.families.flow.bijections.planar import Planar, Radial
from genjax.families.flow.bijections.repeat import Repeat

__all__ = [
    "ActNorm",
    "Additive",
    "Affine",
    "Bijection",
    "Chain",
    "Coupling",
    "Elementwise",
    "Flatten",
    "Invert",
    "InvertibleLinear",
    "Logit",
    "MaskedAutoregressive",
    "MultiScale",
    "Permute",
    "Planar",
    "Radial",
    "Repeat",
    "Scale",
    "Spline",
    "Squeeze",
]
