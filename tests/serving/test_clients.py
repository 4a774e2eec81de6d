"""The package openai and LangChain's ChatOpenAI as clients; skipped where they are not installed."""

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


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(untrained("instructions", tmp_path_factory.mktemp("clients") / "chat")) as served:
        yield served


def test_the_clients_chats_streams_tools_and_errors(served):
    with client_of(served) as client:
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


def test_the_clients_seeds_stops_counts_and_scores(served):
    with client_of(served) as client:
        ask = lambda **more: client.chat.completions.create(
            **({"model": "instructions", "messages": HELLO, "seed": 3, "max_tokens": 10} | more)
        )
        texts = lambda answer: [choice.message.content for choice in answer.choices]
        several = texts(ask(n=3))
        assert texts(ask(n=3)) == several and several[:1] == texts(ask()) and len(set(several)) == 3
        assert texts(ask(seed=4)) != several[:1]
        (whole,) = several[:1]
        stopped = ask(stop=[whole[4:6]])
        assert texts(stopped) == [whole[: whole.index(whole[4:6])]]
        assert stopped.choices[0].finish_reason == "stop" and ask(stop="~~~").choices[0].finish_reason == "length"
        prompts = ["walk", "turn left"]
        answer = client.completions.create(model="instructions", prompt=prompts, seed=5, max_tokens=4, logprobs=2, n=2)
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        for choice in answer.choices:
            assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs) == 4
            assert all(len(each) <= 2 for each in choice.logprobs.top_logprobs)
        chunks = client.completions.create(model="instructions", prompt="walk", seed=5, max_tokens=4, stream=True)
        assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text
        found = client.models.retrieve("instructions")
        assert found.id == "instructions" and found.owned_by == "genjax"


def test_the_clients_errors_are_of_its_own_classes(served):
    with client_of(served) as client:
        ask = lambda **more: client.chat.completions.create(**({"model": "instructions", "messages": HELLO} | more))
        for more, message in (
            ({"temperature": -1}, "temperature=-1 must be between 0 and 2"),
            ({"messages": [{"role": "user", "content": "a" * 5000}]}, "may have"),
            ({"messages": [{"role": "robot", "content": "a"}]}, "role must be one of"),
            ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}},
             "cannot be obeyed: #? ?.*refers to itself"),
            ({"tool_choice": "required"}, "tool_choice needs tools"),
        ):  # fmt: skip
            with pytest.raises(openai.BadRequestError, match=message):
                ask(**more)
        with pytest.raises(openai.NotFoundError, match="gives no vectors"):
            client.embeddings.create(model="instructions", input="a")


def test_langchains_client_gets_what_its_class_in_this_process_gets(served):
    clients = pytest.importorskip("langchain_openai")
    from langchain_core.tools import tool
    from pydantic import BaseModel, Field

    from genjax.langchain import ChatGenjax

    class Person(BaseModel):
        """Somebody."""

        name: str = Field(max_length=8)
        age: int = Field(ge=0, lt=150)

    @tool
    def turn_on(place: str) -> str:
        """Turns the light on."""
        return place

    address = f"http://127.0.0.1:{served.port}/v1"
    settings = {"temperature": 1.0, "max_tokens": 60, "seed": 3, "max_retries": 0, "timeout": 240}
    far = clients.ChatOpenAI(model="instructions", base_url=address, api_key="none", stream_usage=True, **settings)
    near = ChatGenjax(model=str(served.server.run.workdir), **settings)
    answer, own = far.invoke("walk twice"), near.invoke("walk twice")
    assert answer.content == own.content and answer.response_metadata["finish_reason"] in ("stop", "length")
    for name in ("input_tokens", "output_tokens", "total_tokens"):
        assert answer.usage_metadata[name] == own.usage_metadata[name]
    whole = None
    for chunk in far.stream("walk twice"):
        whole = chunk if whole is None else whole + chunk
    assert whole.content == own.content and whole.usage_metadata["output_tokens"] == own.usage_metadata["output_tokens"]
    assert far.with_structured_output(Person).invoke("walk twice") == near.with_structured_output(Person).invoke(
        "walk twice"
    )
    called = [each.bind_tools([turn_on], tool_choice="any").invoke("walk").tool_calls[0] for each in (far, near)]
    assert called[0]["args"] == called[1]["args"] and called[0]["name"] == "turn_on"


def test_the_clients_vectors(tmp_path):
    run = untrained("bert_embedded", tmp_path / "encoder")
    with serving(run) as served, client_of(served) as client:
        found = client.embeddings.create(model="bert_embedded", input=["a class", "a module"]).data
        want = Embedder.of_run(run).documents(["a class", "a module"])
        np.testing.assert_allclose([each.embedding for each in found], want, atol=1e-6)
