"""Models that start from a checkpoint of the library transformers: `--model.pretrained=FOLDER`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from genjax.batch import PyTree
from genjax.nn.tokens import with_more_tokens


class FromPretrained:
    """What a model with a field `pretrained` needs to be a `genjax.model.HasPretrained`.

    The reader of checkpoints knows the families, so it is imported only where a checkpoint is named.
    """

    pretrained: str | None

    def with_pretrained_sizes(self) -> Any:
        """The model with the sizes of the checkpoint, and its own task, optimizer and way to compute."""
        if self.pretrained is None:
            return self
        from genjax.interop.huggingface import configured

        return configured(self, self.pretrained)

    def pretrained_params(self, params: PyTree) -> PyTree:
        """The checkpoint's parameters, placed as `params` are, whose memory is given up; heads it lacks stay new.

        Where the model has more tokens than the checkpoint, these get the mean of the others.

        Raises:
          UserError: the checkpoint does not fit.
        """
        from genjax.interop.huggingface import abstract_params, load_params

        # Low-rank updates belong to no checkpoint.
        network = traverse_util.flatten_dict({name: part for name, part in params.items() if name != "lora"})
        theirs = self.with_pretrained_sizes()
        grown = {}
        if theirs.vocab_size != self.vocab_size:
            shapes = traverse_util.flatten_dict(abstract_params(theirs))
            grown = {path: new for path, new in network.items() if new.shape != shapes[path].shape}
            network = {
                path: jnp.zeros(shapes[path].shape, a.dtype) if path in grown else a for path, a in network.items()
            }
        loaded = traverse_util.flatten_dict(
            load_params(theirs, self.pretrained, traverse_util.unflatten_dict(network), fine_tune=True, replace=True)
        )
        for path in grown.keys() & loaded.keys():
            loaded[path] = jax.device_put(with_more_tokens(loaded[path], grown[path].shape), grown[path].sharding)
        return traverse_util.unflatten_dict(traverse_util.flatten_dict(params) | loaded)
