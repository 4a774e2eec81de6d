"""Training a part of a network: frozen parameters, and low-rank updates of frozen ones (LoRA, Hu et al. 2021).

    W' = W + (alpha / r) A B,   A [in, r] normal, B [r, out] zero, so that the start is the pretrained network  (eq. 3)

Updates are stored beside the network's parameters, by the same paths, and added before the network is
applied; modules do not see them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import traverse_util

from genjax.batch import Array, PyTree
from genjax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRA:
    """Settings of low-rank updates.

    Attributes:
      rank: rank r of an update.
      alpha: factor on updates, divided by the rank.
      targets: names of the linear maps that get an update (the last but one part of a parameter's path).
    """

    flag_name: ClassVar[str] = "lora"

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("query", "value")

    def init(self, key: Array, params: PyTree) -> PyTree:
        """Returns {path of a kernel: {a, b}} as a tree like `params`.

        Raises:
          UserError: no kernel has a target's name.
        """
        flat = traverse_util.flatten_dict(params)
        updates = {}
        for i, (path, kernel) in enumerate(sorted(flat.items())):
            if path[-1] != "kernel" or path[-2] not in self.targets:
                continue
            *stack, rows, columns = kernel.shape
            a = jax.random.normal(jax.random.fold_in(key, i), (*stack, rows, self.rank)) * rows**-0.5
            updates[(*path, "a")] = a
            updates[(*path, "b")] = jnp.zeros((*stack, self.rank, columns))
        if not updates:
            names = sorted({path[-2] for path in flat if path[-1] == "kernel"})
            raise UserError(f"LoRA targets {', '.join(self.targets)} name no linear map; there are {', '.join(names)}")
        return traverse_util.unflatten_dict(updates)

    def merge(self, params: PyTree, updates: PyTree) -> PyTree:
        """Parameters with the updates added."""
        flat, low = traverse_util.flatten_dict(params), traverse_util.flatten_dict(updates)
        for path in {path[:-1] for path in low}:
            flat[path] = flat[path] + (self.alpha / self.rank) * low[(*path, "a")] @ low[(*path, "b")]
        return traverse_util.unflatten_dict(flat)


def split(params: PyTree, trained: Callable[[str], bool]) -> tuple[PyTree, PyTree]:
    """Parts of nested dicts: where `trained(path)` holds for a path such as
    stack/layer_0/mlp/up/kernel, and the rest.
    """
    flat = traverse_util.flatten_dict(params)
    chosen = {path: leaf for path, leaf in flat.items() if trained("/".join(path))}
    rest = {path: leaf for path, leaf in flat.items() if path not in chosen}
    return traverse_util.unflatten_dict(chosen), traverse_util.unflatten_dict(rest)


def join(first: PyTree, second: PyTree) -> PyTree:
    """The inverse of `split`."""
    return traverse_util.unflatten_dict({**traverse_util.flatten_dict(first), **traverse_util.flatten_dict(second)})
