"""What a user can do wrong ends in one sentence that says what would be right, and in a non-zero exit."""

import os
import stat
import sys

import numpy as np
import pytest
from PIL import Image

from genjax.config import ConfigError
from genjax.errors import UserError
from genjax.training import Evaluation, train
from tests.experiments.commands import call
from tests.training.tiny_runs import TINY, flags, tiny

VAE = "--experiment=vae_digits"


SHORT = {**TINY, "training.num_steps": 5, "training.mesh": "data:1"}


def fails(*arguments: str, module: str = "train") -> str:
    """Runs an entry point, checks that it ends as it should, and returns its one sentence."""
    result = call(module, *arguments)
    assert result.returncode == 1, result.stdout
    # What a part that a flag chooses has of the part it replaces is told before.
    lines = [line for line in result.stderr.splitlines() if " keeps " not in line]
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--experiment=vae_digit"], "did you mean vae_digits"),
        (["--experiment=nowhere.py:mine"], "there is no file"),
        ([VAE, "--model.latent_dims=3"], "did you mean model.latent_dim"),
        ([VAE, "--model.latent_dim=many"], "model.latent_dim"),
        ([VAE, "--model.network.hidden_dims=8,x"], "model.network.hidden_dims"),
        ([VAE, "--data.image_size=8"], "data.image_size"),
        ([VAE, "--data.preprocessing=binarise"], "binarize_dynamic"),
        ([VAE, "--training.num_steps=0"], "must be at least 1"),
        ([VAE, "--training.num_samples=0"], "must be at least 1"),
        ([VAE, "--training.seed=-1"], "training.seed=-1 must lie between 0 and 4294967295"),
        ([], "--experiment is missing"),
    ],
    ids=lambda value: " ".join(value)[-30:] if isinstance(value, list) else "",
)
def test_a_wrong_flag(arguments, message, tmp_path):
    assert message in fails(*arguments, f"--workdir={tmp_path / 'run'}")


def test_a_batch_that_the_devices_cannot_share(tmp_path):
    sentence = fails(VAE, "--data.batch_size=30", f"--workdir={tmp_path}")
    assert "data.batch_size=30 cannot be divided among 8 devices" in sentence


def test_a_set_that_is_not_prepared(tmp_path):
    sentence = fails(VAE, "--data.name=cifar10", f"--data.dir={tmp_path}", f"--workdir={tmp_path / 'run'}")
    assert f"tfds build cifar10 --data_dir={tmp_path}" in sentence


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(64):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / f"{i:03d}.png")
    return folder


def test_a_corrupt_picture_is_named(pictures, tmp_path):
    for i in range(0, 64, 2):
        (pictures / f"{i:03d}.png").write_bytes(b"this is no picture")
    sentence = fails(VAE, "--data.name=folder", f"--data.dir={pictures}", f"--workdir={tmp_path / 'run'}")
    assert ".png is not a readable picture" in sentence


def test_a_folder_of_pictures_trains(pictures, tmp_path):
    overrides = {**SHORT, "data.name": "folder", "data.dir": str(pictures), "data.batch_size": 8}
    result = call("train", VAE, f"--workdir={tmp_path / 'run'}", *flags(overrides))
    assert result.returncode == 0, result.stderr
    assert list((tmp_path / "run" / "samples").glob("*.png"))


@pytest.mark.skipif(os.geteuid() == 0 and not os.path.isdir("/proc"), reason="needs a folder nobody can write")
def test_a_workdir_that_cannot_be_written(tmp_path):
    if os.geteuid() == 0:
        locked = "/proc/genjax"
    else:
        folder = tmp_path / "locked"
        folder.mkdir()
        folder.chmod(stat.S_IREAD | stat.S_IEXEC)
        locked = str(folder / "run")
    assert "cannot be written" in fails(VAE, f"--workdir={locked}")


def test_a_workdir_without_a_run_or_without_a_checkpoint(tmp_path):
    for module in ("sample", "evaluate"):
        assert "holds no config.json" in fails(f"--workdir={tmp_path}", module=module)
    assert "--workdir is missing" in fails(module="sample")
    assert call("train", VAE, f"--workdir={tmp_path}", *flags(SHORT)).returncode == 0
    (tmp_path / "checkpoints" / "5").rename(tmp_path / "elsewhere")
    assert "has no checkpoint yet" in fails(f"--workdir={tmp_path}", module="sample")
    (tmp_path / "config.json").write_text("{")
    assert "is damaged" in fails(f"--workdir={tmp_path}", module="evaluate")


def test_a_run_of_another_configuration_is_not_overwritten(tmp_path):
    assert call("train", VAE, f"--workdir={tmp_path}", *flags(SHORT)).returncode == 0
    sentence = fails(VAE, f"--workdir={tmp_path}", *flags({**SHORT, "model.latent_dim": 5}))
    assert "holds a run of another configuration; it differs in model.latent_dim" in sentence


def test_a_split_that_there_is_not_is_refused_before_a_run():
    for field in ("split", "validation_split"):
        with pytest.raises(
            ConfigError, match=f"evaluation.{field}=tset is no split; splits are train, validation, test"
        ):
            Evaluation(**{field: "tset"})
        for known in ("validation+test", "test_2017_flickr", "small1", "train[:90%]"):
            assert getattr(Evaluation(**{field: known}), field) == known


def test_a_bucket_that_cannot_be_used_here_is_one_sentence_and_not_made_a_local_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told_of = {
        "s3://bucket/run": "s3://bucket/run needs the package s3fs: pip install 'genjax[buckets]'",
        "gs://bucket/run": "gs://bucket/run needs the package gcsfs: pip install 'genjax[buckets]'",
        "az://bucket/run": "az://bucket/run needs the package adlfs: pip install adlfs",
        "ftp://host/run": "ftp://host/run is in no bucket that is known: schemes are abfs, az, gcs, gs, hf, s3",
        "s3://bucket/lr=[1]": "--workdir=s3://bucket/lr=[1]: give a directory without the characters * ? [",
    }
    for package in ("s3fs", "gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, package, None)
    for address, sentence in told_of.items():
        with pytest.raises(UserError) as told:
            train(tiny(), address, quiet=True)
        assert str(told.value) == sentence
    with pytest.raises(UserError, match=r"s3://bucket/texts needs the package s3fs: pip install 'genjax\[buckets\]'"):
        train(tiny(data__name="folder", data__dir="s3://bucket/texts"), tmp_path / "run", quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    ended = call("sweep", VAE, "--sweep=model.latent_dim=2,4", "--workdir=s3://bucket/runs")
    assert (
        ended.returncode == 1 and "--workdir=s3://bucket/runs is in a bucket, and this command works in" in ended.stderr
    )
