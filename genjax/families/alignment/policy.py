"""Policy optimisation of language models: what PPO, GRPO, RLOO and REINFORCE++ share.

    maximise   E_{x, y ~ pi(. | x)} r(x, y) - beta KL(pi(. | x) | reference(. | x))

whose optimum is reference(y | x) exp(r(x, y) / beta) / Z(x).  A step is a function of the state and a batch of Q
prompts:

    rollouts      G answers to each prompt, drawn from the current policy inside the compiled step
    advantages    from the rewards of the whole batch, on all devices
    updates       epochs x minibatches gradient steps on the loss of the subclass

so `state.step` counts rollouts.  Nothing lives between two steps but the state, and a run that is killed ends
bit-identical.

The penalty stands in the reward by default, as -beta (log pi - log reference) of the drawn answer: its score-function
gradient is the gradient of the KL.  See policy_losses.py for what happens to estimates of the KL in the loss.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from genjax import decoding
from genjax.batch import Array, Batch, Metrics, PyTree, batch_size, cross_device_mean
from genjax.errors import UserError, filled
from genjax.families.alignment import policy_losses
from genjax.families.alignment.base import Policy, TrainsPolicy
from genjax.families.alignment.reference import reference_params, with_reference
from genjax.families.alignment.rewards import ExactMatch, Reward
from genjax.families.alignment.rollouts import (
    Rollouts,
    answer_log_probs,
    check_room,
    prompts_of,
    repeated,
    roll_out,
)
from genjax.families.language.gpt import GPT
from genjax.gradients import gradient_update, microbatches
from genjax.model import GenerativeModel, PartSources, TrainState
from genjax.nn import lora as adaptation

#: Name of the reward's part in `TrainState.extra`.
REWARD = "reward"
Networks = dict[str, tuple[PyTree, PyTree]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyOptimization(TrainsPolicy, abc.ABC):
    """Base of the methods.  The state's parameters are exactly the policy's, so a run can start from any run of it.

    Attributes:
      policy: the network that answers; its optimizer and its sampling are used.
      reward: what answers are worth.
      num_rollouts: number G of answers to each prompt.
      max_new_tokens: longest answer, its end token included; None takes the data's.
      beta: weight of the KL divergence from the network that the run starts from; 0 keeps no reference.
      kl: where the penalty stands: in the `reward`; or in the loss, as an estimate of the KL of sequences: k2,
        k3_with_gradient_of_k2, weighted_k3; or as GRPO's token_k3, whose gradient is biased.
      clip_low: importance ratios below 1 - clip_low are cut off.
      clip_high: importance ratios above 1 + clip_high are cut off.
      num_epochs: how often each answer is used.
      num_minibatches: number of updates in an epoch.
      mask_truncated: leave answers without an end token out of the loss (DAPO's overlong filtering).
      untrained_policy: start without a trained policy, to try a configuration out.
    """

    #: What an importance ratio is of, and what sums over tokens are divided by.
    level: ClassVar[policy_losses.Level] = "token"
    normalization: ClassVar[policy_losses.Normalization] = "sum"

    policy: Policy = GPT()
    reward: Reward = ExactMatch()
    num_rollouts: int = 8
    max_new_tokens: int | None = None
    beta: float = 0.05
    kl: Literal["reward", "k2", "k3_with_gradient_of_k2", "weighted_k3", "token_k3"] = "reward"
    clip_low: float = 0.2
    clip_high: float = 0.2
    num_epochs: int = 1
    num_minibatches: int = 1
    mask_truncated: bool = False
    untrained_policy: bool = False

    #: The smallest number of answers to a prompt.
    fewest_rollouts: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.beta < 0:
            raise UserError(f"model.beta={self.beta} must not be negative")
        if self.num_rollouts < self.fewest_rollouts:
            raise UserError(
                f"model.num_rollouts={self.num_rollouts}: {type(self).__name__} compares the answers to a prompt and "
                f"needs at least {self.fewest_rollouts} of them"
            )
        for name in ("num_epochs", "num_minibatches"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name}={getattr(self, name)} must be at least 1")
        for name in ("clip_low", "clip_high"):
            if getattr(self, name) <= 0:
                raise UserError(f"model.{name}={getattr(self, name)} must be positive")

    # ------------------------------------------------------------------------------------------------------------------
    # Start

    @property
    def longest_answer(self) -> int:
        """Number N of places for an answer."""
        return self.max_new_tokens or filled(self.policy, "sequence_length")

    def check_start(self, source: GenerativeModel | None) -> None:
        """Raises UserError if a run would start from a random policy; see `genjax.model.ChecksStart`."""
        if source is None and self.policy.pretrained is None and not self.untrained_policy:
            raise UserError(
                f"{type(self).__name__} needs a trained policy: give --training.init_from, the workdir of a run of its "
                "network, or --model.policy.pretrained"
            )

    def check_sampling(self) -> None:
        """Raises UserError if answers are not drawn from the distribution whose probabilities the loss compares."""
        sampling = self.policy.sampling
        if sampling.temperature == 0.0:
            raise UserError(
                "model.policy.sampling.temperature=0 draws the likeliest answer always; give a positive one"
            )
        plain = decoding.Sampling(temperature=sampling.temperature)
        if sampling != plain:
            raise UserError(
                "answers of top_k, top_p, min_p, typical_p or a repetition penalty are not drawn from the policy "
                "itself, and importance ratios would be wrong by the mass that was cut off; train with "
                "model.policy.sampling.temperature alone, and filter afterwards"
            )

    def init(self, key: Array, batch: Batch) -> TrainState:
        """Returns the state before the first step.

        Raises:
          UserError: prompts and answers do not fit into the policy's context, or no answer can be rewarded.
        """
        prompts = prompts_of(self.policy, batch)
        check_room(self.policy, prompts.tokens.shape[1], self.longest_answer)
        start = jnp.zeros((1, 2), jnp.int32)
        state = self.policy.init(key, {"source": start, "tokens": start})
        if self.beta > 0:
            state = with_reference(self.policy, state)
        return state.replace(extra={**state.extra, REWARD: self.reward.empty_part()})

    # Parts: see `genjax.model.HasParts`.

    @property
    def part_runs(self) -> tuple[str, ...]:
        """Runs of the reward."""
        return self.reward.runs

    def like_parts(self, earlier: GenerativeModel) -> PolicyOptimization:
        """The model with the sizes of the reward's part in a saved configuration."""
        if not isinstance(earlier, PolicyOptimization):
            return self
        return dataclasses.replace(self, reward=self.reward.like(earlier.reward))

    def with_parts(self, sources: PartSources) -> PolicyOptimization:
        """The model with the sizes of the reward's part."""
        return dataclasses.replace(self, reward=self.reward.with_parts(sources))

    def make_parts(self, sources: PartSources) -> dict[str, PyTree]:
        """The reward's part."""
        return {REWARD: self.reward.make_part(sources)}

    # ------------------------------------------------------------------------------------------------------------------
    # Training

    @abc.abstractmethod
    def with_advantages(self, state: TrainState, experience: Batch, rewards: Array) -> Batch:
        """Adds `advantages` [R, N] to the experience, and what else the loss needs.

        Args:
          state: the state before the step.
          experience: see `train_step`.
          rewards: reward of each answer, [R], without a penalty.
        """

    def kept_prompts(self, rewards: Array) -> Array | None:
        """Numbers of the prompts to learn from, by the rewards [Q, G] of their answers; None for all."""
        del rewards
        return None

    def penalties(self, experience: Batch) -> Array:
        """beta times k1 of each token, [R, N], where the penalty is a part of the reward; else 0."""
        if not self.beta or self.kl != "reward":
            return jnp.zeros(experience["mask"].shape)
        difference = experience["old_log_probs"] - experience["reference_log_probs"]
        return self.beta * jnp.where(experience["mask"], difference, 0.0)

    @property
    def num_updates(self) -> int:
        """Number of gradient steps in a training step."""
        return self.num_epochs * self.num_minibatches

    @property
    def num_parts(self) -> int:
        """Number of parts that the answers of a step are divided into, minibatches and microbatches."""
        return self.num_minibatches * self.policy.optimizer.accumulation_steps

    def read_arguments(self, experience: Batch) -> tuple[Any, ...]:
        """Arguments of `answer_log_probs` and `answer_features` for the whole experience or a part of it."""
        # Answer i is in part i mod n, so that a part has G / n answers of each prompt, or single ones.
        whole = self.num_rollouts % self.num_parts == 0
        group = self.num_rollouts // self.num_parts if whole else 1
        return experience["rows"], experience["prompt_lengths"], experience["mask"].shape[1], group

    def _scores(self, params: PyTree, experience: Batch) -> Array:
        return answer_log_probs(self.policy, params, *self.read_arguments(experience))

    def in_parts(self, function: Any, experience: Batch) -> PyTree:
        """A function of the experience [R, ...], computed in as many parts as its gradients are, to save memory."""
        count = self.num_parts
        if count == 1 or batch_size(experience) % count:
            return function(experience)
        out = jax.lax.map(function, microbatches(experience, count))
        return jax.tree.map(lambda a: a.swapaxes(0, 1).reshape(-1, *a.shape[2:]), out)

    def experience(self, state: TrainState, batch: Batch, key: Array) -> tuple[Batch, PyTree, Metrics]:
        """Answers to a batch of prompts with their advantages.

        Returns:
          The experience, with a row for each answer: `rows`, `prompt_lengths` and `mask` (see `Rollouts`),
          `old_log_probs`, `reference_log_probs` (if beta > 0) and what `with_advantages` adds; the new `state.extra`;
          and metrics.
        """
        rollouts = roll_out(self.policy, state.params, batch, key, self.num_rollouts, self.longest_answer)
        rewards = self.rewards(state, rollouts, batch)
        metrics = {"reward": rewards.mean(), "ended": rollouts.ended.mean()}
        chosen = self.kept_prompts(rewards.reshape(-1, self.num_rollouts))
        if chosen is not None:
            take = lambda a: a.reshape(-1, self.num_rollouts, *a.shape[1:])[chosen].reshape(-1, *a.shape[1:])
            rollouts, rewards = jax.tree.map(take, (rollouts, rewards))
        mask = rollouts.mask
        if self.mask_truncated:
            mask = mask & rollouts.ended[:, None]
        experience = {"rows": rollouts.rows, "prompt_lengths": rollouts.prompt_lengths, "mask": mask}
        extra = state.extra
        scores = lambda params: jax.lax.stop_gradient(self.in_parts(lambda e: self._scores(params, e), experience))
        if self.beta or self.num_updates > 1:
            old = scores(state.params)
        if self.beta:
            reference, kept = reference_params(state)
            experience["reference_log_probs"] = scores(reference)
            extra = {**extra, "reference": kept}
            difference = jnp.where(rollouts.mask, old - experience["reference_log_probs"], 0.0)
            metrics["kl"] = difference.sum(1).mean()
        if self.beta or self.num_updates > 1:
            experience["old_log_probs"] = old
        metrics["num_tokens"] = rollouts.lengths.astype(jnp.float32).mean()
        experience = self.with_advantages(state.replace(extra=extra), experience, rewards)
        return experience, extra, cross_device_mean(metrics)

    def rewards(self, state: TrainState, rollouts: Rollouts, batch: Batch) -> Array:
        """Reward of each answer, [R]."""
        rows = repeated(batch, rollouts.lengths.shape[0] // batch_size(batch))
        return jax.lax.stop_gradient(self.reward(state.extra[REWARD], rollouts, rows))

    def loss(self, params: PyTree, experience: Batch, key: Array) -> tuple[Array, Metrics]:
        """Weighted sum over tokens of the clipped loss, and the penalty if it stands here; mean over answers.

        Args:
          params: the policy's parameters.
          experience: see `experience`, with the `weights` of tokens.
          key: not used; dropout is off.
        """
        del key
        mask, weights, advantages = experience["mask"], experience["weights"], experience["advantages"]
        log_probs = self._scores(params, experience)
        # With one update, the policy that drew the answers is the policy itself.
        old = experience.get("old_log_probs") if self.num_updates > 1 else None
        old = jax.lax.stop_gradient(log_probs) if old is None else old
        ratio = policy_losses.log_ratios(log_probs, old, mask, self.level)
        losses = policy_losses.clipped_loss(ratio, advantages, self.clip_low, self.clip_high)
        if self.beta and self.kl == "token_k3":
            losses = losses + self.beta * policy_losses.token_k3(log_probs, experience["reference_log_probs"], mask)
        loss = jnp.where(mask, losses * weights, 0.0).sum(1).mean()
        if self.beta and self.kl not in ("reward", "token_k3"):
            kl = policy_losses.sequence_kl(self.kl, log_probs, experience["reference_log_probs"], mask, old)
            # The first token's weight turns a sum over tokens into the loss's unit.
            loss = loss + self.beta * (weights[:, 0] * kl).mean()
        clipped = policy_losses.clip_fraction(ratio, advantages, mask, self.clip_low, self.clip_high)
        change = policy_losses.mean_of_tokens(jnp.expm1(ratio) - ratio, mask)
        return loss, {"clip_fraction": clipped, "approximate_kl": change}

    def weights(self, mask: Array) -> Array:
        """Weights of the tokens of a minibatch, [R, N]."""
        weights = policy_losses.token_weights(mask, self.normalization)
        if self.level == "sequence":
            # The answer is one action: its ratio, equal at all tokens, counts once.
            return weights * (jnp.arange(mask.shape[1]) == 0)[None]
        return weights

    def started(self, state: TrainState) -> TrainState:
        """The state with what becomes a copy of the policy at step 0."""
        return state

    def networks(self, state: TrainState) -> Networks:
        """What learns, by name: parameters and state of the optimizer."""
        return {"policy": (self.policy.trained_params(state.params), state.opt_state)}

    def update(self, networks: Networks, rest: PyTree, experience: Batch, key: Array) -> tuple[Networks, Metrics]:
        """One gradient step on a minibatch; `rest` are all parameters of the policy, also those that do not learn."""
        trained, opt_state = networks["policy"]
        loss = lambda p, e, k: self.loss(adaptation.join(rest, p), e, k)
        optimizer = self.stretched(self.policy.optimizer)
        trained, opt_state, metrics, _ = gradient_update(loss, optimizer, trained, opt_state, experience, key)
        return {**networks, "policy": (trained, opt_state)}, metrics

    def stretched(self, optimizer: Any) -> Any:
        """An optimizer whose schedule ends with the run, although each step has several updates."""
        if self.num_updates == 1:
            return optimizer
        return dataclasses.replace(optimizer, schedule=optimizer.schedule.stretched(self.num_updates))

    def updated(self, state: TrainState, networks: Networks) -> TrainState:
        """The state with what has learned."""
        trained, opt_state = networks["policy"]
        return state.replace(params=adaptation.join(state.params, trained), opt_state=opt_state)

    def train_step(self, state: TrainState, batch: Batch, key: Array) -> tuple[TrainState, Metrics]:
        """Rollouts, advantages and updates.

        Metrics: loss, reward (mean of all answers), kl (from the reference, of the answers, in nats), num_tokens (of an
        answer), ended (share of answers with an end token), clip_fraction and approximate_kl (of the updates).
        """
        self.check_sampling()
        state = self.started(state)
        rollout_key, update_key = jax.random.split(key)
        experience, extra, measured = self.experience(state, batch, rollout_key)
        state = state.replace(extra=extra)
        size = batch_size(experience)
        if size % self.num_minibatches:
            raise UserError(
                f"the {size} answers of a step on a device cannot be divided into "
                f"model.num_minibatches={self.num_minibatches} equal parts"
            )
        minibatches = microbatches(experience, self.num_minibatches)

        def update(networks: Networks, number: Array) -> tuple[Networks, Metrics]:
            part = jax.tree.map(lambda a: a[number], minibatches)
            part["weights"] = self.weights(part["mask"])
            return self.update(networks, state.params, part, update_key)

        if self.num_updates == 1:
            networks, metrics = update(self.networks(state), jnp.asarray(0))
        else:
            orders = jax.vmap(lambda k: jax.random.permutation(k, self.num_minibatches))(
                jax.random.split(update_key, self.num_epochs)
            )
            networks, metrics = jax.lax.scan(update, self.networks(state), orders.reshape(-1))
            skipped = metrics["skipped"].min() if "skipped" in metrics else None
            metrics = jax.tree.map(lambda m: m.mean(0), metrics)
            # A step is skipped if all its updates are.
            metrics |= {} if skipped is None else {"skipped": skipped}
        new = self.updated(state, networks)
        average = self.policy.averaged(state, self.policy.trained_params(new.params), metrics)
        return new.replace(ema_params=average, step=state.step + 1), {**measured, **metrics}

    # ------------------------------------------------------------------------------------------------------------------
    # Evaluation

    def evaluate(self, state: TrainState, batch: Batch, key: Array) -> Metrics:
        """Per prompt [B]: `reward`, `num_tokens` and `ended` of a drawn answer, `greedy_reward` of the likeliest
        answer, and `kl`, an unbiased estimate of the KL from the reference in nats (if beta > 0).
        """
        params = state.eval_params
        draw = lambda sampling: roll_out(self.policy, params, batch, key, 1, self.longest_answer, sampling)
        drawn, likeliest = draw(None), draw(decoding.Sampling(temperature=0.0))
        metrics = {
            "reward": self.rewards(state, drawn, batch),
            "greedy_reward": self.rewards(state, likeliest, batch),
            "num_tokens": drawn.lengths.astype(jnp.float32),
            "ended": drawn.ended.astype(jnp.float32),
        }
        if self.beta:
            arguments = (drawn.rows, drawn.prompt_lengths, self.longest_answer)
            scores = (answer_log_probs(self.policy, p, *arguments) for p in (params, reference_params(state)[0]))
            own, reference = scores
            metrics["kl"] = jnp.where(drawn.mask, own - reference, 0.0).sum(1)
        return metrics

    def diagnose(self, state: TrainState, batch: Batch, key: Array) -> None:
        """Looks for a reward that is not a number; see `genjax.model.CanDiagnose`.

        Raises:
          UserError: a reward is NaN or infinite, with its prompt.
        """
        rollout_key, _ = jax.random.split(key)
        rollouts = roll_out(self.policy, state.params, batch, rollout_key, self.num_rollouts, self.longest_answer)
        rewards = self.rewards(state, rollouts, batch)
        for i in jnp.flatnonzero(~jnp.isfinite(rewards)).tolist():
            prompt = rollouts.prompts[i, : rollouts.prompt_lengths[i]].tolist()
            raise UserError(
                f"the reward of an answer to prompt {i // self.num_rollouts} of the batch, whose tokens are "
                f"{' '.join(map(str, prompt))}, is {float(rewards[i])}"
            )
