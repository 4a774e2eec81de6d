"""What methods that train another model have in common: what they are asked, they ask their policy."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

from genjax.batch import Array, PyTree
from genjax.families.language.encoder_decoder import EncoderDecoder
from genjax.families.language.gpt import GPT
from genjax.model import TrainState

#: The networks that can be aligned.
Policy = GPT | EncoderDecoder


class TrainsPolicy:
    """Mixin of a frozen dataclass with the field `policy`; the parameters of the state are exactly the policy's.

    A run can therefore start from any run of the policy's network, and from a checkpoint of another library by
    --model.policy.pretrained=FOLDER.
    """

    policy: Policy

    @property
    def pretrained(self) -> str | None:
        """Folder of the checkpoint that the policy starts from."""
        return self.policy.pretrained

    def with_pretrained_sizes(self) -> Self:
        """The model whose policy has the sizes of the checkpoint."""
        return dataclasses.replace(self, policy=self.policy.with_pretrained_sizes())

    def pretrained_params(self, params: PyTree) -> PyTree:
        """The checkpoint's parameters; see `genjax.model.HasPretrained`."""
        return self.policy.pretrained_params(params)

    @property
    def vocab_size(self) -> int | None:
        """Number of the policy's tokens that are the data's."""
        return self.policy.vocab_size

    @property
    def extra_tokens(self) -> int:
        """Number of the policy's tokens behind these."""
        return self.policy.extra_tokens if isinstance(self.policy, EncoderDecoder) else 0

    def merged_params(self, params: PyTree) -> PyTree:
        """The policy's own parameters, with low-rank updates added where there are any."""
        return self.policy.merged_params(params)

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the arrays that `sample` takes."""
        return self.policy.conditions

    def check_condition(self, **condition: Any) -> None:
        """Raises UserError if a condition has a token outside the vocabulary."""
        self.policy.check_condition(**condition)

    def sample(self, state: TrainState, key: Array, num_samples: int, **condition: Any) -> Array:
        """Draws texts as the policy does."""
        return self.policy.sample(state, key, num_samples, **condition)
