"""Tokenizers, windows of text, files of tokens, and other data that are tokens."""

import itertools
import json
import pickle
import shutil
from pathlib import Path
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.data import DataError, Molecules, NoteEvents, PianoRolls, Pipeline, Text, TimeSeries, TokenPairs
from genjax.data import files as shared_files
from genjax.data.base import split_of_file
from genjax.data.midi import LOWEST_NOTE, midi, read_midi, synthesize, wav
from genjax.data.molecules import embedded_smiles, is_smiles, read_smiles
from genjax.data.music import FRAME, START, events, roll_of_events
from genjax.data.text import documents, token_files
from genjax.data.text.tokenizer import Tokenizer, train_tokenizer

SENTENCE = "Ünïcode, naïve 日本 and plain text; text again.\n\tTabs  and spaces 🙂"


@pytest.mark.parametrize("kind", ["characters", "bytes", "words", "bpe", "unigram"])
def test_tokenizers_lose_nothing_and_survive_json(kind):
    if kind in ("bpe", "unigram"):
        pytest.importorskip("tokenizers")
    tokenizer = train_tokenizer(kind, [SENTENCE * 5, "other words " * 20], 300)
    ids = tokenizer.encode(SENTENCE)
    assert tokenizer.decode(ids) == SENTENCE and ids.max() < tokenizer.vocab_size
    assert tokenizer.num_characters[ids].sum() == len(SENTENCE)
    again = Tokenizer.from_json(tokenizer.to_json())
    np.testing.assert_array_equal(again.encode(SENTENCE), ids)
    assert again.pieces == tokenizer.pieces
    if kind == "bpe":
        assert len(ids) < len(SENTENCE.encode())


def test_smiles_symbols():
    tokenizer = train_tokenizer("smiles", ["C[C@@H](Cl)Br%12"], 0)
    assert [tokenizer.decode([i]) for i in tokenizer.encode("C[C@@H](Cl)Br%12")] == [
        "C", "[C@@H]", "(", "Cl", ")", "Br", "%12",
    ]  # fmt: skip
    with pytest.raises(DataError, match="'N'"):
        tokenizer.encode("CN")
    with pytest.raises(DataError, match="token 99 lies outside"):
        tokenizer.decode([99])
    with pytest.raises(DataError, match="damaged"):
        Tokenizer.from_json(json.dumps({"kind": "bytes"}))


def test_a_word_that_is_not_known_is_called_a_word():
    tokenizer = train_tokenizer("words", ["a small circle", "a large"], 0)
    for text, message in (
        ("a pink circle", "^the text has the word 'pink', which is not among the 4 words of the tokenizer$"),
        ("a smal circle", r"'smal', which is not among the 4 words of the tokenizer; did you mean small\?$"),
        ("circle", "^the text has the word 'circle', which the tokenizer knows as ' circle', blanks included$"),
        ("a  circle", "^the text has the word '  circle', which the tokenizer knows as ' circle', blanks included$"),
        ("a circle ", "^the text has ' ', which is not among the 4 symbols of the tokenizer$"),
    ):
        with pytest.raises(DataError, match=message):
            tokenizer.encode(text)
    with pytest.raises(DataError, match="^the text has 'b', which is not among the 1 symbol of the tokenizer$"):
        train_tokenizer("characters", ["a"], 0).encode("b")


@pytest.mark.parametrize("kind", ["characters", "bytes", "bpe"])
def test_text_that_is_no_unicode_is_one_sentence(kind):
    if kind == "bpe":
        pytest.importorskip("tokenizers")
    tokenizer = train_tokenizer(kind, ["ab"], 300)
    for call in (tokenizer.encode, tokenizer.spans, lambda text: list(tokenizer.encode_all([text]))):
        with pytest.raises(DataError, match=r"(a byte that is not UTF-8|has '\\udcff', which is not among)"):
            call("ab\udcff")  # what an argument ab\xff of the command line is


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_windows_predict_every_token_once(split):
    data = Text(sequence_length=100)
    examples = data.load(split)
    batch = examples.gather(np.arange(len(examples)))
    text = data.documents(split)[0]
    targets = batch["tokens"][:, 1:][batch["mask"][:, 1:]]
    assert data.make_tokenizer().decode(targets) == text[1:]
    assert batch["num_characters"].sum() == len(text) - 1
    assert sum(len(data.documents(s)[0]) for s in ("train", "validation", "test")) == len(
        "".join(data.documents("train+validation+test"))
    )


def test_strides_overlap_and_reach_the_end():
    data = Text(sequence_length=64, stride=10)
    examples = data.load("train")
    text = data.make_tokenizer().encode(data.documents("train")[0])
    last = examples.gather(np.array([0, 1, len(examples) - 1]))["tokens"]
    np.testing.assert_array_equal(last[0], text[:65])
    np.testing.assert_array_equal(last[1], text[10:75])
    np.testing.assert_array_equal(last[2], text[-65:])
    with pytest.raises(DataError, match="tokens are lost"):
        Text(sequence_length=64, stride=65)


def test_contiguous_batches_go_on_from_each_other_at_any_step():
    data = Text(sequence_length=32, batch_size=8, order="contiguous")
    pipeline = Pipeline(data, "train", seed=0)
    first, second = pipeline.batch(5), pipeline.batch(6)
    np.testing.assert_array_equal(first["tokens"][:, -1], second["tokens"][:, 0])
    np.testing.assert_array_equal(first["window"] + 1, second["window"])
    rows = -(-len(pipeline.examples) // 8)
    seen = np.concatenate([pipeline.indices(step) for step in range(rows)])
    assert set(seen) == set(range(len(pipeline.examples)))
    np.testing.assert_array_equal(Pipeline(data, "train", seed=1, process_index=1, process_count=2).batch(5)["tokens"],
                                  first["tokens"][4:])  # fmt: skip


def test_a_folder_of_documents_ends_each_and_may_keep_them_apart(tmp_path):
    for i in range(20):
        (tmp_path / f"{i:02d}.txt").write_text(f"document number {i} " * 3)
    data = Text(name="file", dir=str(tmp_path), sequence_length=20, pack_separately=True)
    spec = data.spec()
    assert spec["start_token"] == spec["end_token"] == spec["vocab_size"] - 1
    examples = data.load("train")
    batch = examples.gather(np.arange(len(examples)))
    tokens, segments = batch["tokens"][:, :-1].reshape(-1), batch["segment_ids"][:, :-1].reshape(-1)
    ends = np.flatnonzero(tokens == spec["end_token"])
    assert len(ends) >= 16 and tokens[0] == spec["end_token"]
    assert (np.diff(segments)[ends[1:30:2]] == 1).all() and (tokens[ends[1:30:2] + 1] == spec["end_token"]).all()
    # Single documents of two splits are not one text, as parts of a text are.
    files = {split: [] for split in ("train", "validation", "test")}
    for i in range(20):
        files[split_of_file(tmp_path / f"{i:02d}.txt", tmp_path)].append(i)
    for i in files["validation"][1:] + files["test"][1:]:
        (tmp_path / f"{i:02d}.txt").unlink()
    held_out = data.documents("validation+test")
    assert held_out == [f"document number {files[split][0]} " * 3 for split in ("validation", "test")]
    drawn = np.array([[spec["end_token"], *data.make_tokenizer().encode("doc"), spec["end_token"], 1]])
    path = data.write_samples(drawn, tmp_path / "out")
    assert path[0].read_text() == "doc\n"


@pytest.mark.parametrize("kind, separate", [("bytes", True), ("bpe", False)])
def test_large_text_is_encoded_once_into_a_file_and_gives_the_same_windows(kind, separate, tmp_path, monkeypatch):
    if kind == "bpe":
        pytest.importorskip("tokenizers")
    folder, home = tmp_path / "texts", tmp_path / "home"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i:02d}.txt").write_text(f"document number {i} {SENTENCE} " * (1 + i % 3))
    options = {"tokenizer": kind, "vocab_size": 300, "sequence_length": 20, "pack_separately": separate}
    data = Text(name="file", dir=str(folder), **options)
    all_of = lambda examples: examples.gather(np.arange(len(examples)))
    direct = all_of(data.load_split("train"))
    assert not list(folder.glob(".genjax/*.ids"))
    monkeypatch.setattr(token_files, "MEMORY_BYTES", 0)
    monkeypatch.setattr(shared_files, "USER_FOLDER", home)
    stored = data.load_split("train")
    encoder, end = data.make_tokenizer(), data.spec()["end_token"]
    parts = [[*[end] * (separate or i == 0), *encoder.encode(text), end]
             for i, text in enumerate(data.documents("train"))]  # fmt: skip
    row = direct["tokens"][:, 1:][direct["mask"][:, 1:]]
    np.testing.assert_array_equal([end, *row], np.concatenate(parts))
    if separate:
        numbers = np.repeat(np.arange(len(parts)) + 1, [len(part) for part in parts])
        np.testing.assert_array_equal(direct["segment_ids"][:, 1:][direct["mask"][:, 1:]], numbers[1:])
    # A second start, in this process or in a worker, encodes nothing.
    monkeypatch.setattr(Tokenizer, "encode", None)
    monkeypatch.setattr(Tokenizer, "encode_all", None)
    for examples in (stored, data.load_split("train"), pickle.loads(pickle.dumps(stored))):
        jax.tree.map(np.testing.assert_array_equal, all_of(examples), direct)
    assert len(pickle.dumps(stored._ids)) < 1000 and not home.exists()
    monkeypatch.undo()
    monkeypatch.setattr(token_files, "MEMORY_BYTES", 0)
    monkeypatch.setattr(shared_files, "USER_FOLDER", home)
    # Another text has another file, which lies elsewhere if there is no writing beside it.
    (folder / "00.txt").write_text("changed")
    shutil.rmtree(folder / ".genjax")
    (folder / ".genjax").write_text("no folder")
    changed = all_of(data.load_split("train"))
    assert encoder.decode(changed["tokens"][0, 1 : 1 + len(encoder.encode("changed"))]) == "changed"
    assert len(list(home.glob("*.ids"))) == 1


@pytest.mark.parametrize("locks", [True, False])
def test_files_of_tokens_that_are_in_use_stay_whole_while_another_machine_writes_them(locks, tmp_path, monkeypatch):
    monkeypatch.setattr(token_files, "MEMORY_BYTES", 0)
    # A shared disk may have locks that another machine does not see, or none at all.
    flock = Mock() if locks else Mock(side_effect=OSError("no locks"))
    monkeypatch.setattr(shared_files.fcntl, "flock", flock)
    rows = []

    def read():
        for i in range(3):
            assert all(len(ids[:]) == len(ids) == 3 for ids, _ in rows)
            yield str(i)

    texts = documents.Documents(3, 1, "texts", tmp_path, read)
    for _ in range(2):
        rows.append(token_files.token_row(Tokenizer("bytes", [b""] * 256), texts))
        monkeypatch.setattr(token_files, "_complete", Mock(return_value=False))
    for ids, starts in rows:
        np.testing.assert_array_equal(ids[:], [48, 49, 50])
        np.testing.assert_array_equal(starts, [0, 1, 2])
    assert sorted(path.suffix for path in (tmp_path / ".genjax").iterdir()) == [".ids", ".lock", ".npy"]


def test_the_texts_of_a_folder_are_counted_without_reading_them(tmp_path, monkeypatch):
    for i in range(20):
        (tmp_path / f"{i:02d}.txt").write_text("words")
    data = Text(name="file", dir=str(tmp_path), tokenizer="bytes")
    monkeypatch.setattr(Path, "read_text", None)
    parts = {
        split: len(documents.open_documents("file", str(tmp_path), split)) for split in ("train", "validation", "test")
    }
    assert data.spec()["end_token"] == 256 and parts == {"train": 17, "validation": 2, "test": 1}
    # A text keeps its split where others come.
    (tmp_path / "000.txt").write_text("words")
    after = {split: len(documents.open_documents("file", str(tmp_path), split)) for split in parts}
    assert sum(after[split] != parts[split] for split in parts) == 1


def test_text_that_cannot_be_used_is_one_sentence(tmp_path):
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(DataError, match="less than one context"):
        Text(name="file", dir=str(tmp_path / "short.txt")).load("train")
    with pytest.raises(DataError, match="neither a text file nor a folder"):
        Text(name="file", dir=str(tmp_path / "missing")).load("train")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xff" * 99)
    with pytest.raises(DataError, match="not UTF-8"):
        Text(name="file", dir=str(tmp_path / "bad.txt")).load("train")
    # A byte order mark is no part of a text.
    (tmp_path / "marked.txt").write_bytes(b"\xef\xbb\xbfa\r\nb")
    assert documents.read_utf8(tmp_path / "marked.txt") == "a\nb"
    with pytest.raises(DataError, match="must exceed 256"):
        Text(tokenizer="bpe", vocab_size=100).spec()


def test_the_tokenizer_lies_beside_the_run_and_must_fit(tmp_path):
    data = Text(sequence_length=16)
    data.save(tmp_path)
    data.save(tmp_path)
    again = data.beside(tmp_path)
    assert again.spec() == data.spec() and again.tokenizer_file
    with pytest.raises(DataError, match="does not belong to the checkpoint"):
        Text(tokenizer="bytes").save(tmp_path)


def test_molecules_begin_and_end_and_are_valid(tmp_path):
    data = Molecules(batch_size=4)
    batch = Pipeline(data, "train", 0).batch(0)
    out = data.transform({name: jnp.asarray(a) for name, a in batch.items()}, jax.random.key(0))
    end = data.spec()["end_token"]
    for row, mask in zip(np.asarray(out["tokens"]), np.asarray(out["mask"])):
        assert row[0] == end and row[mask][-1] == end and (row[mask][1:-1] != end).all()
        assert data.decode(row) in embedded_smiles()
    (tmp_path / "mine.csv").write_text("SMILES,x\nCCO,1\n" * 1 + "CCN,2\n" * 12)
    mine = Molecules(name="file", dir=str(tmp_path / "mine.csv"))
    assert mine.spec()["sequence_length"] == 4
    with pytest.raises(DataError, match="no file"):
        Molecules(name="moses", dir=str(tmp_path)).spec()
    rdkit = pytest.importorskip("rdkit.Chem")
    assert all(rdkit.MolFromSmiles(s) is not None for s in embedded_smiles()[::10])


def test_rolls_are_padded_shifted_within_the_keyboard_and_written_as_midi(tmp_path):
    data = PianoRolls(batch_size=4, transpose=60)
    batch = {name: jnp.asarray(a) for name, a in Pipeline(data, "train", 0).batch(0).items()}
    out = data.transform(data.augment(batch, jax.random.key(0)), jax.random.key(1))
    assert out["x"].shape[1:] == data.spec()["data_shape"] and out["mask"].shape == out["x"].shape[:2]
    np.testing.assert_array_equal(out["x"].sum((1, 2)), batch["x"].sum((1, 2)))
    roll = np.zeros((3, 88), bool)
    roll[:2, 0] = roll[1:, 39] = True
    content = midi(roll)
    assert content[:4] == b"MThd" and content[14:18] == b"MTrk"
    events = content[22:]
    assert events[:7] == bytes([0, 0xFF, 0x51, 3]) + (400_000).to_bytes(3, "big")  # microseconds of a quarter note
    assert events[7:11] == bytes([0, 0x90, LOWEST_NOTE, 80])
    assert len(synthesize(roll)) == 3 * 6400 + 8000  # three frames of 0.4 s and a tail
    assert events.count(bytes([LOWEST_NOTE + 39, 80])) == 2  # on once, off once: held over two frames
    with pytest.raises(ValueError, match="88"):
        midi(np.zeros((3, 80), bool))
    files = data.write_samples(np.asarray(out["x"]), tmp_path / "s")
    assert [f.suffix for f in files] == [".png", *[".mid", ".wav"] * 4]
    assert len(list(itertools.chain(*data.rolls("train")))) > 64


def test_midi_files_are_read_as_they_were_written_and_refused_where_they_cannot_be(tmp_path, caplog):
    rolls = PianoRolls().rolls("validation")
    for i, roll in enumerate(rolls[:12]):
        np.testing.assert_array_equal(read_midi(midi(roll), "roll"), roll)
        (tmp_path / f"{i}.mid").write_bytes(midi(roll))
    data = PianoRolls(name="midi", dir=str(tmp_path))
    assert len(data.load("train")) == 10 and data.spec()["data_shape"][1] == 88
    # Running status, a note on of velocity 0 as its end, a program change, a tempo, a drum, and a last note without
    # end.
    track = (b"\x00\xc0\x05" b"\x00\xff\x51\x03\x07\xa1\x20" b"\x00\x90\x3c\x50" b"\x00\x40\x50" b"\x83\x60\x3c\x00"
             b"\x00\x99\x10\x50" b"\x83\x60\x90\x40\x00" b"\x00\xff\x2f\x00")  # fmt: skip
    head = b"MThd\x00\x00\x00\x06\x00\x00\x00\x01\x01\xe0"
    whole = lambda body: head + b"MTrk" + len(body).to_bytes(4, "big") + body
    roll = read_midi(whole(track), "odd.mid")
    assert [np.flatnonzero(frame).tolist() for frame in roll] == [[60 - 21, 64 - 21], [64 - 21]]
    # Running status goes on behind a text between two notes.
    text = b"\x00\x90\x3c\x50\x00\xff\x01\x01A\x00\x40\x50\x83\x60\x3c\x00\x00\x40\x00"
    assert [np.flatnonzero(frame).tolist() for frame in read_midi(whole(text), "text.mid")] == [[60 - 21, 64 - 21]]
    for content, message in [
        (whole(b"\x00\x90\x0c\x50\x60\x80\x0c\x00"), "odd.mid has the MIDI note 12, which lies outside"),
        (whole(b"\x00\x90\x6d\x50\x60\x80\x6d\x00"), "note 109"),
        (whole(b"\x00\x90\x3c"), "damaged"),
        (b"RIFF", "no MIDI file"),
        (head[:-2] + b"\xe7\x28" + whole(track)[14:], "in seconds"),
    ]:
        with pytest.raises(DataError, match=message):
            read_midi(content, "odd.mid")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "drums.mid").write_bytes(whole(b"\x00\x99\x10\x50\x60\x89\x10\x00"))
    with pytest.raises(DataError, match="drums.mid has no notes but .* --data.skip_unreadable leaves such files out"):
        PianoRolls(name="midi", dir=str(tmp_path / "a")).spec()
    with pytest.raises(
        DataError, match="none of the 1 MIDI files of the split train can be used, for one: .*drums.mid"
    ):
        PianoRolls(name="midi", dir=str(tmp_path / "a"), skip_unreadable=True).spec()
    for i in range(11):
        (tmp_path / "a" / f"{i}.mid").write_bytes(b"RIFF" if i == 3 else midi(rolls[i]))
    some = PianoRolls(name="midi", dir=str(tmp_path / "a"), skip_unreadable=True, frames_per_quarter=2)
    assert sum(len(some.rolls(split)) for split in ("train", "validation", "test")) == 10
    assert "MIDI files of the split" in caplog.text and "3.mid is no MIDI file" in caplog.text
    with pytest.raises(DataError, match="no folder with MIDI files"):
        PianoRolls(name="midi", dir=str(tmp_path / "none")).load("train")


def test_rolls_sound_at_their_pitch():
    roll = np.zeros((4, 88), bool)
    roll[:, 69 - LOWEST_NOTE] = True  # 440 Hz
    sound = synthesize(roll, seconds_per_frame=0.25, rate=8000)
    assert sound.shape == (12_000,) and np.abs(sound).max() <= 1.0 and np.isfinite(sound).all()
    spectrum = np.abs(np.fft.rfft(sound[:8000]))
    assert abs(int(spectrum.argmax()) - 440) <= 1
    content = wav(sound, 8000)
    assert content[:4] == b"RIFF" and content[8:12] == b"WAVE" and len(content) == 44 + 2 * len(sound)


def test_note_events_hold_the_rolls_and_crops_are_parts_of_them(tmp_path):
    data = NoteEvents(batch_size=8, transpose=3, crop=12)
    rolls, examples = data.rolls("train"), data.load("train")
    batch = examples.gather(np.arange(8))
    for roll, tokens, frames in zip(rolls, batch["tokens"], batch["num_frames"]):
        np.testing.assert_array_equal(roll_of_events(tokens[1:]), roll)
        assert tokens[0] == START and frames == len(roll) == (tokens == FRAME).sum()
    np.testing.assert_array_equal(events(np.eye(88)[[3, 1]] + np.eye(88)[[5, 1]]), [3, 5, FRAME, 1, FRAME])
    batch = {name: jnp.asarray(a) for name, a in batch.items()}
    out = data.transform(data.augment(batch, jax.random.key(0)), jax.random.key(1))
    assert out["tokens"].shape == (8, 13) and "num_frames" not in out and out["mask"].all()
    for tokens, whole in zip(np.asarray(out["tokens"]), np.asarray(batch["tokens"], int)):
        shifts = [np.where(whole < 88, whole + s, whole) for s in range(-3, 4)]
        assert any((w[i : i + 13] == tokens).all() for w in shifts for i in range(len(w) - 12))
    plain = data.transform(batch, jax.random.key(1))
    assert (plain["mask"].sum(1) == batch["num_events"] + 1).all()
    files = data.write_samples(np.asarray(batch["tokens"][:2]), tmp_path / "s")
    assert [f.suffix for f in files] == [".png", ".mid", ".wav", ".mid", ".wav"]


@pytest.mark.parametrize(
    "make, field",
    [
        (lambda: PianoRolls(transpose=-3), "transpose=-3"),
        (lambda: PianoRolls(max_frames=0), "max_frames=0"),
        (lambda: PianoRolls(name="midi", frames_per_quarter=0), "frames_per_quarter=0"),
        (lambda: NoteEvents(crop=0), "crop=0"),
        (lambda: Molecules(max_symbols=0), "max_symbols=0"),
        (lambda: Molecules(max_molecules=-1), "max_molecules=-1"),
        (lambda: TimeSeries(sequence_length=0), "sequence_length=0"),
        (lambda: TokenPairs(max_length=0), "max_length=0"),
    ],
)
def test_settings_that_leave_nothing_are_refused(make, field):
    with pytest.raises(DataError, match=f"data.{field} must"):
        make()


@pytest.mark.parametrize(
    ("content", "right"),
    [
        (b'smiles,logP\n"CCO\n",1.0\n"CC(=O)O\n",2\n', ["CCO", "CC(=O)O"]),
        (b"\xef\xbb\xbfCCO eth, ane\r\n\r\nC#N |$;;R$|\r\n", ["CCO", "C#N"]),
        (b"id\tCanonical_SMILES\tname\n1\tCCO\tan alcohol\n", ["CCO"]),
        (b"isomeric_smiles;SMILES\nOCC;CCO\n", ["CCO"]),
        (b"name smiles\na C1CC1\n", ["C1CC1"]),
        (b'"[Na+].[Cl-]","a"\n"BrC%12CC%12","b"\n', ["[Na+].[Cl-]", "BrC%12CC%12"]),
        (b"Molecule,logP\nCCO,1\n", "line 1 of .* has 'Molecule' where a SMILES should stand"),
        (b"CHEMBL1,CCO\nCHEMBL2,CC\n", "line 1 of .* 'CHEMBL1'"),
        (b"P53\nP54\n", "line 1 of .* 'P53'"),
        (b"CCO\nC(C\nwater\n", "line 3 of .* 'water'"),
        (b"CCO,1\n,2\n", "line 2 of .* has nothing where"),
        (b'CCO,"a\nCC,b\n', "no readable file of SMILES"),
        (b"smiles,logP\n", "holds no molecules"),
    ],
)
def test_molecules_of_tables_are_found_or_refused(content, right, tmp_path):
    file = tmp_path / "molecules.csv"
    file.write_bytes(content)
    if isinstance(right, list):
        assert read_smiles(str(file)) == right
    else:
        with pytest.raises(DataError, match=right):
            read_smiles(str(file))


def test_symbols_of_smiles_are_those_that_rdkit_reads():
    chem = pytest.importorskip("rdkit.Chem")
    for string in [
        "F/C=C\\F",
        "[13CH4]",
        "C1=CC=CN=C1",
        "c1cc[nH]c1",
        "C%(12)CC%12",
        "Br",
        "ClBr",
        "C0CC0",
        "N#N",
        "*C",
        "CC.O",
    ]:
        assert is_smiles(string) and chem.MolFromSmiles(string) is not None
    for string in ["", "Nr", "(C)C", "C1CC", "C(C", "Cx", "1.0", "ethanol", "CID", "[Na", "H2O", "InChI=1S/CH4/h1H4"]:
        assert not is_smiles(string), string


def test_files_of_molecules_and_chorales_that_are_damaged_are_one_sentence(tmp_path):
    (tmp_path / "latin.smi").write_bytes(b"CCO\nCC\xff\n")
    (tmp_path / "plain.csv.gz").write_bytes(b"SMILES\nCCO\n")
    for name in ("latin.smi", "plain.csv.gz"):
        with pytest.raises(DataError, match=f"{name} is no readable file of SMILES"):
            Molecules(name="file", dir=str(tmp_path / name)).spec()
    (tmp_path / "jsb_chorales.npz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="not the file jsb_chorales.npz, or it is damaged"):
        PianoRolls(name="jsb_chorales", dir=str(tmp_path)).spec()
