"""Models that start from a checkpoint of the library transformers: `--model.pretrained=FOLDER`."""

from __future__ import annotations

from typing import Any

from flax import traverse_util

from genjax.model import PyTree


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

        Raises:
          ValueError: the checkpoint does not fit.
        """
        from genjax.interop.huggingface import load_params

        # Low-rank updates belong to no checkpoint.
        network = {name: part for name, part in params.items() if name != "lora"}
        loaded = load_params(self, self.pretrained, network, fine_tune=True, replace=True)
        flat = traverse_util.flatten_dict(params) | traverse_util.flatten_dict(loaded)
        return traverse_util.unflatten_dict(flat)
