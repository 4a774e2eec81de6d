"""A pretrained Stable Diffusion learns what a few pictures show: by a new word, and beside pictures of its class."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

import genjax
from genjax import config
from genjax.data import DataError, SubjectImages
from genjax.data.text.prompts import PromptTokenizer
from genjax.errors import UserError
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


@pytest.mark.parametrize("vocab_size", [516, 520])
def test_a_new_word_alone_is_learned(vocab_size, folder, tmp_path):
    """Also where the text encoder has more embeddings than the tokenizer has tokens."""
    pipeline = folder / "pipeline" if vocab_size == 516 else made_folders.stable_diffusion(tmp_path, vocab_size)
    texts = {"data.texts": ("low <x>", "owl <x>"), "data.like": "low", "model.pretrained": str(pipeline)}
    train(experiment("textual_inversion", folder, **texts), tmp_path / "run", quiet=True)
    run = genjax.restore(tmp_path / "run")
    params, model = run.state.params, run.model
    assert model.new_tokens == 1 and model.new_tokens_from == 513 and model.first_new_token == 516
    read = pipelines.load_params(dataclasses.replace(model, pretrained=None), pipeline, params)
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
        ({"new_words": ("lo",), "texts": ("a lo",)}, "lo is a token of .* already; give a new word another name"),
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


def test_pairs_take_the_tokenizer_of_a_folder_without_tokenizer_json(folder, tmp_path):
    assert not (folder / "pipeline" / "tokenizer" / "tokenizer.json").exists()
    texts = {10: "a low owl", 60: "Owl, 12!", 110: "low", 150: "an owl of many words that are cut"}
    (tmp_path / "pictures" / "train").mkdir(parents=True)
    for level, text in texts.items():
        Image.new("RGB", (8, 8), (level,) * 3).save(tmp_path / "pictures" / "train" / f"{level}.png")
        (tmp_path / "pictures" / "train" / f"{level}.txt").write_text(text)
    pairs = {"data": "pairs", "data.name": "folder", "data.dir": str(tmp_path / "pictures"), "data.batch_size": 2}
    others = {"model.prior_weight": 0.0, "evaluation.validation_split": "train", "data.sequence_length": 12}
    # The last step draws a sheet for the first captions, of which one is cut.
    train(experiment("dreambooth", folder, **pairs, **others), tmp_path / "run", quiet=True)
    run = genjax.restore(tmp_path / "run")
    data, tokenizer = run.experiment.data, PromptTokenizer(folder / "pipeline" / "tokenizer", length=12)
    said = [captions[0] for captions in data.references("train")]
    assert sorted(said) == sorted(texts.values())
    batch = data.transform(data.load("train").gather(np.arange(4)), jax.random.key(0))
    np.testing.assert_array_equal(batch["tokens"], tokenizer.encode(said))
    # Padding is the end token; what is read ends with the first.
    np.testing.assert_array_equal(batch["mask"].sum(1), (batch["tokens"] == 515).argmax(1) + 1)
    assert [data.decode(row) for row in batch["tokens"][:2]] == ["a low owl ", "low "]
    assert run.sample(jax.random.key(0), 1, **data.prompts(["low owl"])).shape == (1, 8, 8, 3)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="tokenizer has 516 tokens and the text encoder beside it knows 400"):
        made_folders.stable_diffusion(tmp_path, 400)
    folder = tmp_path / "described"
    (folder / "tokenizer" / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(DataError, match="vocab.json has no token <|startoftext|>, as the tokenizer of CLIP has"):
        pipelines.read_model(folder)
    (folder / "tokenizer" / "vocab.json").write_text('["a"]')
    with pytest.raises(DataError, match="vocab.json is damaged"):
        pipelines.read_model(folder)
    (folder / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="tokenizer.json cannot be used: it is no tokenizer.json"):
        pipelines.read_model(folder)
