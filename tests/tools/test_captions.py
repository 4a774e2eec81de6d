"""Captions and answers of a run, in Python and by the command."""

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import caption, generate
from genjax.config import ConfigError
from genjax.data import CaptionedImages, DataError
from genjax.data.scenes.grammar import parse
from genjax.tools import captions, samples
from tests.tools.untrained import untrained


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained("questions_scenes", tmp_path_factory.mktemp("runs") / "questions")


@pytest.fixture
def file(run, tmp_path):
    x = run.experiment.data.load("test").gather(np.arange(1))["x"][0]
    Image.fromarray(x).save(tmp_path / "scene.png")
    return tmp_path / "scene.png"


def test_a_file_is_seen_and_answered_as_the_example_that_it_shows(run, file, capsys):
    data, asked = run.experiment.data, run.experiment.data.asked("test")[0]
    batch = data.transform(data.load("test").gather(np.arange(1)), jax.random.key(0))
    np.testing.assert_allclose(data.read_picture(file), batch["x"], atol=1e-6)
    answer = captions.describe_file(run, file, asked.text)
    written = run.model.describe(run.state, batch["x"], *run.model.prompts_of(batch), num_beams=1)
    assert answer == data.decode(np.asarray(written)[0]).strip()
    flags = ["caption", f"--workdir={run.workdir}"]
    assert caption.main([*flags, f"--image={file}", f"--question={asked.text}"]) == 0
    assert capsys.readouterr().out.strip() == answer
    assert caption.main([*flags, "--evaluation.num_examples=12"]) == 0
    assert "vqa_accuracy_relation" in capsys.readouterr().out
    paths = samples.write(run, samples.Options(num_samples=3))
    assert [path.suffix for path in paths] == [".txt", ".png"] and len(paths[0].read_text().splitlines()) == 3


def test_a_prompt_about_a_picture_is_continued_by_the_command_of_texts(run, file, capsys):
    question = run.experiment.data.asked("test")[0].text
    answer = captions.describe_file(run, file, question)
    flags = ["generate", f"--workdir={run.workdir}", "--model.sampling.temperature=0"]
    assert generate.main([*flags, f"--image={file}", f"--prompt={question}", "--max_new_tokens=3"]) == 0
    assert capsys.readouterr().out.strip() == answer
    with pytest.raises(ConfigError, match="Captioner, which writes about a picture; give one by --image=FILE"):
        generate.main([*flags, f"--prompt={question}"])
    with pytest.raises(DataError, match="answers questions; give one by --prompt=TEXT"):
        generate.main([*flags, f"--image={file}"])


def test_what_cannot_be_described_is_refused_in_a_sentence(run, file, tmp_path):
    damaged = tmp_path / "damaged.png"
    damaged.write_text("no picture")
    for arguments, message in (
        (
            (damaged, "is there a red circle?"),
            r"^\S+damaged.png is not a readable picture \(its content is of no known format, such as PNG or JPEG\)$",
        ),
        (
            (tmp_path / "none.png", "is there a red circle?"),
            r"^\S+none.png is not a readable picture \(No such file or directory\)$",
        ),
        ((file, None), "give one by --question=TEXT"),
        ((file, "is there a pink circle?"), "the word 'pink', which is not among the 41 words of the tokenizer$"),
    ):
        with pytest.raises(DataError, match=message):
            captions.describe_file(run, *arguments)
    for command in (caption, generate):
        with pytest.raises(ConfigError, match="--image= names no file; write --image=FILE"):
            command.main([command.__name__, f"--workdir={run.workdir}", "--image="])
    with pytest.raises(ConfigError, match="asks about a picture; give it by --image=FILE"):
        caption.main(["caption", f"--workdir={run.workdir}", "--question=is there a red circle?"])
    with pytest.raises(DataError, match="the captions of scenes answer no questions"):
        CaptionedImages().opening(["is there a red circle?"])


def test_scores_of_captions_and_answers():
    data = CaptionedImages(num_made=4, num_held_out=6)
    wanted = data.references("test")
    texts = [own[0] for own in wanted]
    pictures = data.load("test").gather(np.arange(6))["x"] / np.float32(255)
    assert captions.truth(texts, pictures, texts) == {"true": 1.0, "one_thing": 1.0, "relations": 1.0}
    # Another scene's caption is not true, and neither is no caption; the same in other words is.
    given = [texts[2], f"there is {texts[2]}", "circle", *texts[3:]]
    true = captions.truth(
        [texts[0], texts[3], "circle", *(parse(text).caption(paraphrase=True) for text in texts[3:])], pictures, texts
    )
    assert true["one_thing"] == 2 / 3 and true["relations"] == 2 / 3
    scores = captions.caption_scores(given, wanted)
    assert scores["exact_match"] == 0.5 and 0 < scores["bleu"] < 100 and 0 < scores["cider_d"] < 10
    scores = captions.answer_scores(["red", "2"], [("red",), ("two", "two", "three")], ["colour", "count"])
    assert scores["exact_match"] == 0.5 and scores["vqa_accuracy"] == scores["vqa_accuracy_count"] == 1.0


def test_prompts_with_pictures_between_their_words_are_continued(file, tmp_path, capsys):
    seeing = untrained("flamingo_scenes", tmp_path / "flamingo")
    flags = ["generate", f"--workdir={seeing.workdir}", f"--image={file},{file}", "--max_new_tokens=2"]
    text = "<image> this is dax <EOC> <image> this is"
    assert generate.main([*flags, f"--prompt={text}", "--model.sampling.temperature=0"]) == 0
    x, tokens = seeing.experiment.data.read_prompt(text, [file, file])
    written = seeing.model.describe(seeing.state, x, tokens, num_beams=1)
    assert capsys.readouterr().out.strip() == seeing.experiment.data.decode(np.asarray(written)[0])
    with pytest.raises(DataError, match="the prompt has 1 image token for 2 pictures, each worth one token"):
        generate.main([*flags, "--prompt=<image> this is"])
    with pytest.raises(ConfigError, match="reads pictures between words; ask it by experiments.generate"):
        captions.describe_file(seeing, file)


def test_several_pictures_of_a_text_about_one_are_refused(run, file):
    with pytest.raises(ConfigError, match="texts about one picture each, and --image=.* are 2"):
        generate.main(
            ["generate", f"--workdir={run.workdir}", f"--image={file},{file}", "--prompt=is there a red circle?"]
        )
