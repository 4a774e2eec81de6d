"""Likelihoods of values on L evenly spaced levels from -1 to 1, whose bins are 2 / (L - 1) wide.

Values on other levels, such as v / (L - 1) from 0 to 1, have other bins: they would have the mass of too wide ones.
"""

from __future__ import annotations

import dataclasses

from genjax.values import Lattice, Support


def levels_support(num_levels: int | None) -> Support | None:
    """What a bound on the log-likelihood scores: the levels, and what is dequantised; None for
    all, where there are no levels.
    """
    if num_levels is None:
        return None
    lattice = Lattice(low=-1.0, high=1.0, num_levels=num_levels)
    return dataclasses.replace(lattice.as_support("the bound", "data.preprocessing to signed"), density=True)
