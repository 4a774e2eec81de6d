"""What a model of pictures and texts knows: retrieval, hard negatives, classes told by their names, and CLIP score.

run = genjax.restore("runs/clip_scenes")
pairs.measure(run, pairs.Options(classes=("circle", "square"), templates=("a small red {}",)))
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from genjax import config
from genjax.data import CaptionedImages
from genjax.data.pipeline import full_batches, random_order
from genjax.data.scenes import grammar
from genjax.data.scenes.grammar import Description
from genjax.families.multimodal.contrast import PairEncoders
from genjax.training import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a measurement.

    Attributes:
      num_pairs: largest number of pairs of the split, the first ones in a fixed random order.
      classes: words for zero-shot classification of the pictures whose caption names exactly one of them.
      templates: texts with {} in the place of a class, whose embeddings are averaged.
    """

    num_pairs: int = 400
    classes: tuple[str, ...] = ()
    templates: tuple[str, ...] = ("{}",)

    def __post_init__(self) -> None:
        config.check_at_least(self, num_pairs=2)
        for template in self.templates:
            if "{}" not in template:
                raise config.ConfigError(f"--templates has {template!r}; write {{}} where the class shall stand")
        if len(self.classes) == 1:
            raise config.ConfigError(f"--classes={self.classes[0]} is one class; give two or more with commas between")


def encoders_of(run: Run) -> PairEncoders:
    """The model of a run of CLIP or SigLIP.

    Raises:
      ConfigError: it is another model, or its data have no captions.
    """
    if not isinstance(run.model, PairEncoders) or not isinstance(run.experiment.data, CaptionedImages):
        raise config.ConfigError(
            f"{run.workdir} holds a {type(run.model).__name__} of {type(run.experiment.data).__name__}; pictures and "
            "texts are compared by a run of CLIP or SigLIP, such as clip_scenes"
        )
    return run.model


def embed_texts(run: Run, texts: Sequence[str]) -> np.ndarray:
    """Embeddings of texts, float32 [N, D] of length 1."""
    given = run.experiment.data.prompts(texts)
    return _in_batches(run, jax.jit(run.model.encode_text), given["tokens"], given["mask"])


def embed_pictures(run: Run, pictures: np.ndarray) -> np.ndarray:
    """Embeddings of pictures as models see them [N, H, W, C], float32 [N, D] of length 1."""
    return _in_batches(run, jax.jit(run.model.encode_image), pictures)


def _in_batches(run: Run, function: Any, *arrays: np.ndarray, size: int = 200) -> np.ndarray:
    batches = full_batches(len(arrays[0]), size)
    return np.concatenate([np.asarray(function(run.state, *(a[rows] for a in arrays)))[:own] for rows, own in batches])


def retrieval(similarities: np.ndarray, same: np.ndarray) -> dict[str, float]:
    """Share of rows, and of columns, whose largest similarity is a right one.

    Args:
      similarities: of pictures (rows) and texts (columns), [N, N].
      same: True where a text is right for a picture, bool [N, N]: its own, and texts equal to it.
    """
    rows = np.arange(len(similarities))
    return {
        "text_of_picture": float(same[rows, similarities.argmax(1)].mean()),
        "picture_of_text": float(same[similarities.argmax(0), rows].mean()),
    }


def hard_negatives(description: Description) -> dict[str, Description]:
    """Captions of the same words that are not true: of a caption of two things with colours exchanged, and with the
    relation reversed.
    """
    if len(description.kinds) != 2 or description.kinds[0] == description.kinds[1]:
        return {}
    a, b = description.kinds
    reverse = Description((a, b), (grammar.REVERSE[description.relations[0]],))
    if a.colour == b.colour or (a.size, a.shape) == (b.size, b.shape):
        return {"relation_reversed": reverse}
    exchanged = Description((a._replace(colour=b.colour), b._replace(colour=a.colour)), description.relations)
    return {"colours_exchanged": exchanged, "relation_reversed": reverse}


def measure(run: Run, options: Options | None = None) -> dict[str, Any]:
    """All figures of a split: retrieval; of Scenes the share of pictures that prefer their caption to a hard negative;
    and accuracy of classes, if some are given.

    Raises:
      ConfigError: the run compares no pictures and texts, or no picture's caption names exactly one of the classes.
    """
    options = options or Options()
    encoders_of(run)
    data, split = run.experiment.data, run.experiment.evaluation.split
    examples = data.load(split)
    rows = random_order(len(examples))[: options.num_pairs]
    batch = {**examples.gather(rows), "example_index": np.arange(len(rows), dtype=np.int32)}
    pictures = embed_pictures(run, np.asarray(data.transform(batch, jax.random.key(0))["x"]))
    references = data.references(split)
    captions = [references[i][0] for i in rows]
    texts = embed_texts(run, captions)
    equal = np.array(captions, object)[:, None] == np.array(captions, object)[None]
    result: dict[str, Any] = {"split": split, "num_pairs": len(rows), "step": run.step}
    result |= retrieval(pictures @ texts.T, equal)
    own = (pictures * texts).sum(1)
    if data.name == "scenes":
        changed = [hard_negatives(grammar.parse(caption)) for caption in captions]
        for name in ("colours_exchanged", "relation_reversed"):
            places = [i for i, negatives in enumerate(changed) if name in negatives]
            if places:
                negatives = embed_texts(run, [changed[i][name].caption(split == "paraphrase") for i in places])
                result[name] = float((own[places] > (pictures[places] * negatives).sum(1)).mean())
                result[f"num_{name}"] = len(places)
    if options.classes:
        result["zero_shot"], result["num_zero_shot"] = zero_shot(run, pictures, captions, options)
    return result


def zero_shot(run: Run, pictures: np.ndarray, captions: Sequence[str], options: Options) -> tuple[float, int]:
    """Accuracy of the class whose name is nearest (Radford et al. 2021, section 3.1), and the number of pictures.

    Args:
      run: a run of CLIP or SigLIP.
      pictures: embeddings [N, D].
      captions: the caption of each, which tells the right class.
      options: classes and templates.

    Raises:
      ConfigError: no caption names exactly one of the classes.
    """
    named = [[i for i, c in enumerate(options.classes) if re.search(rf"\b{re.escape(c)}\b", text)] for text in captions]
    places = [i for i, found in enumerate(named) if len(found) == 1]
    if not places:
        raise config.ConfigError(f"no caption names exactly one of the classes {', '.join(options.classes)}")
    names = []
    for word in options.classes:
        mean = embed_texts(run, [template.format(word) for template in options.templates]).mean(0)
        names.append(mean / np.linalg.norm(mean))
    found = (pictures[places] @ np.stack(names).T).argmax(1)
    return float((found == [named[i][0] for i in places]).mean()), len(places)


def clip_score(run: Run, pictures: np.ndarray, captions: Sequence[str]) -> float:
    """Mean of 2.5 max(cos, 0) of pictures and their captions (Hessel et al. 2021, arXiv:2104.08718, eq. 1); see
    `cosines`.
    """
    return float(2.5 * np.maximum(cosines(run, pictures, captions), 0.0).mean())


def best_samples(
    run: Run, key: jax.Array, captions: Sequence[str], scorer: Run, num_candidates: int, **condition: Any
) -> np.ndarray:
    """For each caption the candidate that a scorer finds nearest to it (Ramesh et al. 2021, arXiv:2102.12092, sec.
    2.6).

    Args:
      run: the run that draws.
      key: random key.
      captions: what each sample shall show.
      scorer: a run of CLIP or SigLIP that knows the captions' words.
      num_candidates: number of samples drawn for each caption.
      condition: the captions, and whatever else, as the run's model takes them, with a row for each.

    Returns:
      Samples in the form that training batches have, [N, ...].
    """
    best, scores = None, None
    for i in range(num_candidates):
        samples = run.sample(jax.random.fold_in(key, i), len(captions), **condition)
        found = cosines(scorer, np.asarray(run.experiment.data.to_unit(samples), np.float32), captions)
        if best is None:
            best, scores = np.array(samples), found
        better = found > scores
        best[better], scores[better] = np.asarray(samples)[better], found[better]
    return best


def cosines(run: Run, pictures: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """Cosine of each picture's embedding and its caption's, float32 [N].

    Args:
      run: a run of CLIP or SigLIP that knows the captions' words.
      pictures: brightness in [0, 1], [N, H, W, C].
      captions: the caption of each.

    Raises:
      ConfigError: the run compares no pictures and texts, or pictures of another size.
    """
    shape = tuple(encoders_of(run).data_shape)
    if pictures.shape[1:] != shape:
        raise config.ConfigError(f"the run {run.workdir} sees pictures of {shape}, and these have {pictures.shape[1:]}")
    data = run.experiment.data
    batch = {"x": np.round(255 * pictures).astype(np.uint8), "example_index": np.arange(len(pictures), dtype=np.int32)}
    blank = np.zeros((len(pictures), 1, data.sequence_length), np.int32)
    batch |= {"captions": blank, "captions_mask": blank > 0, "num_captions": np.ones(len(pictures), np.int32)}
    seen = np.asarray(data.transform(batch, jax.random.key(0))["x"])
    return (embed_pictures(run, seen) * embed_texts(run, captions)).sum(1)
