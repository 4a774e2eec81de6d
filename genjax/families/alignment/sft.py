"""Supervised fine-tuning on answers: a language model that follows instructions (Ouyang et al. 2022, arXiv:2203.02155,
step 1; Wei et al. 2021, arXiv:2109.01652).

    L = - sum_t w_t log p(y_t | y_<t) / N,    w_t = 1 at what the assistant wrote and at the ends of its turns

With the mean over `tokens`, N is the number of these tokens in the whole batch: every token weighs the same, however
the batch is divided into microbatches and devices, and however long its rows are.  With the mean over `rows`, N is the
number of places in the batch, as in `GPT`: the size of a step then depends on how much of the rows is answers.

`Chat` (data) says what is learned: `data.learn=answers` masks the prompt, `everything` does not.  Any set of text with
`loss_mask` will do, and pairs with `source` for an encoder-decoder.  Start from a run by --training.init_from=RUN or
from a checkpoint by --model.pretrained=FOLDER; train the whole network, low-rank updates (--model.lora=lora), or all
but
--model.frozen.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp

from genjax.batch import Array, Batch, Metrics, PyTree
from genjax.families.language.encoder_decoder import EncoderDecoder
from genjax.families.language.gpt import GPT
from genjax.model import TrainState
from genjax.nn.tokens import token_weights, with_token_mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class SupervisedFineTuning:
    """Mixin of a token model that is a `FineTuned`.

    Attributes:
      mean: what the loss is a mean over: the tokens that count in the whole batch, or all places of all rows.
    """

    mean: Literal["tokens", "rows"] = "tokens"

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update.  Metrics: loss, nll_per_token (nats)."""
        return super().train_step(state, with_token_mean(batch) if self.mean == "tokens" else batch, key)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SupervisedGPT(SupervisedFineTuning, GPT):
    """A GPT that learns answers.

    Attributes: see `SupervisedFineTuning` and `GPT`.
    """

    def _measures(self, params: PyTree, batch: Batch) -> Metrics:
        hits = self._target_scores(params, batch).best == batch["tokens"][:, 1:]
        return {"exact_match": (hits | (token_weights(batch) == 0)).all(1).astype(jnp.float32)}

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """As `GPT.evaluate`, and `exact_match` [B]: 1 if all tokens that count are the likeliest.

        The greedy answer to each turn of a chat is then exactly the right one, up to its end, if the answers to the
        turns before it are.
        """
        return {**super().evaluate(state, batch, key), **self._measures(state.eval_params, batch)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SupervisedEncoderDecoder(SupervisedFineTuning, EncoderDecoder):
    """An encoder-decoder, of any settings of T5, BART or the original, that learns answers to sources.

    Attributes: see `SupervisedFineTuning` and `EncoderDecoder`.
    """

    label_smoothing: float = 0.0
