"""The library tokenizers: its files, and the tokenizer of CLIP from files that are older than tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from genjax.data.base import DataError
from genjax.data.files import read_utf8

#: Files of the tokenizer of CLIP in folders without tokenizer.json; the first stands for both.
CLIP_FILES = ("vocab.json", "merges.txt")
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
#: How CLIP divides a text: contractions, letters, single digits, and runs of other signs (its published code).
_CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def tokenizers_library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise DataError(
            "pieces of bpe and unigram, and tokenizers of other libraries, need the library tokenizers: pip install "
            "'genjax[text]'"
        ) from None
    return tokenizers


def opened_library(library: str) -> Any:
    """A tokenizer of the library from its tokenizer.json, which encodes every text whole and always the same.

    Raises:
      DataError: it is no such file.
    """
    tokenizers = tokenizers_library()
    try:
        opened = tokenizers.Tokenizer.from_str(library)
    except Exception as error:  # the library raises no narrower error
        raise DataError(
            f"it is no tokenizer.json of the library tokenizers {tokenizers.__version__}: {error}"
        ) from None
    # The file keeps the settings of its last use: truncation, padding, dropout of merges.  They are switched off.
    opened.no_truncation()
    opened.no_padding()
    if getattr(opened.model, "dropout", None) is not None:
        opened.model.dropout = None
    return opened


def clip_library(folder: Path) -> Any:
    """The tokenizer of CLIP by the files CLIP_FILES of a folder, as the library's tokenizer.json would describe it.

    Raises:
      DataError: a file is missing or damaged, or is of another tokenizer.
    """
    library = tokenizers_library()
    vocabulary, merges = (folder / name for name in CLIP_FILES)
    for path in (vocabulary, merges):
        if not path.is_file():
            raise DataError(f"{folder} holds neither tokenizer.json nor {path.name}: it is no tokenizer of CLIP")
    try:
        ids = dict(json.loads(read_utf8(vocabulary)))
    except (ValueError, TypeError):
        raise DataError(f"{vocabulary} is damaged: it is not JSON with an id for each piece") from None
    for token in (CLIP_START, CLIP_END):
        if token not in ids:
            raise DataError(f"{vocabulary} has no token {token}, as the tokenizer of CLIP has")
    lines = read_utf8(merges).splitlines()
    pairs = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    try:
        suffix = {"continuing_subword_prefix": "", "end_of_word_suffix": "</w>"}
        found = library.Tokenizer(library.models.BPE(vocab=ids, merges=pairs, unk_token=CLIP_END, **suffix))
    except Exception as error:  # the library raises no narrower error
        raise DataError(f"{merges} does not belong to {vocabulary.name} beside it: {error}") from None
    space = library.normalizers.Replace(library.Regex(r"\s+"), " ")
    found.normalizer = library.normalizers.Sequence([library.normalizers.NFC(), space, library.normalizers.Lowercase()])
    words = library.pre_tokenizers.Split(library.Regex(_CLIP_WORDS), behavior="removed", invert=True)
    found.pre_tokenizer = library.pre_tokenizers.Sequence(
        [words, library.pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    found.decoder = library.decoders.ByteLevel()
    end, start = ((token, ids[token]) for token in (CLIP_END, CLIP_START))
    found.post_processor = library.processors.RobertaProcessing(end, start, trim_offsets=False, add_prefix_space=False)
    found.add_special_tokens([CLIP_START, CLIP_END])
    return found
