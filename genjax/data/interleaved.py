"""Texts with pictures between their words, of Scenes.  <image> stands for the picture's token:

    either   <image> first <image> second what colour is the first? red
    shots    <image> this is dax <image> this is wug <image> this is dax

In `shots` made-up words stand for colours, in each row others: what a word means can be told from earlier pictures of
the same row alone.  Pictures show one thing each.

    train, validation, test   half of the rows ask about either picture, half have 0 to 4 shots
    either                    questions about either picture
    four_shots                four pictures with different colours, and a fifth with one of these
    no_shots                  the fifth picture of such rows alone
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from genjax.data.base import DataError, check_split
from genjax.data.files import with_ending
from genjax.data.fitting import PictureFile, read_given
from genjax.data.images import write_grid
from genjax.data.scenes.grammar import COLOURS, SIZES, Kind
from genjax.data.scenes.making import SEEN_PAIRS, make
from genjax.data.scenes.pictures import SIDE, render
from genjax.data.text.base import DelimitedText
from genjax.data.text.labelled import write_lines
from genjax.errors import number_of

SPLITS = ("train", "validation", "test", "either", "four_shots", "no_shots")
#: How a picture is written in a text.
IMAGE = "<image>"
#: Made-up words for colours.
WORDS = ("dax", "wug", "fep", "blick", "toma", "zib", "kiv", "gorp")
#: Largest number of pictures of a row: four shots and the picture that is asked about.
MOST = 5
_PLACES = ("first", "second")
_ASKED = ("colour", "shape", "size")
_SHOWN = "this is"


class Piece(NamedTuple):
    """A part of a row: a text, whether it counts in the loss, and whether it ends there."""

    text: str
    counted: bool = False
    ends: bool = False


class Row(NamedTuple):
    """A text with pictures: their numbers in the pool of the split, and its parts, where a picture's is IMAGE."""

    pictures: list[int]
    pieces: list[Piece]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interleaved(DelimitedText):
    """Pictures `x` [B, 5, H, W, C] in [-1, 1] and the texts around them: `tokens`, `mask`, and `loss_mask`.

    Rows with fewer pictures are filled up with grey ones.  `loss_mask` is True at answers and their ends.

    Attributes:
      name: scenes, which is made.
      tokenizer: kind of the tokens.
      sequence_length: tokens T of a row with its start and ends.
      num_made: training rows.
      num_held_out: rows of each other split.
      num_pictures: different pictures of the training rows; other splits have a quarter as many.
    """

    flag_name: ClassVar[str] = "interleaved"

    name: str = "scenes"
    tokenizer: Literal["characters", "bytes", "words", "bpe", "unigram"] = "words"
    sequence_length: int = 26
    num_made: int = 20_000
    num_held_out: int = 600
    num_pictures: int = 4000

    def __post_init__(self) -> None:
        super().__post_init__()
        for field, least in (("sequence_length", 26), ("num_made", 1), ("num_held_out", 1), ("num_pictures", 400)):
            if getattr(self, field) < least:
                raise DataError(f"data.{field}={getattr(self, field)} must be at least {least}")

    # ------------------------------------------------------------------------------------------------------------------
    # Reading

    def rows(self, split: str) -> list[Row]:
        """The rows of a split."""
        return _rows(self, split)

    def documents(self, split: str) -> list[str]:
        """Texts that together have every word."""
        del split
        answers = (*COLOURS, *SIZES, *dict.fromkeys(shape for _, shape in SEEN_PAIRS), *WORDS)
        questions = (f" what {asked} is the {place}?" for asked in _ASKED for place in _PLACES)
        return [*(f" {word}" for word in (*answers, *_PLACES)), f" {_SHOWN}", *questions]

    @property
    def image_token(self) -> int:
        """The token that stands where a picture is."""
        return super().spec()["vocab_size"]

    def encoded(self, pieces: Sequence[Piece]) -> tuple[list[int], list[bool]]:
        """Tokens of a row from its start on, and which of them count."""
        encode = self.make_tokenizer().encode
        tokens, counted = [self.start_token], [False]
        for piece in pieces:
            ids = [self.image_token] if piece.text == IMAGE else [int(i) for i in encode(f" {piece.text}")]
            ids = [*ids, self.separator_token] if piece.ends else ids
            tokens, counted = [*tokens, *ids], [*counted, *[piece.counted] * len(ids)]
        return tokens, counted

    def load_split(self, split: str) -> _InterleavedExamples:
        rows = self.rows(split)
        encoded = [self.encoded(row.pieces) for row in rows]
        tokens, mask = self.pad([ids for ids, _ in encoded], self.sequence_length)
        counted = np.zeros_like(mask)
        pictures = np.full((len(rows), MOST), -1, np.int32)
        for own, places, (_, counts), row in zip(counted, pictures, encoded, rows):
            own[: len(counts)] = counts
            places[: len(row.pictures)] = row.pictures
        arrays = {"tokens": tokens, "mask": mask, "loss_mask": counted}
        return _InterleavedExamples(_pool(self, split)[0], pictures, arrays)

    def spec(self) -> dict[str, Any]:
        """data_shape (N, H, W, C); vocab_size and special tokens with image_token, sequence_length T."""
        own = {"vocab_size": self.image_token + 1, "image_token": self.image_token}
        shape = (MOST, SIDE, SIDE, 3)
        return {**super().spec(), **own, "data_shape": shape, "sequence_length": self.sequence_length}

    # ------------------------------------------------------------------------------------------------------------------
    # On the device, and for tools

    def transform(self, batch: dict[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        del key
        return {**batch, "x": batch["x"].astype(jnp.float32) / 127.5 - 1.0}

    def read_prompt(self, text: str, files: Sequence[PictureFile]) -> tuple[jax.Array, np.ndarray]:
        """A text with pictures as a model reads it: float32 [1, N, H, W, C], and tokens int32 [1, P].

        Args:
          text: with <image> where each picture stands, and <EOC> where a text of a picture ends.
          files: the pictures in the same order.

        Raises:
          DataError: there are not as many pictures as <image>, or too many; a word is not known; or a picture cannot be
            read.
        """
        parts = text.split(IMAGE)
        count = len(parts) - 1
        hint = f"write {IMAGE} in --prompt where each picture stands, and name the files in --image in the same order"
        if count != len(files):
            tokens, pictures = number_of(count, "image token"), number_of(len(files), "picture")
            raise DataError(f"the prompt has {tokens} for {pictures}, each worth one token; {hint}")
        if not 1 <= count <= MOST:
            raise DataError(f"the prompt has {number_of(count, 'picture')}, and the model reads 1 to {MOST}; {hint}")
        pieces = []
        for i, part in enumerate(parts):
            pieces += [Piece(IMAGE)] if i else []
            *ended, last = part.split("<EOC>")
            pieces += [Piece(each.strip(), ends=True) for each in ended]
            pieces += [Piece(last.strip())] if last.strip() else []
        levels = [read_given(file, (SIDE, SIDE), 3) for file in files]
        x = self.transform({"x": jnp.asarray(np.stack(levels)[None])}, jax.random.key(0))["x"]
        return x, np.array([self.encoded(pieces)[0]], np.int32)

    def decode(self, tokens: np.ndarray) -> str:
        """Text of a row [T] with its pictures, up to the first end."""
        ids = np.asarray(tokens).tolist()
        ids = ids[: ids.index(self.separator_token)] if self.separator_token in ids else ids
        return self.written(ids).strip()

    def written(self, tokens: Sequence[int]) -> str:
        """A whole row with its pictures and ends."""
        names = {self.image_token: f" {IMAGE}", self.separator_token: " <EOC>"}
        left_out = (self.start_token, self.padding_token)
        return "".join(names.get(i) or self._show([i]) for i in map(int, tokens) if i not in left_out)

    def write_samples(self, samples: np.ndarray, stem: Path) -> list[Path]:
        """Writes texts [N, T] as lines."""
        return write_lines(stem, [self.decode(row) for row in samples])

    def write_answers(self, batch: dict[str, np.ndarray], answers: np.ndarray, stem: Path) -> list[Path]:
        """Writes the pictures of a batch as one PNG with a row for each text, and a text with a line for each: what
        was written [N, T], and after a tab the whole row.
        """
        rows = zip(answers, np.asarray(batch["tokens"]))
        lines = [f"{self.decode(answer)}\t{self.written(tokens).strip()}" for answer, tokens in rows]
        pictures = (np.asarray(batch["source"]) + 1.0) / 2.0
        picture = with_ending(stem, ".png")
        write_grid(pictures.swapaxes(1, 2).reshape(len(pictures), SIDE, -1, 3), picture)
        return [*write_lines(stem, lines), picture]

    def protocol(self) -> str:
        return f"up to {MOST} pictures of {SIDE} x {SIDE} a text, tokenizer {self.tokenizer_name}"


class _InterleavedExamples:
    """Rows that take their pictures from a pool.

    Args:
      pool: uint8 [P, H, W, C].
      pictures: numbers of the pictures of each row int32 [N, M], -1 for none.
      arrays: what else there is of each row.
    """

    def __init__(self, pool: np.ndarray, pictures: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
        # Number -1 takes the last one, which is grey.
        self._pool = np.concatenate([pool, np.full_like(pool[:1], 128)])
        self._pictures, self._arrays = pictures, arrays

    def __len__(self) -> int:
        return len(self._pictures)

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        rest = {name: a[indices] for name, a in self._arrays.items()}
        return {"x": self._pool[self._pictures[indices]], **rest}

    def arrays(self) -> None:
        return None


@functools.lru_cache(maxsize=8)
def _pool(data: Interleaved, split: str) -> tuple[np.ndarray, list[Kind]]:
    """The pictures of a split, and what each shows; pairs of colour and shape take turns."""
    count = data.num_pictures if split == "train" else data.num_pictures // 4
    rng = np.random.default_rng([2000 + SPLITS.index(split), 0])
    kinds = [Kind(SIZES[rng.integers(2)], *SEEN_PAIRS[i % len(SEEN_PAIRS)]) for i in range(count)]
    return render([make(rng, lambda kind=kind: [kind]) for kind in kinds]), kinds


@functools.lru_cache(maxsize=8)
def _rows(data: Interleaved, split: str) -> list[Row]:
    if data.name != "scenes":
        raise DataError(f"data.name={data.name} is no set of texts with pictures between them: scenes")
    check_split(split, SPLITS, data.name)
    _, kinds = _pool(data, split)
    rng = np.random.default_rng([3000 + SPLITS.index(split), 0])
    by_colour = {colour: [i for i, kind in enumerate(kinds) if kind.colour == colour] for colour in COLOURS}

    def shots(count: int, distinct: bool) -> Row:
        words = dict(zip(COLOURS, rng.permutation(WORDS)))
        colours = list(COLOURS)
        shown = [str(c) for c in (rng.permutation(colours)[:count] if distinct else rng.choice(colours, count))]
        asked = shown[rng.integers(count)] if count else colours[rng.integers(len(colours))]
        pictures = [by_colour[c][rng.integers(len(by_colour[c]))] for c in (*shown, asked)]
        pieces = []
        for i, colour in enumerate((*shown, asked)):
            # A word counts where an earlier picture has told it, and in a row of one picture, whose word is a guess.
            counted = colour in shown[:i] or not count
            pieces += [Piece(IMAGE), Piece(_SHOWN), Piece(str(words[colour]), counted, ends=True)]
        return Row(pictures, pieces)

    def either() -> Row:
        pictures = [int(i) for i in rng.integers(len(kinds), size=len(_PLACES))]
        place, asked = int(rng.integers(len(_PLACES))), _ASKED[rng.integers(len(_ASKED))]
        answer = getattr(kinds[pictures[place]], asked)
        shown = [piece for name in _PLACES for piece in (Piece(IMAGE), Piece(name))]
        question = Piece(f"what {asked} is the {_PLACES[place]}?")
        return Row(pictures, [*shown, question, Piece(answer, True, True)])

    made = {
        "either": lambda i: either(),
        "four_shots": lambda i: shots(MOST - 1, True),
        "no_shots": lambda i: shots(0, True),
    }
    mixed = lambda i: shots(int(rng.integers(MOST)), False) if i % 2 else either()
    return [made.get(split, mixed)(i) for i in range(data.num_made if split == "train" else data.num_held_out)]
