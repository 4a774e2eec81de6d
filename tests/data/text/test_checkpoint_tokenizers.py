"""The tokenizer.json of other libraries' checkpoints, of each common kind."""

import pytest

from genjax.data import DataError, EncoderText, Text
from genjax.data.text.tokenizer import read_tokenizer

library = pytest.importorskip("tokenizers")
CORPUS = ["The first line, and a second one: naïve words.", "Another line of words and lines."] * 4
MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def word_piece():
    tokenizer = library.Tokenizer(library.models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = library.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = library.decoders.WordPiece()
    trainer = library.trainers.WordPieceTrainer(vocab_size=120, special_tokens=MARKS, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = library.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def byte_level():
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    options = {"initial_alphabet": library.pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    trainer = library.trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], **options)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@pytest.mark.parametrize("make", [word_piece, byte_level])
def test_ids_are_the_librarys_without_marks_of_the_text(make, tmp_path):
    theirs = make()
    path = tmp_path / "tokenizer.json"
    theirs.save(str(path))
    ours = read_tokenizer(path)
    assert ours.vocab_size == theirs.get_vocab_size()
    text = "naïve lines, another word"
    ids = ours.encode(text)
    assert ids.tolist() == theirs.encode(text, add_special_tokens=False).ids
    assert ours.decode(ids) == theirs.decode(ids.tolist())
    assert read_tokenizer_again(ours, tmp_path).encode(text).tolist() == ids.tolist()
    if make is byte_level:
        assert ours.num_characters[ids].sum() == len(text) and ours.special == {"start": 0, "separator": 0}
        assert Text(tokenizer_file=str(path)).spec()["vocab_size"] == ours.vocab_size
    else:
        assert ours.special == {"start": 2, "separator": 3, "padding": 0, "mask": 4}
        spec = EncoderText(tokenizer_file=str(path), sequence_length=32).spec()
        assert spec["mask_token"] == 4 and spec["special_tokens"] == (2, 3, 0)
        assert spec["vocab_size"] == theirs.get_vocab_size()


def test_a_tokenizer_whose_texts_have_no_end_is_refused(tmp_path):
    library.Tokenizer(library.models.WordLevel({"[PAD]": 0, "a": 1}, unk_token="a")).save(str(tmp_path / "words.json"))
    with pytest.raises(DataError, match="words.json has no token that begins or ends a text"):
        EncoderText(tokenizer_file=str(tmp_path / "words.json"), sequence_length=32).spec()


@pytest.mark.parametrize("make", [word_piece, byte_level])
def test_texts_are_encoded_whole_whatever_the_last_call_of_the_library_was(make, tmp_path):
    theirs = make()
    text = "words " * 1000
    right = theirs.encode(text, add_special_tokens=False).ids
    frame = theirs.encode("words").ids
    theirs.enable_truncation(128)
    theirs.enable_padding(length=128)
    if make is byte_level:
        theirs.model.dropout = 0.9
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = read_tokenizer(tmp_path / "tokenizer.json")
    for tokenizer in (ours, read_tokenizer_again(ours, tmp_path)):
        assert tokenizer.encode(text).tolist() == next(tokenizer.encode_all([text])).tolist() == right
        assert [*tokenizer.frame[0], *tokenizer.encode("words"), *tokenizer.frame[1]] == frame
        assert len(tokenizer.spans(text)) == len(right)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x81",
        b'{"kind": "bytes", "pie',
        b"[]",
        b'{"added_tokens": [], "model": {"type": "BPE"}}',
        b'{"kind": "bpe", "pieces": null, "library": null}',
        b'{"kind": "bpe", "pieces": null, "library": 5}',
    ],
)
def test_a_file_that_is_no_tokenizer_is_one_sentence(content, tmp_path):
    (tmp_path / "half.json").write_bytes(content)
    with pytest.raises(DataError, match="half.json (is not UTF-8|cannot be used: it is)"):
        read_tokenizer(tmp_path / "half.json")


def read_tokenizer_again(tokenizer, folder):
    """What a run saves beside itself."""
    (folder / "again.json").write_text(tokenizer.to_json(), encoding="utf-8")
    return read_tokenizer(folder / "again.json")
