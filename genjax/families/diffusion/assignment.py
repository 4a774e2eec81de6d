"""The linear assignment problem, solved exactly and inside of compiled programs.

    min over permutations p of  sum_i cost[i, p(i)]  =  max over u, v of  sum u + sum v,    u_i + v_j <= cost[i, j]

solved by shortest augmenting paths (Jonker & Volgenant 1987; Crouse 2016, IEEE Transactions on Aerospace and Electronic
Systems 52(4)): columns have prices v.  A row whose cheapest column is no other row's cheapest takes it.  Every other
row looks for the cheapest chain of displacements that ends in a free column, by Dijkstra's algorithm on the reduced
costs.  Any prices are a valid start.  The prices of the entropic problem (Cuturi 2013, arXiv:1306.0895), which takes
matrix operations only, leave few rows for Dijkstra's algorithm.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from genjax.batch import Array
from genjax.errors import UserError


class _Search(NamedTuple):
    """State of Dijkstra's algorithm from one row: arrays [N] over columns, and the present row."""

    distance: Array
    through: Array  # the row before the column on its shortest path
    visited: Array
    row: Array
    reached: Array  # distance of that row
    free: Array  # the free column that was found, or -1


def entropic_prices(cost: Array, regularization: float, num_iterations: int) -> Array:
    """Prices [N] of the columns of a cost [N, N] by Sinkhorn's algorithm between uniform marginals.

    Args:
      cost: [N, N].
      regularization: weight of the entropy, relative to the deviation of the cost after
        removing row and column effects.
      num_iterations: number of alternating normalisations.
    """
    centred = cost - cost.mean(0, keepdims=True)
    centred = centred - centred.mean(1, keepdims=True)
    scale = regularization * jnp.sqrt(jnp.mean(jnp.square(centred))) + 1e-30

    def normalize(_: Array, v: Array) -> Array:
        u = -jax.nn.logsumexp((v[None] - cost) / scale, axis=1)
        return -scale * jax.nn.logsumexp(u[:, None] - cost / scale, axis=0)

    return jax.lax.fori_loop(0, num_iterations, normalize, cost.mean(0))


def assign(cost: Array, regularization: float = 0.05, num_iterations: int = 100) -> Array:
    """The permutation of least cost: the column of each row, int32 [N].

    Exact up to the rounding of the costs.  If costs are not finite, the answer is still a permutation.

    Args:
      cost: [N, N], any real numbers.
      regularization: see `entropic_prices`; it influences the time, not the answer.
      num_iterations: see `entropic_prices`.

    Raises:
      UserError: the cost is not square.
    """
    if cost.ndim != 2 or cost.shape[0] != cost.shape[1]:
        raise UserError(f"the cost has shape {cost.shape}, but every row needs a column of its own")
    size = cost.shape[0]
    indices = jnp.arange(size, dtype=jnp.int32)
    cost = jnp.nan_to_num(cost.astype(jnp.promote_types(cost.dtype, jnp.float32)))
    largest = jnp.finfo(cost.dtype).max
    prices = entropic_prices(cost, regularization, num_iterations)
    cheapest = jnp.argmin(cost - prices[None], axis=1).astype(jnp.int32)
    # The first row that wants a column gets it.
    row_of = jnp.full((size,), size, jnp.int32).at[cheapest].min(indices)
    served = row_of[cheapest] == indices
    row_of = jnp.where(row_of == size, -1, row_of)

    def search(row: Array, row_of: Array, prices: Array) -> _Search:
        def visit(state: _Search) -> _Search:
            reduced = cost[state.row] - prices
            # The reduced cost of a taken column for its own row is 0; the first row's level cancels.
            column = jnp.argmax((row_of == state.row).astype(jnp.int32))
            level = jnp.where(state.row == row, 0.0, reduced[column])
            there = state.reached + reduced - level
            nearer = ~state.visited & (there < state.distance)
            distance = jnp.where(nearer, there, state.distance)
            through = jnp.where(nearer, state.row, state.through)
            # A column is visited once, whatever the costs are.
            place = jnp.argmin(jnp.where(state.visited, jnp.inf, jnp.minimum(distance, largest)))
            owner = row_of[place]
            return _Search(
                distance,
                through,
                state.visited.at[place].set(True),
                jnp.maximum(owner, 0),
                distance[place],
                jnp.where(owner < 0, place.astype(jnp.int32), -1),
            )

        start = _Search(
            jnp.full((size,), jnp.inf, cost.dtype),
            jnp.full((size,), row),
            jnp.zeros((size,), bool),
            row,
            jnp.zeros((), cost.dtype),
            jnp.full((), -1, jnp.int32),
        )
        return jax.lax.while_loop(lambda state: state.free < 0, visit, start)

    def serve(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        served, row_of, prices = state
        row = jnp.argmin(served).astype(jnp.int32)
        found = search(row, row_of, prices)
        prices = prices - jnp.where(found.visited, found.reached - found.distance, 0.0)
        column_of = jnp.full((size,), -1, jnp.int32).at[jnp.where(row_of < 0, size, row_of)].set(indices, mode="drop")

        def displace(state: tuple[Array, Array]) -> tuple[Array, Array]:
            column, row_of = state
            owner = found.through[column]
            return column_of[owner], row_of.at[column].set(owner)

        # Backwards along the path; the first row had no column.
        _, row_of = jax.lax.while_loop(lambda state: state[0] >= 0, displace, (found.free, row_of))
        return served.at[row].set(True), row_of, prices

    _, row_of, _ = jax.lax.while_loop(lambda state: ~state[0].all(), serve, (served, row_of, prices))
    return jnp.zeros((size,), jnp.int32).at[row_of].set(indices)
