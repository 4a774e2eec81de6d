"""Every tool of experiments.denoising on a tiny run, and its bad input."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from PIL import Image

import genjax
from genjax import config
from genjax.families.diffusion.consistency import ConsistencyModel
from genjax.families.diffusion.discrete import MaskedDiffusion
from genjax.families.diffusion.edm import EDM
from genjax.families.diffusion.image_to_image import ImageToImage
from genjax.families.diffusion.networks import ResidualMLP
from genjax.families.diffusion.noisy_classifier import NoisyClassifier
from genjax.families.diffusion.samplers import Heun
from genjax.model import takes
from genjax.tools import conditions, denoising
from genjax.tools.denoising import Options
from genjax.tools.drawing import moving_points
from tests.tools.untrained import untrained

NETWORK = {
    "model.network": "residual_mlp",
    "model.network.hidden_dim": 4,
    "model.network.num_blocks": 1,
    "model.sampler.num_steps": 3,
}

IMAGE_TO_IMAGE = ImageToImage(
    data_shape=(8, 8, 1), network=ResidualMLP(hidden_dim=4, num_blocks=1), sampler=Heun(num_steps=3)
)


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    """A function that calls a tool on a tiny run, or on the untrained model that is given, and the folder of runs."""
    root = tmp_path_factory.mktemp("runs")
    for name, changes in (
        ("edm_digits", NETWORK),
        ("edm_points", NETWORK),
        ("feature_net_digits", {"model.channels": (2,), "model.num_features": 4}),
        ("noisy_classifier_digits", NETWORK),
    ):
        untrained(name, root / name, changes)
    run = genjax.restore(root / "edm_digits")

    def call(tool, model=None, **values):
        changed = run
        if model is not None:
            batch = {"x": jnp.zeros((1, *model.data_shape))}
            state = model.init(jax.random.key(0), batch)
            changed = dataclasses.replace(run, experiment=dataclasses.replace(run.experiment, model=model), state=state)
        return denoising.TOOLS[tool](changed, Options(**values)).files

    return call, root


def test_the_way_to_samples_and_the_schedule_are_drawn(tools):
    call, _ = tools
    (path,) = call("trajectory", num_samples=4)
    with Image.open(path) as image:
        # An untrained network only scales its noise, so frames are alike and the file merges them.
        assert image.format == "GIF" and image.size[0] > 4 * 8
    (path,) = call("schedule")
    assert path.stat().st_size > 5000


def test_the_way_of_points_is_drawn_before_the_data_with_large_noise_at_their_size(tools):
    _, root = tools
    run = genjax.restore(root / "edm_points")
    (path,) = denoising.trajectory(run, Options(num_samples=50)).files
    with Image.open(path) as image:
        assert image.format == "GIF" and min(image.size) >= 400
    examples = np.array([[-1.0, 0.0], [1.0, 2.0]])
    steps = np.array([[[0.0, 1.0]], [[1.4, 2.4]], [[5.0, 5.0]]])
    frames = moving_points(steps, examples)
    empty = moving_points(steps[2:], examples)[0]
    # Each frame differs from one whose point lies outside, at the place of its point alone.
    rows = [np.argwhere((frame != empty).any(-1)) for frame in frames]
    assert len(rows[2]) == 0 and all(np.ptp(places, axis=0).max() <= 6 for places in rows[:2])
    (y0, x0), (y1, x1) = rows[0].mean(0), rows[1].mean(0)
    assert x1 > x0 + 80 and y1 < y0 - 80
    with pytest.raises(config.ConfigError, match="have one dimension"):
        denoising.trajectory(of_one_dimension(run))


def of_one_dimension(run):
    model = dataclasses.replace(run.model, data_shape=(1,))
    return dataclasses.replace(run, experiment=dataclasses.replace(run.experiment, model=model))


def test_guidance_is_swept_and_judged(tools):
    call, root = tools
    sheet, record, plot = call("guidance", num_samples=20, scales=(0.0, 2.0), features=str(root / "feature_net_digits"))
    content = json.loads(record.read_text())
    assert [row["scale"] for row in content["scales"]] == [0.0, 2.0] and sheet.is_file() and plot.is_file()
    assert all(0 <= row[name] <= 1 for row in content["scales"] for name in ("recognised", "precision", "recall"))
    for model in (None, dataclasses.replace(IMAGE_TO_IMAGE, num_classes=10)):
        (sheet,) = call("guidance", model, scales=(2.0,), classifier=str(root / "noisy_classifier_digits"))
        assert np.asarray(Image.open(sheet)).std() > 0
    with pytest.raises(config.ConfigError, match="needs the mean of the data"):
        model = ConsistencyModel(data_shape=(8, 8, 1), network=IMAGE_TO_IMAGE.network, num_steps=2)
        call("guidance", model, classifier=str(root / "noisy_classifier_digits"))
    with pytest.raises(config.ConfigError, match="is a run of FeatureNet"):
        call("guidance", classifier=str(root / "feature_net_digits"))
    with pytest.raises(flags.Error, match="'much' is not numbers separated by commas"):
        config.from_flags(["denoising", "--scales=much"], Options())
    with pytest.raises(config.ConfigError, match="--scales=inf has a number that is not finite"):
        Options(scales=(float("inf"),))
    with pytest.raises(config.ConfigError, match="gives no features"):
        call("guidance", num_samples=20, features=str(root / "edm_digits"))


def test_pictures_are_filled_in_and_changed(tools):
    call, _ = tools
    for tool in ("inpaint", "edit"):
        (path,) = call(tool, num_samples=3, num_resamples=2)
        assert np.asarray(Image.open(path)).std() > 0
    # The condition of an image-to-image model is made of the examples.
    for tool in ("inpaint", "edit"):
        (path,) = call(tool, IMAGE_TO_IMAGE, num_samples=3, num_resamples=2, jump_length=2, strengths=(0.5,))
        assert np.asarray(Image.open(path)).std() > 0
    with pytest.raises(ValueError, match="strength=2.0"):
        call("edit", strengths=(2.0,))
    with pytest.raises(config.ConfigError, match="more than the"):
        call("edit", num_samples=100000)


def test_classes_are_asked_of_models_that_have_them_and_samples_are_numbers():
    model = EDM(num_classes=10, condition_on=("label",))
    np.testing.assert_array_equal(conditions.labels_for(model, ["3", "10"], 3), [3, 10, 3])
    # Names where all are names, as numbers may be names too; else numbers.
    names = ("10", "3", "cat")
    for classes, numbers in ((["cat", "3"], [2, 1]), (["10"], [0]), (["10", "2"], [10, 2])):
        np.testing.assert_array_equal(conditions.labels_for(model, classes, len(classes), names), numbers)
    with pytest.raises(
        config.ConfigError, match="--label=cat,2 is not a list of class numbers or names out of 10, 3, cat"
    ):
        conditions.labels_for(model, ["cat", "2"], 2, names)
    # Classifiers of noisy data draw what they take for a class.
    assert takes(NoisyClassifier(), "label") and not takes(MaskedDiffusion(), "label")
    with pytest.raises(config.ConfigError, match="--label=3,99999999999 is not a list of class numbers"):
        conditions.labels_for(model, ["3", "99999999999"], 3)
    with pytest.raises(config.ConfigError, match="not a list of class numbers"):
        conditions.labels_for(model, ["cat"], 3)
    with pytest.raises(ValueError, match="between 0 and 9"):
        conditions.labels_for(model, ["11"], 3)
    with pytest.raises(config.ConfigError, match="MaskedDiffusion is not conditional on classes"):
        conditions.labels_for(MaskedDiffusion(), ["3"], 3)
    conditions.check_finite(np.array([1, 2]), "samples")
    with pytest.raises(config.ConfigError, match="ran out of steps"):
        conditions.check_finite(np.array([1.0, np.inf]), "samples")
