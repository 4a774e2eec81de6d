"""Pairs, labels, tags and questions: their files, their splits, and what is refused."""

import numpy as np
import pytest

from genjax.data import DataError, EncoderText, LabelledText, LabelledTokens, QuestionAnswering, TextToText
from genjax.data.text import labelled as labelled_text
from genjax.data.text import tasks as text_tasks


def all_of(data, split):
    examples = data.load(split)
    return examples.gather(np.arange(len(examples)))


def test_answers_of_the_mixture_are_what_a_program_works_out():
    sources = {}
    for split in ("train", "validation", "test"):
        rows = [text_tasks.make_example(split, i) for i in range(600)]
        assert [task for task, _, _ in rows[:6]] == list(text_tasks.TASKS)
        assert all(text_tasks.solve(source) == target for _, source, target in rows)
        sources[split] = {source for _, source, _ in rows}
    assert not sources["train"] & sources["test"] and not sources["validation"] & sources["test"]
    terms = {split: {tuple(sorted(s[5:].split("+"))) for s in own if "+" in s} for split, own in sources.items()}
    assert terms["test"] and not terms["train"] & terms["test"], "a sum in the other order would give it away"
    assert text_tasks.make_example("test", 5) == text_tasks.make_example("test", 5)
    with pytest.raises(ValueError, match="belongs to no task"):
        text_tasks.solve("sing: a song")


def test_pairs_are_framed_by_special_tokens_and_fit_the_made_mixture():
    data = TextToText(num_made=120)
    spec, batch = data.spec(), all_of(data, "train")
    assert len(batch["tokens"]) == 120, "every made example fits"
    assert batch["source"].shape == (120, 64) and batch["tokens"].shape == (120, 33)
    assert spec["vocab_size"] == spec["mask_token"] + 1 and spec["sequence_length"] == 32
    tokenizer = data.make_tokenizer()
    for i, (source, target) in enumerate(data.pairs("train")):
        row = batch["tokens"][i][batch["mask"][i]]
        assert (
            row[0] == spec["start_token"] and row[-1] == spec["end_token"] and data.decode(batch["tokens"][i]) == target
        )
        assert tokenizer.decode(batch["source"][i][batch["source_mask"][i]][:-1]) == source
        assert batch["task"][i] == i % 6
    assert (batch["source"][~batch["source_mask"]] == spec["padding_token"]).all()
    tables = TextToText(num_made=120, tasks=("sum", "table", "date", "table"))
    assert [source.split(":")[0] for source, _ in tables.pairs("train")[:4]] == ["sum", "table", "date", "table"]
    assert (all_of(tables, "train")["task"] == np.tile([0, 1, 2, 1], 30)).all(), "half of what is trained on are tables"
    assert (all_of(tables, "validation")["task"] == np.arange(1200) % 3).all(), "but a third of what is held out"
    assert data.decode([spec["mask_token"], spec["vocab_size"] + 1]) == f"[mask][{spec['vocab_size'] + 1}]"


def test_translation_files(tmp_path, caplog):
    for name, german, english in (("train", "Ein Hund.\nZwei " + "x" * 50, "A Dog.\nTwo"), ("val", "Hund", "dog"),
                                  ("test_2016_flickr", "Ein Hund " + "y" * 30, "z" * 30)):  # fmt: skip
        (tmp_path / f"{name}.de").write_text(german + "\n")
        (tmp_path / f"{name}.en").write_text(english + "\n")
    data = TextToText(
        name="files", dir=str(tmp_path), source_length=24, target_length=16, lowercase=True, prefix="De: "
    )
    assert data.pairs("train")[0] == ("de: ein hund.", "a dog.")
    assert len(data.load("train")) == 1, "the pair that does not fit is left out"
    assert data.references("train") == ["a dog."] and "1 of 2 training pairs of files do not fit" in caplog.text
    test = all_of(data, "test")
    assert test["source_mask"].all() and data.references("test") == ["z" * 30]
    with pytest.raises(DataError, match="no training pair"):
        TextToText(name="files", dir=str(tmp_path), source_length=3).load_split("train")
    (tmp_path / "val.en").write_text("dog\ncat\n")
    with pytest.raises(DataError, match="has 1 lines and .* has 2"):
        TextToText(name="files", dir=str(tmp_path)).pairs("validation")
    # A line ends at LF or CR LF alone, and the last target may be empty.
    (tmp_path / "train.de").write_bytes("\ufeffa\rb\nc\r\nd\u2028e\n".encode())
    (tmp_path / "train.en").write_bytes(b"A\nC\n\n")
    again = TextToText(name="files", dir=str(tmp_path), source_length=25)
    assert again.pairs("train") == [("a b", "A"), ("c", "C"), ("d\u2028e", "")]
    for language in ("de", "en"):
        (tmp_path / f"train.{language}").write_text("\n")
    with pytest.raises(DataError, match=r"train.de and .*train.en have no texts"):
        TextToText(name="files", dir=str(tmp_path), source_length=26).pairs("train")
    with pytest.raises(DataError, match="no file other.de"):
        data.pairs("other")
    with pytest.raises(DataError, match="is not a folder"):
        TextToText(name="files", dir=str(tmp_path / "absent")).pairs("train")
    with pytest.raises(DataError, match="must be some of sum"):
        TextToText(tasks=("sing",))


def test_a_row_of_a_table_keeps_its_split_and_equal_texts_share_one(tmp_path):
    path, splits = tmp_path / "pairs.tsv", ("train", "validation", "test")
    rows = [f"source {i}\ttarget {i}\n" for i in range(200)]
    path.write_text("".join(rows + ["source 7\tanother target\n"]))
    parts = [TextToText(name="table", dir=str(path)).pairs(split) for split in splits]
    assert len({pair for p in parts for pair in p}) == 201 and min(map(len, parts)) > 10 and len(parts[0]) > 140
    sources = [{source for source, _ in p} for p in parts]
    assert not (sources[0] & sources[1] or sources[0] & sources[2] or sources[1] & sources[2])
    # The first row removed and one added: no other row moves.
    path.write_text("".join([*rows[1:], "new\ttarget\n"]))
    later = [TextToText(name="table", dir=str(path), num_made=3).pairs(split) for split in splits]
    assert all({s for s, _ in new} <= old | {"new"} for new, old in zip(later, sources))
    path.write_text("no tab\n")
    with pytest.raises(DataError, match="line 1 of .* has 1 columns with tabs between them, and source and target are"):
        TextToText(name="table", dir=str(path), source_length=20).pairs("train")


@pytest.mark.parametrize(
    ("content", "columns", "right"),
    [
        (b"sentence\tlabel\na b\tx\nc\ty\n", (), [("a b", "x"), ("c", "y")]),
        (b"\xef\xbb\xbfa b\tx\t\r\nc\rd\ty\r\n\n", (), [("a b", "x"), ("c d", "y")]),
        ("a\u2028b\tx\n\u0085c\x0cd\ty\n".encode(), (), [("a\u2028b", "x"), ("c\x0cd", "y")]),
        (b"x\ta b\ny\tc\n", ("2", "1"), [("a b", "x"), ("c", "y")]),
        (b"nr\tkind\ttext\n1\tx\ta b\n2\ty\tc\n", ("text", "kind"), [("a b", "x"), ("c", "y")]),
        (b"label\ttext\nx\ta\n", (), "its labels in the column label and not in the last one"),
        (b"idx\tsentence\tlabel\n1\ta\tx\n", (), "line 2 .* has 3 columns .* text and label are looked for; say"),
        (b"kind\ttext\nx\ta\n", ("text", "label"), "names the columns kind, text, and not label"),
        (b"a\tx\n\ty\n", (), "line 2 .* has no text"),
        (b"".join(b"%d\ta %d\n" % (i % 2, i) for i in range(20)), (), "20 different values and the first one 2, so"),
        (b"sentence\tlabel\n", (), "has no lines with texts"),
    ],
)
def test_tables_are_read_by_their_headings_or_refused(content, columns, right, tmp_path):
    (tmp_path / "train.tsv").write_bytes(content)
    data = LabelledText(name="table", dir=str(tmp_path), columns=columns)
    if isinstance(right, list):
        assert data.rows("train") == right
    else:
        with pytest.raises(DataError, match=right):
            data.rows("train")


def test_columns_must_be_as_many_as_are_read():
    for columns in (("1",), ("1", "1"), ("0", "1")):
        with pytest.raises(DataError, match=f"data.columns={','.join(columns)}"):
            TextToText(name="table", columns=columns)


def test_windows_of_encoders_hold_every_token_once():
    data = EncoderText(sequence_length=40)
    batch, text = all_of(data, "test"), data.documents("test")[0]
    inside = batch["mask"] & (batch["tokens"] < data.start_token)
    assert data.make_tokenizer().decode(batch["tokens"][inside]) == text
    assert batch["num_characters"].sum() == len(text)
    assert (batch["tokens"][:, 0] == data.start_token).all()
    assert data.decode(batch["tokens"][0]) == text[:38]
    with pytest.raises(DataError, match="less than one window"):
        EncoderText(sequence_length=100_000).load("test")


def test_the_second_of_a_pair_follows_in_one_half():
    data = EncoderText(sequence_length=23, sentence_pairs=True)
    batch, text = all_of(data, "test"), data.documents("test")[0]
    ids = data.make_tokenizer().encode(text)
    first, second = batch["tokens"][:, 1:11], batch["tokens"][:, 12:22]
    np.testing.assert_array_equal(first.reshape(-1), ids[: first.size])
    follows = (second == ids[10 : 10 + second.size].reshape(-1, 10)).all(1)
    assert abs(batch["label"].mean() - 0.5) < 0.01 and follows[batch["label"] == 0].all()
    # Blank parts of the text are the same as others.
    assert follows[batch["label"] == 1].mean() < 0.02
    np.testing.assert_array_equal(batch["types"][0], [0] * 12 + [1] * 11)
    with pytest.raises(DataError, match="too few for pairs"):
        EncoderText(sequence_length=40_000, sentence_pairs=True).load("test")


@pytest.mark.parametrize("kind", [LabelledText, LabelledTokens, QuestionAnswering])
def test_no_made_text_is_in_two_splits(kind):
    rows = {LabelledText: "rows", LabelledTokens: "sentences", QuestionAnswering: "questions"}[kind]
    train, validation, test = (set(map(str, getattr(kind(), rows)(s))) for s in ("train", "validation", "test"))
    assert train and validation and test
    assert not (train & validation or train & test or validation & test)


def test_labelled_texts(tmp_path):
    made = LabelledText(sequence_length=48)
    batch = all_of(made, "test")
    assert made.classes == ["bad", "good"] and 0.4 < batch["label"].mean() < 0.6 and made.spec()["num_classes"] == 2
    for split, label in (("train", "yes"), ("dev", "no"), ("test", "maybe")):
        rows = [("one text", "another text", label), ("a", "b", "no")]
        (tmp_path / f"{split}.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    data = LabelledText(name="table", dir=str(tmp_path), text_pairs=True, sequence_length=32)
    batch = all_of(data, "train")
    assert batch["label"].tolist() == [1, 0] and batch["types"][1].tolist() == [0] * 3 + [1] * 2 + [0] * 27
    assert data.write_samples(np.array([1, 0]), tmp_path / "s")[0].read_text() == "yes\nno\n"
    with pytest.raises(DataError, match="'maybe', which the training split has not"):
        data.load("test")
    short = all_of(LabelledText(name="table", dir=str(tmp_path), text_pairs=True, sequence_length=12), "train")
    assert short["tokens"][0, -1] == data.separator_token


@pytest.mark.parametrize(("first", "second"), [(30, 3), (3, 30), (30, 30), (7, 7), (6, 7), (30, 0)])
def test_the_longer_text_of_a_pair_is_cut_and_told(first, second, tmp_path, caplog):
    data = LabelledText(sequence_length=16, tokenizer="bytes", text_pairs=True)
    a, b = np.full(first, 65), np.full(second, 66)
    batch = data.joined([[a, b]])
    # Longest first: tokens leave the longer text one by one, of equal ones the second.
    left = [first, second]
    while sum(left) > 13:
        left[left[0] <= left[1]] -= 1
    row = batch["tokens"][0][batch["mask"][0]].tolist()
    start, separator = data.start_token, data.separator_token
    assert row == [start, *[65] * left[0], separator, *[66] * left[1], separator]
    assert batch["types"][0].tolist() == [0] * (left[0] + 2) + [1] * (left[1] + 1) + [0] * (13 - sum(left))
    assert ("1 of 1 rows of sentiment are longer" in caplog.text) == (first + second > 13)


def test_classes_are_those_that_the_run_learned(tmp_path):
    workdir, tables = tmp_path / "run", [tmp_path / name for name in ("a", "b", "c")]
    for folder, labels in zip((workdir, *tables), ("", "xyz", "zy", "xw")):
        folder.mkdir()
        for split in ("train", "dev", "test"):
            (folder / f"{split}.tsv").write_text("".join(f"text\t{label}\n" for label in labels))
    first, fewer, other = (LabelledText(name="table", dir=str(folder)) for folder in tables)
    first.save(workdir)
    assert all_of(fewer, "test")["label"].tolist() == [1, 0]
    assert all_of(fewer.beside(workdir), "test")["label"].tolist() == [2, 1], "the numbers of z and y in the run"
    with pytest.raises(DataError, match="the split test has the class 'w', which is none of 'x', 'y', 'z'"):
        other.beside(workdir).load("test")
    with pytest.raises(DataError, match="learned the classes 'x', 'y', 'z' .* and the data have 'y', 'z'"):
        fewer.going_on(workdir).save(workdir)
    first.going_on(workdir).save(workdir)


@pytest.mark.parametrize("tokenizer", ["characters", "bpe"])
def test_tags_stand_at_the_first_token_of_a_word(tmp_path, tokenizer):
    if tokenizer == "bpe":
        pytest.importorskip("tokenizers")
    for split in ("train", "dev", "test"):
        content = "-DOCSTART- O\n\nAnn NNP B-PER\nStone NNP I-PER\nsings V O\n\nOslo NNP B-LOC\n"
        (tmp_path / f"{split}.conll").write_text(content)
    data = LabelledTokens(name="columns", dir=str(tmp_path), sequence_length=24, tokenizer=tokenizer, vocab_size=300)
    assert data.sentences("validation")[1] == [("Oslo", "B-LOC")]
    batch = all_of(data, "test")
    labels = batch["token_labels"]
    assert data.tags(labels, labels) == [["B-PER", "I-PER", "O"], ["B-LOC"]]
    assert data.decode(batch["tokens"][0]) == "Ann Stone sings" and (labels[0] >= 0).sum() == 3 and labels[0, 1] >= 0
    (tmp_path / "test.conll").write_text("word\n")
    with pytest.raises(DataError, match="line 1 of .* has no tag"):
        LabelledTokens(name="columns", dir=str(tmp_path)).load("test")
    made = LabelledTokens()
    assert made.classes == ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]


@pytest.mark.parametrize(
    ("content", "right"),
    [
        (b"\xef\xbb\xbfLos Angeles\tB-LOC\nis\tO\t\n\n", [[("Los Angeles", "B-LOC"), ("is", "O")]]),
        ("New\xa0York  B-LOC\nis O\n".encode(), [[("New\xa0York", "B-LOC"), ("is", "O")]]),
        (b"# id x domain=train\na _ _ O\n# _ _ O\n\n# _ _ O\n", [[("a", "O"), ("#", "O")], [("#", "O")]]),
        (b"#\turl [2009]\n#\tO\na\tO\n\n#\n# text = a b\n#tag\tO\n", [[("#", "O"), ("a", "O")], [("#tag", "O")]]),
        (b"# text = Ann O\n1\tAnn\t_\tO\n2\tsang\t_\tO\n2.1\tit\t_\tO\n3\t.\t_\tO\n", "numbers its words in the first"),
        (b"#begin document (bc); part 000\nbc 0 0 In IN\n", "in the columns of CoNLL-2012"),
        (b"Ann\n", "line 1 of .* has no tag: 'Ann'"),
        (b"# a comment\n\n", "has no sentences"),
    ],
)
def test_columns_are_divided_by_tabs_or_else_by_blanks(content, right, tmp_path):
    file = tmp_path / "train.conll"
    file.write_bytes(content)
    if isinstance(right, list):
        assert labelled_text.read_columns(file) == right
    else:
        with pytest.raises(DataError, match=right):
            labelled_text.read_columns(file)


def test_a_word_that_leaves_no_token_has_no_label(tmp_path):
    library = pytest.importorskip("tokenizers")
    theirs = library.Tokenizer(library.models.WordLevel({"[CLS]": 0, "[SEP]": 1, "[PAD]": 2, "a": 3}, unk_token="a"))
    theirs.normalizer = library.normalizers.BertNormalizer()
    theirs.pre_tokenizer = library.pre_tokenizers.Whitespace()
    theirs.save(str(tmp_path / "tokenizer.json"))
    for split in ("train", "test"):
        (tmp_path / f"{split}.conll").write_text("Ann B-PER\n\u200b O\nOslo B-LOC\n\x00 O\n")
    file = str(tmp_path / "tokenizer.json")
    data = LabelledTokens(name="columns", dir=str(tmp_path), sequence_length=8, tokenizer_file=file)
    labels = all_of(data, "test")["token_labels"]
    assert data.tags(labels, labels) == [["B-PER", "B-LOC"]]


def test_a_tokenizer_goes_with_a_checkpoint_to_another_task(tmp_path):
    first = EncoderText(sequence_length=40)
    first.save(tmp_path)
    other = LabelledText(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert {k: v for k, v in other.spec().items() if "token" in k} == {
        k: v for k, v in first.spec().items() if "token" in k
    }
    assert other.spec()["vocab_size"] == first.spec()["vocab_size"]
