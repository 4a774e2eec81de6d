"""A checkpoint of the library transformers with its tokenizer is all that a run needs: train, evaluate, sample,
generate.
"""

import json
import re

import jax
import numpy as np
import pytest

import genjax
from genjax import config, decoding
from genjax.data import EncoderText, Text
from genjax.data.base import DataError
from genjax.data.text.tokenizer import read_tokenizer, train_tokenizer
from genjax.nn.tokens import with_more_tokens
from genjax.pretrained import save_pretrained
from genjax.tools import prompts
from genjax.training import resolve, train
from tests.interop import folders

SHORT = {
    "model.optimizer": "sgd",
    "model.optimizer.learning_rate": 0.0,
    "data.batch_size": 16,
    "data.eval_batch_size": 16,
    "training.num_steps": 1,
    "training.steps_per_dispatch": 1,
    "training.num_samples": 1,
    "training.evaluate_every": None,
    "training.best_metric": None,
    "training.tensorboard": False,
    "training.compilation_cache": "",
    "training.mesh": "data:1",
    "evaluation.num_examples": 8,
}
PAIRS = {"data.num_made": 120, "data.source_length": 48, "data.target_length": 24}
EXPERIMENTS = {
    "gpt2": ("gpt_text", {"data.sequence_length": 16}),
    "bert": ("bert_embedded", {"data.sequence_length": 16, "model.num_sampling_rounds": 2}),
    "t5": ("t5_mixture", PAIRS),
    "bart": ("bart_embedded", {"data": "text_to_text", "model.objective": "pairs", **PAIRS}),
}


def experiment(kind, **changes):
    name, own = EXPERIMENTS[kind]
    changes = {key.replace("__", "."): value for key, value in changes.items()}
    return config.apply_overrides(config.find_experiment(name).build(), {**own, **SHORT, **changes})


@pytest.fixture(scope="module", params=["bert", "t5", "bart"])
def started(request, tmp_path_factory):
    """Their model and tokenizer, and a run of ours that started from them and learned nothing."""
    folder = tmp_path_factory.mktemp(request.param)
    theirs, tokenizer = folders.write(getattr(folders, request.param), folder)
    train(experiment(request.param, model__pretrained=str(folder)), folder / "run", quiet=True)
    return request.param, theirs, tokenizer, genjax.restore(folder / "run")


def test_a_run_needs_nothing_but_the_folder_and_writes_what_they_write(started):
    kind, theirs, tokenizer, run = started
    torch, text = folders.torch, "each value has a [mask] of its own"
    assert read_tokenizer(run.workdir / "tokenizer.json").kind == "file"
    assert np.isfinite(run.evaluate()["nll"]) and list((run.workdir / "samples").iterdir())
    ours = prompts.tokenizer_of(run)
    if kind == "bert":
        ids = torch.tensor([tokenizer.encode(text.replace("[mask]", "[MASK]")).ids])
        with torch.no_grad():
            logits = theirs(ids).prediction_logits[0]
        place = ids[0].tolist().index(4)
        best = int(logits[place].argmax())
        lines = list(prompts.fill_masks(run, ours, text))
        assert re.match(r" +'\s*(.*?)' ", lines[1])[1] == tokenizer.id_to_token(best).removeprefix("##")
        return
    ids = tokenizer.encode(text).ids
    out = theirs.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False, pad_token_id=run.model.end_token)
    decoder, prompt = prompts.start_of(run, ours, text, prompts.Options())
    greedy = decoding.Sampling(temperature=0.0)
    found = list(decoding.stream(decoder, jax.random.key(0), prompt, 8, end_token=run.model.end_token, sampling=greedy))
    wanted = out[0, 1:].tolist()
    wanted = wanted[: wanted.index(run.model.end_token)] if run.model.end_token in wanted else wanted
    assert [i for i in found if i != run.model.end_token] == wanted


def test_targets_are_framed_as_the_checkpoint_was_trained(started):
    kind, _, tokenizer, run = started
    if kind == "bert":
        return
    data = run.experiment.data
    batch = {name: np.asarray(a) for name, a in data.load("test").gather(np.arange(1)).items()}
    source, target = data.pairs("test")[0]
    assert batch["source"][0][batch["source_mask"][0]].tolist() == tokenizer.encode(source).ids
    prepared = run.model.objective.prepare(batch, jax.random.split(jax.random.key(0), 1), run.model.special_tokens())
    tokens = np.asarray(prepared["tokens"])[0][batch["mask"][0]].tolist()
    assert tokens == [{"t5": 0, "bart": 2}[kind], *tokenizer.encode(target).ids]
    assert data.decode(prepared["tokens"][0]) == data.decode(np.array(tokens[1:]))


def test_added_words_get_the_mean_and_old_rows_stay(tmp_path):
    theirs, tokenizer = folders.write(folders.t5, tmp_path)
    grown = resolve(experiment("t5", model__pretrained=str(tmp_path), data__added_tokens=12))
    size = theirs.config.vocab_size
    assert grown.data.spec()["vocab_size"] == tokenizer.get_vocab_size() + 12
    assert grown.model.vocab_size == tokenizer.get_vocab_size() + 12
    assert grown.model.first_sentinel == tokenizer.token_to_id("<extra_id_0>")
    # The table has room for four of them.
    new = grown.model.init(jax.random.key(0), {"source": np.zeros((1, 2), int), "tokens": np.zeros((1, 2), int)}).params
    loaded = grown.model.pretrained_params(new)
    own, old = np.asarray(loaded["token"]["embedding"]), theirs.shared.weight.detach().numpy()
    np.testing.assert_array_equal(own[:size], old)
    np.testing.assert_allclose(own[size:], np.broadcast_to(old.mean(0), (8, 8)), atol=1e-6)
    # An output map of its own grows along its last axis; sentinels stay the last tokens.
    kernel = np.arange(10.0, dtype=np.float32).reshape(2, 5)
    columns = with_more_tokens(kernel, (2, 7), num_last=1)
    np.testing.assert_array_equal(columns, np.concatenate([kernel[:, :4], [[2, 2], [7, 7]], kernel[:, 4:]], axis=1))


def test_a_decoder_gets_a_head(tmp_path):
    theirs, _ = folders.write(folders.gpt2, tmp_path)
    build = config.find_experiment("gpt_sentiment").build()
    changes = {"model.pretrained": str(tmp_path), "model.lora": None, "data.sequence_length": 24}
    model = resolve(config.apply_overrides(build, changes)).model
    new = model.init(jax.random.key(0), {"tokens": np.zeros((1, 3), int)}).params
    kernel = np.array(new["heads"]["classes"]["kernel"])
    loaded = model.pretrained_params(new)
    np.testing.assert_array_equal(loaded["heads"]["classes"]["kernel"], kernel)
    np.testing.assert_array_equal(loaded["embedding"]["token"]["embedding"], theirs.transformer.wte.weight.detach())


def test_the_extended_tokenizer_goes_back_to_transformers(tmp_path):
    folders.write(folders.gpt2, tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("the naïve parser parses naïve sentences, ever naïver ones. " * 60)
    changes = {"data__name": "file", "data__dir": str(text), "data__added_tokens": 3}
    run = resolve(experiment("gpt2", model__pretrained=str(tmp_path), **changes))
    data = run.data
    added, old = data.make_tokenizer(), read_tokenizer(tmp_path / "tokenizer.json")
    line = text.read_text()[:59]
    words = {
        w: text.read_text().count(w + " ")
        for w in (" the", " naïve", " parser", " parses", " ever", " naïver", " ones")
    }
    gain = {word: count * (len(old.encode(word)) - 1) for word, count in words.items()}
    assert len(added.pieces) == 283 and added.pieces[280] == " naïve".encode() == max(gain, key=gain.get).encode()
    assert added.decode(added.encode(line)) == line == old.decode(old.encode(line))
    assert len(added.encode(line)) < len(old.encode(line)) and added.num_characters[added.encode(line)].sum() == 59
    np.testing.assert_array_equal(added.encode("The list of names"), old.encode("The list of names"))
    (tmp_path / "run").mkdir()
    data.save(tmp_path / "run")
    params = run.model.pretrained_params(run.model.init(jax.random.key(0), {"tokens": np.zeros((1, 3), int)}).params)
    save_pretrained(tmp_path / "back", run.model, params, source=tmp_path / "run")
    again = folders.transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert again.config.vocab_size == 283
    assert folders.library.Tokenizer.from_file(str(tmp_path / "back" / "tokenizer.json")).get_vocab_size() == 283


def test_a_tokenizer_that_does_not_belong_to_the_checkpoint_is_refused(tmp_path):
    folders.write(folders.gpt2, tmp_path)
    own = json.loads((tmp_path / "tokenizer.json").read_text())
    other = tmp_path / "other.json"
    vocabulary = own["model"]["vocab"]
    a, b = list(vocabulary)[10:12]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    other.write_text(json.dumps(own))
    start = {"model__pretrained": str(tmp_path)}
    with pytest.raises(DataError, match=r"other.json does not belong to the checkpoint .*: token 10 is"):
        resolve(experiment("gpt2", **start, data__tokenizer_file=str(other)))
    other = tmp_path / "bytes.json"
    other.write_text(train_tokenizer("bytes", [], 0).to_json())
    with pytest.raises(DataError, match=r"does not belong to the checkpoint .*: it has 256 tokens and not 280"):
        resolve(experiment("gpt2", **start, data__tokenizer_file=str(other)))
    theirs = tmp_path / "config.json"
    theirs.write_text(theirs.read_text().replace('"vocab_size": 280', '"vocab_size": 200'))
    with pytest.raises(
        DataError, match="does not belong to its checkpoint: it has 280 tokens, and the model knows 200"
    ):
        resolve(experiment("gpt2", **start))
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="has no tokenizer.json; give the tokenizer of its model"):
        resolve(experiment("gpt2", **start))
    with pytest.raises(DataError, match="data.added_tokens are added to the tokenizer of a checkpoint"):
        Text(added_tokens=3).spec()
    with pytest.raises(DataError, match="reads every text as it is"):
        EncoderText(tokenizer_file=str(other), added_tokens=3).spec()
