"""What a run hears, in Python and by the commands."""

import jax
import numpy as np
import pytest

import genjax
from experiments import generate, transcribe
from genjax.config import ConfigError
from genjax.data import DataError, SpokenTexts
from genjax.data.audio import write_wav
from genjax.errors import UserError
from genjax.evaluation.text import word_error_rate
from genjax.families.language.networks import llama_network
from genjax.families.multimodal.audio_encoder import audio_network
from genjax.families.multimodal.audio_language_model import AudioLanguageModel
from genjax.families.multimodal.whisper import Whisper
from genjax.optimizers import Adam
from genjax.tools import captions, prompts, samples, transcripts
from genjax.training import Evaluation, Experiment, Training, train
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


SMALL = {"encoder": audio_network(1, 16, 2), "optimizer": Adam(learning_rate=1e-2)}
HEARING = {
    "language model": AudioLanguageModel(decoder=llama_network(1, 16, 2, max_length=64), **SMALL),
    "whisper": Whisper(decoder=audio_network(1, 16, 2, max_length=32), **SMALL),
}


@pytest.mark.parametrize("name", HEARING)
def test_the_command_of_texts_writes_what_the_command_of_sounds_writes(name, tmp_path, capsys):
    # A few steps, after which letters are written and no special tokens.
    experiment = Experiment(
        model=HEARING[name],
        data=SpokenTexts(num_samples=2000, num_mels=8, num_made=32, num_held_out=8, batch_size=32),
        training=Training(num_steps=15, num_samples=1, tensorboard=False, compilation_cache="", mesh="data:1"),
        evaluation=Evaluation(num_examples=8),
    )
    train(experiment, tmp_path / "run", name="tunes")
    run = genjax.restore(tmp_path / "run")
    file = tmp_path / "tune.wav"
    write_wav(run.experiment.data.read("test").sounds[0] / 32767.0, file, 8000)
    capsys.readouterr()
    flags = [f"--workdir={run.workdir}", f"--audio={file}"]
    assert transcribe.main(["transcribe", *flags]) == 0
    heard = capsys.readouterr().out
    assert heard.strip() and "[" not in heard
    # As many new tokens as the data have.
    flags = ["generate", *flags, "--max_new_tokens=23", "--model.sampling.temperature=0"]
    assert generate.main(flags) == 0 and capsys.readouterr().out == heard
    draft = ["--search=speculative", f"--draft_workdir={run.workdir}"]
    for search in (["--search=beam", "--num_beams=1"], draft, [f"--prompt={heard[0]}"]):
        assert generate.main([*flags, *search]) == 0
        assert capsys.readouterr().out == (heard[1:] if search[0].startswith("--prompt") else heard)


def test_scores_are_shares_of_all_clips_and_of_each_speaker():
    said, heard = ["one", "two", "three four", "five"], ["one", "too", "three", "five"]
    found = transcripts.scores(heard, said, ["ada", "ada", "bob", "bob"])
    assert found == {"exact_match": 0.5, "word_error_rate": 0.4, "exact_match_ada": 0.5, "exact_match_bob": 0.5}
    assert word_error_rate(["a b c d", ""], ["a x c", "b"]) == (2 + 1) / 4
    with pytest.raises(UserError, match="the references have no words"):
        word_error_rate(["a"], [""])


def write(run, prompt="", **options):
    return "".join(prompts.generate(run, prompt, prompts.Options(**options)))


def test_what_cannot_be_heard_is_refused_in_a_sentence(run, tmp_path):
    (tmp_path / "none.wav").write_text("no sound")
    with pytest.raises(DataError, match="none.wav cannot be read as a WAV file"):
        transcripts.transcribe_file(run, tmp_path / "none.wav")
    with pytest.raises(DataError, match=r"lost.wav cannot be read as a WAV file: No such file or directory$"):
        write(run, audio=str(tmp_path / "lost.wav"))
    with pytest.raises(ConfigError, match="AudioLanguageModel, which writes down what it hears; give .* --audio=FILE"):
        write(run)
    with pytest.raises(ConfigError, match="--audio= names no file; write --audio=FILE"):
        write(run, audio="")
    with pytest.raises(ConfigError, match="which sees no pictures; give a sound by --audio=FILE"):
        write(run, image=("scene.png",))
    with pytest.raises(ConfigError, match="which describes no pictures; use experiments.transcribe"):
        captions.measure(run)
    seeing = untrained("questions_scenes", tmp_path / "run")
    with pytest.raises(ConfigError, match="is a run of Captioner, which hears nothing; take one of AudioLanguageModel"):
        transcripts.measure(seeing)
    with pytest.raises(ConfigError, match="is a run of Captioner, which hears nothing; leave --audio out"):
        write(seeing, audio="seven.wav")
