"""Samples, reconstructions and answers of a run, written as pictures, text or whatever suits the data's domain."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import jax
import numpy as np

from genjax import config
from genjax.model import Reconstructs
from genjax.tools import conditions
from genjax.tools.answers import examples_to_answer
from genjax.tools.pairs import best_samples
from genjax.training import Run, runs

#: Arrays of examples that are answered.
_SOURCES = ("source", "source_mask", "prompts", "prompt_lengths")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of samples.

    Attributes:
      weak_step: an early checkpoint that guides a diffusion model, by model.guidance.scale: a number of steps, or best.
      num_samples: number of samples.
      seed: seed of the samples.
      output: path of the picture without its suffix; by default in <workdir>/samples.
      label: classes of the samples, in turn, by name or number, for a model conditional on classes.
      prompt: texts of the samples, in turn, for a model that reads text.
      negative_prompt: text that guidance leads away from, in place of the empty one.
      hint: files of pictures that the samples follow, in turn, for a model with a control network: as the data's hints,
        or, where the data have none, pictures whose edges the samples follow.
      rerank: directory of a run of CLIP or SigLIP, which chooses each sample of a prompt among candidates.
      candidates: number of candidates of each sample, with --rerank.
      condition: values of the condition columns of a table, in the data's units.
      reconstruct: show examples of the evaluation split beside their reconstructions, instead of samples.
    """

    weak_step: int | Literal["best"] | None = None
    num_samples: int = 64
    seed: int = 0
    output: str | None = None
    label: tuple[str, ...] | None = None
    prompt: tuple[str, ...] | None = None
    negative_prompt: str | None = None
    hint: tuple[str, ...] | None = None
    rerank: str | None = None
    candidates: int = 16
    condition: tuple[float, ...] | None = None
    reconstruct: bool = False

    def __post_init__(self) -> None:
        config.check_at_least(self, num_samples=1, candidates=1)
        if self.rerank is not None and self.prompt is None:
            raise config.ConfigError("--rerank chooses samples by their text: give --prompt=TEXT")


def write(run: Run, options: Options | None = None) -> list[Path]:
    """Draws samples and writes them; returns the files.

    A model that answers sources answers the first sources of the evaluation split; each
    answer stands beside its target.

    Raises:
      ConfigError: the model does not take the condition or does not reconstruct, or samples are not finite.
    """
    options = options or Options()
    run = conditions.guided_by_step(run, options.weak_step)
    data, batch, kind = run.experiment.data, None, "samples"
    condition = _condition(run, options)
    if options.reconstruct:
        if not isinstance(run.model, Reconstructs):
            raise config.ConfigError(f"{type(run.model).__name__} does not reconstruct; leave --reconstruct out")
        samples = run.engine.reconstruct(run.state, options.num_samples, run.experiment.evaluation.split)
        kind = "reconstructions"
    else:
        key = jax.random.key(options.seed)
        batch = examples_to_answer(run, options.num_samples, key)
        if batch is not None:
            condition |= {name: batch[name] for name in _SOURCES if name in batch}
        if options.rerank is None:
            samples = run.sample(key, options.num_samples, **condition)
        else:
            captions = np.resize(np.array(options.prompt, object), options.num_samples).tolist()
            scorer = runs.restore(options.rerank)
            samples = best_samples(run, key, captions, scorer, options.candidates, **condition)
    conditions.check_finite(samples, f"{kind} of {run.workdir}")
    default = Path(run.workdir) / "samples" / f"{kind}_{run.step:08d}_seed{options.seed}"
    stem = Path(options.output).expanduser() if options.output else default
    stem.parent.mkdir(parents=True, exist_ok=True)
    return run.write_samples(samples, stem) if batch is None else data.write_answers(batch, samples, stem)


def _condition(run: Run, options: Options) -> dict[str, np.ndarray]:
    """The conditions of the samples, by name."""
    data, count, condition = run.experiment.data, options.num_samples, {}
    if options.label is not None:
        condition["label"] = conditions.labels_for(run.model, options.label, count, data.label_names())
    if options.prompt is not None or options.negative_prompt is not None:
        condition |= conditions.prompts_for(run.model, data, options.prompt, options.negative_prompt, count)
    read = lambda file: conditions.hint_of_data(run.model, data, file)
    condition |= conditions.hints_for(run.model, options.hint, count, read)
    if options.condition is not None:
        condition["condition"] = conditions.condition_for(run.model, data, options.condition, count)
    return condition
