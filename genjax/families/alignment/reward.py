"""Reward models: one number for a prompt with its answer, learned from preferences (Ouyang et al. 2022,
arXiv:2203.02155, eq. 1; Bradley & Terry 1952).

    L = -log sigma(r_w - r_l - m) + c (r_w + r_l)^2

for the rewards of the chosen and the rejected answer.  Preferences fix rewards up to a constant for each prompt, which
the second term holds near 0 (Eisenstein et al. 2023, arXiv:2312.09244); m is how much better the chosen answer is,
where that is known (Touvron et al. 2023, arXiv:2307.09288, eq. 2).

`Score` is a task of `GPTForTask` and of `BERT`.  A causal network reads the reward at the last token before the
padding, which is the end of the answer whatever tokens the prompt has.  The library transformers has the same model as
...ForSequenceClassification with one label (genjax/pretrained.py).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from genjax.batch import Array, Batch, Metrics
from genjax.errors import UserError
from genjax.families.language.encoder_tasks import Heads, Outputs, Task, Vocabulary, token_mask
from genjax.nn.dropout import dropout, fold_in
from genjax.nn.transformer import TokenEmbedding


def bradley_terry_loss(chosen: Array, rejected: Array, margin: Array | float = 0.0, centering: float = 0.0) -> Array:
    """The loss L of each pair of rewards, [B]."""
    loss = -jax.nn.log_sigmoid(chosen - rejected - margin)
    return loss + centering * (chosen + rejected) ** 2 if centering else loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score(Task):
    """One number for the text; the batch has `tokens` with `mask` of the chosen answer behind its prompt, `rejected`
    with `rejected_mask` of the other, and perhaps `margin` [B].

    Attributes:
      centering: weight c of the squared sum of the rewards.
      dropout: rate of dropout of the pooled features.
    """

    centering: float = 0.01
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.centering < 0:
            raise UserError(f"model.task.centering={self.centering} must not be negative")

    @property
    def pooled(self) -> bool:
        return True

    @property
    def linear(self) -> tuple[tuple[str, int], ...]:
        return (("score", 1),)

    @property
    def head_bias(self) -> bool:
        """No bias: preferences do not tell it."""
        return False

    def prepare(self, batch: Batch, keys: Array, vocabulary: Vocabulary) -> Batch:
        """The batch with the rejected answers as further rows, [2 B, T]; without them, the batch."""
        del keys, vocabulary
        if "rejected" not in batch:
            return batch
        rejected = {"tokens": batch["rejected"], "mask": batch.get("rejected_mask")}
        rows = {
            "tokens": jnp.concatenate([batch["tokens"], batch["rejected"]]),
            "mask": jnp.concatenate(
                [token_mask(batch), token_mask({k: v for k, v in rejected.items() if v is not None})]
            ),
        }
        if "example_index" in batch:
            # Each row has dropout of its own, wherever its pair stands.
            rows["example_index"] = jnp.concatenate([2 * batch["example_index"], 2 * batch["example_index"] + 1])
        return {**rows, **({"margin": batch["margin"]} if "margin" in batch else {})}

    def outputs(
        self, heads: Heads, embedding: TokenEmbedding, hidden: Array, pooled: Array | None, batch: Batch, keys: Any
    ) -> Outputs:
        """`score` of each row."""
        return {"score": heads("score", dropout(pooled, self.dropout, fold_in(keys, 200)))[:, 0]}

    def _values(self, outputs: Outputs, batch: Batch) -> Metrics:
        """Values of each pair, [B]."""
        if outputs["score"].shape[0] % 2 or batch["tokens"].shape[0] != outputs["score"].shape[0]:
            raise UserError("a reward model learns from pairs of answers; choose data of the kind Preferences")
        chosen, rejected = jnp.split(outputs["score"], 2)
        return {
            "loss": bradley_terry_loss(chosen, rejected, batch.get("margin", 0.0), self.centering),
            # A tie is half right, as a coin would be.
            "accuracy": 0.5 * ((chosen > rejected).astype(jnp.float32) + (chosen >= rejected)),
            "margin": chosen - rejected,
            "reward": 0.5 * (chosen + rejected),
        }

    def loss(self, outputs: Outputs, batch: Batch) -> tuple[Array, Metrics]:
        values = {name: value.mean() for name, value in self._values(outputs, batch).items()}
        return values.pop("loss"), values

    def measures(self, outputs: Outputs, batch: Batch) -> Metrics:
        """`loss`, `accuracy` (1 if the chosen answer has the larger reward), `margin`, and `reward`, the pair's
        mean."""
        return self._values(outputs, batch)

    def draw(self, key: Array, outputs: Outputs) -> Array:
        """The scores themselves, [B]."""
        return outputs["score"]
