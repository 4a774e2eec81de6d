"""Clips with their texts: made tunes, the archive of spoken digits, and folders of WAV files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from genjax.data import DataError, SpokenTexts
from genjax.data.audio import write_wav
from genjax.data.log_mel import log_mel
from genjax.data.spoken_texts import NOTES

TUNES = SpokenTexts(num_made=12, num_held_out=6, num_samples=8000)


def test_tunes_sound_as_their_texts_say():
    clips, rows = TUNES.read("train"), TUNES.load("train").gather(np.arange(12))
    assert rows["x"].shape == (12, 8000) and rows["x"].dtype == np.int16
    for text, sound, tokens, mask in zip(clips.texts, clips.sounds, rows["tokens"], rows["mask"]):
        assert TUNES.decode(tokens) == text and mask.sum() == len(text) + 2
        # The strongest frequency of the last note is the note's own.
        end = sound[-1000:] / 32767.0
        spectrum = np.abs(np.fft.rfft(end * np.hanning(1000), 8000))
        note = min(NOTES, key=lambda name: abs(NOTES[name] - spectrum.argmax()))
        assert text.split()[-1] == note
    assert TUNES.read("test").texts != clips.texts[:6]
    batch = TUNES.transform({"x": jnp.asarray(rows["x"])}, jax.random.key(0))
    assert batch["x"].shape == (12, *TUNES.spec()["data_shape"]) == (12, 100, 40)
    np.testing.assert_allclose(batch["x"], log_mel(jnp.asarray(rows["x"] / np.float32(32767)), 40, 8000), atol=1e-4)


def test_changes_at_random_keep_the_clip_and_change_what_they_say():
    x = np.zeros((2, 8000), np.int16)
    time = np.arange(8000) / 8000
    x[:] = np.round(9000 * np.sin(2 * np.pi * 1000 * time))
    batch = {"x": jnp.asarray(x), "tokens": jnp.zeros((2, 3), jnp.int32)}
    changed = lambda key=0, **fields: np.asarray(
        SpokenTexts(num_samples=8000, **fields).augment(batch, jax.random.key(key))["x"]
    )
    np.testing.assert_array_equal(changed(), x)
    # Another speed is another pitch, of each clip its own.
    pitches = np.abs(np.fft.rfft(changed(stretch=0.2))).argmax(1)
    assert pitches[0] != pitches[1] and (np.abs(pitches - 1000) <= 201).all()
    moved = changed(shift=0.3)
    silent = (np.abs(moved) < 1).sum(1)
    assert (silent <= 0.31 * 8000).all() and silent.max() > 100
    noise = changed(noise=0.01) - x
    assert (noise.std(1) < 330).all() and noise.std(1).max() > 1 and abs(noise.mean()) < 10
    gaps = (changed(silenced=0.5) == 0) & (np.abs(x) > 0)
    assert (gaps.sum(1) <= 4000).all() and gaps.any()
    assert (changed(1, noise=0.01) != changed(0, noise=0.01)).any()


def archive(path):
    sounds = [np.full(900 + 50 * i, i, np.int16) for i in range(4)]
    np.savez(
        path,
        audio=np.concatenate(sounds),
        offsets=np.cumsum([0, *map(len, sounds)]),
        label=np.array([7, 0, 9, 3], np.int8),
        speaker=np.array([0, 1, 0, 1], np.int8),
        speaker_names=np.array(["ada", "bob"]),
        take=np.array([20, 1, 46, 20], np.int16),
        is_test=np.array([False, True, False, False]),
    )


def test_spoken_digits_are_spelled(tmp_path):
    archive(tmp_path / "fsdd.npz")
    data = SpokenTexts(name="spoken_digits", dir=str(tmp_path), num_samples=1000, num_mels=8, sequence_length=8)
    assert data.read("train").texts == ["seven", "three"] and data.read("train").speakers == ["ada", "bob"]
    assert data.read("test")[1:] == (["zero"], ["bob"]) and data.read("validation").texts == ["nine"]
    rows = data.load("train").gather(np.arange(2))
    # Cut, and filled up with silence.
    assert rows["x"][1, 999] == 3 and rows["x"][0, 899:901].tolist() == [0, 0] and rows["x"].shape == (2, 1000)
    assert [data.decode(row) for row in rows["tokens"]] == ["seven", "three"]


def folder(root, texts):
    root.mkdir()
    lines = []
    for i, text in enumerate(texts):
        write_wav(np.sin(np.arange(1500) * 0.1 * (i + 1)) * 0.5, root / f"{i}.wav", 8000)
        lines.append(json.dumps({"file_name": f"{i}.wav", "text": text, "speaker": f"s{i % 2}"}))
    (root / "texts.jsonl").write_text("\n".join(lines))
    return SpokenTexts(name="folder", dir=str(root), num_samples=1500, num_mels=8)


def test_folders_of_wav_files(tmp_path):
    data = folder(tmp_path / "clips", [f"word {chr(97 + i)}" for i in range(26)])
    found = {split: data.read(split) for split in ("train", "validation", "test")}
    assert sorted(text for clips in found.values() for text in clips.texts) == [
        f"word {chr(97 + i)}" for i in range(26)
    ]
    assert found["train"].speakers[0] == "s0" and data.sample_rate == 8000
    # A file is heard as the example that it is.
    batch = data.transform(data.load("train").gather(np.arange(1)), jax.random.key(0))
    np.testing.assert_allclose(data.read_sound(tmp_path / "clips" / "0.wav"), batch["x"], atol=1e-4)
    data.save(tmp_path)
    (tmp_path / "clips" / "texts.jsonl").rename(tmp_path / "clips" / "metadata.jsonl")
    assert SpokenTexts(name="folder", dir=data.dir, num_samples=1501).read("train").texts == found["train"].texts


def spoil_list(change):
    def spoil(root):
        file = root / "texts.jsonl"
        file.write_text(change(file.read_text()))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "texts.jsonl").unlink(), "has none of texts.jsonl, metadata.jsonl"),
        (spoil_list(lambda text: text.replace("{", "[", 1)), 'line 1 of .* is not like {"file_name"'),
        (spoil_list(lambda text: text.replace("one", " ", 1)), "has an empty text of 0.wav"),
        (spoil_list(lambda text: text.replace("0.wav", "9.wav")), "a text of 9.wav, and there is no such file"),
        (spoil_list(lambda text: text.replace("0.wav", "1.wav")), "has two texts of 1.wav"),
        (spoil_list(lambda text: text.split("\n")[0]), "has no text of "),
        (lambda root: (root / "0.wav").write_text("no sound"), "0.wav cannot be read as a WAV file"),
        (lambda root: write_wav(np.zeros(99), root / "0.wav", 16000), "have different sample rates"),
    ],
)
def test_damaged_folders_are_refused(spoil, message, tmp_path):
    data = folder(tmp_path / "clips", ["one", "two", "three", "four"])
    spoil(tmp_path / "clips")
    with pytest.raises(DataError, match=message):
        for split in ("train", "validation", "test"):
            data.read(split)


def test_settings_and_files_that_cannot_be_are_refused(tmp_path):
    for fields, message in (
        ({"stretch": 1.0}, r"data.stretch=1.0 must lie in \[0, 1\)"),
        ({"num_samples": 10}, "data.num_samples=10 must be at least 1000"),
        ({"name": "songs"}, "data.name=songs is no set of spoken texts: tunes, spoken_digits, folder"),
    ):
        with pytest.raises(DataError, match=message):
            SpokenTexts(**fields).read("train")
    with pytest.raises(DataError, match="has no split 'held_out'"):
        TUNES.read("held_out")
    write_wav(np.zeros(1500), tmp_path / "fast.wav", 16000)
    with pytest.raises(DataError, match="has 16000 samples a second, and the model hears 8000"):
        TUNES.read_sound(tmp_path / "fast.wav")
