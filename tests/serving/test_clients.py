"""The package openai as a client; skipped where it is not installed."""

import json

import numpy as np
import pytest

pytest.importorskip("openai")
pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
pytest.importorskip("jinja2")

import openai

from genjax.tools.embedding import Embedder
from tests.serving.served import serving
from tests.serving.test_server import HELLO, SCHEMA, TOOL
from tests.tools.untrained import untrained


def client_of(served):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{served.port}/v1", api_key="none", max_retries=0, timeout=240)


def test_the_clients_chats_streams_tools_and_errors(tmp_path):
    with serving(untrained("instructions", tmp_path / "chat")) as served, client_of(served) as client:
        assert [model.id for model in client.models.list()] == ["instructions"]
        asked = {"model": "instructions", "messages": HELLO, "seed": 3, "max_tokens": 8}
        whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
        text = whole.choices[0].message.content
        assert whole.usage.completion_tokens == len(whole.choices[0].logprobs.content) == 8
        assert all(len(each.top_logprobs) == 2 for each in whole.choices[0].logprobs.content)
        chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
        assert chunks[-1].usage == whole.usage
        plain = client.completions.create(model="instructions", prompt="walk", max_tokens=4, echo=True)
        assert plain.choices[0].text.startswith("walk")
        called = client.chat.completions.create(
            **(asked | {"max_tokens": 60}),
            tools=[TOOL],
            tool_choice={"type": "function", "function": {"name": "turn_on"}},
        )
        (call,) = called.choices[0].message.tool_calls
        assert call.function.name == "turn_on" and isinstance(json.loads(call.function.arguments)["ok"], bool)
        schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
        formed = client.chat.completions.create(**(asked | {"max_tokens": 40}), response_format=schema)
        assert isinstance(json.loads(formed.choices[0].message.content)["ok"], bool)
        bound = client.chat.completions.create(**asked, extra_body={"regex": "[a-c]{6}"})
        assert len(bound.choices[0].message.content) == 6
        with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4'"):
            client.chat.completions.create(model="gpt-4", messages=HELLO)
        with pytest.raises(openai.BadRequestError, match="messages must be a list"):
            client.chat.completions.create(model="instructions", messages=[])


def test_the_clients_vectors(tmp_path):
    run = untrained("bert_embedded", tmp_path / "encoder")
    with serving(run) as served, client_of(served) as client:
        found = client.embeddings.create(model="bert_embedded", input=["a class", "a module"]).data
        want = Embedder.of_run(run).documents(["a class", "a module"])
        np.testing.assert_allclose([each.embedding for each in found], want, atol=1e-6)
