"""Learning from preferences without a reward model: DPO and its relatives (preference_losses.py).

A batch has two answers to each prompt: `tokens`, `mask` and `loss_mask` [B, T + 1] of the chosen one behind its prompt,
and `rejected`, `rejected_mask` and `rejected_loss_mask` of the other; an encoder-decoder reads the prompt as `source`.
Dropout is off for policy and reference, so that the two are equal at step 0: all margins are then 0, and the loss of
DPO is ln 2.

The state's parameters are the policy's: start from a run by --training.init_from=RUN or from a checkpoint by
--model.policy.pretrained=FOLDER, and go on from here with any other method.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from genjax.batch import (
    Array,
    Batch,
    Metrics,
    PyTree,
    batch_size,
    counted_examples,
    cross_device_gather,
    cross_device_mean,
    own_part,
)
from genjax.errors import UserError
from genjax.families.alignment.base import Policy, TrainsPolicy
from genjax.families.alignment.preference_losses import DPO, PairScores, PreferenceLoss
from genjax.families.alignment.reference import NAME, answer_log_probs, reference_params, with_reference
from genjax.families.language.gpt import GPT
from genjax.fine_tuning import Loss
from genjax.gradients import BatchLoss
from genjax.model import GenerativeModel, TrainState
from genjax.nn.tokens import token_weights

#: What a row of a batch has; the rejected answer's arrays have a prefix.
_NAMES = {"tokens": "rejected", "mask": "rejected_mask", "loss_mask": "rejected_loss_mask"}


def chosen_and_rejected(batch: Batch) -> tuple[Batch, Batch]:
    """The rows of the chosen and of the rejected answers, as token models read them.

    Raises:
      UserError: the batch has no pairs.
    """
    if "rejected" not in batch:
        raise UserError("preferences need pairs of answers, chosen and rejected; choose data of the kind Preferences")
    source = {name: batch[name] for name in ("source", "source_mask") if name in batch}
    chosen = {name: batch[name] for name in _NAMES if name in batch}
    rejected = {name: batch[other] for name, other in _NAMES.items() if other in batch}
    return {**source, **chosen}, {**source, **rejected}


def mismatched(rows: Batch, partner: Array) -> Batch:
    """The prompt of each row with the answer of the row `partner` [B], cut to the length of the rows.

    The answer is what `token_weights` counts, and the prompt is what stands before its first token.
    """
    if "source" in rows:
        return {**{name: rows[name][partner] for name in _NAMES if name in rows},
                **{name: rows[name] for name in ("source", "source_mask") if name in rows}}  # fmt: skip
    weights = jnp.pad(token_weights(rows) > 0, ((0, 0), (1, 0)))
    begin = weights.argmax(1)  # [B], place of the first token of an answer
    length = weights.shape[1]
    end = length - weights[:, ::-1].argmax(1)
    place = jnp.arange(length)[None]
    theirs = jnp.clip(place - begin[:, None] + begin[partner][:, None], 0, length - 1)
    answers = jnp.take_along_axis(rows["tokens"][partner], theirs, axis=1)
    counted = jnp.take_along_axis(weights[partner], theirs, axis=1)
    inside = place - begin[:, None] < (end - begin)[partner][:, None]
    is_prompt = place < begin[:, None]
    tokens = jnp.where(is_prompt, rows["tokens"], answers)
    return {"tokens": tokens, "mask": is_prompt | inside, "loss_mask": ~is_prompt & inside & counted}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceOptimization(TrainsPolicy):
    """A policy that learns from preferences.

    Attributes:
      policy: the network that answers; its optimizer is used, and `lora` and `frozen` say what of it is trained.
      method: the loss: dpo, hinge, ipo, kto, orpo or sim_po.
      untrained_policy: start without a trained policy, to try a configuration out.
    """

    policy: Policy = GPT()
    method: PreferenceLoss = DPO()
    untrained_policy: bool = False

    def check_start(self, source: GenerativeModel | None) -> None:
        """Raises UserError if a run would start from a random policy; see `genjax.model.ChecksStart`."""
        if source is None and self.pretrained is None and self.method.needs_reference and not self.untrained_policy:
            raise UserError(
                f"{type(self.method).__name__} keeps near the policy that it starts from: give --training.init_from, "
                "the workdir of a run of its network, or --model.policy.pretrained"
            )

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: the batch has no pairs, is too small, or does not fit into the context.
        """
        chosen_and_rejected(batch)
        self._check_size(batch_size(batch))
        state = self.policy.init(key, batch)
        return with_reference(self.policy, state) if self.method.needs_reference else state

    def _check_size(self, count: int) -> None:
        if self.method.needs_drift and count < 2:
            raise UserError(
                f"KTO estimates how far the policy has drifted from answers to other prompts, and a batch of {count} "
                "has none; give data.batch_size and data.eval_batch_size of at least 2"
            )

    # ------------------------------------------------------------------------------------------------------------------
    # Scores

    def _log_probs(self, params: PyTree, rows: list[Batch]) -> list[tuple[Array, Array]]:
        """Log-probability and length of the answers of several batches of rows, in one pass of the network."""
        together = jax.tree.map(lambda *parts: jnp.concatenate(parts), *rows)
        scores = answer_log_probs(self.policy, params, together)
        return list(zip(*(jnp.split(a, len(rows)) for a in scores)))

    def _scores(self, params: PyTree, reference: PyTree, batch: Batch) -> dict[str, Array]:
        """Fields of `PairScores`, [B] each, and `drift` of mismatched pairs [B], before it is averaged."""
        rows = list(chosen_and_rejected(batch))
        own = self._log_probs(params, rows)
        scores = {"chosen": own[0][0], "rejected": own[1][0], "chosen_length": own[0][1], "rejected_length": own[1][1]}
        theirs = [(jnp.zeros_like(score), None) for score, _ in own]
        if self.method.needs_reference:
            theirs = jax.lax.stop_gradient(self._log_probs(reference, rows))
        scores |= {"chosen_reference": theirs[0][0], "rejected_reference": theirs[1][0]}
        if self.method.needs_drift:
            others = [
                {name.removeprefix(f"{kind}_"): batch[name] for name in batch if name.startswith(f"{kind}_")}
                for kind in ("drift0", "drift1")
            ]
            pairs = zip(self._log_probs(params, others), self._log_probs(reference, others))
            scores["drift"] = jax.lax.stop_gradient(sum(a[0] - b[0] for a, b in pairs) / 2.0)
        return scores

    def _with_mismatched(self, batch: Batch) -> Batch:
        """Adds the prompt of each example with both answers of the next example of the whole batch, for KTO's drift."""
        if not self.method.needs_drift:
            return batch
        whole = cross_device_gather({name: batch[name] for name in batch if name != "example_index"})
        counted = counted_examples(whole)
        size = batch_size(whole)
        number = size if counted is None else jnp.maximum(counted.sum(), 1)
        # Where the last batch of an evaluation is filled up, what fills it is nobody's partner.
        partner = (jnp.arange(size) + 1) % number
        added = {}
        for place, rows in enumerate(chosen_and_rejected(whole)):
            added |= {f"drift{place}_{name}": a for name, a in mismatched(rows, partner).items()}
        return {**batch, **own_part(added, batch_size(batch))}

    def _drift(self, scores: dict[str, Array], batch: Batch) -> Array:
        counted = counted_examples(batch)
        weights = jnp.ones_like(scores["drift"]) if counted is None else counted.astype(jnp.float32)
        total, count = cross_device_mean((jnp.where(weights > 0, scores["drift"], 0.0).sum(), weights.sum()))
        return jax.lax.stop_gradient(jnp.maximum(total / jnp.maximum(count, 1.0), 0.0))

    def _measures(self, scores: dict[str, Array], batch: Batch) -> Metrics:
        """Values of each pair, [B], with its `loss`."""
        drift = self._drift(scores, batch) if self.method.needs_drift else 0.0
        pairs = PairScores(**{**scores, "drift": drift})
        chosen, rejected = self.method.rewards(pairs)
        return {
            "loss": self.method(pairs),
            # A tie is half right, as a coin would be.
            "accuracy": 0.5 * ((chosen > rejected).astype(jnp.float32) + (chosen >= rejected)),
            "margin": chosen - rejected,
            "chosen_reward": chosen,
            "rejected_reward": rejected,
            "chosen_log_prob": pairs.chosen,
            "rejected_log_prob": pairs.rejected,
        }

    # ------------------------------------------------------------------------------------------------------------------
    # Training and evaluation

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """One update.

        Metrics: loss; accuracy, the share of pairs with the larger implicit reward for the chosen answer; margin of the
        rewards; rewards and log-probabilities of both answers.  The log-probability of chosen answers may fall although
        the margin grows: the losses compare, and most of them fix no level.
        """
        reference, extra = None, state.extra
        if self.method.needs_reference:
            reference, kept = reference_params(state)
            extra = {**extra, NAME: kept}

        def measured(scores: dict[str, Array], part: Batch, key: Array) -> tuple[Array, Metrics]:
            values = {name: value.mean() for name, value in self._measures(scores, part).items()}
            return values.pop("loss"), values

        scores = lambda params, part, key: self._scores(params, reference, part)
        # Only the drift is a mean over the whole batch; a mean over pairs needs one pass a microbatch, not two.
        loss: Loss = BatchLoss(scores, measured)
        if not self.method.needs_drift:
            loss = lambda params, part, key: measured(scores(params, part, key), part, key)
        state, metrics = self.policy.update(loss, state, self._with_mismatched(batch), key)
        return state.replace(extra=extra), metrics

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Values of each pair, [B]: the metrics of `train_step`."""
        self._check_size(batch_size(batch))
        reference = reference_params(state)[0] if self.method.needs_reference else None
        scores = self._scores(state.eval_params, reference, self._with_mismatched(batch))
        return self._measures(scores, batch)
