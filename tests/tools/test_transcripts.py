"""What a run hears, in Python and by the command."""

import jax
import numpy as np
import pytest

from experiments import transcribe
from genjax.config import ConfigError
from genjax.data import DataError
from genjax.data.audio import write_wav
from genjax.errors import UserError
from genjax.evaluation.text import word_error_rate
from genjax.tools import captions, samples, transcripts
from tests.tools.untrained import untrained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained("spoken_digits", tmp_path_factory.mktemp("runs") / "digits")


def test_a_file_is_heard_as_the_clip_that_it_is(run, tmp_path, capsys):
    data = run.experiment.data
    sound = data.read("test").sounds[0]
    write_wav(sound / 32767.0, tmp_path / "tune.wav", 8000)
    batch = data.transform(data.load("test").gather(np.arange(1)), jax.random.key(0))
    np.testing.assert_allclose(data.read_sound(tmp_path / "tune.wav"), batch["x"], atol=1e-4)
    heard = transcripts.transcribe_file(run, tmp_path / "tune.wav")
    assert heard == data.decode(np.asarray(run.model.describe(run.state, batch["x"], num_beams=1))[0])
    flags = ["transcribe", f"--workdir={run.workdir}"]
    assert transcribe.main([*flags, f"--audio={tmp_path / 'tune.wav'}"]) == 0
    assert capsys.readouterr().out.rstrip("\n") == heard.rstrip("\n")
    assert transcribe.main([*flags, "--evaluation.num_examples=12"]) == 0
    out = capsys.readouterr().out
    assert "12 clips of test" in out and "word_error_rate" in out
    paths = samples.write(run, samples.Options(num_samples=3))
    assert {path.suffix for path in paths} == {".txt", ".png"}


def test_scores_are_shares_of_all_clips_and_of_each_speaker():
    said, heard = ["one", "two", "three four", "five"], ["one", "too", "three", "five"]
    found = transcripts.scores(heard, said, ["ada", "ada", "bob", "bob"])
    assert found == {"exact_match": 0.5, "word_error_rate": 0.4, "exact_match_ada": 0.5, "exact_match_bob": 0.5}
    assert word_error_rate(["a b c d", ""], ["a x c", "b"]) == (2 + 1) / 4
    with pytest.raises(UserError, match="the references have no words"):
        word_error_rate(["a"], [""])


def test_what_cannot_be_heard_is_refused_in_a_sentence(run, tmp_path):
    (tmp_path / "none.wav").write_text("no sound")
    with pytest.raises(DataError, match="none.wav cannot be read as a WAV file"):
        transcripts.transcribe_file(run, tmp_path / "none.wav")
    with pytest.raises(ConfigError, match="which describes no pictures"):
        captions.measure(run)
    seeing = untrained("questions_scenes", tmp_path / "run")
    with pytest.raises(ConfigError, match="is a run of Captioner, which hears nothing; take one of AudioLanguageModel"):
        transcripts.measure(seeing)
