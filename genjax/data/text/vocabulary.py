"""Tokenizers with more tokens, for text of another domain: old ids do not change, new ids come behind them.

A tokenizer of pieces gets words of the new text that it splits into several pieces.  Words with the largest gain come
first:

    gain(word) = count(word) (pieces(word) - 1)

A tokenizer of characters or SMILES symbols gets the symbols that it lacks.  A model that starts from the checkpoint
gets a row for each new token (`genjax.nn.tokens.with_more_tokens`).
"""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Mapping, Sequence

from genjax.data.base import DataError
from genjax.data.text.tokenizer import RESERVED, Tokenizer, train_tokenizer

#: Words of three letters and more.
_WORD = re.compile(r"[^\W\d_]{3,}")


def extended(tokenizer: Tokenizer, texts: Sequence[str], count: int, special: Mapping[str, int]) -> Tokenizer:
    """A tokenizer with up to `count` tokens more.

    Args:
      tokenizer: tokenizer of a checkpoint.
      texts: texts of the new domain.
      count: largest number of new tokens.
      special: ids above the tokenizer's ids that its checkpoint uses for special tokens; they are kept free.

    Raises:
      DataError: the tokenizer is one of bytes, which has no words.
    """
    if tokenizer.kind == "bytes":
        raise DataError(
            "a tokenizer of bytes reads every text as it is; data.added_tokens is for pieces and characters"
        )
    places = range(tokenizer.vocab_size, max([*special.values(), tokenizer.vocab_size - 1]) + 1)
    if tokenizer.library is None:
        known = set(tokenizer.pieces)
        symbols = train_tokenizer(tokenizer.kind, list(texts), 0).pieces
        new = [piece for piece in symbols if piece not in known][:count]
        return Tokenizer(tokenizer.kind, [*tokenizer.pieces, *(b"" for _ in places), *new], special=special)
    import tokenizers

    library = tokenizers.Tokenizer.from_str(tokenizer.library)
    library.add_special_tokens([f"{RESERVED}{place}" for place in places])
    byte_level = "ByteLevel" in json.dumps(json.loads(tokenizer.library).get("decoder"))
    for word in divided_words(tokenizer, texts, count, " " if byte_level else ""):
        # Byte-level pieces include the space before a word; other kinds of pieces are whole words.
        options = {"normalized": False} if byte_level else {"normalized": True, "single_word": True}
        library.add_tokens([tokenizers.AddedToken(word, **options)])
    return Tokenizer.of_library(tokenizer.kind, library.to_str(), special)


def divided_words(tokenizer: Tokenizer, texts: Sequence[str], count: int, prefix: str = "") -> list[str]:
    """The words, each behind `prefix`, whose division into pieces costs most tokens in these texts; at most `count`."""
    words = collections.Counter(prefix + word for text in texts for word in _WORD.findall(tokenizer.normalize(text)))
    gain = {word: number * (len(tokenizer.encode(word)) - 1) for word, number in words.items()}
    return sorted((word for word in gain if gain[word] > 0), key=lambda word: (-gain[word], word))[:count]
