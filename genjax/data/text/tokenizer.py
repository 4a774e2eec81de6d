"""Tokenizers: characters, bytes, words, SMILES symbols, and byte-level BPE or unigram pieces trained on the user's
text.

All of them give every id its text as bytes (`pieces`), encode without loss and are saved as JSON beside a run.  The
tokenizer.json of a checkpoint is read too, and the older files of CLIP's tokenizer, vocab.json and merges.txt.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from genjax.config import suggestion
from genjax.data.base import DataError
from genjax.data.files import read_utf8
from genjax.data.text.library import CLIP_FILES, clip_library, opened_library, tokenizers_library
from genjax.errors import number_of

#: Symbols of SMILES: bracket atoms, two-letter elements, ring numbers above 9, and single characters (Schwaller et al.
#: 2018).
_SMILES = re.compile(r"\[[^\]]+\]|Br|Cl|%\d\d|.", re.DOTALL)
#: Words with the blanks before them, and blanks at the end.
_WORDS = re.compile(r"\s*\S+|\s+")
#: Kinds of tokenizers whose vocabulary is the symbols that occur.
SYMBOL_KINDS = ("characters", "words", "smiles")


#: Names that special tokens go by in files of other libraries, the usual ones first.
_SPECIAL = {
    "start": ("[CLS]", "<s>", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>"),
    "separator": ("[SEP]", "</s>", "<|end_of_text|>", "<|endoftext|>"),
    "padding": ("[PAD]", "<pad>"),
    "mask": ("[MASK]", "<mask>"),
    "first_sentinel": ("<extra_id_0>",),
}

#: Beginning of the names of tokens that no text can contain: a character for private use.
RESERVED = "\ue000"


class UnknownSymbolError(DataError):
    """A text with a symbol that the tokenizer does not have."""


class Tokenizer:
    """Maps text to ids and back.

    Attributes:
      kind: characters, bytes, words, smiles, bpe or unigram; or file for a tokenizer.json of another library.
      pieces: text of each id as bytes (approximate for files whose subwords carry marks).
      library: the content of a tokenizer.json of the library tokenizers, or None.
      special: ids of the special tokens start, separator, padding and mask, if the file has them, or if the vocabulary
        was extended and they keep their ids.
    """

    def __init__(
        self, kind: str, pieces: list[bytes], library: str | None = None, special: Mapping[str, int] | None = None
    ) -> None:
        self.kind, self.pieces, self.library = kind, pieces, library
        self._ids = {piece: i for i, piece in enumerate(pieces)}
        self.special: dict[str, int] = dict(special or {})
        self._library: Any = None
        if library is not None:
            self._library = opened_library(library)
            if kind == "file":
                self.special = {role: self._library.token_to_id(n) for role, names in _SPECIAL.items()
                                for n in reversed(names) if self._library.token_to_id(n) is not None}  # fmt: skip

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self.pieces)

    @functools.cached_property
    def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Tokens that a checkpoint's tokenizer puts before and behind a text; other tokenizers put none."""
        if self.kind != "file":
            return (), ()
        bare, framed = (self._library.encode("a", add_special_tokens=marks).ids for marks in (False, True))
        places = (i for i in range(len(framed)) if framed[i : i + len(bare)] == bare)
        first = next(places, len(framed))
        return tuple(framed[:first]), tuple(framed[first + len(bare) :])

    @functools.cached_property
    def num_characters(self) -> np.ndarray:
        """Characters that begin in each id's text, int32 [V]; their sum over a text is its length."""
        # Bytes 10xxxxxx continue a character in UTF-8.
        counts = np.array([sum(byte & 0xC0 != 0x80 for byte in piece) for piece in self.pieces], np.int32)
        counts[list(self.special.values())] = 0
        return counts

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, int32 [N].

        Raises:
          UnknownSymbolError: a character is not in the vocabulary.
          DataError: the text has half of a surrogate pair.
        """
        if self.kind == "bytes":
            check_unicode(text)
            return np.frombuffer(text.encode(), np.uint8).astype(np.int32)
        if self._library is not None:
            check_unicode(text)
            return np.array(self._library.encode(text, add_special_tokens=False).ids, np.int32)
        try:
            return np.array([self._of_symbol[s] for s in symbols_of(self.kind, text)], np.int32)
        except KeyError as error:
            raise UnknownSymbolError(self._unknown(error.args[0])) from None

    def _unknown(self, symbol: str) -> str:
        """The sentence about a symbol that the tokenizer does not have."""
        word = symbol.strip()
        if self.kind != "words" or not word:
            known = number_of(self.vocab_size, "symbol")
            return f"the text has {symbol!r}, which is not among the {known} of the tokenizer"
        # Of a word with a blank before it, and of one without, the tokenizer may know one alone.
        same = [own for own in self._of_symbol if own.strip() == word]
        if same:
            return f"the text has the word {symbol!r}, which the tokenizer knows as {same[0]!r}, blanks included"
        close = suggestion(word, sorted({own.strip() for own in self._of_symbol}))
        known = number_of(self.vocab_size, "word")
        return f"the text has the word {word!r}, which is not among the {known} of the tokenizer{close}"

    def encode_all(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """Ids of each text, int32 [N]; a library's tokenizer encodes several at once, on all cores."""
        if self._library is None:
            yield from map(self.encode, texts)
            return
        for part in _parts(texts, 4_000_000):
            for text in part:
                check_unicode(text)
            for encoding in self._library.encode_batch_fast(part, add_special_tokens=False):
                yield np.array(encoding.ids, np.int32)

    def spans(self, text: str) -> np.ndarray:
        """For each id, the place of its first character in the text and of the character after its last, int [N, 2]."""
        check_unicode(text)
        if self._library is not None:
            return np.array(self._library.encode(text, add_special_tokens=False).offsets, int).reshape(-1, 2)
        byte_ends = np.cumsum([len(character.encode()) for character in text] or [0])
        ends = np.cumsum([len(self.pieces[i]) for i in self.encode(text)], dtype=int)
        starts = np.append(0, ends)[: len(ends)]
        places = [np.searchsorted(byte_ends, starts, "right"), np.searchsorted(byte_ends, ends, "left") + 1]
        return np.stack(places, axis=1)

    @functools.cached_property
    def control_tokens(self) -> dict[str, int]:
        """Ids of the tokens that begin and end parts of a text, by the strings that stand for them; a file's only."""
        if self.kind != "file":
            return {}
        added = self._library.get_added_tokens_decoder()
        return {token.content: i for i, token in added.items() if token.special}

    def encode_with_control_tokens(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids of a text, int32 [N], and their places in it, int [N, 2]; control tokens are read as such."""
        check_unicode(text)
        encoding = self._library.encode(text, add_special_tokens=False)
        return np.array(encoding.ids, np.int32), np.array(encoding.offsets, int).reshape(-1, 2)

    def encode_as_text(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids of a text, int32 [N], and their places in it, int [N, 2]; strings of control tokens are text too."""
        if self._library is None:
            return self.encode(text), self.spans(text)
        check_unicode(text)
        encoding = self._reader_of_text.encode(text, add_special_tokens=False)
        return np.array(encoding.ids, np.int32), np.array(encoding.offsets, int).reshape(-1, 2)

    @functools.cached_property
    def _reader_of_text(self) -> Any:
        """A copy of the library's tokenizer that takes no string for a special token."""
        opened = opened_library(self.library)
        opened.encode_special_tokens = True
        return opened

    @functools.cached_property
    def _of_symbol(self) -> dict[str, int]:
        return {piece.decode(): i for piece, i in self._ids.items()}

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids.

        Raises:
          DataError: an id lies outside the vocabulary.
        """
        ids = [int(i) for i in ids]
        bad = [i for i in ids if not 0 <= i < self.vocab_size]
        if bad:
            raise DataError(f"token {bad[0]} lies outside the vocabulary of {self.vocab_size} tokens")
        if self.kind == "file":
            return self._library.decode(ids, skip_special_tokens=False)
        return b"".join(self.pieces[i] for i in ids).decode(errors="replace")

    def to_json(self) -> str:
        """The tokenizer as JSON text, for `from_json`."""
        pieces = None if self.library else [p.decode("latin-1") for p in self.pieces]
        content = {"kind": self.kind, "pieces": pieces, "library": self.library}
        if self.special and self.kind != "file":
            content["special"] = self.special
        return json.dumps(content, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Reads what `to_json` wrote, or the tokenizer.json of a checkpoint of the library transformers.

        Raises:
          DataError: it is no tokenizer.
        """
        try:
            content = json.loads(text)
            if "added_tokens" in content and "model" in content:
                return cls.of_library("file", text)
            kind, library, special = content["kind"], content["library"], content.get("special")
            pieces = None if library is not None else [p.encode("latin-1") for p in content["pieces"]]
        except DataError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError("it is damaged; it is not what a run of this project wrote") from None
        return cls(kind, pieces, special=special) if pieces is not None else cls.of_library(kind, library, special)

    @classmethod
    def of_library(cls, kind: str, library: str, special: Mapping[str, int] | None = None) -> Tokenizer:
        """A tokenizer that the library tokenizers runs, from the content of its tokenizer.json."""
        content = json.loads(library) if kind == "file" else None
        return cls(kind, _library_pieces(opened_library(library), content), library, special)

    def normalize(self, text: str) -> str:
        """The text as the pieces see it, in lower case where a checkpoint's tokenizer makes it so."""
        normalizer = None if self._library is None else self._library.normalizer
        return text if normalizer is None else normalizer.normalize_str(text)


def symbols_of(kind: str, text: str) -> Iterable[str]:
    """The symbols of a text in their order, for a kind in SYMBOL_KINDS."""
    match kind:
        case "smiles":
            return _SMILES.findall(text)
        case "words":
            return _WORDS.findall(text)
    return text


def check_unicode(text: str, name: str = "the text") -> None:
    """Raises DataError if a text has half of a surrogate pair: Python's sign for a byte that is not UTF-8, or half a
    character.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{name} has at {text[max(error.start - 20, 0) : error.end]!r} a byte that is not UTF-8, "
            "or half of a character; convert or remove it"
        ) from None


def _parts(texts: Iterable[str], characters: int) -> Iterator[list[str]]:
    """Lists of texts with about `characters` characters each, so that few texts are in memory."""
    part, size = [], 0
    for text in texts:
        part.append(text)
        size += len(text)
        if size >= characters:
            yield part
            part, size = [], 0
    if part:
        yield part


def train_tokenizer(kind: str, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Makes a tokenizer of a corpus.

    Args:
      kind: characters, bytes, words, smiles, bpe or unigram.
      texts: the corpus.
      vocab_size: largest number of pieces, for bpe and unigram.
    """
    if kind == "bytes":
        return Tokenizer(kind, [bytes([b]) for b in range(256)])
    if kind in SYMBOL_KINDS:
        symbols = {s for text in texts for s in symbols_of(kind, text)}
        return Tokenizer(kind, [s.encode() for s in sorted(symbols)])
    if vocab_size <= 256:
        raise DataError(f"data.vocab_size={vocab_size} must exceed 256, the number of bytes")
    library = tokenizers_library()
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    if kind == "bpe":
        tokenizer = library.Tokenizer(library.models.BPE())
        options = {"vocab_size": vocab_size, "initial_alphabet": alphabet, "show_progress": False}
        trainer = library.trainers.BpeTrainer(**options)
    else:
        tokenizer = library.Tokenizer(library.models.Unigram())
        options = {"vocab_size": vocab_size, "initial_alphabet": alphabet, "show_progress": False}
        trainer = library.trainers.UnigramTrainer(**options)
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    # In parts, because the library takes one long text as one unit of work.
    lines = (text[i : i + 10_000] for text in texts for i in range(0, len(text), 10_000))
    tokenizer.train_from_iterator(lines, trainer)
    return Tokenizer(kind, _library_pieces(tokenizer), tokenizer.to_str())


def _library_pieces(tokenizer: Any, content: dict[str, Any] | None = None) -> list[bytes]:
    """Pieces of a vocabulary as bytes; in vocabularies that are not byte-level, marks of words and
    bytes are resolved.
    """
    table = _byte_of_character()
    # Ids of a file may have gaps.
    pieces = [tokenizer.id_to_token(i) or "" for i in range(max(tokenizer.get_vocab().values()) + 1)]
    if content is None or "ByteLevel" in json.dumps(content.get("decoder")):
        # Added tokens are kept as text, and not with a printable character for each byte.
        added = {str(token) for token in tokenizer.get_added_tokens_decoder().values()}
        texts = [
            bytes(map(table.__getitem__, p)) if p not in added and table.keys() >= set(p) else p.encode()
            for p in pieces
        ]
        if suffix := (getattr(tokenizer.model, "end_of_word_suffix", None) or "").encode():
            texts = [text.removesuffix(suffix) + b" " if text.endswith(suffix) else text for text in texts]
        return [b"" if text.startswith(RESERVED.encode()) else text for text in texts]
    if content["model"].get("type") == "WordPiece":
        prefix = content["model"].get("continuing_subword_prefix", "##")
        return [p.removeprefix(prefix).encode() if p.startswith(prefix) else b" " + p.encode() for p in pieces]
    single = re.compile("<0x([0-9A-F]{2})>")
    return [bytes([int(m[1], 16)]) if (m := single.fullmatch(p)) else p.replace("▁", " ").encode() for p in pieces]


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """The printable characters that stand for bytes in byte-level vocabularies (Radford et al. 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in printable]
    return {**{chr(b): b for b in printable}, **{chr(256 + i): b for i, b in enumerate(others)}}


def read_tokenizer(path: str | Path) -> Tokenizer:
    """Opens a tokenizer file; vocab.json is the tokenizer of CLIP, with merges.txt beside it.

    Raises:
      DataError: there is none, or it is damaged.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"there is no tokenizer file {file}")
    if file.name == CLIP_FILES[0]:
        return Tokenizer.of_library("file", clip_library(file.parent).to_str())
    text = read_utf8(file)
    try:
        return Tokenizer.from_json(text)
    except DataError as error:
        raise DataError(f"the tokenizer file {file} cannot be used: {error}") from None
