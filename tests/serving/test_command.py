"""`experiments.serve` as a user runs it: what it opens, and what it says where it cannot."""

import json

import jax
import jax.numpy as jnp
import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
pytest.importorskip("tokenizers")

import tokenizers
import uvicorn

from genjax.families.language.gpt import GPT
from genjax.nn.transformer import Transformer
from genjax.pretrained import save_pretrained
from tests.experiments.commands import call

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
    monkeypatch.setattr(uvicorn, "run", lambda app, **settings: served.append((app, settings)))
    ended = call("serve", str(folder), "--port=9000", "--model.sampling.temperature=0.5")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "tiny, step 0, at http://127.0.0.1:9000\n"
    ((app, settings),) = served
    server = app.state.server
    try:
        assert settings["port"] == 9000 and server.run.model.sampling.temperature == 0.5
        order = server.texts.understand(json.dumps({"prompt": "ab", "max_tokens": 2}).encode(), False, lambda *_: None)
        assert order.rows[0].temperature == 0.5 and len(order.rows[0].prompt) == 2
    finally:
        server.batcher.close()


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
