"""What alignment changed: answers of a run's policy beside answers of the network that it started from.

    comparison = alignment.compare(genjax.restore("runs/dpo_sentiment"), alignment.Options(num_answers=4000))

The share of good answers needs data that judge a text, such as made reviews.  Of p good answers before, the policy with
the largest E r - beta KL, for the reward r = s at good answers and 0 at others, has

    q = p e^(s / beta) / (p e^(s / beta) + 1 - p),    KL = q log(q / p) + (1 - q) log((1 - q) / (1 - p))

which is the optimum of DPO for infinitely many preferences of this reward, and the optimum of policy optimisation.

Preferences between whole reviews say nothing of texts that are no reviews, and the mass that a policy has there may
grow without a cost.  So the share of good ones among the answers that can be judged stands beside the share among all
answers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from genjax import buckets, config, decoding
from genjax.data.base import DecodesTokens, JudgesTexts
from genjax.families.alignment.policy import PolicyOptimization
from genjax.families.alignment.preference import PreferenceOptimization
from genjax.families.alignment.preference_losses import DPO
from genjax.families.alignment.reference import NAME, reference_params
from genjax.model import ContinuesText, HasTokenLogProbs
from genjax.tools.drawing import plot_frontier
from genjax.training import Run, runs
from genjax.training.experiment import load_config
from genjax.training.records import read_lines
from genjax.training.warm_start import warm_start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is compared.

    Attributes:
      num_answers: number of answers of each network.
      seed: seed of the answers.
      beta: strength of the KL penalty, for the optimum; None takes the method's, where it has one.
      reward: reward of a good answer, for the optimum.
      num_shown: number of answers of each network to show.
      beside: directories of further runs, whose curve of reward against KL is drawn too.
    """

    num_answers: int = 4000
    seed: int = 0
    beta: float | None = None
    reward: float = 1.0
    num_shown: int = 5
    beside: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        config.check_at_least(self, num_answers=2, num_shown=0)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Answers before and after.

    Attributes:
      before, after: some answers as text.
      good_before, good_after: share of good answers, standard error; None if the data judge no text.
      judged_before, judged_after: share of answers that are of the kind that the data judge, standard error.
      good_of_judged_before, good_of_judged_after: share of good ones among these, standard error.
      best_good_of_judged: share of good ones among these of the optimum; None without beta.
      kl: KL(policy | reference) in nats an answer, from answers of the policy, and its standard error.
      best_good: share of good answers of the optimum; None without a judge or beta.
      best_kl: KL of the optimum in nats.
    """

    before: list[str]
    after: list[str]
    kl: tuple[float, float]
    good_before: tuple[float, float] | None = None
    good_after: tuple[float, float] | None = None
    best_good: float | None = None
    best_kl: float | None = None
    judged_before: tuple[float, float] | None = None
    judged_after: tuple[float, float] | None = None
    good_of_judged_before: tuple[float, float] | None = None
    good_of_judged_after: tuple[float, float] | None = None
    best_good_of_judged: float | None = None


def optimum(p: float, advantage: float) -> tuple[float, float]:
    """Share of good answers, and KL in nats, of the optimum for a share p before and advantage = reward / beta."""
    q = p / (p + (1.0 - p) * math.exp(-advantage))
    term = lambda a, b: a * math.log(a / b) if a > 0 else 0.0
    return q, term(q, p) + term(1.0 - q, 1.0 - p)


def compare(run: Run, options: Options | None = None) -> Comparison:
    """Compares a run's policy with the network that it started from, on the first prompts of the evaluation split.

    Answers are drawn as they were in training: at the policy's temperature for rewards, at 1 for preferences.

    Raises:
      ConfigError: the run has no reference and did not start from another run, or it continues no text.
    """
    options, trained, run = options or Options(), run.model, runs.policy_run(run)
    model, data = run.model, run.experiment.data
    if not isinstance(model, ContinuesText) or not isinstance(model, HasTokenLogProbs):
        raise config.ConfigError(f"{run.workdir} is a run of {type(model).__name__}, which continues no text")
    reference = _reference(run)
    prompts, lengths, room = _prompts(run, options.num_answers)
    key = jax.random.key(options.seed)
    # Preferences compare the network's own probabilities; rewards rate answers that are drawn at a temperature.
    temperature = 1.0
    if isinstance(trained, PolicyOptimization):
        trained.check_sampling()
        temperature = model.sampling.temperature
    sampling = decoding.Sampling(temperature=temperature)

    @jax.jit
    def answers(params: Any, key: jax.Array) -> decoding.Generation:
        state = run.state.with_params(params)
        return model.generate(state, key, prompts, room, lengths=lengths, sampling=sampling)

    after, before = answers(run.state.eval_params, key), answers(reference, jax.random.fold_in(key, 1))
    batch = decoding.joined(prompts, lengths, after.tokens, after.lengths)

    @jax.jit
    def scores(params: Any) -> jax.Array:
        return jnp.where(batch["loss_mask"][:, 1:], model.token_log_probs(params, batch, temperature), 0.0).sum(1)

    difference = np.asarray(scores(run.state.eval_params) - scores(reference), np.float64)
    texts = [_texts(data, generation) for generation in (before, after)]
    shown = {"before": texts[0][: options.num_shown], "after": texts[1][: options.num_shown]}
    comparison = Comparison(**shown, kl=_mean(difference))
    if not isinstance(data, JudgesTexts):
        return comparison
    judged = [[data.judged(text) for text in each] for each in texts]
    if all(each is None for each in judged[0]):
        return comparison
    good = [_mean(np.array([verdict is True for verdict in each], np.float64)) for each in judged]
    whole = [_mean(np.array([verdict is not None for verdict in each], np.float64)) for each in judged]
    of_whole = [_mean(np.array([v for v in each if v is not None], np.float64)) for each in judged]
    comparison = dataclasses.replace(
        comparison,
        good_before=good[0],
        good_after=good[1],
        judged_before=whole[0],
        judged_after=whole[1],
        good_of_judged_before=of_whole[0],
        good_of_judged_after=of_whole[1],
    )
    beta = _beta(trained) if options.beta is None else options.beta
    if not beta or not 0.0 < good[0][0] < 1.0:
        return comparison
    best_good, best_kl = optimum(good[0][0], options.reward / beta)
    best_of_whole = None if of_whole[0][0] == 1.0 else optimum(of_whole[0][0], options.reward / beta)[0]
    return dataclasses.replace(comparison, best_good=best_good, best_kl=best_kl, best_good_of_judged=best_of_whole)


def draw(run: Run, found: Comparison, beside: Sequence[str] = ()) -> Path | None:
    """Draws mean reward over KL along the training of a policy whose reward is 1 for a good answer and 0 for others.

    The best rewards are those of the closed form, from the share of good answers before.

    Args:
      run: the run.
      found: its comparison.
      beside: directories of further runs from the same start, which are drawn too; runs of one method have one colour.

    Returns:
      The picture reward_kl.png in the run's directory; None of a run that recorded no reward and KL, or judges no text.

    Raises:
      ConfigError: a further run recorded no reward and KL.
    """
    own = _way(run.workdir)
    if own is None or found.good_before is None or not 0.0 < found.good_before[0] < 1.0:
        return None
    ways = [(type(run.model).__name__, *own)]
    for workdir in map(buckets.workdir, beside):
        way = _way(workdir)
        if way is None:
            raise config.ConfigError(
                f"{workdir} has recorded no reward and KL; --beside takes runs of policy optimisation with beta > 0"
            )
        ways.append((type(load_config(workdir)[1].model).__name__, *way))
    best = np.array([optimum(found.good_before[0], advantage) for advantage in np.linspace(0.0, 8.0, 200)])
    path = run.workdir / "reward_kl.png"
    plot_frontier(ways, best[:, 0], best[:, 1], path)
    return path


def _way(workdir: Path) -> tuple[list[float], list[float]] | None:
    """Mean rewards and KLs that a run recorded while it was trained; None if it recorded none."""
    rows = [row for row in read_lines(workdir) if row["kind"] == "train" and {"reward", "kl"} <= row.keys()]
    return ([row["reward"] for row in rows], [row["kl"] for row in rows]) if rows else None


def _beta(model: Any) -> float | None:
    """The weight of the KL divergence in what a model's optimum maximises, where it has one."""
    if isinstance(model, PreferenceOptimization):
        return model.method.beta if isinstance(model.method, DPO) else None
    return model.beta if isinstance(model, PolicyOptimization) else None


def _reference(run: Run) -> Any:
    """Parameters of the network that the run started from."""
    if NAME in run.state.extra:
        return reference_params(run.state)[0]
    source, params = run.experiment.training.init_from, run.state.params
    if source is None:
        raise config.ConfigError(
            f"{run.workdir} keeps no reference and did not start from a run (training.init_from), so that there is "
            "nothing to compare it with"
        )
    if "lora" in params:
        # Updates that the other run does not have begin at 0.
        params = {**params, "lora": jax.tree.map(jnp.zeros_like, params["lora"])}
    return warm_start(params, source, (), run.model)


def _prompts(run: Run, count: int) -> tuple[jax.Array, jax.Array, int]:
    """Prompts [N, P] with their lengths, the first of the evaluation split in turn, and the room for answers."""
    arrays = run.experiment.data.load(run.experiment.evaluation.split).gather(np.arange(count) % _count(run))
    answer = arrays["loss_mask"] & arrays["mask"]
    lengths = np.maximum(answer.argmax(1), 1)
    size = int(lengths.max())
    return jnp.asarray(arrays["tokens"][:, :size]), jnp.asarray(lengths), arrays["tokens"].shape[1] - size


def _count(run: Run) -> int:
    return len(run.experiment.data.load(run.experiment.evaluation.split))


def _texts(data: Any, generation: decoding.Generation) -> list[str]:
    if not isinstance(data, DecodesTokens):
        return []
    return [data.decode(row[:size]) for row, size in zip(np.asarray(generation.tokens), np.asarray(generation.lengths))]


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Mean and its standard error; NaN where there are too few values."""
    if len(values) < 2:
        return (float(values.mean()) if len(values) else math.nan), math.nan
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))
