"""Pairs of pictures and texts: Scenes, emoji, or a folder of pictures with captions."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from genjax import buckets
from genjax.batch import example_keys
from genjax.data.base import ArrayExamples, DataError, Examples, Outline
from genjax.data.captions import captions_of
from genjax.data.emoji import emoji_captions, read_emoji
from genjax.data.fitting import fit_pictures
from genjax.data.folders import folder_files, folder_images
from genjax.data.images import Images
from genjax.data.scenes.grammar import lexicon
from genjax.data.scenes.making import make_scene
from genjax.data.scenes.pictures import render
from genjax.data.text.base import DelimitedText
from genjax.data.text.labelled import write_lines
from genjax.data.training_files import save_training_files

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionedImages(Images, DelimitedText):
    """Pictures `x` with captions: `tokens` int32 [B, T] and `mask`, a start token, the caption and an end token.

    A picture with several captions shows one at random in each training step, and its first in evaluations.

    Attributes:
      name: scenes, made pictures of things (genjax/data/scenes); emoji, the file emoji64.npz at data.dir; or folder,
        pictures and captions at data.dir (genjax/data/captions.py).
      captions: list of the captions of a folder, a path as it is or below data.dir; None looks for captions.jsonl,
        metadata.jsonl, captions.json, and for text files beside the pictures.
      sequence_length: tokens T of a caption with its start and end; longer ones are cut.
      num_made: training examples of scenes.
      num_held_out: examples of each other split of scenes.
    """

    flag_name: ClassVar[str] = "pairs"
    #: Sets that there are, and what they pair with texts.
    names: ClassVar[tuple[str, ...]] = ("scenes", "emoji", "folder")
    what: ClassVar[str] = "pictures"

    name: str = "scenes"
    tokenizer: Literal["characters", "bytes", "words", "bpe", "unigram"] = "words"
    captions: str | None = None
    sequence_length: int = 20
    num_made: int = 20_000
    num_held_out: int = 2_000

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, least in (("sequence_length", 3), ("num_made", 1), ("num_held_out", 1)):
            if getattr(self, field) < least:
                raise DataError(f"data.{field}={getattr(self, field)} must be at least {least}")
        if self.name not in self.names:
            raise DataError(
                f"data.name={self.name} is no set of pairs of {self.what} and texts: {', '.join(self.names)}"
            )

    # ------------------------------------------------------------------------------------------------------------------
    # Reading

    def references(self, split: str) -> list[tuple[str, ...]]:
        """The captions of each picture of a split."""
        return _read(self, split)[1]

    def read(self, split: str) -> tuple[Examples, list[tuple[str, ...]]]:
        """Pictures of a split in their stored levels, and the captions of each.

        Raises:
          DataError: they cannot be read.
        """
        match self.name:
            case "scenes":
                if self.dir is not None:
                    raise DataError(
                        f"data.name=scenes are made and read nothing from data.dir={self.dir}; give "
                        "--data.name=folder, or leave --data.dir out"
                    )
                scenes = [make_scene(split, 0, i) for i in range(self.num_examples(split))]
                pictures = fit_pictures(render(scenes), self.image_size, self.channels, 255)
                captions = [(scene.description.caption(split == "paraphrase"),) for scene in scenes]
                return ArrayExamples({"x": pictures}), captions
            case "emoji":
                own = [(caption,) for caption in emoji_captions(self.dir, split)]
                return read_emoji(self.dir, split, self.image_size, self.channels or 3), own
        base, _ = folder_files(self.dir, split)
        examples, paths = self.folder_pictures(split)
        return examples, captions_of(base, buckets.folder(self.dir), paths, self.captions)

    def folder_pictures(self, split: str) -> tuple[Examples, list[Path]]:
        """Pictures of a split of a folder, and the file of each."""
        return folder_images(self.dir, split, self.image_size, self.channels or 3, (), self.skip_corrupt)

    def num_examples(self, split: str) -> int:
        """Examples of a split of scenes."""
        return self.num_made if split == "train" else self.num_held_out

    def documents(self, split: str) -> list[str]:
        if self.name == "scenes":
            return lexicon()
        return [caption for captions in self.references(split) for caption in captions]

    def load_split(self, split: str) -> Examples:
        examples, captions = _read(self, split)
        return with_arrays(self._prepared(examples, split), self._rows_of(captions, split))

    def _rows_of(self, captions: Sequence[tuple[str, ...]], split: str) -> dict[str, np.ndarray]:
        """Captions as `captions` int32 [N, C, T], `captions_mask`, and the number of each picture's, `num_captions`
        [N].
        """
        most = max(map(len, captions))
        encoded = [ids for own in captions for ids in self.make_tokenizer().encode_all(own)]
        num_cut = sum(self._length(ids) > self.sequence_length for ids in encoded)
        if num_cut:
            _logger.warning(
                "%d of %d captions of %s are longer than data.sequence_length=%d tokens and are cut",
                num_cut, len(encoded), split, self.sequence_length,
            )  # fmt: skip
        tokens, mask = self._framed_rows(encoded)
        counts = np.array([len(own) for own in captions], np.int32)
        # A picture with fewer captions than others repeats its first, which is never drawn.
        firsts = np.cumsum(counts) - counts
        places = np.arange(most)[None]
        rows = firsts[:, None] + np.where(places < counts[:, None], places, 0)
        return {"captions": tokens[rows], "captions_mask": mask[rows], "num_captions": counts}

    def _framed_rows(self, encoded: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        start = self._start
        length = self.sequence_length - len(start)
        return self.pad([[*start, *self.framed(ids, length)] for ids in encoded], self.sequence_length)

    @property
    def _start(self) -> tuple[int, ...]:
        # A checkpoint's tokenizer may put a start token of its own.
        return () if self.make_tokenizer().frame[0] else (self.start_token,)

    def _length(self, ids: np.ndarray) -> int:
        """Tokens of a caption with its start and end."""
        return len(self._start) + len(self.framed(ids))

    def prompts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Texts as a model sees captions: `tokens` int32 [N, T] and `mask`.

        Raises:
          DataError: a text has a word or a symbol that the tokenizer does not know, or is too long.
        """
        encoded = [self.make_tokenizer().encode(text.strip()) for text in texts]
        for text, ids in zip(texts, encoded):
            if self._length(ids) > self.sequence_length:
                raise DataError(
                    f"the prompt {text[:60]!r} has {len(ids)} tokens; with data.sequence_length={self.sequence_length} "
                    f"the longest has {self.sequence_length - self._length(ids[:0])}"
                )
        tokens, mask = self._framed_rows(encoded)
        return {"tokens": tokens, "mask": mask}

    def outline(self) -> Outline | None:
        """Nothing: captions and their tokenizer tell the size of the vocabulary."""
        return None

    def spec(self) -> dict[str, Any]:
        """data_shape (H, W, C), range and num_levels; vocab_size and special tokens, sequence_length T."""
        return {**Images.spec(self), **DelimitedText.spec(self), "sequence_length": self.sequence_length}

    def save(self, workdir: Path) -> None:
        """Writes the tokenizer into the run's directory, and of a folder the list of training files.

        Raises:
          DataError: the run has others.
        """
        DelimitedText.save(self, workdir)
        if self.name == "folder":
            save_training_files(workdir, self._training_files())

    def beside(self, workdir: Path) -> CaptionedImages:
        """The same data with the tokenizer of a run, where it has one."""
        return DelimitedText.beside(self, workdir)

    def going_on(self, workdir: Path) -> CaptionedImages:
        return DelimitedText.going_on(self, workdir)

    def label_names(self) -> tuple[str, ...]:
        """Names of the categories of emoji; nothing else has classes."""
        return super().label_names() if self.name == "emoji" else ()

    # ------------------------------------------------------------------------------------------------------------------
    # On the device

    def augment(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        caption_key, key = jax.random.split(key)
        batch = super().augment(batch, key)
        if batch["captions"].shape[1] == 1:
            return batch
        keys = example_keys(caption_key, batch)
        chosen = jax.vmap(lambda k, n: jax.random.randint(k, (), 0, n))(keys, batch["num_captions"])
        first = lambda a: jnp.take_along_axis(a, chosen[:, None, None], axis=1)
        return {**batch, "captions": first(batch["captions"]), "captions_mask": first(batch["captions_mask"])}

    def transform(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        batch = super().transform(batch, key)
        tokens, mask = batch.pop("captions")[:, 0], batch.pop("captions_mask")[:, 0]
        del batch["num_captions"]
        return {**batch, "tokens": tokens, "mask": mask}

    def write_samples(self, samples: np.ndarray, stem: Path) -> list[Path]:
        """Writes pictures [N, H, W, C] in rows of one PNG, or captions [N, T] as lines of one text."""
        if np.ndim(samples) == 2 and np.issubdtype(np.asarray(samples).dtype, np.integer):
            return write_lines(stem, [self.decode(row) for row in samples])
        return Images.write_samples(self, samples, stem)

    def beginning(self, text: str, with_picture: bool = True) -> np.ndarray:
        """The tokens [P] that a model continues after a prompt: here, the first words of a caption.

        Args:
          text: the prompt.
          with_picture: whether a picture is given.

        Raises:
          DataError: the prompt has words that the tokenizer does not know.
        """
        del with_picture
        return super().beginning(text)

    def opening(self, texts: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray]:
        """What a model reads before it writes: `prompts` int32 [N, P], padded on the right, and their lengths [N].

        Args:
          texts: the question about each picture; None for captions, as here.

        Raises:
          DataError: a question is given.
        """
        if any(text is not None for text in texts):
            raise DataError(f"the captions of {self.name} answer no questions; leave --question out")
        return np.full((len(texts), 1), self.start_token, np.int32), np.ones(len(texts), np.int32)

    def write_answers(self, batch: dict[str, np.ndarray], answers: np.ndarray, stem: Path) -> list[Path]:
        """Writes the pictures of a batch as one PNG, and a text with a line for each: what was written [N, T] of it,
        and after a tab what the data say.
        """
        true = [self.answer_of(row) for row in np.asarray(batch["tokens"])]
        lines = [f"{self.decode(row).strip()}\t{text}" for row, text in zip(answers, true)]
        return [*write_lines(stem, lines), *Images.write_samples(self, batch["source"], stem)]

    def answer_of(self, tokens: np.ndarray) -> str:
        """The text of a row [T] of `tokens` that a model shall write."""
        return self.decode(tokens).strip()

    def protocol(self) -> str:
        return f"{super().protocol()}, tokenizer {self.tokenizer_name}, captions cut at {self.sequence_length} tokens"


def with_arrays(pictures: Examples, arrays: dict[str, np.ndarray]) -> Examples:
    """Pictures with arrays of their texts, a row for each."""
    own = pictures.arrays()
    return Captioned(pictures, arrays) if own is None else ArrayExamples({**own, **arrays})


class Captioned:
    """Pictures that are read when they are asked for, with their captions' arrays.

    Args:
      pictures: the pictures.
      captions: arrays with a row for each.
    """

    def __init__(self, pictures: Examples, captions: dict[str, np.ndarray]) -> None:
        self._pictures, self._captions = pictures, captions

    def __len__(self) -> int:
        return len(self._pictures)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        return {**self._pictures.gather(indices), **{name: a[indices] for name, a in self._captions.items()}}

    def arrays(self) -> None:
        return None


@functools.lru_cache(maxsize=8)
def _read(data: CaptionedImages, split: str) -> tuple[Examples, list[tuple[str, ...]]]:
    return data.read(split)
