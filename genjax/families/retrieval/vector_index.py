"""Exact search among vectors: every query is compared with every document, on the device and in blocks.

    inner_product   q . d
    cosine          q . d / (|q| |d|)
    euclidean       -|q - d|^2

A search holds at most two blocks of vectors, one that is compared and one that is handed over, with their similarities
[Q, block], whatever the number of documents.  The best K of a block are found in two steps: K groups of neighbouring
documents that have the largest maxima hold the best K documents, so only those groups are sorted.  Documents of equal
score come in the order of their places, whatever the block.

On several devices each block is divided over them; a device finds the best K of its own documents, and only these are
gathered.  The result does not depend on the number of devices.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from genjax.batch import Array
from genjax.errors import UserError
from genjax.families.retrieval.hits import Hits, check_number

Metric = Literal["inner_product", "cosine", "euclidean"]
#: Documents of a group, whose maximum stands for them in the first step.
_GROUP = 128
_AXIS = "data"


def best_of_rows(scores: Array, count: int) -> tuple[Array, Array]:
    """The largest values of each row and their places, like `jax.lax.top_k`, [Q, N] -> [Q, count] each.

    Equal values come in the order of their places.
    """
    rows, size = scores.shape
    num_groups = -(-size // _GROUP)
    if num_groups <= 2 * count:
        return jax.lax.top_k(scores, count)
    padded = jnp.pad(scores, ((0, 0), (0, num_groups * _GROUP - size)), constant_values=-jnp.inf)
    groups = padded.reshape(rows, num_groups, _GROUP)
    # A document outside these groups has `count` documents before it: the best of each, which are larger or come first.
    _, chosen = jax.lax.top_k(groups.max(2), count)
    chosen = jnp.sort(chosen, axis=1)
    candidates = jnp.take_along_axis(groups, chosen[:, :, None], axis=1).reshape(rows, count * _GROUP)
    values, places = jax.lax.top_k(candidates, count)
    return values, jnp.take_along_axis(chosen, places // _GROUP, axis=1) * _GROUP + places % _GROUP


@functools.partial(jax.jit, static_argnames=("count", "metric", "mesh"))
def _better(
    best: tuple[Array, Array],
    queries: Array,
    block: Array,
    first: Array,
    present: Array | None = None,
    *,
    count: int,
    metric: str,
    mesh: Mesh | None = None,
) -> tuple[Array, Array]:
    """The best of what was found so far (scores and places [Q, K]) and of a block of vectors that begins at `first`.

    Vectors that are not `present` [N] are left out.
    """
    one = functools.partial(_best_of_block, count=count, metric=metric)
    if mesh is None:
        values, places = one(queries, block, present)
    else:
        # The best of each device stand in the order of the devices, and so of their documents.
        specs, best_specs = (PartitionSpec(), PartitionSpec(_AXIS), PartitionSpec(_AXIS)), PartitionSpec(None, _AXIS)

        def own(queries: Array, block: Array, present: Array) -> tuple[Array, Array]:
            values, places = one(queries, block, present)
            return values, places + jax.lax.axis_index(_AXIS) * len(block)

        found = jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=(best_specs, best_specs))
        values, places = found(queries, block, present)
    # Earlier blocks stand first, so equal scores keep the order of places.
    values = jnp.concatenate([best[0], values], axis=1)
    places = jnp.concatenate([best[1], places + first], axis=1)
    values, order = jax.lax.top_k(values, count)
    return values, jnp.take_along_axis(places, order, axis=1)


def _best_of_block(
    queries: Array, block: Array, present: Array | None, *, count: int, metric: str
) -> tuple[Array, Array]:
    """The largest scores of a block [N, D] and their places in it, [Q, min(K, N)] each."""
    scores = jnp.einsum("qd,nd->qn", queries, block, precision=jax.lax.Precision.HIGHEST)
    if metric == "euclidean":
        scores = 2 * scores - (queries**2).sum(1)[:, None] - (block**2).sum(1)[None]
    if present is not None:
        scores = jnp.where(present[None], scores, -jnp.inf)
    return best_of_rows(scores, min(count, len(block)))


@dataclasses.dataclass(frozen=True, eq=False)
class VectorIndex:
    """Vectors of documents.

    Attributes:
      vectors: float32 [N, D], in memory or mapped from a file; of length 1 for cosine.
      metric: how a query and a document are compared.
      block_size: number of documents that are compared at a time; memory of a search grows with it.
      num_devices: number of devices that a block is divided over.
    """

    vectors: np.ndarray
    metric: Metric = "inner_product"
    block_size: int = 65536
    num_devices: int = 1

    @classmethod
    def of(
        cls, vectors: np.ndarray, metric: Metric = "inner_product", block_size: int = 65536, num_devices: int = 1
    ) -> VectorIndex:
        """The index of vectors [N, D], which are scaled to length 1 for cosine.

        Raises:
          UserError: there is no vector, widths differ, the metric is not known, a number is not finite, or a vector is
            0 where cosines are asked for.
        """
        vectors = _numbers(vectors, "document")
        if vectors.ndim != 2 or not vectors.size:
            raise UserError(f"vectors of documents have shape [N, D] with N, D >= 1, not {list(vectors.shape)}")
        if metric not in get_args(Metric):
            raise UserError(f"metric={metric} must be one of {', '.join(get_args(Metric))}")
        if block_size < 1:
            raise UserError(f"block_size={block_size} must be at least 1")
        if not 1 <= num_devices <= jax.local_device_count():
            raise UserError(f"num_devices={num_devices} must be between 1 and {jax.local_device_count()}")
        _check_finite(vectors, "document")
        return cls(_scaled(vectors, metric, "document"), metric, block_size, num_devices)

    def search(self, queries: np.ndarray, num_documents: int = 10, present: np.ndarray | None = None) -> Hits:
        """The best documents for queries [Q, D], as [Q, K]; K may be larger than the number of documents.

        Args:
          queries: vectors, float [Q, D].
          num_documents: number K of documents.
          present: which documents are searched, bool [N]; None for all.

        Raises:
          UserError: queries have another width than the documents, a number is not finite, a query is 0 where cosines
            are asked for, fewer than one document is asked for, or `present` has another length.
        """
        check_number(num_documents)
        if present is not None and np.shape(present) != (len(self.vectors),):
            raise UserError(f"present has shape {list(np.shape(present))}, and the index {len(self.vectors)} documents")
        queries = jnp.asarray(self.prepared(queries))
        shape = (len(queries), num_documents)
        best = jnp.full(shape, -jnp.inf), jnp.full(shape, -1, jnp.int32)
        size, mesh, place = self.block_size, None, jnp.asarray
        if self.num_devices > 1:
            devices = np.array(jax.local_devices()[: self.num_devices])
            mesh = Mesh(devices, (_AXIS,), axis_types=(AxisType.Auto,))
            place = functools.partial(jax.device_put, device=NamedSharding(mesh, PartitionSpec(_AXIS)))
            size += -size % self.num_devices
        for first in range(0, len(self.vectors), size):
            block = self.vectors[first : first + size]
            there = None if present is None else present[first : first + size]
            if mesh is not None:
                there = np.ones(len(block), bool) if there is None else there
                missing = -len(block) % self.num_devices
                block, there = np.pad(block, ((0, missing), (0, 0))), np.pad(there, (0, missing))
            there = None if there is None else place(there)
            before = best
            best = _better(
                best, queries, place(block), first, there, count=num_documents, metric=self.metric, mesh=mesh
            )
            # Else all blocks would be handed over, and lie on the device, before the first is compared.
            jax.block_until_ready(before)
        scores, places = (np.asarray(each) for each in best)
        return Hits(np.where(np.isneginf(scores), -1, places).astype(np.int64), scores)

    def prepared(self, queries: np.ndarray) -> np.ndarray:
        """Queries [Q, D] as they are compared with the vectors: float32, of length 1 for cosine.

        Raises:
          UserError: they have another width than the documents, a number is not finite, or one is 0 for cosine.
        """
        queries = _numbers(queries, "query")
        if queries.ndim != 2 or queries.shape[1] != self.vectors.shape[1]:
            raise UserError(
                f"queries have shape {list(queries.shape)}, and the documents of this index "
                f"{self.vectors.shape[1]} numbers each; embed both by the same model"
            )
        _check_finite(queries, "query")
        return _scaled(queries, self.metric, "query")


def _numbers(vectors: np.ndarray, what: str) -> np.ndarray:
    """Vectors as float32, which may be given as lists."""
    try:
        return np.asarray(vectors, np.float32)
    except (TypeError, ValueError):
        raise UserError(f"each {what} must have a vector of as many numbers as the others") from None


def _check_finite(vectors: np.ndarray, what: str) -> None:
    finite = np.isfinite(vectors.sum(1))
    if not finite.all():
        raise UserError(
            f"{what} {int(np.argmin(finite))} has a vector with NaN or infinity; its model has no finite output for it"
        )


def _scaled(vectors: np.ndarray, metric: str, what: str) -> np.ndarray:
    """Rows of length 1 for cosine, else the same rows."""
    if metric != "cosine":
        return vectors
    lengths = np.sqrt((vectors.astype(np.float64) ** 2).sum(1))
    if not lengths.all():
        raise UserError(f"{what} {int(np.argmin(lengths))} has the vector 0, which has no cosine with any other")
    return (vectors / lengths[:, None]).astype(np.float32)
