"""Conditions of a run's samples: classes, columns, and a weaker model that guides diffusion."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from genjax import config
from genjax.data import HintedImages
from genjax.data.base import HasConditionColumns, HasPrompts
from genjax.families.diffusion.diffusion import Diffusion
from genjax.model import Dequantizes, FollowsHints, HasClasses, HasGuidance, HasLogProb, takes
from genjax.training import Run, runs


def guided_by_step(run: Run, step: int | str | None) -> Run:
    """A run of a diffusion model, with the parameters of another of its checkpoints as the weaker model for guidance.

    Raises:
      ConfigError: the model is not a diffusion model, or its guidance scale is 0.
    """
    if step is None:
        return run
    if not isinstance(run.model, Diffusion):
        raise config.ConfigError(f"--weak_step guides diffusion models; {run.name} has {type(run.model).__name__}")
    if run.model.guidance.scale == 0.0:
        raise config.ConfigError("--weak_step needs the weight of the guidance: --model.guidance.scale=1")
    weak = runs.restore(run.workdir, step).state.eval_params
    return dataclasses.replace(run, state=run.state.replace(extra={**run.state.extra, "weak_params": weak}))


def has_exact_log_prob(model: Any) -> bool:
    """Whether the likelihood is exact; if not (flows that dequantise, say), use `log_prob_bound`."""
    return isinstance(model, HasLogProb) and not (isinstance(model, Dequantizes) and model.dequantization is not None)


def labels_for(model: Any, classes: Sequence[str], count: int, names: Sequence[str] = ()) -> np.ndarray:
    """Classes of the samples, in turn, int32 [count].

    Args:
      model: the model.
      classes: names of classes, or numbers.
      count: number of samples.
      names: names of the data's classes in the order of their numbers.  `classes` are read as
        names if all are in `names`.

    Raises:
      ConfigError: they are neither names nor numbers, or the model does not take classes.
    """
    number = {name: i for i, name in enumerate(names)}
    try:
        chosen = [number[c] for c in classes] if set(classes) <= set(number) else [int(c) for c in classes]
        label = np.resize(np.array(chosen, np.int32), count)
    except (ValueError, OverflowError):
        known = f" or names out of {', '.join(names)}" if names else ""
        raise config.ConfigError(f"--label={','.join(classes)} is not a list of class numbers{known}") from None
    if not isinstance(model, HasClasses):
        raise config.ConfigError(f"{type(model).__name__} is not conditional on classes; leave --label out")
    # Checked here, because values are not known inside the compiled sampler.
    model.check_labels(label)
    return label


def prompts_for(
    model: Any, data: Any, texts: Sequence[str] | None, negative: str | None, count: int
) -> dict[str, np.ndarray]:
    """The captions of samples, in turn, as arrays with `count` rows.

    Args:
      model: the model.
      data: its data, with the tokenizer.
      texts: the captions; None for captions without words.
      negative: what guidance leads away from, in place of a caption without words.
      count: number of samples.

    Raises:
      ConfigError: the model reads no text, or guidance that leads away from something is off.
      DataError: a text has a word that the tokenizer does not know, or is too long.
    """
    if not takes(model, "tokens") or not isinstance(data, HasPrompts):
        raise config.ConfigError(f"{type(model).__name__} reads no text; leave --prompt out")
    given = data.prompts(np.resize(np.array(texts or [""], object), count).tolist())
    if negative is None:
        return given
    if not takes(model, "negative_tokens"):
        raise config.ConfigError(f"{type(model).__name__} takes no text to lead away from; leave --negative_prompt out")
    if isinstance(model, HasGuidance) and not model.guidance_scale:
        raise config.ConfigError("--negative_prompt needs the weight of the guidance: --model.guidance.scale=2")
    return given | {f"negative_{name}": rows for name, rows in data.prompts([negative] * count).items()}


def hints_for(
    model: Any, files: Sequence[str] | None, count: int, read: Callable[[str], np.ndarray]
) -> dict[str, np.ndarray]:
    """The pictures that samples follow, in turn, as `hint` float32 [count, H, W, 3]; {} for a model that follows none.

    Args:
      model: the model.
      files: the pictures, or None.
      count: number of samples.
      read: file to hint [H, W, 3].

    Raises:
      ConfigError: the model follows no pictures and some are given, or the reverse.
      DataError: a file is not a readable picture.
    """
    if not takes(model, "hint"):
        if files is None:
            return {}
        raise config.ConfigError(
            f"{type(model).__name__} without a control network follows no picture; leave --hint out"
        )
    if files is None:
        raise config.ConfigError("the model's control network follows a picture; give one by --hint=FILE")
    hints = [read(file) for file in files]
    return {"hint": np.stack([hints[i % len(hints)] for i in range(count)])}


def hint_of_data(model: FollowsHints, data: Any, file: str) -> np.ndarray:
    """A picture of a file as its run had hints in training, [H, W, 3]: as it is, or what the model makes of it.

    Raises:
      DataError: the file is not a readable picture.
    """
    hint = data.read_hint(file) if isinstance(data, HintedImages) else None
    return np.asarray(model.hints({"x": data.read_picture(file)}) if hint is None else hint)[0]


def condition_for(model: Any, data: Any, given: Sequence[float], count: int) -> np.ndarray:
    """The condition of samples that are drawn given numbers in the units of the data, float32 [count, K].

    Raises:
      ConfigError: the data have no condition, or the model does not take one.
    """
    if not takes(model, "condition"):
        raise config.ConfigError(f"{type(model).__name__} is not conditional on columns; leave --condition out")
    if not isinstance(data, HasConditionColumns):
        raise config.ConfigError(f"the data {data.name} have no condition; leave --condition out")
    return np.tile(data.condition(list(given)), (count, 1))


def check_finite(samples: np.ndarray, name: str) -> None:
    """Raises ConfigError if samples are not finite."""
    if np.issubdtype(samples.dtype, np.floating) and not np.isfinite(samples).all():
        raise config.ConfigError(
            f"{name} are not finite: the run has diverged, or an adaptive solver ran out of steps "
            "(--model.sampler.num_steps)"
        )
