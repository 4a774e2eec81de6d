"""LangChain's chat model and LLM over runs; skipped where langchain-core is not installed."""

import asyncio
import json
from typing import Any, TypedDict

import numpy as np
import pytest

pytest.importorskip("langchain_core")
pytest.importorskip("jinja2")

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.load import dumpd, load
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from langchain_core.tools import tool
from pydantic import BaseModel, Field, ValidationError

import genjax
from genjax.data.text.collection import Document
from genjax.errors import UserError
from genjax.langchain import ChatGenjax, GenjaxLLM, GenjaxRetriever
from genjax.langchain.requests import as_requested, close_all, texts_at
from genjax.serving.batching import BusyError
from genjax.tools import prompts, reading, retrieval
from genjax.tools.embedding import Embedder
from genjax.tools.opened import opened
from tests.serving.seen import QUESTION, RUNS, as_base64, part, parts, write_pictures
from tests.tools.untrained import untrained

HELLO = "walk twice"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    yield untrained("instructions", tmp_path_factory.mktemp("chat") / "run")
    close_all()


@pytest.fixture(scope="module")
def chat(run):
    return ChatGenjax(model=str(run.workdir), seed=3, max_tokens=12)


class Person(BaseModel):
    """Somebody."""

    name: str = Field(max_length=8)
    age: int = Field(ge=0, lt=150)
    friend: str | None = None


class Node(BaseModel):
    """A node."""

    name: str
    child: "Node | None" = None


class Linked(TypedDict):
    """A chain."""

    following: "Linked | None"


@tool
def turn_on(place: str, level: int = 3) -> str:
    """Turns the light on."""
    return f"{place} {level}"


def joined(chunks):
    chunks = list(chunks)
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    return chunks, whole


def test_a_chat_is_what_the_command_writes_whole_streamed_and_from_a_task(run, chat):
    written = "".join(
        prompts.generate(run, [{"role": "user", "content": HELLO}], prompts.Options(seed=3, max_new_tokens=12))
    )
    answer = chat.invoke(HELLO)
    assert answer.content == written and answer.response_metadata["finish_reason"] in ("stop", "length")
    read = chat.get_num_tokens_from_messages([HumanMessage(HELLO)])
    assert answer.usage_metadata["input_tokens"] == read and answer.usage_metadata["output_tokens"] <= 12
    assert answer.response_metadata["model_name"] == str(run.workdir)
    chunks, whole = joined(chat.stream(HELLO))
    assert whole.content == written and whole.usage_metadata == answer.usage_metadata
    assert chunks[-1].chunk_position == "last" and sum(chunk.usage_metadata is not None for chunk in chunks) == 1
    assert whole.response_metadata["finish_reason"] == answer.response_metadata["finish_reason"]

    async def tasks():
        together = await asyncio.gather(*(chat.ainvoke(HELLO, seed=seed) for seed in (3, 4)))
        return [each.content for each in together], [chunk async for chunk in chat.astream(HELLO)]

    together, streamed = asyncio.run(tasks())
    assert together == [written, chat.invoke(HELLO, seed=4).content]
    assert joined(streamed)[1].content == written
    assert chat.batch([HELLO, "jump"])[0].content == written


def test_settings_reach_the_text(chat):
    whole = chat.invoke(HELLO).content
    stop = whole[4:6]
    cut = whole[: whole.index(stop)]
    assert chat.invoke(HELLO, stop=[stop]).content == cut == joined(chat.stream(HELLO, stop=[stop]))[1].content
    assert chat.model_copy(update={"stop": [stop]}).invoke(HELLO).content == cut
    assert chat.invoke(HELLO, regex="[0-9]{5}").content.isdecimal()
    several = chat.model_copy(update={"n": 2}).generate([[HumanMessage(HELLO)]])
    assert several.generations[0][0].text == whole != several.generations[0][1].text
    assert several.generations[0][1].message.usage_metadata is None
    scored = chat.invoke(HELLO, logprobs=True, top_logprobs=2)
    scores = scored.response_metadata["logprobs"]["content"]
    assert len(scores) == scored.usage_metadata["output_tokens"] and all(each["logprob"] <= 0 for each in scores)
    streamed = joined(chat.stream(HELLO, logprobs=True, top_logprobs=2))[1]
    assert streamed.response_metadata["logprobs"]["content"] == scores
    seen = []

    class Handler(BaseCallbackHandler):
        def on_llm_new_token(self, token, **kwargs):
            seen.append(token)

    chat.model_copy(update={"streaming": True}).invoke(HELLO, config={"callbacks": [Handler()]})
    assert "".join(seen) == whole


def test_tools_that_must_be_called_are_called_with_arguments_that_fit(chat):
    chat = chat.model_copy(update={"max_tokens": 90})
    for choice in ("any", True, "turn_on", {"type": "function", "function": {"name": "turn_on"}}):
        (called,) = chat.bind_tools([turn_on, Person], tool_choice=choice).invoke(HELLO).tool_calls
        if choice not in ("any", True):
            assert called["name"] == "turn_on" and isinstance(called["args"]["place"], str)
            assert isinstance(turn_on.invoke(called), ToolMessage)
    bound = chat.bind_tools([Person], tool_choice="Person")
    chunks, whole = joined(bound.stream(HELLO))
    (called,) = whole.tool_calls
    assert called["args"] == bound.invoke(HELLO).tool_calls[0]["args"] and 0 <= called["args"]["age"] < 150
    assert whole.response_metadata["finish_reason"] == "tool_calls" and whole.content == ""
    for choice in ("auto", "none", None):
        assert isinstance(chat.bind_tools([turn_on], tool_choice=choice).invoke(HELLO), AIMessage)
    for choice in ("turn", ["turn_on"], 3):
        with pytest.raises(UserError, match="tool_choice=.* is none of the tools turn_on, nor any, auto or none"):
            chat.bind_tools([turn_on], tool_choice=choice)
    with pytest.raises(UserError, match="must be none, auto, required, or a function out of turn_on"):
        chat.bind_tools([turn_on], tool_choice={"type": "function", "function": {"name": "turn"}}).invoke(HELLO)
    with pytest.raises(UserError, match="tool_choice needs tools"):
        chat.bind_tools([], tool_choice="any").invoke(HELLO)


def test_schemas_that_refer_to_themselves_or_have_no_bound_are_refused_by_name(chat):
    @tool
    def walk(node: Node) -> str:
        """Walks."""

    def jump(node: Node) -> str:
        """Jumps."""

    message = "{} cannot be obeyed: .* refers to itself by #/.defs/Node, and an automaton has no recursion"
    for made, name in ((walk, "walk"), (jump, "jump"), (Node, "Node")):
        for choice in ("any", name, {"type": "function", "function": {"name": name}}):
            with pytest.raises(UserError, match=message.format(f"the schema of the tool {name}")):
                chat.bind_tools([turn_on, made], tool_choice=choice)
        # A call that need not be made, or another tool's, is not held to the schema.
        for choice in ("auto", "none", "turn_on", None):
            chat.bind_tools([turn_on, made], tool_choice=choice)
    for method, name in (("json_schema", "the answer"), ("function_calling", "the tool Node")):
        with pytest.raises(UserError, match=message.format(f"the schema of {name}")):
            chat.with_structured_output(Node, method=method)
        with pytest.raises(UserError, match="Linked refers to itself, and an automaton has no recursion"):
            chat.with_structured_output(Linked, method=method)
    inner = {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}}
    given = {"title": "chain", "description": "A chain.", **inner, "$defs": {"n": inner}}
    with pytest.raises(UserError, match="cannot be obeyed: .* refers to itself by #/.defs/n"):
        chat.with_structured_output(given).invoke(HELLO)
    deep = {"type": "null"}
    for _ in range(400):
        deep = {"type": "array", "items": deep}
    given = {"title": "deep", "description": "Deep.", "type": "object", "properties": {"a": deep}}
    with pytest.raises(UserError, match="cannot be obeyed: .*(too deep to be read|too long a pattern)"):
        chat.with_structured_output(given).invoke(HELLO)
    for given in ({"title": "map", "type": "object"}, {"title": "map", "type": "object", "properties": {"a": {}}}):
        with pytest.raises(UserError, match="additionalProperties of the schema must be false: keys come from prop"):
            chat.with_structured_output({**given, "additionalProperties": {"type": "null"}}).invoke(HELLO)
    with pytest.raises(UserError, match="cannot be obeyed: .* refers to itself by #/.defs/n"):
        chat.with_structured_output({"title": "chain", "$ref": "#/$defs/n", "$defs": {"n": inner}}).invoke(HELLO)


def test_fields_of_any_value_are_obeyed(chat):
    class Loose(BaseModel):
        """Anything."""

        thing: Any

    chat = chat.model_copy(update={"max_tokens": 90})
    for method in ("json_schema", "function_calling"):
        assert isinstance(chat.with_structured_output(Loose, method=method).invoke(HELLO), Loose)


def test_structured_output_of_a_network_that_has_learned_nothing(chat):
    chat = chat.model_copy(update={"max_tokens": 90, "seed": None})
    for method in ("json_schema", "function_calling"):
        for _ in range(3):
            found = chat.with_structured_output(Person, method=method).invoke(HELLO)
            assert isinstance(found, Person) and len(found.name) <= 8 and 0 <= found.age < 150
        found = chat.with_structured_output(Person.model_json_schema(), method=method).invoke(HELLO)
        assert {"name", "age"} <= set(found)
    raw = chat.with_structured_output(Person, include_raw=True).invoke(HELLO)
    assert raw["parsed"] == Person(**json.loads(raw["raw"].content)) and raw["parsing_error"] is None
    anything = chat.with_structured_output(Person.model_json_schema(), method="json_mode").invoke(HELLO)
    assert isinstance(anything, dict)
    failed = chat.with_structured_output(Person, method="json_mode", include_raw=True).invoke(HELLO)
    assert failed["parsed"] is None and failed["parsing_error"] is not None
    with pytest.raises(UserError, match="method=yaml must be json_schema"):
        chat.with_structured_output(Person, method="yaml")


def test_messages_become_requests():
    calls = [{"name": "turn_on", "args": {"place": "é"}, "id": "1", "type": "tool_call"}]
    history = [
        SystemMessage("be kind"),
        HumanMessage([{"type": "text", "text": "a"}, "b"]),
        AIMessage([{"type": "text", "text": "c"}, {"type": "tool_use", "id": "1"}], tool_calls=calls),
        ToolMessage("é 3", tool_call_id="1"),
    ]
    found = as_requested(history)
    assert [each["role"] for each in found] == ["system", "user", "assistant", "tool"]
    assert [each["content"] for each in found] == ["be kind", "ab", "c", "é 3"]
    assert json.loads(found[2]["tool_calls"][0]["function"]["arguments"]) == {"place": "é"}
    with pytest.raises(UserError, match="message 0 has a part of the type file, and the models read text and pictures"):
        as_requested([HumanMessage([{"type": "file", "url": "data:"}])])
    for lacking in ({"base64": "AAAA"}, {"file_id": "1"}, {}):
        with pytest.raises(
            UserError, match="message 0 has a picture without its content: give base64 and mime_type, or"
        ):
            as_requested([HumanMessage([{"type": "image", **lacking}])])


@pytest.mark.parametrize("name", RUNS)
def test_messages_with_pictures_are_answered_as_the_command_answers(name, tmp_path):
    run, (text, count) = untrained(name, tmp_path / "run"), RUNS[name]
    paths = write_pictures(tmp_path)[:count]
    given = {"max_new_tokens": 5, "image": tuple(map(str, paths))}
    written = ["".join(prompts.generate(run, text, prompts.Options(seed=seed, **given))) for seed in range(3)]
    assert len(set(written)) > 1
    chat = ChatGenjax(model=str(run.workdir), max_tokens=5)
    forms = [
        lambda path: part(path.read_bytes()),
        lambda path: {"type": "image_url", "image_url": part(path.read_bytes())["image_url"]["url"]},
        lambda path: {"type": "image", "base64": as_base64(path), "mime_type": "image/png"},
        lambda path: {"type": "image", "source_type": "base64", "data": as_base64(path), "mime_type": "image/png"},
        lambda path: {"type": "image", "url": part(path.read_bytes())["image_url"]["url"]},
    ]
    try:
        for form in forms:
            message = HumanMessage(parts(text, [form(path) for path in paths]))
            answer = chat.invoke([message], seed=0)
            assert answer.content == written[0]
        assert chat.get_num_tokens_from_messages([message]) == answer.usage_metadata["input_tokens"]
        assert joined(chat.stream([message], seed=1))[1].content == written[1]
        assert [each.content for each in chat.batch([[message]] * 2, seed=2)] == [written[2]] * 2
        assert asyncio.run(chat.ainvoke([message], seed=2)).content == written[2]
    finally:
        close_all()


def test_pictures_that_cannot_be_seen_are_refused_in_one_sentence(chat, tmp_path):
    seeing = ChatGenjax(model=str(untrained("questions_scenes", tmp_path / "run").workdir), max_tokens=5)
    asked = lambda picture: [HumanMessage(parts(QUESTION, [picture]))]
    url = lambda address: {"type": "image_url", "image_url": {"url": address}}
    sound = part(write_pictures(tmp_path)[0].read_bytes())
    try:
        for picture, message in (
            (url("http://127.0.0.1:1/a.png"), "no other address is opened"),
            (url(str(tmp_path / "0.png")), "no other address is opened"),
            ({"type": "image", "url": "http://127.0.0.1:1/a.png"}, "no other address is opened"),
            (url("data:image/png;base64,@@"), "is not base64"),
            ({"type": "image", "base64": "AAAA", "mime_type": "image/png"}, "is not a readable picture"),
            ({"type": "audio", "base64": "AAAA", "mime_type": "audio/wav"}, "part of the type audio, and the models"),
        ):
            with pytest.raises(UserError, match=message):
                seeing.invoke(asked(picture))
        with pytest.raises(
            UserError, match="messages has 2 messages, and questions_scenes was trained on single quest"
        ):
            seeing.invoke([SystemMessage("be kind"), *asked(sound)])
        with pytest.raises(
            UserError, match=r"messages\[0\].content\[0\] must be a part of the type text, and not image_url"
        ):
            chat.invoke(asked(sound))
    finally:
        close_all()


def test_what_is_wrong_is_told_in_one_sentence(run, chat, monkeypatch):
    with pytest.raises(ValidationError, match="ChatGenjax has no setting 'temprature'; did you mean temperature"):
        ChatGenjax(model="x", temprature=0)
    with pytest.raises(ValidationError, match="give ChatGenjax a model: the folder of a run"):
        ChatGenjax()
    with pytest.raises(UserError, match="there is no field 'top_k'"):
        chat.invoke(HELLO, top_k=3)
    with pytest.raises(UserError, match="temperature=-1 must be between 0 and 2"):
        chat.invoke(HELLO, temperature=-1)
    with pytest.raises(UserError, match="n=2 texts cannot be streamed together"):
        next(chat.stream(HELLO, n=2))
    with pytest.raises(UserError, match="holds no config.json"):
        chat.invoke(HELLO, model=str(run.workdir / "other"))
    batcher = texts_at(chat.model).texts.batcher
    late = chat.model_copy(update={"timeout": 1e-9})
    with pytest.raises(UserError, match="not written within timeout=1e-09 seconds"):
        late.invoke(HELLO)
    with pytest.raises(UserError, match="not written within timeout"):
        asyncio.run(late.ainvoke(HELLO))
    asked = []
    submit = batcher.submit

    def busy(rows):
        asked.append(rows)
        if len(asked) < 2:
            raise BusyError("wait")
        submit(rows)

    monkeypatch.setattr(batcher, "submit", busy)
    monkeypatch.setattr("genjax.langchain.requests.time.sleep", lambda seconds: None)
    assert chat.invoke(HELLO).content and len(asked) == 2
    asked.clear()
    with pytest.raises(BusyError):
        chat.model_copy(update={"max_retries": 0}).invoke(HELLO)


def test_a_stream_that_is_left_frees_its_place(chat, monkeypatch):
    batcher = texts_at(chat.model).texts.batcher
    stream = chat.stream(HELLO, regex="[a-z]{60}", max_tokens=60)
    next(stream)
    stream.close()
    assert batcher.num_active == 0


@pytest.mark.filterwarnings("ignore:The function `load` is in beta")
def test_models_are_written_as_plain_values_and_read_again(chat):
    for model in (chat, GenjaxLLM(model="runs/gpt", temperature=0.5, stop=["\n"])):
        again = load(dumpd(model), valid_namespaces=["genjax"], allowed_objects=[type(model)])
        assert again == model and again.model == model.model


def test_texts_are_continued_together_as_each_alone(run):
    llm = GenjaxLLM(model=str(run.workdir), seed=1, max_tokens=5)
    texts = ["walk", "turn left"]
    result = llm.generate(texts)
    alone = [llm.generate([text]) for text in texts]
    assert [each[0].text for each in result.generations] == [each.generations[0][0].text for each in alone]
    assert result.llm_output["token_usage"]["completion_tokens"] == sum(
        each.llm_output["token_usage"]["completion_tokens"] for each in alone
    )
    assert "".join(llm.stream("walk")) == result.generations[0][0].text
    scored = llm.model_copy(update={"logprobs": True, "top_logprobs": 2, "n": 2}).generate(texts).generations
    assert [len(each) for each in scored] == [2, 2] and scored[0][0].text == result.generations[0][0].text
    assert len(scored[1][1].generation_info["logprobs"]["tokens"]) == 5
    assert llm.get_num_tokens("walk") == len(prompts.tokenizer_of(run).encode("walk"))


def test_a_folder_of_another_library_chats(run, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path / "folder"
    genjax.save_pretrained(folder, run.model, run.state.params)
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = np.array([[3, 5, 7]])
    found = opened(folder)
    np.testing.assert_allclose(found.model.logits(found.state, tokens), run.model.logits(run.state, tokens), atol=1e-5)
    answer = ChatGenjax(model=str(folder), temperature=0, max_tokens=4).invoke(HELLO)
    assert answer.usage_metadata["output_tokens"] in range(1, 5)


def test_a_chain_answers_from_documents_as_the_model_that_reads_them(tmp_path):
    run = untrained("rag_facts", tmp_path / "rag")
    asked = run.experiment.data.asked("test")[:3]
    texts = dict.fromkeys(text for each in asked for text in each.documents)
    documents = [Document(f"d{i}", text) for i, text in enumerate(texts)]
    index = retrieval.build(tmp_path / "index", documents, Embedder.of_run(run))
    folder, count = str(run.workdir), run.experiment.data.num_documents
    retriever = GenjaxRetriever(index=str(tmp_path / "index"), encoder=folder, k=count)
    lines = lambda found: "\n".join(each.page_content for each in found)
    prompt = PromptTemplate.from_template("{documents}\n{question}")
    model = GenjaxLLM(model=folder)
    chain = {"documents": retriever | lines, "question": lambda text: text} | prompt | model | StrOutputParser()
    for each in asked:
        assert chain.invoke(each.question) == reading.answer(run, index, each.question).text
    assert "".join(chain.stream(asked[0].question)) == reading.answer(run, index, asked[0].question).text
    with pytest.raises(UserError, match="a prompt has a document in each line, and the question in the last"):
        model.invoke(asked[0].question)
    with pytest.raises(UserError, match=f"{count + 1} documents are given, and rag_facts reads between 1 and {count}"):
        model.invoke("\n".join(["a document"] * (count + 2)))
    with pytest.raises(UserError, match="gives its likeliest answer; leave out temperature, top_p"):
        model.invoke("a document\na question", temperature=0.7, top_p=0.5)
