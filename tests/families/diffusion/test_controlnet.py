"""The experiment `controlnet`: it starts at a folder's U-Net, learns the control network alone, and follows hints."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import genjax
from genjax import config
from genjax.errors import UserError
from genjax.families.diffusion import pipelines
from genjax.families.diffusion.controlnet import edges
from genjax.tools import edits, samples
from genjax.training import train
from genjax.training.checkpoints import flatten
from tests.interop import made_folders

SHORT = {
    "data.image_size": (8, 8),
    "data.batch_size": 2,
    "model.diffusion.sampler": "ddim",
    "model.diffusion.sampler.num_steps": 2,
    "model.diffusion.network.hint_channels": (8,),
    "model.diffusion.optimizer.learning_rate": 0.01,
    "training.num_steps": 4,
    "training.steps_per_dispatch": 1,
    "training.log_every": 1,
    "training.checkpoint_every": 2,
    "training.sample_every": None,
    "training.num_samples": 2,
    "training.tensorboard": False,
    "training.compilation_cache": "",
    "training.mesh": "data:1",
    "evaluation.validation_split": "train",
    "evaluation.split": "train",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A pipeline, four pictures with captions, and a hint of each."""
    root = tmp_path_factory.mktemp("controlnet")
    made_folders.stable_diffusion(root)
    levels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    for folder, pictures in (("pictures", levels), ("hints", 255 - levels)):
        (root / folder / "train").mkdir(parents=True)
        for i, picture in enumerate(pictures):
            Image.fromarray(picture).save(root / folder / "train" / f"{i}.png")
            if folder == "pictures":
                (root / folder / "train" / f"{i}.txt").write_text("a low owl")
    return root


def experiment(root, **changes):
    given = {
        "model.pretrained": str(root / "pipeline"),
        "data.dir": str(root / "pictures"),
        "data.hints": str(root / "hints"),
    }
    return config.apply_overrides(config.find_experiment("controlnet").build(), {**given, **SHORT, **changes})


@pytest.fixture(scope="module")
def run(root):
    train(experiment(root), root / "run", quiet=True)
    return genjax.restore(root / "run")


def test_the_control_network_alone_is_learned_and_a_stopped_run_ends_with_the_same_bits(run, root):
    read = pipelines.load_params(
        dataclasses.replace(
            run.model,
            pretrained=None,
            diffusion=dataclasses.replace(run.model.diffusion, network=run.model.diffusion.network.plain),
        ),
        root / "pipeline",
        {**run.state.params, "diffusion": run.state.params["diffusion"]["unet"]},
    )
    own = run.state.params
    for name in ("autoencoder", "text"):
        jax.tree.map(np.testing.assert_array_equal, own[name], read[name])
    jax.tree.map(np.testing.assert_array_equal, own["diffusion"]["unet"], read["diffusion"])
    control = own["diffusion"]["control"]
    for name in ("control_middle", "hint_output"):
        assert np.abs(control[name]["kernel"]).max() > 1e-3

    shutil.copytree(root / "run", root / "again")
    shutil.rmtree(root / "again" / "checkpoints" / "4")
    again = train(experiment(root), root / "again", quiet=True)
    ended = flatten(run.state)
    for path, leaf in flatten(again).items():
        assert np.asarray(leaf).tobytes() == np.asarray(ended[path]).tobytes(), path


def test_it_starts_at_the_unet(root, run):
    abstract = pipelines.abstract_params(run.model)
    drawn = jax.tree.map(lambda a: np.random.default_rng(0).normal(size=a.shape).astype(np.float32), abstract)
    zeros = lambda part: jax.tree.map(np.zeros_like, part)
    names = [name for name in drawn["diffusion"]["control"] if name.startswith("control_")] + ["hint_output"]
    control = {**drawn["diffusion"]["control"], **{n: zeros(drawn["diffusion"]["control"][n]) for n in names}}
    drawn["diffusion"] = {**drawn["diffusion"], "control": control}
    found = run.model.pretrained_params(jax.tree.map(jnp.asarray, drawn))["diffusion"]
    # What it shares with the U-Net's way down is a copy, the rest is new.
    shared = [name for name in found["control"] if name in found["unet"]]
    assert len(shared) > 3
    for name in shared:
        jax.tree.map(np.testing.assert_array_equal, found["control"][name], found["unet"][name])
    rng = np.random.default_rng(1)
    z, context, hint = (rng.normal(size=s).astype(np.float32) for s in ((2, 8, 8, 4), (2, 77, 16), (2, 8, 8, 3)))
    module, plain = (
        network.build(4, None, jnp.float32)
        for network in (run.model.diffusion.network, run.model.diffusion.network.plain)
    )
    k = np.array([5.0, 700.0], np.float32)
    controlled = jax.jit(module.apply)({"params": found}, z, k, {"context": context, "hint": hint})
    alone = jax.jit(plain.apply)({"params": found["unet"]}, z, k, {"context": context})
    np.testing.assert_allclose(controlled, alone, atol=1e-6)


def test_samples_follow_hints_of_files_and_edges_where_the_data_have_none(run, root, tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(type(run), "sample", lambda run, key, count, **c: given.update(c) or np.zeros((count, 8, 8, 3)))
    files = tuple(str(root / "hints" / "train" / f"{i}.png") for i in (2, 3))
    options = samples.Options(num_samples=3, prompt=("low",), hint=files, output=str(tmp_path / "sheet"))
    samples.write(run, options)
    levels = [np.asarray(Image.open(file)) / 255 for file in (*files, files[0])]
    np.testing.assert_allclose(given["hint"], levels, atol=1e-6)
    edged = dataclasses.replace(
        run, experiment=dataclasses.replace(run.experiment, data=dataclasses.replace(run.experiment.data, hints=None))
    )
    samples.write(edged, options)
    signed = np.stack(levels, dtype=np.float32) * 2 - 1
    np.testing.assert_allclose(given["hint"], edges(jnp.asarray(signed)), atol=1e-5)
    with pytest.raises(UserError, match="follows a picture; give one by --hint=FILE"):
        samples.write(run, samples.Options(num_samples=1, prompt=("low",)))
    with pytest.raises(UserError, match="nowhere.png is not a readable picture"):
        samples.write(run, samples.Options(num_samples=1, hint=("nowhere.png",)))


def test_pictures_change_with_the_hint_and_a_missing_one_is_black(run, root, tmp_path):
    data = run.experiment.data
    batch = data.transform(data.load("train").gather(np.arange(1)), jax.random.key(0))
    texts, noise = data.prompts(["low"]), np.ones((1, 8, 8, 4), np.float32)
    draw = jax.jit(lambda **hint: run.model.sample(run.state, jax.random.key(0), 1, noise=noise, **texts, **hint))
    seen, other, none = draw(hint=batch["hint"]), draw(hint=1.0 - batch["hint"]), draw()
    assert np.abs(seen - other).max() > 1e-4
    np.testing.assert_array_equal(none, draw(hint=jnp.zeros((1, 8, 8, 3))))
    picture = str(root / "pictures" / "train" / "0.png")
    edit = {"image": picture, "prompt": "low", "output": str(tmp_path / "edit.png")}
    with pytest.raises(UserError, match="give one by --hint=FILE"):
        edits.write(run, edits.Options(**edit))
    assert edits.write(run, edits.Options(**edit, hint=picture)).stat().st_size > 0
    with pytest.raises(UserError, match="StableDiffusion without a control network follows no picture"):
        edits.write_from_folder(edits.Options(**edit, hint=picture, pretrained=str(root / "pipeline")))


def test_edges_are_slopes():
    ramp = jnp.broadcast_to(jnp.linspace(-1, 1, 9)[None, None, :, None], (1, 4, 9, 3))
    np.testing.assert_allclose(edges(ramp)[0, :, 1:-1], 0.25, atol=1e-6)
    np.testing.assert_allclose(edges(ramp)[0, :, [0, -1]], 0.125, atol=1e-6)
    assert not edges(jnp.ones((1, 4, 4, 1))).any()
    step = jnp.where(jnp.arange(8) < 4, -1.0, 1.0)[None, :, None, None] * jnp.ones((1, 8, 8, 1))
    np.testing.assert_allclose(edges(step)[0, :, 0, 0], [0, 0, 0, 1, 1, 0, 0, 0], atol=1e-6)
