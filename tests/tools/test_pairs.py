"""Models of pictures and texts: prompts of samples, the judge's report, retrieval and hard negatives."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from experiments.quality import judged
from genjax.config import ConfigError
from genjax.data.scenes import grammar
from genjax.families.diffusion.caption_encoder import TEXT_PARTS, CaptionEncoder
from genjax.families.diffusion.guidance import Guidance
from genjax.tools import edits, judging, pairs, samples
from genjax.tools.pairs import Options, clip_score, hard_negatives, retrieval
from genjax.tools.quality import Options as QualityOptions
from genjax.training import resolve
from genjax.training.warm_start import warm_start
from tests.tools.untrained import untrained


@pytest.fixture(scope="module")
def drawing(tmp_path_factory):
    """A text-to-image model before its first step."""
    return untrained("text_to_image_scenes", tmp_path_factory.mktemp("runs") / "drawing")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP before its first step."""
    return untrained("clip_scenes", tmp_path_factory.mktemp("runs") / "clip")


def test_samples_follow_prompts_in_turn_and_refuse_what_the_model_cannot_take(drawing, clip, monkeypatch):
    seen = []
    monkeypatch.setattr(type(drawing), "sample", lambda run, key, n, **c: seen.append(c) or np.zeros((n, 32, 32, 3)))
    prompts = ("a small red circle", "a large blue square")
    [path] = samples.write(drawing, samples.Options(num_samples=3, prompt=prompts, negative_prompt=""))
    assert path.is_file()
    decode = lambda name: [drawing.experiment.data.decode(row) for row in seen[0][name]]
    assert decode("tokens") == [*prompts, prompts[0]] and decode("negative_tokens") == [""] * 3
    model = dataclasses.replace(drawing.model, guidance=Guidance(scale=0.0))
    unguided = dataclasses.replace(drawing, experiment=dataclasses.replace(drawing.experiment, model=model))
    for run, options, message in (
        (unguided, {"negative_prompt": ""}, "--negative_prompt needs the weight of the guidance"),
        (clip, {"negative_prompt": ""}, "CLIP takes no text to lead away from; leave --negative_prompt out"),
        (drawing, {"prompt": ("a pink circle",)}, "the word 'pink', which is not among the 23 words"),
    ):
        with pytest.raises(Exception, match=message):
            samples.write(run, samples.Options(num_samples=2, **options))


def test_the_report_of_the_judge_has_a_column_for_each_weight_of_guidance(drawing, monkeypatch, capsys):
    result = judging.measure(drawing, num_samples=4, scales=(0.0, 1.0))
    assert set(result["scales"]) == {"0", "1"} and result["num_samples"] == 4
    assert result["scales"]["1"]["all"] == 0.0 and result["data"]["all"] == 1.0
    # Pictures of the captions themselves are right; those of other captions are not.
    data, shift = drawing.experiment.data, [0]

    def pictures(run, captions, seed, *reranking):
        rows = np.arange(len(captions)) + shift[0]
        return data.load("test").gather(rows)["x"] / np.float32(255)

    monkeypatch.setattr(judging, "pictures_of", pictures)
    assert judging.measure(drawing, num_samples=6)["scales"]["2"]["all"] == 1.0
    assert judged(drawing, QualityOptions(judge="scenes", num_judged=6)) == 0
    table = capsys.readouterr().out
    assert "relations            1.000     1.000" in table and (drawing.workdir / "judged_test_00000000.json").is_file()
    with pytest.raises(ConfigError, match="--judge=clip needs a run of CLIP or SigLIP: --scorer=RUN"):
        QualityOptions(judge="clip")
    shift[0] = 2
    assert judging.measure(drawing, num_samples=6)["scales"]["2"]["all"] == 0.0


def test_what_the_codes_of_an_autoencoder_can_say_is_judged_too(tmp_path, monkeypatch, capsys):
    coder = untrained("autoencoder_kl_scenes", tmp_path / "coder")
    assert judging.measure(coder, num_samples=10)["reconstructions"]["all"] == 0.0
    # A code that keeps everything says everything; batches of 8 leave two rows that fill up the second.
    monkeypatch.setattr(type(coder.model), "reconstruct", lambda model, state, batch, key: batch["x"])
    found = judging.measure(coder, num_samples=10)
    assert found["scales"] == {} and found["reconstructions"] == found["data"]
    assert judged(coder, QualityOptions(judge="scenes", num_judged=10)) == 0
    assert "all                         1.000            1.000" in capsys.readouterr().out


def test_of_several_candidates_the_one_nearest_to_its_caption_is_taken(drawing, clip, monkeypatch):
    data, captions = drawing.experiment.data, [own[0] for own in drawing.experiment.data.references("test")[:3]]
    own = data.load("test").gather(np.arange(12))["x"] / np.float32(127.5) - 1
    keys = [jax.random.key_data(jax.random.fold_in(jax.random.key(0), i)).tolist() for i in range(4)]

    def sample(run, key, count, **condition):
        assert condition["tokens"].shape == (3, 20)
        return own[3 * keys.index(jax.random.key_data(key).tolist()) :][:count]

    monkeypatch.setattr(type(drawing), "sample", sample)
    found = judging.pictures_of(drawing, captions, 0, clip, 4)
    scores = pairs.embed_pictures(clip, own).reshape(4, 3, -1) * pairs.embed_texts(clip, captions)[None]
    chosen = 3 * scores.sum(-1).argmax(0) + np.arange(3)
    assert len(set(chosen // 3)) > 1
    np.testing.assert_allclose(found, (own[chosen] + 1) / 2, atol=1e-6)
    for call, message in (
        (lambda: samples.Options(rerank="runs/clip"), "--rerank chooses samples by their text: give --prompt=TEXT"),
        (lambda: QualityOptions(rerank="runs/clip"), "--rerank chooses the samples that are judged: give --judge"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()


def test_what_has_no_captions_is_not_judged(clip, drawing):
    with pytest.raises(ConfigError, match="--scales are weights of guidance, and CLIP has none"):
        judging.measure(clip, scales=(1.0,))
    with pytest.raises(ConfigError, match="pictures and texts are compared by a run of CLIP or SigLIP, such as"):
        pairs.measure(drawing)


def test_hard_negatives_are_other_captions_of_the_same_words():
    description = grammar.parse("a small red circle left of a large blue square")
    found = {name: negative.caption() for name, negative in hard_negatives(description).items()}
    assert found == {
        "colours_exchanged": "a small blue circle left of a large red square",
        "relation_reversed": "a small red circle right of a large blue square",
    }
    assert not hard_negatives(grammar.parse("a small red circle"))
    assert not hard_negatives(grammar.parse("a small red circle above a small red circle"))
    assert set(hard_negatives(grammar.parse("a small red circle above a large red circle"))) == {"relation_reversed"}
    assert set(hard_negatives(grammar.parse("a small red circle above a small blue circle"))) == {"relation_reversed"}


def test_retrieval_takes_equal_texts_for_right():
    similarities = np.array([[0.2, 0.9, 0.1], [0.3, 0.8, 0.4], [0.9, 0.1, 0.5]])
    same = np.eye(3, dtype=bool)
    assert retrieval(similarities, same) == {"text_of_picture": 1 / 3, "picture_of_text": 0.0 + 1 / 3}
    same[0, 1] = same[1, 0] = True
    assert retrieval(similarities, same) == {"text_of_picture": 2 / 3, "picture_of_text": 2 / 3}


def test_figures_of_a_run_are_those_of_its_embeddings(clip):
    options = Options(
        num_pairs=20, classes=("circle", "square", "cross"), templates=("a small red {}", "a large white {}")
    )
    result = pairs.measure(clip, options)
    data = clip.experiment.data
    rows = pairs.random_order(24)[:20]
    x = data.transform({**data.load("test").gather(rows), "example_index": rows.astype(np.int32)}, jax.random.key(0))
    logits = np.asarray(clip.model.logits(clip.state, x))
    texts = [data.references("test")[i][0] for i in rows]
    assert result["text_of_picture"] == np.mean([texts[j] == texts[i] for i, j in enumerate(logits.argmax(1))])
    assert 0 < result["num_colours_exchanged"] <= result["num_relation_reversed"] <= 10
    named = [t for t in texts if sum(f" {c}" in t for c in options.classes) == 1]
    assert result["num_zero_shot"] == len(named) and 0 <= result["zero_shot"] <= 1
    # The score of the split's own pictures, by the formula.
    pictures = data.load("test").gather(rows)["x"] / np.float32(255)
    cosines = np.diagonal(logits) / np.exp(clip.state.params["logit_scale"])
    np.testing.assert_allclose(clip_score(clip, pictures, texts), 2.5 * np.maximum(cosines, 0).mean(), rtol=1e-4)
    with pytest.raises(ConfigError, match=r"sees pictures of \(32, 32, 3\), and these have \(8, 8, 3\)"):
        clip_score(clip, pictures[:, :8, :8], texts)
    with pytest.raises(ConfigError, match="no caption names exactly one of the classes dog, cat"):
        pairs.measure(clip, Options(num_pairs=4, classes=("dog", "cat")))
    for given, message in (({"classes": ("a",)}, "one class; give two"), ({"templates": ("a",)}, "write {} where")):
        with pytest.raises(ConfigError, match=message):
            Options(**given)


def test_a_drawing_model_takes_the_encoder_of_a_clip_run(drawing, clip):
    encoder = CaptionEncoder(stack=dataclasses.replace(clip.model.text, causal=True), hide_padding=False, frozen=True)
    changed = dataclasses.replace(drawing.experiment, model=dataclasses.replace(drawing.model, text=encoder))
    model = resolve(changed).model
    rows = drawing.experiment.data.load("test").gather(np.arange(4))
    batch = drawing.experiment.data.transform(rows, jax.random.key(0))
    params = warm_start(model.init(jax.random.key(5), batch).params, str(clip.workdir), TEXT_PARTS, model)
    context = model.with_context(params, model.condition(batch))["context"]
    np.testing.assert_allclose(context, clip.model.text_features(clip.state, batch["tokens"]), atol=1e-5)


def test_edits_of_a_picture_of_a_file(drawing, tmp_path):
    data = drawing.experiment.data
    x = data.to_unit(np.asarray(data.transform(data.load("test").gather(np.arange(1)), jax.random.key(0))["x"]))[0]
    Image.fromarray(np.round(255 * x).astype(np.uint8)).save(tmp_path / "x.png")
    white = np.zeros((32, 32), np.uint8)
    white[:, 16:] = 255
    Image.fromarray(white).save(tmp_path / "mask.png")
    Image.fromarray(0 * white).save(tmp_path / "black.png")
    given = {"image": str(tmp_path / "x.png"), "prompt": "a small red circle", "output": str(tmp_path / "out.png")}
    path = edits.write(drawing, edits.Options(mask=str(tmp_path / "mask.png"), num_steps=2, **given))
    found = np.asarray(Image.open(path)) / 255
    np.testing.assert_allclose(found[:, :16], x[:, :16], atol=2 / 255)
    assert np.abs(found[:, 16:] - x[:, 16:]).mean() > 0.05
    for options, message in (
        ({**given, "image": None}, "give it by --image=FILE"),
        ({**given, "image": str(tmp_path / "none.png")}, "none.png"),
        ({**given, "mask": str(tmp_path / "black.png")}, "black.png is of one colour; it is white where"),
        ({**given, "strength": 0.1}, "strength=0.1 is less than half a step"),
        ({**given, "prompt": "a pink circle"}, "the word 'pink', which is not among"),
    ):
        with pytest.raises(Exception, match=message):
            edits.write(drawing, edits.Options(**options))
