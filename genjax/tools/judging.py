"""Whether samples of a model of text are what their captions say, by an exact judge (genjax/data/scenes/judge.py).

run = genjax.restore("runs/scenes")
judging.measure(run, num_samples=400, scales=(0.0, 2.0))
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from genjax import config
from genjax.data import CaptionedImages
from genjax.data.base import HasPrompts
from genjax.data.scenes import grammar, judge, moving
from genjax.model import HasGuidance, Reconstructs, takes
from genjax.tools.pairs import best_samples, clip_score
from genjax.training import Run
from genjax.training.engine import Engine


def _judge_scenes(pictures: np.ndarray, captions: Sequence[str]) -> dict[str, float]:
    return judge.rates(judge.analyse(pictures), [grammar.parse(caption) for caption in captions])


def _judge_moving_scenes(videos: np.ndarray, captions: Sequence[str]) -> dict[str, float]:
    return moving.rates(videos, [moving.parse_motion(caption) for caption in captions])


#: The judge of each set that has one.
JUDGES: dict[str, Callable[[np.ndarray, Sequence[str]], dict[str, float]]] = {
    "scenes": _judge_scenes,
    "moving_scenes": _judge_moving_scenes,
}


def measure(
    run: Run,
    num_samples: int = 400,
    scales: Sequence[float] = (),
    seed: int = 0,
    scorer: Run | None = None,
    reranker: Run | None = None,
    num_candidates: int = 16,
) -> dict[str, Any]:
    """Judges samples for the captions of the split evaluation.split.

    Args:
      run: the run.
      num_samples: largest number of captions, the split's first ones; each is drawn once.
      scales: weights of guidance that are compared, one after the other; empty for the model's own.
      seed: seed of the samples.
      scorer: a run of CLIP or SigLIP, which scores samples and captions too; without it the data must be Scenes.
      reranker: a run of CLIP or SigLIP, which chooses each sample among candidates.
      num_candidates: number of candidates of each sample, with a reranker.

    Returns:
      `protocol`, `step`, `split`, `num_samples`; `scales`, rates of the judge and `clip_score` by the scale of
      guidance, and `data`, those of the split's own pictures; of a model that codes pictures also `reconstructions`,
      what its codes can say at most.  An autoencoder, which reads no text, has no `scales`.

    Raises:
      ConfigError: the data are no Scenes and there is no scorer, or the model draws by no text or has no guidance.
    """
    data, model, split = run.experiment.data, run.model, run.experiment.evaluation.split
    draws, codes = takes(model, "tokens"), isinstance(model, Reconstructs)
    if not (isinstance(data, HasPrompts) and (draws or codes)):
        raise config.ConfigError(f"--judge looks at pictures of captions, and {type(model).__name__} reads none")
    judge_of = JUDGES.get(data.name) if isinstance(data, CaptionedImages) else None
    if judge_of is None and scorer is None:
        raise config.ConfigError(f"--judge=scenes reads pictures of Scenes, and the data are {data.name}")
    if scales and not isinstance(model, HasGuidance):
        raise config.ConfigError(f"--scales are weights of guidance, and {type(model).__name__} has none")
    captions = [own[0] for own in data.references(split)[:num_samples]]

    def figures(pictures: np.ndarray) -> dict[str, float]:
        judged = {} if judge_of is None else judge_of(pictures, captions)
        return judged if scorer is None else {**judged, "clip_score": clip_score(scorer, pictures, captions)}

    own = figures(data.load(split).gather(np.arange(len(captions)))["x"] / np.float32(255))
    rates: dict[str, dict[str, float]] = {}
    for scale in (scales or (model.guidance_scale if isinstance(model, HasGuidance) else 0.0,)) if draws else ():
        pictures = pictures_of(with_scale(run, scale), captions, seed, reranker, num_candidates)
        rates[f"{scale:g}"] = figures(pictures)
    error = math.sqrt(0.25 / len(captions))
    drawn = "one sample each" if reranker is None else f"the best of {num_candidates} by {reranker.name} each"
    protocol = (
        f"{run.name}, step {run.step}: {type(model).__name__}, captions of the first {len(captions)} examples of "
        f"{split}, {drawn}, seed {seed}; judged by analysis and synthesis; standard errors up to {error:.3f}"
    )
    return {
        "protocol": protocol,
        "step": run.step,
        "split": split,
        "num_samples": len(captions),
        "scales": rates,
        "data": own,
        **({"reconstructions": figures(_reconstructions(run, split, len(captions)))} if codes else {}),
    }


def _reconstructions(run: Run, split: str, count: int) -> np.ndarray:
    """The first examples of a split through the codes of a model and back, brightness in [0, 1], [N, H, W, C]."""
    again, _ = run.engine.map(run.model.reconstruct, run.state, split, indices=np.arange(count))
    return np.asarray(run.experiment.data.to_unit(again), np.float32)


def with_scale(run: Run, scale: float) -> Run:
    """The run with another weight of its guidance; a model without guidance stays as it is."""
    if not isinstance(run.model, HasGuidance) or run.model.guidance_scale == scale:
        return run
    experiment = dataclasses.replace(run.experiment, model=run.model.with_guidance_scale(scale))
    return dataclasses.replace(run, experiment=experiment, engine=Engine(experiment, batch_spec=run.engine.batch_spec))


def pictures_of(
    run: Run, captions: list[str], seed: int, reranker: Run | None = None, num_candidates: int = 1
) -> np.ndarray:
    """A sample for each caption, brightness in [0, 1], float32 [N, H, W, C]; with a reranker the best candidate."""
    data, key = run.experiment.data, jax.random.key(seed)
    if reranker is None:
        samples = run.sample(key, len(captions), **data.prompts(captions))
    else:
        samples = best_samples(run, key, captions, reranker, num_candidates, **data.prompts(captions))
    return np.asarray(data.to_unit(samples), np.float32)
