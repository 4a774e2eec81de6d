"""The official suite of LangChain for integrations, langchain-tests; skipped where it is not installed.

Its plugins of pytest do not go with the strict settings of the other tests, so it is run alone, in an environment of
its own:

    pip install -e '.[test,langchain]' langchain-tests
    python -m pytest tests/langchain/test_official_suite.py -o asyncio_mode=auto -o filterwarnings=default \
        -p no:codspeed --disable-socket --allow-unix-socket

Its chats need a model that calls tools when it is asked to.  A small network learns the chats below by heart first.
"""

import functools
import json
import sys
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("langchain_tests")

from langchain_core.load import load
from langchain_tests.integration_tests import (
    ChatModelIntegrationTests,
    EmbeddingsIntegrationTests,
    RetrieversIntegrationTests,
    VectorStoreIntegrationTests,
)
from langchain_tests.unit_tests import ChatModelUnitTests, EmbeddingsUnitTests

from genjax import config, training
from genjax.data.text.collection import Document
from genjax.langchain import ChatGenjax, GenjaxEmbeddings, GenjaxRetriever, GenjaxVectorStore
from genjax.tools import retrieval
from tests.tools.untrained import untrained


def call(name, **arguments):
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


JOKE = {"setup": "Why?", "punchline": "Cats."}
CHATS = {
    "Hello": "Hi there.",
    "Hey": "Hi there.",
    "hi": "how are you today?",
    "Write me 2 haikus. Only include the haikus.": "One. Two.",
    "What is the value of magic_function(3)? Use the tool.": call("magic_function", input=3),
    "What is the value of magic_function_no_args()? Use the tool.": call("magic_function_no_args"),
    "Hello!": call("magic_function", input=1),
    "Using the tool, generate a Pirate greeting.": call("greeting_generator", answer_style="Pirate"),
    "What is 1 + 2": call("my_adder_tool", a=1, b=2),
    "What is 3 + 4": call("my_adder_tool", a=3, b=4),
    "What is the weather in San Francisco, CA?": call("get_weather", location="San Francisco, CA"),
    "Create a customer named '你好啊集团' (Hello Group) - a Chinese technology company": call(
        "unicode_customer", customer_name="你好啊集团", description="technology"
    ),
    "Create a customer named 'こんにちは株式会社' (Hello Corporation) - a Japanese company": call(
        "unicode_customer", customer_name="こんにちは株式会社", description="company"
    ),
    "Tell me a joke about cats.": json.dumps(JOKE),
    "Tell me a joke about cats. Return the result as a JSON with 'setup' and 'punchline' keys. Return nothing other "
    "than JSON.": json.dumps(JOKE),
}
DOCUMENTS = [Document(f"d{i}", f"a {word} that walks") for i, word in enumerate(("cat", "dog", "hen", "cow"))]


@functools.lru_cache(maxsize=1)
def folder():
    """Where the runs and the index of this module lie."""
    return Path(tempfile.mkdtemp(prefix="genjax_langchain_"))


@functools.lru_cache(maxsize=1)
def chat_run():
    """A run that has learned the chats by heart."""
    lines = [json.dumps({"prompt": question, "completion": answer}) for question, answer in CHATS.items()]
    for split in ("train", "validation", "test"):
        (folder() / f"{split}.jsonl").write_text("\n".join(lines * 2))
    changes = {
        "model.network.num_layers": 2,
        "model.network.width": 64,
        "model.network.max_length": 1024,
        "data.name": "chats",
        "data.dir": str(folder()),
        "data.vocab_size": 400,
        "data.sequence_length": 160,
        "data.batch_size": len(lines),
        "training.num_steps": 250,
        "training.evaluate_every": None,
        "training.best_metric": None,
        "training.num_samples": 1,
        "training.mesh": "data:1",
    }
    experiment = config.apply_overrides(config.find_experiment("instructions").build(), changes)
    training.train(experiment, folder() / "chats", name="chats", quiet=True)
    return str(folder() / "chats")


@functools.lru_cache(maxsize=1)
def encoder_run():
    return str(untrained("bert_embedded", folder() / "encoder").workdir)


class TestChatUnit(ChatModelUnitTests):
    @pytest.fixture(autouse=True)
    def among_known_classes(self, monkeypatch):
        """The suite reads classes of langchain-core's own list alone; others are named by who reads them."""
        loading, name = sys.modules[load.__module__], tuple(ChatGenjax.lc_id())
        monkeypatch.setitem(loading.ALL_SERIALIZABLE_MAPPINGS, name, name)
        monkeypatch.setattr(loading, "_default_class_paths_cache", {})

    @property
    def chat_model_class(self):
        return ChatGenjax

    @property
    def chat_model_params(self):
        return {"model": "runs/chats"}

    @property
    def init_from_env_params(self):
        return {"GENJAX_MODEL": "runs/chats"}, {"temperature": 0}, {"model": "runs/chats"}


class TestChat(ChatModelIntegrationTests):
    @property
    def chat_model_class(self):
        return ChatGenjax

    @property
    def chat_model_params(self):
        return {"model": chat_run(), "temperature": 0, "max_tokens": 120}

    @property
    def supports_json_mode(self):
        return True

    @property
    def supports_anthropic_inputs(self):
        return True

    @property
    def model_override_value(self):
        return f"{chat_run()}/"


class TestEmbeddingsUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self):
        return GenjaxEmbeddings

    @property
    def embedding_model_params(self):
        return {"model": "runs/encoder"}


class TestEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self):
        return GenjaxEmbeddings

    @property
    def embedding_model_params(self):
        return {"model": encoder_run()}


class TestRetriever(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self):
        return GenjaxRetriever

    @property
    def retriever_constructor_params(self):
        retrieval.build(folder() / "index", DOCUMENTS)
        return {"index": str(folder() / "index")}

    @property
    def retriever_query_example(self):
        return "who walks?"


class TestVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self):
        return GenjaxVectorStore(self.get_embeddings())
