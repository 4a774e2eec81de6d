"""A pretrained Stable Diffusion learns what a few pictures show: by a new word, and beside pictures of its class."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

import genjax
from genjax import config
from genjax.data import DataError, SubjectImages
from genjax.families.diffusion import pipelines
from genjax.training import resolve, train
from tests.interop import made_folders

SHORT = {
    "data.image_size": (8, 8),
    "model.diffusion.sampler": "ddim",
    "model.diffusion.sampler.num_steps": 1,
    "training.num_steps": 2,
    "training.steps_per_dispatch": 1,
    "training.log_every": 1,
    "training.checkpoint_every": 2,
    "training.sample_every": None,
    "training.tensorboard": False,
    "training.compilation_cache": "",
    "training.mesh": "data:1",
}
LEVELS = {"subject": (10, 60, 110), "class": (20, 40, 60, 80, 120)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline, and grey pictures of a subject and of its class, each of a level of its own."""
    root = tmp_path_factory.mktemp("subject")
    made_folders.stable_diffusion(root)
    for name, levels in LEVELS.items():
        (root / name).mkdir()
        for level in levels:
            Image.new("RGB", (12, 10), (level,) * 3).save(root / name / f"{level}.png")
    return root


def experiment(name, folder, **changes):
    given = {"model.pretrained": str(folder / "pipeline"), "data.dir": str(folder / "subject"), **SHORT, **changes}
    return config.apply_overrides(config.find_experiment(name).build(), given)


def test_pictures_of_the_class_go_beside_those_of_the_subject(folder):
    prior = {"data.prior_dir": str(folder / "class"), "data.prior_text": "low owl", "data.texts": ("low owl of sks",)}
    resolved = resolve(experiment("dreambooth", folder, **prior))
    data, model = resolved.data, resolved.model
    assert model.prior_weight == 1.0 and not model.new_tokens and len(data.load("train")) == 5
    raw = data.load("train").gather(np.arange(5))
    batch = data.transform(data.augment(raw, jax.random.key(0)), jax.random.key(1))
    level = lambda x: np.round((np.asarray(x)[:, 0, 0, 0] + 1) * 127.5).astype(int).tolist()
    assert level(batch["x"]) == [10, 110, 60, 10, 110] and level(batch["prior_x"]) == [120, 20, 40, 60, 80]
    # Letters are tokens by themselves but for l, o and w, which the merges join to a word.
    texts = {"": "low owl of sks", "prior_": "low owl"}
    for name, text in texts.items():
        tokens, mask = np.asarray(batch[f"{name}tokens"]), np.asarray(batch[f"{name}mask"])
        assert tokens.shape == (5, 77) and (tokens == tokens[0]).all()
        pieces = "".join(data._tokenizer()._library.id_to_token(int(i)) for i in tokens[0][mask[0]][1:-1])
        assert pieces.replace("</w>", " ").strip() == text
        assert (tokens[0][~mask[0]] == 515).all()

    # The loss is that of the pictures and that of the class, by the keys that are told.
    params = jax.tree.map(
        lambda a: np.random.default_rng(1).normal(scale=0.1, size=a.shape).astype(np.float32),
        pipelines.abstract_params(model),
    )
    alone = dataclasses.replace(model, prior_weight=0.0)
    own = {name: value for name, value in batch.items() if not name.startswith("prior_")}
    of_class = {name: batch[f"prior_{name}"] for name in ("x", "tokens", "mask")}
    key = jax.random.key(2)

    @jax.jit
    def losses(params):
        first, second = (
            alone.loss(params, own, key, {})[0],
            alone.loss(params, of_class, jax.random.fold_in(key, 4), {})[0],
        )
        return model.loss(params, batch, key, {})[0], first, second

    both, first, second = losses(params)
    np.testing.assert_allclose(both, first + second, rtol=1e-5)
    assert abs(first - second) > 1e-4


def test_a_new_word_alone_is_learned(folder, tmp_path):
    texts = {"data.texts": ("low <x>", "owl <x>"), "data.like": "low"}
    train(experiment("textual_inversion", folder, **texts), tmp_path, quiet=True)
    run = genjax.restore(tmp_path)
    params, model = run.state.params, run.model
    assert model.new_tokens == 1 and model.new_tokens_from == 513
    read = pipelines.load_params(dataclasses.replace(model, pretrained=None), folder / "pipeline", params)
    for name in ("autoencoder", "text", "diffusion"):
        jax.tree.map(np.testing.assert_array_equal, params[name], read[name])
    moved = params["new_tokens"]["embedding"] - read["text"]["text_embedding"]["token"]["embedding"][513:514]
    # Adam moves each number by its rate at most.
    assert 1e-5 < np.abs(moved).max() <= 2.1 * model.optimizer.learning_rate
    assert run.experiment.data.prompts(["low <x>"])["tokens"][0, :4].tolist() == [514, 513, 516, 515]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"new_words": ("<x>",), "texts": ("a dog",)}, "new_words has <x>, which the text 'a dog' does not say"),
        ({"like": "owl"}, "like=owl is 3 tokens, and one is needed"),
        ({"tokenizer_dir": None}, "give --model.pretrained=FOLDER, or --data.tokenizer_dir=FOLDER"),
        ({"dir": None}, "needs the folder of the pictures"),
        ({"prior_dir": "nowhere"}, "nowhere is not a folder"),
        ({"texts": ()}, "data.texts is empty"),
        ({"name": "digits"}, "pictures of a subject come from a folder"),
    ],
)
def test_what_is_refused(changes, words, folder):
    given = {"dir": str(folder / "subject"), "tokenizer_dir": str(folder / "pipeline" / "tokenizer"), **changes}
    with pytest.raises(DataError, match=words):
        SubjectImages(image_size=(8, 8), **given).spec()
