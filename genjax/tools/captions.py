"""Captions that a run writes of pictures, and its answers to questions about them.

run = genjax.restore("runs/captions_scenes")
print(captions.describe_file(run, "picture.png"))
captions.measure(run)["scores"]
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from genjax import config
from genjax.data import CaptionedImages, DataError, Interleaved, PictureQuestions, first_examples
from genjax.data.scenes import grammar, judge
from genjax.data.scenes.pictures import SIDE
from genjax.evaluation import captions, text
from genjax.model import DescribesPictures
from genjax.tools.attachments import hears
from genjax.training import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What is described.

    Attributes:
      image: pictures to describe, files; without them the split evaluation.split is described and measured.
      question: a question about each picture.
      num_beams: number of hypotheses of the search; 1 takes the likeliest token.
    """

    image: tuple[str, ...] | None = None
    question: str | None = None
    num_beams: int = 1

    def __post_init__(self) -> None:
        config.check_at_least(self, num_beams=1)
        config.check_named(self, "image")


def check(run: Run) -> None:
    """Raises ConfigError unless a run writes texts about single pictures."""
    data = run.experiment.data
    if isinstance(run.model, DescribesPictures) and isinstance(data, CaptionedImages):
        return
    own = f"{run.name} is a run of {type(run.model).__name__}"
    if isinstance(run.model, DescribesPictures) and isinstance(data, Interleaved):
        raise config.ConfigError(
            f"{own}, which reads pictures between words; ask it by experiments.generate, with <image> in --prompt for "
            "each file of --image"
        )
    instead = "use experiments.transcribe" if hears(run) else "take one of Captioner, such as captions_scenes"
    raise config.ConfigError(f"{own}, which describes no pictures; {instead}")


def describe_file(run: Run, file: str | Path, question: str | None = None, num_beams: int = 1) -> str:
    """The caption of a picture, or the answer to a question about it.

    Raises:
      ConfigError: the run describes no pictures.
      DataError: the picture cannot be read, a question is missing or not wanted, or has words that the run does not
        know.
    """
    check(run)
    data = run.experiment.data
    prompts, lengths = data.opening([question])
    x = data.read_picture(file)
    describe = jax.jit(run.model.describe, static_argnames="num_beams")
    return data.decode(np.asarray(describe(run.state, x, prompts, lengths, num_beams=num_beams))[0]).strip()


def measure(run: Run, num_beams: int = 1) -> dict[str, Any]:
    """Describes the pictures of the split evaluation.split and measures the texts.

    Returns:
      `step`, `split`, `num_beams`, `num_examples`, `scores` and `texts`.  Scores of captions: `exact_match`, of
      Scenes the shares that are true of the picture (`true`, of pictures of one thing `one_thing`, of several
      `relations`), `bleu` from 0 to 100 and `cider_d` from 0 to 10.  Scores of answers: `exact_match`,
      `vqa_accuracy`, and both for each kind of question.

    Raises:
      ConfigError: the run describes no pictures.
    """
    check(run)
    data, model, split = run.experiment.data, run.model, run.experiment.evaluation.split

    def describe(state, batch, key):
        del key
        return model.describe(state, batch["x"], *model.prompts_of(batch), num_beams=num_beams)

    rows, examples = run.engine.map(describe, run.state, split)
    texts = [data.decode(row).strip() for row in rows]
    references = data.references(split)
    chosen = first_examples(len(references), run.experiment.evaluation.num_examples)
    wanted = [references[i] for i in chosen]
    if isinstance(data, PictureQuestions):
        asked = data.asked(split)
        scores = answer_scores(texts, wanted, [asked[i].kind for i in chosen])
    else:
        scores = caption_scores(texts, wanted)
        if data.name == "scenes" and examples["x"].shape[1:] == (SIDE, SIDE, 3):
            scores |= truth(texts, examples["x"] / np.float32(255), [own[0] for own in wanted])
    return {
        "step": run.step,
        "split": split,
        "num_beams": num_beams,
        "num_examples": len(texts),
        "scores": scores,
        "texts": texts,
    }


def caption_scores(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Share of captions that people wrote literally, BLEU from 0 to 100, and CIDEr-D from 0 to 10."""
    most = max(map(len, references))
    # BLEU wants as many references of each picture; a reference that comes twice changes nothing.
    filled_up = [[*own, *[own[0]] * (most - len(own))] for own in references]
    return {
        "exact_match": float(np.mean([each in own for each, own in zip(texts, references)])),
        "bleu": text.translation_scores(texts, filled_up)["bleu"],
        "cider_d": float(captions.cider_d(texts, references).mean()),
    }


def truth(texts: Sequence[str], pictures: np.ndarray, references: Sequence[str]) -> dict[str, float]:
    """Shares of captions that are true of pictures of Scenes, by the judge.

    Args:
      texts: the captions.
      pictures: the pictures, brightness in [0, 1], [N, 32, 32, 3].
      references: captions that are true, which tell the number of things.

    Returns:
      `true`, and the same among pictures of one thing, `one_thing`, and of several, `relations`; NaN for a share of
      none.
    """
    true = np.array(
        [
            things is not None and _is_true(each, things)
            for each, things in zip(texts, judge.things_of(judge.analyse(pictures)))
        ]
    )
    alone = np.array([len(grammar.parse(each).kinds) == 1 for each in references])
    share = lambda rows: float(true[rows].mean()) if rows.any() else float("nan")
    return {"true": float(true.mean()), "one_thing": share(alone), "relations": share(~alone)}


def _is_true(caption: str, things: tuple[grammar.Thing, ...]) -> bool:
    try:
        return grammar.parse(caption).is_true_of(things)
    except DataError:
        return False


def answer_scores(answers: Sequence[str], votes: Sequence[Sequence[str]], kinds: Sequence[str]) -> dict[str, float]:
    """Share of answers that are the commonest one literally, and accuracy by votes; of all, and of each kind."""
    accuracy = captions.vqa_accuracy(answers, votes)
    commonest = [collections.Counter(own).most_common(1)[0][0] for own in votes]
    exact = np.array([answer == own for answer, own in zip(answers, commonest)], float)
    scores = {"exact_match": float(exact.mean()), "vqa_accuracy": float(accuracy.mean())}
    for kind in dict.fromkeys(kinds):
        rows = np.array([each == kind for each in kinds])
        scores[f"vqa_accuracy_{kind}"] = float(accuracy[rows].mean())
    return scores
