"""The server of models that see pictures: their answers, and pictures that are none."""

import concurrent.futures
import io

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
pytest.importorskip("jinja2")

from genjax.serving.app import Settings
from genjax.serving.batching import Limits
from genjax.serving.guard import Guard
from genjax.tools import prompts
from tests.serving.seen import QUESTION, RUNS, part, parts, write_pictures
from tests.serving.served import serving
from tests.tools.untrained import untrained

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


def message(text, paths):
    return [{"role": "user", "content": parts(text, [part(path.read_bytes()) for path in paths])}]


def text_of(answer):
    return answer["choices"][0]["message"]["content"]


@pytest.mark.parametrize("name", RUNS)
def test_answers_are_those_of_the_command_alone_and_together(name, files, tmp_path):
    text, count = RUNS[name]
    run = untrained(name, tmp_path / "run")
    with serving(run, Settings(limits=Limits(slots=2))) as client:
        about = client.ask("/v1/models")[1]["data"][0]
        assert about["most_pictures"] == (5 if name == "flamingo_scenes" else 1) and about["continues"]
        asked = [(seed, [files[(seed + i) % 3] for i in range(count)]) for seed in range(4)]
        want = [
            "".join(
                prompts.generate(run, text, prompts.Options(seed=seed, max_new_tokens=5, image=tuple(map(str, paths))))
            )
            for seed, paths in asked
        ]
        assert len(set(want)) > 1
        bodies = [{"messages": message(text, paths), "seed": seed, "max_tokens": 5} for seed, paths in asked]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda body: text_of(client.ask(CHAT, body)[1]), bodies)) == want
        events = client.stream(CHAT, bodies[1])
        assert "".join(e["choices"][0]["delta"].get("content", "") for e in events[:-1]) == want[1]


def test_the_picture_is_seen_and_a_text_without_one_is_answered_where_the_model_can(files, tmp_path):
    run = untrained("llava_scenes", tmp_path / "run")
    with serving(run) as client:
        body = {"max_tokens": 1, "logprobs": True, "temperature": 0, "seed": 0}
        score = lambda paths: client.ask(CHAT, {**body, "messages": message(QUESTION, paths)})[1]["choices"][0][
            "logprobs"
        ]["content"][0]["logprob"]
        told = [score(files[:1]), score(files[1:2]), score([])]
        assert len(set(told)) == 3 and score(files[:1]) == told[0]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    run = untrained("questions_scenes", tmp_path_factory.mktemp("served") / "run")
    with serving(run, Settings(guard=Guard(max_body_kib=256))) as client:
        yield client


def png(size, most=1):
    content = io.BytesIO()
    levels = np.random.default_rng(0).integers(most, size=(*size, 3), dtype=np.uint8)
    Image.fromarray(levels).save(content, "PNG")
    return content.getvalue()


def url(text):
    return {"type": "image_url", "image_url": {"url": text}}


WORDS = {"type": "text", "text": QUESTION}
BAD = {
    "path": ([url("/etc/passwd"), WORDS], "no other address is opened"),
    "file": ([url("file:///etc/passwd"), WORDS], "no other address is opened"),
    "host": ([url("http://127.0.0.1:1/a.png"), WORDS], "no other address is opened"),
    "no picture type": ([url("data:text/html;base64,AAAA"), WORDS], "must be data:image/png;base64"),
    "no address": ([{"type": "image_url", "image_url": 3}, WORDS], "must be data:image/png;base64"),
    "no base64": ([url("data:image/png;base64,@@"), WORDS], "is not base64"),
    "no picture": ([part(b"no picture"), WORDS], "content[0] is not a readable picture"),
    "eps": ([part(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), WORDS], "must be one of PNG"),
    "cut": ([part(png((64, 64), 9)[:3000]), WORDS], "content[0] is not a readable picture"),
    "too large": ([part(png((5000, 4000))), WORDS], "a picture of 4000 x 5000, and at most 16777216 pixels"),
    "two": ([part(png((4, 4))), part(png((4, 4))), WORDS], "is picture 2, and questions_scenes sees at most 1 a text"),
    "none": ([WORDS], "which writes about a picture"),
    "no question": ([part(png((4, 4)))], "give one"),
    "unknown word": ([part(png((4, 4))), {"type": "text", "text": "what xyzzy?"}], "xyzzy"),
    "other part": ([{"type": "input_audio"}, WORDS], "must be a part of the type text or image_url"),
    "nothing": ([], "must be a text, or a list of parts"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_told_in_one_sentence(client, name):
    content, sentence = BAD[name]
    status, answer = client.ask(CHAT, {"messages": [{"role": "user", "content": content}]})
    told = answer["error"]["message"]
    assert status == 400 and sentence in told and "\n" not in told and "0x" not in told


def test_histories_and_other_routes_are_refused(client):
    status, answer = client.ask(CHAT, {"messages": message(QUESTION, []) * 2})
    assert status == 400 and "messages has 2 messages" in answer["error"]["message"]
    status, answer = client.ask("/v1/completions", {"prompt": QUESTION})
    assert status == 404 and "ask /v1/chat/completions" in answer["error"]["message"]
    large = [{"role": "user", "content": parts(QUESTION, [part(b"0" * 2**19)])}]
    status, answer = client.ask(CHAT, {"messages": large})
    assert status == 413 and "larger than 256 KiB" in answer["error"]["message"]
