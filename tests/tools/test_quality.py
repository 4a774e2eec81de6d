"""The report of experiments.quality on a run, in a classifier's features and in pixels."""

import dataclasses
import json
import types

import jax
import numpy as np
import PIL.Image
import pytest

import genjax
from genjax import config
from genjax.config import ConfigError
from genjax.data import ArrayExamples, Images, Translations, random_order
from genjax.families.classifier.feature_net import shift_pictures
from genjax.families.gan.gan import GAN
from genjax.tools.answers import examples_to_answer
from genjax.tools.features import feature_extractor
from genjax.tools.quality import Options, figures, measure, samples_of
from genjax.training import Evaluation, train
from tests.experiments.commands import call

SHORT = {
    "data.batch_size": 32,
    "training.num_steps": 5,
    "training.steps_per_dispatch": 5,
    "training.evaluate_every": None,
    "training.sample_every": None,
    "training.best_metric": None,
    "training.num_samples": 4,
    "training.tensorboard": False,
    "training.compilation_cache": "",
    "training.mesh": "data:1",
}
VAE = {"model.latent_dim": 4, "model.network.hidden_dims": (32,), "model.optimizer.schedule": "constant"}
NET = {"model.channels": (4, 4), "model.num_features": 8, "model.num_ascent_steps": 1, "training.num_steps": 50}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Working directories of a small VAE and of a small classifier of the digits."""
    root = tmp_path_factory.mktemp("runs")
    for name, experiment, changes in (("vae", "vae_digits", VAE), ("net", "feature_net_digits", NET)):
        train(
            config.apply_overrides(config.find_experiment(experiment).build(), SHORT | changes), root / name, quiet=True
        )
    return root


def test_all_figures_are_given_with_counts_floor_and_picture(runs):
    run = genjax.restore(runs / "vae")
    result = measure(run, Options(features=str(runs / "net"), num_samples=120, num_memorization_samples=50))
    assert "FeatureNet, step 50, trained on digits" in result["protocol"]
    assert (
        result["counts"] == {"samples": 120, "test": 179, "train": 120, "kept": 10000} and result["num_features"] == 8
    )
    for name in ("frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage"):
        assert {name} <= set(result["samples"]) & set(result["train"]) & set(result["floor"])
    assert not any("covariance" in note for note in result["notes"])
    # Five steps make no digits; other digits are nearer.
    assert result["samples"]["frechet_distance"] > 3 * result["train"]["frechet_distance"]
    assert result["samples"]["class_score"] >= 1.0 and 0 <= result["memorization"]["memorization_auc"] <= 1
    assert (run.workdir / "neighbors.png").stat().st_size > 0


def test_samples_do_not_depend_on_how_many_are_asked_for(runs):
    run = genjax.restore(runs / "vae", overrides={"data.eval_batch_size": 8})
    few, many = (np.concatenate(list(samples_of(run, 1, count))) for count in (12, 20))
    assert few.shape == (12, 8, 8, 1)
    np.testing.assert_array_equal(few, many[:12])


def test_samples_of_a_translator_are_those_of_the_split_each_once(tmp_path):
    data = Translations(name="digits", eval_batch_size=50)
    copying = types.SimpleNamespace(conditions=("source",), sample=lambda state, key, num_samples, source=None: source)
    run = types.SimpleNamespace(
        experiment=types.SimpleNamespace(data=data, evaluation=Evaluation()),
        model=copying,
        sample=lambda key, num_samples, source: np.asarray(source),
        workdir=tmp_path,
    )
    test = data.load("test").arrays()
    copies, order = np.concatenate(list(samples_of(run, 0, 120))), random_order(len(test["x"]))
    np.testing.assert_allclose(copies, test["source"][order[:120]] / 16, atol=1e-6)
    shown = examples_to_answer(run, 200, jax.random.key(0))
    first_again = test["source"][order[np.arange(200) % len(order)]]
    np.testing.assert_allclose(data.to_unit(shown["source"]), first_again / 16, atol=1e-6)
    _, extract = feature_extractor("pixels", "tensorflow")
    assert figures(run, extract, Options(metrics=("frechet",)))["counts"]["samples"] == len(test["x"])


def test_samples_of_a_conditional_model_have_the_classes_of_the_data():
    # Of ten classes and batches of four, the classes in turn in every batch would all be 0 to 3.
    data = Images(name="digits", eval_batch_size=4, classes=(0, 3, 9))
    run = types.SimpleNamespace(
        experiment=types.SimpleNamespace(data=data),
        model=GAN(conditioning="projection", num_classes=10),
        sample=lambda key, num_samples, label: np.tile(label[:, None, None, None] / 9, (1, 8, 8, 1)),
    )
    label = data.load("train").arrays()["label"]
    drawn = np.concatenate(list(samples_of(run, 0, len(label))))[:, 0, 0, 0] * 9
    np.testing.assert_array_equal(np.bincount(drawn.round().astype(int)), np.bincount(label))
    run.model, run.sample = GAN(), lambda key, num_samples: np.zeros((num_samples, 8, 8, 1))
    assert len(np.concatenate(list(samples_of(run, 0, 10)))) == 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class _DarkThenLight(Images):
    """2 x 2 pictures of two classes, one after the other, as folders have them."""

    def load_split(self, split):
        noise = np.random.default_rng(sum(split.encode())).normal(size=(800, 2, 2, 1))
        x = np.round(64 + 128 * np.repeat([0, 1], 400)[:, None, None, None] + 20 * noise)
        return ArrayExamples({"x": np.clip(x, 0, 255).astype(np.uint8)})


def test_sets_that_lie_class_after_class_are_judged_by_fair_parts_of_them(tmp_path):
    data = _DarkThenLight(name="two", horizontal_flip=True)
    # A perfect model of both classes, but for six samples that are mirrored training pictures.
    drawn = data.load("validation").arrays()["x"][random_order(800)] / 255.0
    drawn[:6] = data.load("train").arrays()["x"][:6, :, ::-1] / 255.0
    samples = iter(np.split(drawn, [500]))
    run = types.SimpleNamespace(
        experiment=types.SimpleNamespace(data=data, evaluation=Evaluation()),
        model=GAN(),
        sample=lambda key, num_samples: next(samples),
        workdir=tmp_path,
    )
    _, extract = feature_extractor("pixels", "tensorflow")
    result = figures(
        run, extract, Options(num_samples=800, num_data=400, reservoir_size=300, num_memorization_samples=400)
    )
    for name in ("samples", "train", "floor"):
        # By the first half of the split, which is dark, these were 1.0, 0.4, 0.4 and 0.5.
        found = result[name]
        assert found["frechet_distance"] < 0.02 and abs(found["kernel_distance"]) < 0.02
        assert found["precision"] > 0.85 and found["density"] == pytest.approx(1.0, abs=0.2)
    assert result["memorization"]["memorization_auc"] == pytest.approx(0.5, abs=0.06)
    assert result["memorization"]["sample_distance_q01"] < 1e-3
    with PIL.Image.open(tmp_path / "neighbors.png") as sheet:
        assert sheet.size[0] > sheet.size[1] / 2


def test_the_command_prints_its_protocol_and_names_what_is_wrong(runs):
    ended = call("quality", f"--workdir={runs / 'vae'}", "--num_samples=40", "--metrics=frechet")
    assert ended.returncode == 0, ended.stderr
    assert (
        "features: pixels in [0, 1], 64 of them" in ended.stdout
        and "the 40 samples and the 40 training pictures are no more than the 64 features" in ended.stdout
    )
    with pytest.raises(ConfigError, match="metrics has no fid; choose from frechet"):
        Options(metrics=("fid",))
    record = json.loads((runs / "vae" / "quality_test.json").read_text())
    assert f"{record['samples']['frechet_distance']:.5g}" in ended.stdout
    with pytest.raises(ConfigError, match="neither pixels, nor the directory of a run"):
        feature_extractor(str(runs / "none.pth"), "tensorflow")
    with pytest.raises(ConfigError, match="a run of VAE, which gives no features"):
        feature_extractor(str(runs / "vae"), "tensorflow")
    (runs / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="is not a file of tensors that torch.save wrote"):
        feature_extractor(str(runs / "bad.pth"), "tensorflow")
    _, extract = feature_extractor(str(runs / "net"), "tensorflow")
    with pytest.raises(ConfigError, match="wants pictures of shape"):
        extract(np.zeros((2, 4, 8, 1), np.float32))
    assert extract(np.zeros((2, 12, 10, 1), np.float32))[0].shape == (2, 8)


def test_shifted_pictures_move_down_and_right():
    x = np.random.default_rng(0).random((3, 4, 4, 1)).astype(np.float32)
    moved = np.asarray(shift_pictures(x, np.array([[0, 0], [1, 0], [-2, 1]]), 2))
    np.testing.assert_array_equal(moved[0], x[0])
    np.testing.assert_array_equal(moved[1, 1:], x[1, :-1])
    np.testing.assert_array_equal(moved[2, :2, 1:], x[2, 2:, :-1])
    assert not moved[2, 2:].any() and not moved[2, :, :1].any()
