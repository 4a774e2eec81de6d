"""Videos move as they say, tones have their pitch, latents are mapped, and what is written can be read again."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genjax.data import DataError, Images, Latents, Videos, Waveforms, audio, videos
from genjax.data.digits import read_digits


def test_pictures_move_straight_and_bounce():
    rng = np.random.default_rng(0)
    pictures = np.full((50, 1, 3, 3), 7, np.uint8)
    x = videos.moving_pictures(rng, pictures, 12, 8, 2.0)
    assert x.shape == (50, 12, 8, 8) and x.dtype == np.uint8
    # Every frame has the whole picture, so nothing leaves through a border.
    assert (x.sum((2, 3)) == 9 * 7).all()
    rows = (x.max(3) > 0).argmax(2)
    assert np.abs(np.diff(rows, axis=1)).max() <= 3 and rows.min() == 0 and rows.max() == 5
    # Overlapping digits do not add up.
    both = videos.moving_pictures(rng, np.full((20, 2, 3, 3), 7, np.uint8), 4, 5, 2.0)
    assert both.max() == 7 and (both.sum((2, 3)) > 9 * 7).any()


def test_moving_digits_have_their_class_and_become_a_gif(tmp_path):
    data = Videos(num_train=20, num_frames=5, frame_size=12)
    train, test = data.load("train").arrays(), data.load("test").arrays()
    assert train["x"].shape == (20, 5, 12, 12, 1) and len(test["label"]) == 2
    assert data.spec() == {"data_shape": (5, 12, 12, 1), "range": (-1.0, 1.0), "num_levels": 17, "num_classes": 10}
    digits = read_digits("train").arrays()
    # The digit is in every frame as it is in the set.
    sums = {int(s) for s in digits["x"][digits["label"] == train["label"][0]].sum((1, 2, 3))}
    assert {int(s) for s in train["x"][0].sum((1, 2, 3))} <= sums
    (path,) = data.write_samples(train["x"][:4].astype(np.float32) / 8 - 1, tmp_path / "sheet")
    with Image.open(path) as image:
        assert image.format == "GIF" and image.n_frames == 5
    with pytest.raises(DataError, match="frame_size=7 must be at least 8"):
        Videos(frame_size=7)
    with pytest.raises(DataError, match="not a set of videos"):
        Videos(name="kinetics")


def test_what_stands_still_in_a_colour_gif_keeps_its_colours(tmp_path):
    pictures = np.random.default_rng(0).random((1, 3, 40, 40, 3), np.float32)
    pictures[:, :, :20] = pictures[:, :1, :20]
    videos.write_gif(pictures, tmp_path / "colours.gif")
    with Image.open(tmp_path / "colours.gif") as image:
        frames = []
        for index in range(3):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB"), int))
    scale = frames[0].shape[0] // 42
    still = slice(scale, 21 * scale)
    for frame in frames[1:]:
        np.testing.assert_array_equal(frame[still], frames[0][still])
    assert (frames[1] != frames[0]).any()
    shown = frames[0][scale // 2 + scale :: scale, scale // 2 + scale :: scale][:40, :40]
    assert np.abs(shown - 255 * pictures[0, 0]).mean() < 30


def test_tones_have_their_pitch_and_do_not_alias():
    x, label = audio.tones(np.random.default_rng(0), 400, 4096)
    assert x.dtype == np.int16 and set(label) == set(range(5))
    spectrum = np.abs(np.fft.rfft(x[label == 0] / 32767.0, axis=1))
    peak = spectrum.argmax(1) * 8000 / 4096
    assert (peak > 105).all() and (peak < 890).all()
    # A sine has one peak, a sawtooth has overtones as well.
    share = lambda rows: np.mean([s[np.abs(np.arange(len(s)) - s.argmax()) < 8].sum() / s.sum() for s in rows])
    assert share(spectrum) > 1.8 * share(np.abs(np.fft.rfft(x[label == 2] / 32767.0, axis=1)))


def test_sounds_are_written_and_read_again(tmp_path):
    data = Waveforms(num_samples=512, num_train=20)
    x = np.asarray(data.transform(data.load("train").arrays(), None)["x"])
    assert x.shape == (20, 512, 1) and np.abs(x).max() <= 1
    sound, picture = data.write_samples(x[:3], tmp_path / "sheet")
    samples, rate = audio.read_wav(sound)
    assert rate == 8000 and len(samples) == 3 * (512 + 2000)
    np.testing.assert_allclose(samples[:512] / 32767, x[0, :, 0], atol=1e-4)
    assert Path(picture).suffix == ".png"
    folder = tmp_path / "folder"
    folder.mkdir()
    for i in range(12):
        audio.write_wav(x[i, :, 0], folder / f"{i:02}.wav", 16000)
    own = Waveforms(name="folder", dir=str(folder), num_samples=600)
    assert own.sample_rate == 16000 and len(own.load("train")) == 9 and own.spec()["data_shape"] == (600, 1)
    assert not own.load("test").arrays()["x"][:, 512:].any()
    # Before it is trained on, not when its samples are written.
    audio.write_wav(x[0, :, 0], folder / "slow.wav", 8000)
    with pytest.raises(DataError, match="different sample rates: .8000, 16000"):
        Waveforms(name="folder", dir=str(folder), num_samples=602).load("train")
    (folder / "slow.wav").unlink()
    (folder / "broken.wav").write_bytes(b"no sound")
    with pytest.raises(DataError, match="cannot be read as a WAV"):
        Waveforms(name="folder", dir=str(folder), num_samples=601).load("train")
    with pytest.raises(DataError, match="there is no file"):
        Waveforms(name="spoken_digits", dir=str(tmp_path)).load("train")
    with pytest.raises(DataError, match="not a set of waveforms"):
        Waveforms(name="noise").load("train")


def test_spectrograms_show_the_frequency():
    time = np.arange(4000) / 8000
    low, high = (audio.spectrogram(np.sin(2 * np.pi * f * time))[:, 50].argmax() for f in (500, 2000))
    assert (low, high) == (8, 32)  # bins of 62.5 Hz


def test_emoji_keep_their_drawings_together_and_count_what_covers(tmp_path):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (40, 64, 64, 4), dtype=np.uint8)
    pictures[0, ..., 3] = 0
    number = np.arange(40) // 2
    np.savez(tmp_path / "emoji64.npz", images=pictures, category=(number % 9).astype(np.int8), emoji_id=number,
             is_test=number % 10 == 9)  # fmt: skip
    data = Images(name="emoji", dir=str(tmp_path), image_size=(32, 32))
    parts = {split: data.load(split).arrays() for split in ("train", "validation", "test")}
    assert [len(p["x"]) for p in parts.values()] == [32, 4, 4]
    assert data.spec()["num_classes"] == 9 and data.spec()["data_shape"] == (32, 32, 3)
    assert (parts["train"]["x"][0] == 255).all()  # nothing to see is white
    block = pictures[1, :2, :2].astype(float) / 255
    white = (block[..., :3] * block[..., 3:] + 1 - block[..., 3:]).mean((0, 1))
    np.testing.assert_allclose(parts["train"]["x"][1, 0, 0] / 255, white, atol=0.003)
    own = Images(name="emoji", dir=str(tmp_path), channels=4).load("train").arrays()["x"]
    visible = pictures[1, ..., 3] > 0
    assert np.abs(own[1][visible].astype(int) - pictures[1][visible]).max() <= 1
    with pytest.raises(DataError, match="must divide"):
        Images(name="emoji", dir=str(tmp_path), image_size=(48, 48)).load("train")


def test_latents_are_mapped_from_files_and_written_in_their_own_scale(tmp_path):
    x = np.random.default_rng(0).normal(size=(20, 4, 4, 2)).astype(np.float16)
    np.save(tmp_path / "train.npy", x)
    np.save(tmp_path / "train_label.npy", np.arange(20) % 7)
    data = Latents(dir=str(tmp_path), scale=0.5)
    assert data.spec() == {"data_shape": (4, 4, 2), "num_classes": 7}
    batch = data.load("train").gather(np.array([3, 1]))
    assert batch["label"].dtype == np.int32 and list(batch["label"]) == [3, 1]
    sent = pickle.dumps(data.load("train"))
    np.testing.assert_array_equal(pickle.loads(sent).gather(np.array([3]))["x"], x[[3]])
    assert len(sent) < x.nbytes
    seen = np.asarray(data.transform(batch, None)["x"])
    np.testing.assert_allclose(seen, 0.5 * x[[3, 1]].astype(np.float32))
    table, picture = data.write_samples(seen, tmp_path / "samples")
    np.testing.assert_allclose(np.load(table), x[[3, 1]], atol=1e-6)
    assert picture.suffix == ".png"
    with pytest.raises(DataError, match="there is no file"):
        data.load("test")
    (tmp_path / "test.npy").write_bytes(b"no array")
    with pytest.raises(DataError, match="cannot be read"):
        data.load("test")
    np.save(tmp_path / "train_tokens.npy", np.arange(60).reshape(20, 3) % 5)
    np.save(tmp_path / "train_mask.npy", np.ones((20, 3), bool))
    with pytest.raises(DataError, match="texts.json, which says vocab_size"):
        Latents(dir=str(tmp_path)).spec()
    (tmp_path / "texts.json").write_text('{"vocab_size": 5, "sequence_length": 3, "end_token": 4, "words": 7}')
    again = Latents(dir=str(tmp_path))
    assert again.spec() == {
        "data_shape": (4, 4, 2),
        "num_classes": 7,
        "vocab_size": 5,
        "sequence_length": 3,
        "end_token": 4,
    }
    texts = again.load("train").gather(np.array([2]))
    assert texts["tokens"].dtype == np.int32 and texts["mask"].dtype == bool and list(texts["tokens"][0]) == [1, 2, 3]
    with pytest.raises(DataError, match="differ in length"):
        np.save(tmp_path / "validation.npy", x[:5])
        np.save(tmp_path / "validation_label.npy", np.arange(6))
        data.load("validation")
