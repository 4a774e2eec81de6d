"""`experiments.serve` as a user runs it: what it opens, and what it says where it cannot."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
pytest.importorskip("tokenizers")

import tokenizers
import uvicorn

from genjax.families.language.bert import BERT
from genjax.families.language.gpt import GPT
from genjax.families.language.networks import bert_network
from genjax.nn.transformer import Transformer
from genjax.optimizers import AdamW
from genjax.pretrained import save_pretrained
from genjax.serving.app import Settings
from genjax.tools.embedding import Embedder
from genjax.tools.opened import opened
from tests.experiments.commands import call
from tests.serving.served import serving

MODEL = GPT(
    network=Transformer(num_layers=1, width=8, num_heads=2, max_length=64), vocab_size=262, start_token=0, end_token=257
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as the library transformers writes it, with a byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("pretrained") / "tiny"
    state = MODEL.init(jax.random.key(0), {"tokens": jnp.zeros((1, 4), jnp.int32)})
    save_pretrained(folder, MODEL, state.params)
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_a_folder_of_another_library_is_served(folder, monkeypatch):
    served = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda own, sockets: served.append((own.config.app, *sockets)))
    ended = call("serve", str(folder), "--port=0", "--model.sampling.temperature=0.5")
    assert ended.returncode == 0, ended.stderr
    ((app, listener),) = served
    port = listener.getsockname()[1]
    assert ended.stdout == f"tiny, step 0, at http://127.0.0.1:{port}\n" and port > 0
    taken = call("serve", str(folder), f"--port={port}")
    assert taken.returncode == 1 and f"--port={port} cannot be listened at: Address already in use" in taken.stderr
    listener.close()
    server = app.state.server
    try:
        assert server.run.model.sampling.temperature == 0.5
        order = server.texts.understand(json.dumps({"prompt": "ab", "max_tokens": 2}).encode(), False, lambda *_: None)
        assert order.rows[0].temperature == 0.5 and len(order.rows[0].prompt) == 2
    finally:
        server.batcher.close()


def test_a_folder_of_sentence_transformers_gives_vectors(tmp_path):
    folder, special = tmp_path / "encoder", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = {word: i for i, word in enumerate([*special, "cats", "dogs", "bark"])}
    model = BERT(network=bert_network(1, 8, 2, max_length=16), vocab_size=len(words), optimizer=AdamW())
    state = model.init(jax.random.key(0), {"tokens": jnp.zeros((1, 4), jnp.int32)})
    save_pretrained(folder, model, state.params)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(special)
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 12}')
    with serving(opened(folder), Settings()) as client:
        status, answer = client.ask("/v1/embeddings", {"model": "encoder", "input": ["cats", "dogs bark"]})
        assert status == 200, answer
        got = np.array([each["embedding"] for each in answer["data"]])
        np.testing.assert_allclose(got, Embedder.open(folder).documents(["cats", "dogs bark"]), atol=1e-6)
        status, answer = client.ask("/v1/embeddings", {"input": "cats " * 20})
        assert status == 400 and "the encoder reads 12 tokens" in answer["error"]["message"]
        assert client.ask("/v1/completions", {"prompt": "cats"})[0] == 404


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step=3"], "--step chooses a checkpoint of a run"),
        (["--model.sampling.heat=1"], "heat"),
    ],
)
def test_flags_that_do_not_fit_a_folder_are_one_sentence(folder, arguments, message):
    ended = call("serve", str(folder), *arguments)
    assert ended.returncode == 1 and ended.stderr.startswith("error: ") and message in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_file_that_is_not_there_is_one_sentence(tmp_path):
    pytest.importorskip("gguf")
    ended = call("serve", str(tmp_path / "model.gguf"))
    assert ended.returncode == 1 and "there is no file" in ended.stderr
