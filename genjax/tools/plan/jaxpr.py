"""Counts the matrix products and convolutions of a traced function."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.extend.core as core


def count_products(jaxpr: core.Jaxpr) -> float:
    """Floating-point operations of matrix products and convolutions, over all devices.

    The body of a scan counts as often as it runs, of a conditional the dearest branch, and the body of a while loop
    once, as a trace does not tell how often that runs.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2.0 * equation.outvars[0].aval.size * math.prod(left[i] for i in contracted)
        elif name == "conv_general_dilated":
            total += _products_of_convolution(equation)
        elif name == "cond":
            total += max(count_products(branch.jaxpr) for branch in params["branches"])
        else:
            times = params["length"] if name == "scan" else 1
            total += times * sum(count_products(inner) for inner in _inner(params))
    return total


def _inner(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    for value in params.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(each, core.ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, core.Jaxpr):
                yield each


def _products_of_convolution(equation: Any) -> float:
    """Without products with padding, and with zeros between elements."""
    numbers: jax.lax.ConvDimensionNumbers = equation.params["dimension_numbers"]
    left, kernel = (v.aval.shape for v in equation.invars)
    # Each element of the side that is not dilated meets one element of the kernel and of the other side.
    dilated = math.prod(equation.params["lhs_dilation"]) > 1
    side = left if dilated else equation.outvars[0].aval.shape
    places = (numbers.lhs_spec if dilated else numbers.out_spec)[2:]
    spatial = math.prod(side[i] for i in places)
    batch = left[numbers.lhs_spec[0]] // equation.params["batch_group_count"]
    features = kernel[numbers.rhs_spec[1]]
    taps = math.prod(kernel[i] for i in numbers.rhs_spec[2:])
    return 2.0 * batch * spatial * kernel[numbers.rhs_spec[0]] * features * taps
