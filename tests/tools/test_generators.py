"""The entry points that draw and compare, each once on a tiny run, and what they say of bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genjax import config
from genjax.config import ConfigError
from genjax.data import Images
from genjax.tools.features import feature_extractor
from genjax.tools.generators import check_can_draw
from genjax.tools.objectives import PictureMeasures
from genjax.training import Experiment
from tests.experiments.commands import call
from tests.tools.untrained import untrained

SHORT = {
    "training.num_steps": 4,
    "training.steps_per_dispatch": 2,
    "training.log_every": 2,
    "training.sample_every": 2,
    "training.num_samples": 4,
    "training.tensorboard": "false",
    "training.compilation_cache": "",
    "training.mesh": "data:1",
    "model.latent_dim": 4,
    "model.network.base_channels": 4,
    "data.batch_size": 8,
}
DCGAN = ["train", "--experiment=dcgan_digits", *(f"--{name}={value}" for name, value in SHORT.items())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("tools")
    for name in ("stylegan2_emoji", "feature_net_digits"):
        untrained(name, root / name)
    picture = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(picture).save(root / "picture.png")
    np.savez(root / "other.npz", weight=picture)
    (root / "damaged.npz").write_bytes((root / "other.npz").read_bytes()[:-30])
    return root


@pytest.fixture(scope="module")
def outcomes(folder):
    """What every command ended with, by what it is called here."""
    dcgan, style, net = (f"--workdir={folder / name}" for name in ("dcgan", "stylegan2_emoji", "feature_net_digits"))
    features, picture = f"--features={folder / 'feature_net_digits'}", folder / "picture.png"
    pictures = ["pictures", style, "--num_rows=2", "--num_columns=2"]
    commands = {
        "train": [*DCGAN, dcgan],
        "classes": ["pictures", dcgan, "--tool=classes"],
        "truncation": [*pictures, "--tool=truncation"],
        "mixing": [*pictures, "--tool=mixing", "--layers=0,2"],
        "project": [*pictures, "--tool=project", "--num_steps=2"],
        "equivariance": [*pictures, "--tool=equivariance"],
        "walk of a classifier": ["pictures", net, "--tool=walk"],
        "style": ["style", features, f"--content={picture}", f"--style={picture}", f"--output={folder / 'styled.png'}"]
        + ["--num_steps=2"],
        "small style": ["style", features, "--size=64"],
        "objectives": ["objectives", f"--workdir={folder / 'objectives'}", "--methods=non_saturating"]
        + ["--num_steps=2", "--num_seeds=2", "--num_samples=200"],
        "odd pictures": [*DCGAN, "--data.pad_to=9,9", f"--workdir={folder / 'odd'}"],
        "no pairs": ["train", "--experiment=pix2pix_shapes", "--data.name=digits", "--data.paired=false"]
        + [f"--workdir={folder / 'pairs'}"],
        "label": ["sample", dcgan, "--label=3,10"],
        "other features": ["quality", dcgan, f"--features={folder / 'other.npz'}"],
        "damaged features": ["quality", dcgan, f"--features={folder / 'damaged.npz'}"],
        "few samples": ["quality", dcgan, "--num_samples=40", "--num_data=100", "--metrics=frechet"],
    }
    return {name: call(*arguments) for name, arguments in commands.items()}


def test_pictures_are_drawn_beside_every_sheet_of_samples(outcomes, folder):
    assert outcomes["train"].returncode == 0, outcomes["train"].stderr
    drawn = {path.name for path in (folder / "dcgan" / "samples").iterdir()}
    steps = [f"{name}_0000000{step}" for name in ("walk", "classes", "samples") for step in (2, 4)]
    assert {Path(name).stem for name in drawn} == {*steps, "curves"}
    with Image.open(folder / "dcgan" / "samples" / "walk_00000004.gif") as walk:
        assert walk.n_frames == 32


@pytest.mark.parametrize("name", ["classes", "truncation", "mixing", "project"])
def test_a_tool_draws_its_picture(outcomes, name):
    ended = outcomes[name]
    assert ended.returncode == 0, ended.stderr
    with Image.open(ended.stdout.splitlines()[0]) as picture:
        assert np.asarray(picture).std() > 0


def test_a_picture_takes_the_style_of_another(outcomes, folder):
    assert outcomes["style"].returncode == 0, outcomes["style"].stderr
    with Image.open(folder / "styled.png") as picture:
        assert picture.size == (8, 8)


def test_objectives_stand_beside_the_data(outcomes, folder):
    ended = outcomes["objectives"]
    output = ended.stdout
    assert ended.returncode == 0, ended.stderr
    assert "figures of 200 samples beside figures of 200 points of the test split" in output
    assert "test points            modes_covered 8" in output and "non_saturating              2 steps" in output
    record = json.loads((folder / "objectives" / "eight_gaussians" / "non_saturating.json").read_text())
    assert len(record["figures"]) == 2


def test_figures_of_pictures_print_their_counts_their_floor_and_what_they_mean():
    data = Images(name="digits", preprocessing="signed")
    measures = PictureMeasures(Experiment(model=None, data=data), feature_extractor("pixels", "tensorflow")[1])
    counts, note = measures.protocol(60)
    assert counts.startswith("60 samples, or as many training pictures, against 179 test pictures, by 64 features")
    assert "floor: 89 against 90 test pictures" in counts
    assert note.startswith("note: the 60 samples are no more than the 64 features")
    floor, train = measures.floor(), measures.of_training_pictures(179)
    assert 0.0 < train["frechet_distance"] < floor["frechet_distance"] and 0.5 < floor["recall"] <= 1.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("odd pictures", "error: pictures of 9 x 9 cannot be halved"),
        ("no pairs", "error: pix2pix learns from pairs of a source and its picture, and data.paired=false has none"),
        ("label", "between 0 and 9"),
        ("other features", "has another layout than pytorch-fid's and torch-fidelity's Inception weights: no tensor"),
        ("damaged features", "damaged.npz is not a file of arrays that numpy.savez wrote"),
        ("walk of a classifier", "error: walk needs a model that decodes normal latents; the model is FeatureNet"),
        ("equivariance", "error: only the generator of StyleGAN3 has an input that can be moved"),
        ("small style", "75"),
    ],
)
def test_bad_input_is_one_sentence(outcomes, name, message):
    ended = outcomes[name]
    assert ended.returncode == 1 and message in ended.stderr and len(ended.stderr.splitlines()) == 1, ended.stderr


def test_fewer_samples_than_features_are_a_note(outcomes):
    ended = outcomes["few samples"]
    assert ended.returncode == 0, ended.stderr
    counts = "the 40 samples and the 40 training pictures and the 50 pictures in one of its halves are no more than"
    assert counts in ended.stdout


def test_what_cannot_be_drawn_on_schedule_is_said_before_the_training():
    experiments = {
        name: config.find_experiment(name).build() for name in ("wgan_gp_eight_gaussians", "stylegan2_emoji")
    }
    for name, picture, message in (
        ("wgan_gp_eight_gaussians", "walk", "needs pictures; the data are Points"),
        ("stylegan2_emoji", "classes", "conditional on classes"),
    ):
        check_can_draw("curves", experiments[name])
        with pytest.raises(ConfigError, match=message):
            check_can_draw(picture, experiments[name])
