"""What a run hears in clips of sound.

run = genjax.restore("runs/spoken_digits")
print(transcripts.transcribe_file(run, "seven.wav"))
transcripts.measure(run)["scores"]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from genjax import config
from genjax.data import first_examples
from genjax.evaluation import text
from genjax.tools import attachments
from genjax.training import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is heard.

    Attributes:
      audio: WAV files to write down; without them the split evaluation.split is written down and measured.
      num_beams: number of hypotheses of the search; 1 takes the likeliest token.
    """

    audio: tuple[str, ...] | None = None
    num_beams: int = 1

    def __post_init__(self) -> None:
        config.check_at_least(self, num_beams=1)
        config.check_named(self, "audio")


def check(run: Run) -> None:
    """Raises ConfigError unless a run writes down what it hears."""
    if not attachments.hears(run):
        raise config.ConfigError(
            f"{run.name} is a run of {type(run.model).__name__}, which hears nothing; take one of AudioLanguageModel "
            "or Whisper on spoken texts, such as spoken_digits"
        )


def transcribe_file(run: Run, file: str | Path, num_beams: int = 1) -> str:
    """What is said in a WAV file.

    Raises:
      ConfigError: the run hears nothing.
      DataError: the file cannot be read, or has another sample rate than the data.
    """
    check(run)
    x, start = attachments.sound_prompt(run, "", file)
    describe = jax.jit(run.model.describe, static_argnames="num_beams")
    return run.experiment.data.decode(np.asarray(describe(run.state, x, start[None], num_beams=num_beams))[0])


def measure(run: Run, num_beams: int = 1) -> dict[str, Any]:
    """Writes down the clips of the split evaluation.split and measures the texts.

    Returns:
      `step`, `split`, `num_beams`, `num_examples`, `scores` and `texts`.  Scores: the share of texts that are right
      letter by letter, `exact_match`; the same for each speaker, where speakers are named; and the number of wrong,
      missing and surplus words as a share of the words that are said, `word_error_rate`.

    Raises:
      ConfigError: the run hears nothing.
    """
    check(run)
    data, model, split = run.experiment.data, run.model, run.experiment.evaluation.split

    def describe(state, batch, key):
        del key
        return model.describe(state, batch["x"], num_beams=num_beams)

    rows, _ = run.engine.map(describe, run.state, split)
    texts = [data.decode(row) for row in rows]
    clips = data.read(split)
    chosen = first_examples(len(clips.texts), run.experiment.evaluation.num_examples)
    speakers = None if clips.speakers is None else [clips.speakers[i] for i in chosen]
    return {
        "step": run.step,
        "split": split,
        "num_beams": num_beams,
        "num_examples": len(texts),
        "scores": scores(texts, [clips.texts[i] for i in chosen], speakers),
        "texts": texts,
    }


def scores(texts: Sequence[str], said: Sequence[str], speakers: Sequence[str] | None = None) -> dict[str, float]:
    """Scores of texts beside what is said, as in `measure`."""
    right = np.array([own == true for own, true in zip(texts, said)], float)
    found = {"exact_match": float(right.mean()), "word_error_rate": text.word_error_rate(texts, said)}
    for name in dict.fromkeys(sorted(speakers or ())):
        found[f"exact_match_{name}"] = float(right[[speaker == name for speaker in speakers]].mean())
    return found
