"""Base of all text sets: a tokenizer that is saved with the run, padded rows, and special tokens.

With V pieces of the tokenizer, sets for encoders and for pairs of texts have four tokens more:

    V  start        V + 1  separator and end        V + 2  padding        V + 3  mask

They are the same in every such set, so that a checkpoint goes on with another task and the same tokenizer file.  The
tokenizer.json of another library's checkpoint has special tokens of its own, which are used then.  If words of another
domain are added (`added_tokens`), special tokens keep their ids, and the words get the ids behind them.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np

from genjax import buckets
from genjax.data.base import Data, DataError
from genjax.data.files import read_utf8, with_ending, write_whole
from genjax.data.text.documents import Documents
from genjax.data.text.library import CLIP_FILES
from genjax.data.text.token_files import MEMORY_BYTES
from genjax.data.text.tokenizer import SYMBOL_KINDS, Tokenizer, read_tokenizer, train_tokenizer
from genjax.data.text.trained import in_memory, made_once, sampled
from genjax.data.text.vocabulary import extended

TOKENIZER_FILE = "tokenizer.json"
#: Usual names of a split's files; any other split is the name of a file itself.
SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "test_2016_flickr"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizedData(Data):
    """A set of texts with a tokenizer.

    Attributes:
      tokenizer: characters, bytes, words with the blank before them, or byte-level bpe or unigram pieces trained on the
        training split.
      vocab_size: number of pieces of bpe and unigram.
      tokenizer_sample: largest number of characters that bpe and unigram are trained on, spread over the training
        split.
      tokenizer_file: a tokenizer to use instead, as a run saves it or a checkpoint has it; None takes the
        tokenizer of the checkpoint that the model starts from, if any.
      added_tokens: largest number of words of the training split that are added to tokenizer_file; see vocabulary.py.
    """

    renamed: ClassVar[dict[str, str]] = {"vocabulary": "vocab_size"}

    tokenizer: Literal["characters", "bytes", "words", "bpe", "unigram"] = "characters"
    vocab_size: int = 1024
    tokenizer_sample: int = 100_000_000
    tokenizer_file: str | None = None
    added_tokens: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.added_tokens < 0:
            raise DataError(f"data.added_tokens={self.added_tokens} must not be negative")
        if self.tokenizer_sample < 1:
            raise DataError(f"data.tokenizer_sample={self.tokenizer_sample} must be at least 1")

    @abc.abstractmethod
    def documents(self, split: str) -> list[str]:
        """The texts of a split."""

    def corpus(self, split: str) -> Documents:
        """The texts of a split, which need not all be in memory at once."""
        return in_memory(self.documents(split), self.dir)

    def make_tokenizer(self) -> Tokenizer:
        """The tokenizer.  Characters are collected from all splits; pieces are trained on the training split.

        The first process that asks trains the pieces, the others read them (trained.py).
        """
        return _tokenizer(self)

    def save(self, workdir: Path) -> None:
        """Writes the tokenizer beside the run, if it is not there.

        Raises:
          DataError: the run has another tokenizer.
        """
        path, content = Path(workdir) / TOKENIZER_FILE, self.make_tokenizer().to_json()
        if not path.is_file():
            write_whole(path, content)
        elif path.read_text(encoding="utf-8") != content:
            raise DataError(
                f"{path} is not the tokenizer of this text with these flags, so it does not belong to the "
                f"checkpoint; use the text that the run was trained on, --data.tokenizer_file={path} to keep its "
                "tokenizer, or another --workdir"
            )

    def beside(self, workdir: Path) -> Self:
        """The same data with the tokenizer of a run, where it has one."""
        path = Path(workdir) / TOKENIZER_FILE
        return self.with_tokenizer(path) if path.is_file() else self

    def going_on(self, workdir: Path) -> Self:
        """The same data with the tokenizer of a run; one that `tokenizer_file` names stays, for `save` to compare."""
        return self.beside(workdir) if self.tokenizer_file is None else self

    def with_tokenizer(self, file: str | Path) -> Self:
        """The same data with the tokenizer of a file as it is."""
        return dataclasses.replace(self, tokenizer_file=str(file), added_tokens=0)

    def special_ids(self) -> dict[str, int]:
        """Ids of the special tokens, by the names in `Tokenizer.special`: the file's if it has some, else above its
        ids.
        """
        return self.make_tokenizer().special

    def starting_from(self, folder: str | Path) -> Self:
        """The same data with the tokenizer of a checkpoint.

        Raises:
          DataError: the checkpoint has no tokenizer and none is given, `tokenizer_file` does not begin with its tokens,
            or the tokenizer has more tokens than the model.
        """
        file = _tokenizer_of(folder)
        if file.is_file():
            _check_size(file)
        if self.tokenizer_file is not None:
            if file.is_file():
                _check_begins_with(self, self.with_tokenizer(file), folder)
            return self
        if not file.parent.is_dir():
            raise DataError(f"{folder}, which the model shall start from, is not a folder")
        if not file.is_file():
            raise DataError(
                f"{folder} has no {TOKENIZER_FILE}; give the tokenizer of its model: --data.tokenizer_file=FILE"
            )
        return dataclasses.replace(self, tokenizer_file=str(file))

    def knows_tokens_of(self, folder: str | Path) -> bool:
        return _tokenizer_of(folder).is_file()

    @property
    def tokenizer_name(self) -> str:
        """Description of the tokenizer; evaluations print it."""
        tokenizer = self.make_tokenizer()
        return f"{tokenizer.kind} of {tokenizer.vocab_size} tokens"


def _tokenizer_of(folder: str | Path) -> Path:
    """The tokenizer of a checkpoint or of a pipeline of the library diffusers: tokenizer.json, which may be missing, or
    the vocabulary of CLIP's older files.
    """
    folder = buckets.workdir(folder)
    for place in (folder / "tokenizer", folder):
        if (place / TOKENIZER_FILE).is_file():
            return place / TOKENIZER_FILE
        if all((place / name).is_file() for name in CLIP_FILES):
            return place / CLIP_FILES[0]
    return folder / TOKENIZER_FILE


def _check_size(file: Path) -> None:
    """Raises DataError if a tokenizer has more tokens than another library's model in the same folder."""
    config_file = file.with_name("config.json")
    content = json.loads(read_utf8(config_file)) if config_file.is_file() else {}
    known, size = content.get("vocab_size"), read_tokenizer(file).vocab_size
    if isinstance(known, int) and size > known:
        raise DataError(f"{file} does not belong to its checkpoint: it has {size} tokens, and the model knows {known}")


def _check_begins_with(data: TokenizedData, earlier: TokenizedData, folder: str | Path) -> None:
    """Raises DataError unless the tokens of `data` begin with the tokens of `earlier`, of a checkpoint's tokenizer."""
    own, theirs = data.make_tokenizer(), earlier.make_tokenizer()
    hint = f"leave data.tokenizer_file out, or give one that begins with the {theirs.vocab_size} tokens of {folder}"
    if own.vocab_size < theirs.vocab_size:
        raise DataError(
            f"{data.tokenizer_file} does not belong to the checkpoint {folder}: it has {own.vocab_size} tokens and not "
            f"{theirs.vocab_size}; {hint}"
        )
    for i, (new, old) in enumerate(zip(own.pieces, theirs.pieces)):
        if new != old:
            raise DataError(
                f"{data.tokenizer_file} does not belong to the checkpoint {folder}: token {i} is "
                f"{new.decode(errors='replace')!r} and not {old.decode(errors='replace')!r}; {hint}"
            )
    moved = {name: i for name, i in earlier.special_ids().items() if data.special_ids().get(name, i) != i}
    if moved:
        name, i = next(iter(moved.items()))
        raise DataError(
            f"{data.tokenizer_file} does not belong to the checkpoint {folder}: its {name} token is "
            f"{data.special_ids()[name]} and not {i}; add tokens by --data.added_tokens=N, "
            "which leaves these where they are"
        )


@functools.lru_cache(maxsize=8)
def _tokenizer(data: TokenizedData) -> Tokenizer:
    if data.tokenizer_file is not None and not data.added_tokens:
        return read_tokenizer(data.tokenizer_file)
    earlier = None if data.tokenizer_file is None else data.with_tokenizer(data.tokenizer_file)
    if data.added_tokens and earlier is None:
        raise DataError(
            "data.added_tokens are added to the tokenizer of a checkpoint: start from one by --model.pretrained or "
            "--training.init_from, or name a file by --data.tokenizer_file"
        )
    kind = data.tokenizer if earlier is None else earlier.make_tokenizer().kind
    if kind == "bytes" and earlier is None:
        return train_tokenizer(kind, [], 0)
    # Symbols are collected from all splits: a missing symbol cannot be encoded, a missing word can.
    symbols = kind in SYMBOL_KINDS
    corpora = [data.corpus(split) for split in (("train", "validation", "test") if symbols else ("train",))]

    def make() -> Tokenizer:
        whole = (text for corpus in corpora for text in corpus)
        texts = whole if symbols else sampled(corpora, data.tokenizer_sample, f"the tokenizer of {data.name}")
        if earlier is None:
            return train_tokenizer(kind, texts, data.vocab_size)
        return extended(earlier.make_tokenizer(), list(texts), data.added_tokens, earlier.special_ids())

    if symbols and sum(corpus.num_bytes for corpus in corpora) <= MEMORY_BYTES:
        return make()
    before = "" if earlier is None else f"{earlier.make_tokenizer().to_json()} {earlier.special_ids()}"
    settings = [kind, str(data.vocab_size), str(data.tokenizer_sample), str(data.added_tokens), before]
    return made_once(make, corpora, settings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DelimitedText(TokenizedData):
    """Texts between special tokens, padded to one length."""

    def special_ids(self) -> dict[str, int]:
        tokenizer = self.make_tokenizer()
        above = {name: tokenizer.vocab_size + i for i, name in enumerate(("start", "separator", "padding", "mask"))}
        return tokenizer.special or above

    def _special(self, *roles: str) -> int:
        """The id of the first of the given roles that the tokenizer has; -1 if it has none of them."""
        special = self.special_ids()
        return next((special[role] for role in roles if role in special), -1)

    def _mark(self, *roles: str) -> int:
        """The id of the first of the given roles that the tokenizer has.

        Raises:
          DataError: the tokenizer has special tokens, but none with these roles.
        """
        token = self._special(*roles)
        if token < 0:
            raise DataError(
                f"{self.tokenizer_file} has no token that begins or ends a text, as [CLS] and [SEP] or <s> and </s> do"
            )
        return token

    @property
    def start_token(self) -> int:
        """The token that begins every row ([CLS], <s>)."""
        return self._mark("start", "padding", "separator")

    @property
    def separator_token(self) -> int:
        """The token that ends every text ([SEP], </s>)."""
        return self._mark("separator", "start")

    @property
    def padding_token(self) -> int:
        """The token that fills the rest of a row."""
        return self._mark("padding", "separator", "start")

    @property
    def mask_token(self) -> int:
        """The token that stands for a hidden token; -1 if a checkpoint's tokenizer has none."""
        return self._special("mask")

    def spec(self) -> dict[str, Any]:
        """vocab_size, and the special tokens by name (first_sentinel where the tokenizer has one)."""
        special = {
            "start_token": self.start_token,
            "separator_token": self.separator_token,
            "end_token": self.separator_token,
            "padding_token": self.padding_token,
            "mask_token": self.mask_token,
            "first_sentinel": self._special("first_sentinel"),
        }
        found = {name: token for name, token in special.items() if token >= 0}
        size = max(self.make_tokenizer().vocab_size, *(token + 1 for token in found.values()))
        hidden = tuple(dict.fromkeys((self.start_token, self.separator_token, self.padding_token)))
        return {"vocab_size": size, **found, "special_tokens": hidden}

    def framed(self, ids: np.ndarray, length: int | None = None) -> list[int]:
        """A text with a separator behind it and the tokens that a checkpoint's tokenizer adds, cut
        to `length` tokens.
        """
        before, behind = self.make_tokenizer().frame
        behind = behind if self.separator_token in behind else (*behind, self.separator_token)
        room = None if length is None else length - len(before) - len(behind)
        return [*before, *ids[:room], *behind]

    def enclosed(self, ids: np.ndarray, length: int) -> list[int]:
        """A text between its start and its end, as encoders read it, cut to `length` tokens."""
        if self.make_tokenizer().kind == "file":
            return self.framed(ids, length)
        return [self.start_token, *self.framed(ids, length - 1)]

    def source_ids(self, text: str) -> list[int]:
        """A text as an encoder reads it."""
        return self.framed(self.make_tokenizer().encode(text))

    def beginning(self, text: str) -> np.ndarray:
        """The tokens [P] that a model continues after the first words of a text, which may be empty.

        Raises:
          DataError: the text has words or symbols that the tokenizer does not know.
        """
        words = self.make_tokenizer().encode(text.strip()) if text.strip() else ()
        return np.array([self.start_token, *words], np.int32)

    def pad(self, rows: Sequence[Sequence[int] | np.ndarray], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of at most `length` tokens, padded to int32 [N, length]; and a mask that is False at padding."""
        tokens = np.full((len(rows), length), self.padding_token, np.int32)
        for place, row in zip(tokens, rows):
            place[: len(row)] = row
        sizes = np.array([len(row) for row in rows], np.int64)
        return tokens, np.arange(length)[None] < sizes[:, None]

    def decode(self, tokens: np.ndarray) -> str:
        """Text of a row [T]: from after the start to the first separator, other special tokens shown in brackets."""
        ids = np.asarray(tokens).tolist()
        # Targets of BART begin with the end token, and then with the start token.
        if ids and ids[0] in (self.start_token, self.separator_token):
            ids = ids[1 + (ids[1:2] == [self.start_token]) :]
        ids = ids[: ids.index(self.separator_token)] if self.separator_token in ids else ids
        return self._show(i for i in ids if i != self.padding_token)

    def _show(self, ids: Iterable[int]) -> str:
        tokenizer = self.make_tokenizer()
        names = {self.start_token: b"[start]", self.separator_token: b"[separator]", self.padding_token: b"[padding]"}
        names[self.mask_token] = b"[mask]"
        # Bytes are joined first, since a character may be divided among tokens.
        known = lambda i: i < tokenizer.vocab_size and (tokenizer.pieces[i] or i not in names)
        pieces = (tokenizer.pieces[i] if known(i) else names.get(i, b"[%d]" % i) for i in ids)
        return b"".join(pieces).decode(errors="replace")

    def write_samples(self, samples: np.ndarray, stem: Path) -> list[Path]:
        """Writes one text file with a line of dashes between samples."""
        path = with_ending(stem, ".txt")
        rule = "\n" + "-" * 80 + "\n"
        path.write_text(rule.join(self.decode(row) for row in samples) + "\n", encoding="utf-8")
        return [path]

    def write_answers(self, batch: dict[str, np.ndarray], answers: np.ndarray, stem: Path) -> list[Path]:
        """Writes one text file: the source of each example of a batch, its answer [B, T] and its target."""
        path = with_ending(stem, ".txt")
        names, rows = ("source", "answer", "target"), zip(batch["source"], answers, batch["tokens"])
        blocks = ["".join(f"{name}  {self.decode(row)}\n" for name, row in zip(names, block)) for block in rows]
        path.write_text("\n".join(blocks), encoding="utf-8")
        return [path]
