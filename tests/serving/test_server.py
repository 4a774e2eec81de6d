"""The server as clients see it: the OpenAI interface, its errors, and who may ask."""

import base64
import concurrent.futures
import json
import re
import socket
import time

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
pytest.importorskip("jinja2")

from genjax.data.text.collection import Document
from genjax.serving import connections
from genjax.serving.app import Settings
from genjax.serving.batching import Limits
from genjax.serving.guard import Guard
from genjax.serving.texts import Texts
from genjax.tools import prompts, retrieval
from genjax.tools.embedding import Embedder
from tests.serving.served import serving
from tests.tools.untrained import untrained

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = [{"role": "user", "content": "walk twice"}]
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 22]}},
    "required": ["ok"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "turn_on", "parameters": SCHEMA}}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    run = untrained("instructions", tmp_path_factory.mktemp("served") / "chat")
    with serving(run, Settings(limits=Limits(slots=4), guard=Guard(max_body_kib=64))) as client:
        yield client


def text_of(answer):
    return [choice["message"]["content"] for choice in answer["choices"]]


def test_a_stream_is_the_whole_answer_and_what_the_command_writes(client):
    body = {"messages": HELLO, "seed": 3, "max_tokens": 9}
    status, whole = client.ask(CHAT, {**body, "model": "instructions"})
    assert status == 200 and whole["object"] == "chat.completion"
    written = "".join(prompts.generate(client.server.run, HELLO, prompts.Options(seed=3, max_new_tokens=9)))
    assert text_of(whole) == [written]
    events = client.stream(CHAT, {**body, "stream_options": {"include_usage": True}})
    first, *middle, last, usage, done = events
    assert done == "[DONE]" and usage["choices"] == [] and usage["usage"] == whole["usage"]
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(event["choices"][0]["delta"]["content"] for event in middle) == written
    assert last["choices"][0]["delta"] == {} and all(event["usage"] is None for event in (first, *middle, last))
    assert last["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    counted = whole["usage"]
    assert counted["completion_tokens"] <= 9 and len({event["id"] for event in events[:-1]}) == 1
    assert counted["prompt_tokens"] == len(client.server.run.experiment.data.prompt_ids(HELLO))


def test_completions_take_texts_and_tokens_and_tell_log_probabilities(client):
    tokenizer = client.server.run.experiment.data.make_tokenizer()
    body = {"max_tokens": 4, "seed": 5, "logprobs": 2, "n": 2}
    texts = ["walk", "turn left"]
    status, together = client.ask(TEXT, {**body, "prompt": texts})
    assert status == 200 and [choice["index"] for choice in together["choices"]] == [0, 1, 2, 3]
    ids = [prompts.tokens_of(client.server.run, tokenizer, text).tolist() for text in texts]
    assert client.ask(TEXT, {**body, "prompt": ids})[1]["choices"] == together["choices"]
    assert client.ask(TEXT, {**body, "prompt": texts[1]})[1]["choices"][1]["text"] == together["choices"][3]["text"]
    for choice in together["choices"]:
        scores = choice["logprobs"]
        assert len(scores["tokens"]) == len(scores["token_logprobs"]) == len(scores["top_logprobs"])
        assert all(value <= 0 for value in scores["token_logprobs"])
    echoed = client.ask(TEXT, {"prompt": "walk", "echo": True, "max_tokens": 4, "seed": 5})[1]["choices"][0]["text"]
    assert echoed == "walk" + together["choices"][0]["text"]


def test_a_stop_string_never_shows(client):
    # vllm 6699, 32587, 46224, 57052: stop strings leaked, most when streaming.
    body = {"messages": HELLO, "seed": 3, "max_tokens": 12}
    whole = text_of(client.ask(CHAT, body)[1])[0]
    stop = whole[3:6]
    cut = {**body, "stop": stop}
    answer = client.ask(CHAT, cut)[1]
    assert text_of(answer) == [whole[: whole.index(stop)]] and answer["choices"][0]["finish_reason"] == "stop"
    pieces = [event["choices"][0]["delta"].get("content", "") for event in client.stream(CHAT, cut)[:-1]]
    assert "".join(pieces) == whole[: whole.index(stop)]


def test_clients_together_get_what_each_gets_alone(client):
    bodies = [
        {"messages": HELLO, "seed": seed, "max_tokens": 5 + seed, "temperature": 0.5 * (seed % 3)} for seed in range(8)
    ]
    alone = [text_of(client.ask(CHAT, body)[1]) for body in bodies]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda body: text_of(client.ask(CHAT, body)[1]), bodies))
    assert together == alone


def test_a_client_that_leaves_frees_its_place(client, monkeypatch):
    batcher, step = client.server.batcher, client.server.batcher._step
    monkeypatch.setattr(batcher, "_step", lambda: (time.sleep(0.2), step()))
    before = batcher.num_written
    body = {"messages": HELLO, "max_tokens": 50, "stream": True, "regex": "[a-z]{50}"}
    connection, answer = client.connect("POST", CHAT, body)
    # The role, an empty line, and the first character.
    for _ in range(3):
        answer.readline()
    assert client.ask("/health")[1]["active"] == 1
    answer.close()
    connection.close()
    until = time.monotonic() + 60
    while client.ask("/health")[1]["active"]:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert batcher.num_written - before < 15


def test_formats_hold_whatever_the_network_says(client):
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    answer = client.ask(CHAT, {"messages": HELLO, "response_format": schema, "max_tokens": 40})[1]
    value = json.loads(text_of(answer)[0])
    assert isinstance(value["ok"], bool) and value.get("n", 1) in (1, 22)
    assert answer["choices"][0]["finish_reason"] == "stop"
    (text,) = text_of(client.ask(CHAT, {"messages": HELLO, "regex": "(ab|é)+", "max_tokens": 7})[1])
    assert re.fullmatch("(ab|é)+", text)
    called = {"messages": HELLO, "tools": [TOOL], "tool_choice": "required", "max_tokens": 60, "seed": 1}
    choice = client.ask(CHAT, called)[1]["choices"][0]
    function = choice["message"]["tool_calls"][0]["function"]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    assert function["name"] == "turn_on" and isinstance(json.loads(function["arguments"])["ok"], bool)
    *_, call, finish, _ = client.stream(CHAT, called)
    assert call["choices"][0]["delta"]["tool_calls"][0]["function"] == function
    assert finish["choices"][0]["finish_reason"] == "tool_calls"


def test_documents_are_put_before_the_question(client, tmp_path):
    documents = [Document("a", "walk means step"), Document("b", "turn means spin")]
    texts = Texts(client.server.run, Limits(), retrieval.build(tmp_path / "index", documents), 1)
    order = texts.understand(json.dumps({"messages": HELLO}).encode(), True, print)
    assert [each.document.id for each in order.documents] == ["a"]
    asked = [{"role": "user", "content": "walk means step\nwalk twice"}]
    np.testing.assert_array_equal(order.rows[0].prompt, client.server.run.experiment.data.prompt_ids(asked))
    texts.batcher.close()


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        (CHAT, b"{", 400, "the body is not JSON"),
        (CHAT, b'{"temperature": NaN}', 400, "the body is not JSON"),
        (CHAT, b"[" * 50_000, 400, "too deep to be read"),
        (CHAT, [], 400, "the body must be an object of JSON, and not a list"),
        (CHAT, {}, 400, "messages must be a list of at least one message"),
        (CHAT, {"messages": []}, 400, "messages must be a list of at least one message"),
        (CHAT, {"messages": [{"role": "boss", "content": "x"}]}, 400, "messages[0].role must be one of system"),
        (CHAT, {"messages": [{"role": "user", "content": 3}]}, 400, "messages[0].content must be a text"),
        (CHAT, {"messages": [{"role": "user"}]}, 400, "messages[0].content must be a text, and not nothing"),
        (CHAT, {"messages": HELLO, "model": "gpt-4"}, 404, "there is no model 'gpt-4'; the server has instructions"),
        (CHAT, {"messages": HELLO, "temperature": -1}, 400, "temperature=-1 must be between 0 and 2"),
        (CHAT, {"messages": HELLO, "temperature": "hot"}, 400, "temperature must be a number, and not a text"),
        (CHAT, {"messages": HELLO, "temprature": 1}, 400, "there is no field 'temprature'; did you mean temperature"),
        (CHAT, {"messages": HELLO, "top_p": 0}, 400, "top_p=0 must be between"),
        (CHAT, {"messages": HELLO, "max_tokens": 0}, 400, "max_tokens=0 must be between 1"),
        (CHAT, {"messages": HELLO, "max_tokens": 10**6}, 400, "prompt and new text together may have"),
        (CHAT, {"messages": HELLO, "n": 5}, 400, "n=5 must be between 1 and 4"),
        (CHAT, {"messages": HELLO, "stop": [1]}, 400, "stop must be a text or a list of texts"),
        (CHAT, {"messages": HELLO, "stop": [""]}, 400, "stop has an empty text"),
        (CHAT, {"messages": HELLO, "top_logprobs": 2}, 400, "top_logprobs needs logprobs=true"),
        (CHAT, {"messages": HELLO, "presence_penalty": 1}, 400, "presence_penalty is not served"),
        (CHAT, {"messages": HELLO, "regex": "(a"}, 400, "the pattern '(a' has a ( without its )"),
        (CHAT, {"messages": HELLO, "regex": "a{30}", "max_tokens": 3}, 400, "too few for the constraint"),
        (CHAT, {"messages": HELLO, "tool_choice": "required"}, 400, "tool_choice needs tools"),
        (
            CHAT,
            {"messages": HELLO, "response_format": {"type": "xml"}},
            400,
            "must be text, json_object or json_schema",
        ),
        (CHAT, {"messages": [{"role": "user", "content": "a" * 60_000}]}, 400, "the prompt has 60000 characters"),
        (TEXT, {"prompt": [10**6]}, 400, "prompt has the token 1000000"),
        (TEXT, {"prompt": {}}, 400, "prompt must be a text, tokens"),
        (TEXT, {"prompt": "\ud800"}, 400, "half of a character"),
        (TEXT, {"prompt": "x" * 70_000}, 413, "the body is larger than 64 KiB"),
        ("/v1/embeddings", {"input": "x"}, 404, "gives no vectors of texts"),
        ("/v1/images/generations", {"prompt": ""}, 404, "draws no pictures"),
        ("/v1/nothing", {}, 404, "there is no such path"),
        ("/../../etc/passwd", None, 404, "there is no such path"),
        ("/v1/models/gpt-4", None, 404, "there is no model 'gpt-4'"),
        ("/health", {}, 405, "this path is not asked with this method"),
    ],
)
def test_bad_input_is_told_in_one_sentence(client, path, body, status, message):
    answered, error = client.ask(path, body)
    assert answered == status, error
    assert set(error["error"]) == {"message", "type", "param", "code"}
    assert message in error["error"]["message"] and "\n" not in error["error"]["message"]


def test_pages_of_other_sites_cannot_ask(client):
    body = {"messages": HELLO, "max_tokens": 1}
    for headers, status in (
        ({"Host": "evil.example"}, 403),
        ({"Host": f"localhost:{client.port}"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": f"http://127.0.0.1:{client.port}"}, 200),
        ({"Content-Type": "text/plain"}, 415),
    ):
        assert client.ask(CHAT, body, headers)[0] == status, headers


def test_connections_that_say_nothing_give_way(client, monkeypatch):
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 3)
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.5)
    held = [socket.create_connection(("127.0.0.1", client.port), timeout=60) for _ in range(4)]
    held[3].sendall(b"POST /v1/completions HTTP/1.1\r\nHost: loc")
    assert client.ask("/health")[0] == 200
    told = [each.recv(1000) for each in held]
    assert [b"too many open connections" in each for each in told] == [True, True, False, False]
    assert [b"no request came within 0.5 seconds" in each for each in told] == [False, False, True, True]
    for each in held:
        each.close()


def test_the_page_health_models_and_metrics(client):
    status, page = client.ask("/")
    assert status == 200 and not re.findall(r"<[a-z]+ [^>]*(?:src|href)=|https?://(?!www\.w3\.org)", page)
    assert client.ask("/health")[1]["status"] == "ok"
    (model,) = client.ask("/v1/models")[1]["data"]
    assert model == client.ask("/v1/models/instructions")[1] and model["chats"] and not model["draws_pictures"]
    lines = client.ask("/metrics")[1]
    assert re.search(r'genjax_requests_total\{path="/v1/models",status="200"\} 1\.0', lines)
    assert float(re.search(r"^genjax_written_tokens_total (\S+)", lines, re.MULTILINE)[1]) > 0


def test_pictures_are_those_of_the_run_and_a_key_is_asked_for(tmp_path):
    run = untrained("vae_digits", tmp_path / "pictures")
    with serving(run, Settings(guard=Guard(api_key="secret"))) as client:
        body, path = {"prompt": "", "n": 2, "seed": 4}, "/v1/images/generations"
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            status, error = client.ask(path, body, headers)
            assert status == 401 and error["error"]["code"] == "invalid_api_key"
        assert client.ask("/health")[0] == 200 and client.ask("/metrics")[0] == 401
        known = {"Authorization": "Bearer secret"}
        status, drawn = client.ask(path, body, known)
        assert status == 200 and drawn["seed"] == 4
        pictures = [base64.b64decode(each["b64_json"]) for each in drawn["data"]]
        assert len(pictures) == 2 and all(picture.startswith(b"\x89PNG") for picture in pictures)
        again = client.ask("/v1/samples", {"n": 2, "seed": 4}, known)[1]["data"]
        assert [each["type"] for each in again] == ["image/png"]
        assert client.ask(path, {**body, "label": 3}, known)[1]["error"]["message"].endswith(
            "leave prompt and label out"
        )
        assert client.ask(CHAT, {"messages": HELLO}, known)[0] == 404
        (model,) = client.ask("/v1/models", headers=known)[1]["data"]
        assert model["labels"] == []  # it takes no class
        latents = np.linspace(-1, 1, model["latent_dim"])
        told = client.ask("/v1/samples", {"latents": latents.tolist()}, known)[1]["data"]
        decoded = np.asarray(run.model.decode(run.state, jnp.asarray(latents)[None]))
        (want,) = run.write_samples(decoded, tmp_path / "decoded")
        assert base64.b64decode(told[0]["b64_json"]) == want.read_bytes()
        for more, message in (
            ({"latents": [0.5]}, "latents has 1 numbers, and vae_digits has"),
            ({"latents": ["a"]}, "latents must be a list of numbers"),
            ({"latents": latents.tolist(), "n": 2}, "latents describe one sample, and n=2"),
            ({"film": True}, "draws no pictures from noise step by step"),
        ):
            status, error = client.ask("/v1/samples", more, known)
            assert status == 400 and message in error["error"]["message"], more


def test_vectors_are_those_of_the_encoder(tmp_path):
    run = untrained("bert_embedded", tmp_path / "encoder")
    with serving(run) as client:
        texts = ["a class", "the help of a module"]
        status, answer = client.ask("/v1/embeddings", {"input": texts})
        want = Embedder.of_run(run).documents(texts)
        assert status == 200
        np.testing.assert_allclose([each["embedding"] for each in answer["data"]], want, atol=1e-6)
        packed = client.ask("/v1/embeddings", {"input": texts[0], "encoding_format": "base64"})[1]["data"][0]
        np.testing.assert_allclose(np.frombuffer(base64.b64decode(packed["embedding"]), "<f4"), want[0], atol=1e-6)
        assert "the encoder reads" in client.ask("/v1/embeddings", {"input": "a " * 9000})[1]["error"]["message"]
        assert "none of them empty" in client.ask("/v1/embeddings", {"input": [""]})[1]["error"]["message"]
