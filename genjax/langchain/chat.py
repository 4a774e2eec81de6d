"""A run as a chat model of LangChain."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.tools import BaseTool, create_schema_from_function
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel

from genjax.config import ConfigError
from genjax.decoding.json_schema import pattern_of_schema
from genjax.errors import UserError
from genjax.langchain.requests import (
    Asking,
    ChunkReader,
    as_chunks,
    as_message,
    as_requested,
    texts_at,
    usage_of,
)  # fmt: skip
from genjax.tools import prompts

_CHOICES = {"any": "required", True: "required", "required": "required", "auto": "auto", "none": "none"}


class ChatGenjax(BaseChatModel, Asking):
    """A chat model over a run, or over a folder of a model of the library transformers with a template for chats.

    A run that writes about pictures takes single messages with pictures in them, as base64 or as data: URLs.

        chat = ChatGenjax(model="runs/instructions", temperature=0, max_tokens=32)
        chat.invoke("walk twice").content
        chat.bind_tools([tool], tool_choice="any").invoke("Use it.").tool_calls
        chat.with_structured_output(Person).invoke("Who?")            # a Person, whatever the network has learned

    Further fields of the OpenAI interface, such as `regex`, go with a call: chat.invoke("...", regex="[0-9]+").
    """

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Its settings are plain values."""
        return True

    @property
    def _llm_type(self) -> str:
        return "genjax-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return self.identity()

    # Texts.

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        model, fields = self._request(messages, stop, kwargs)
        return _result(self.trying(lambda: texts_at(model).whole(fields, chat=True, timeout=self.timeout)), model)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        model, fields = self._request(messages, stop, kwargs)
        texts = await asyncio.to_thread(texts_at, model)
        return _result(await texts.awhole(fields, chat=True, timeout=self.timeout), model)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        model, fields = self._streamed(messages, stop, kwargs)
        written = texts_at(model).stream(fields, chat=True, timeout=self.timeout)
        for message, info in as_chunks(written, model):
            chunk = ChatGenerationChunk(message=message, generation_info=info or None)
            if run_manager is not None:
                run_manager.on_llm_new_token(str(message.content), chunk=chunk)
            yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        model, fields = self._streamed(messages, stop, kwargs)
        texts, reader = await asyncio.to_thread(texts_at, model), ChunkReader(model)
        written = texts.astream(fields, chat=True, timeout=self.timeout)
        try:
            async for part in written:
                for message, info in reader.read(part):
                    chunk = ChatGenerationChunk(message=message, generation_info=info or None)
                    if run_manager is not None:
                        await run_manager.on_llm_new_token(str(message.content), chunk=chunk)
                    yield chunk
        finally:
            await written.aclose()
        message, info = reader.last()
        yield ChatGenerationChunk(message=message, generation_info=info)

    def _request(
        self, messages: list[BaseMessage], stop: list[str] | None, given: dict[str, Any]
    ) -> tuple[str, dict[str, Any]]:
        """The model that is asked, and the request."""
        model, fields = self.fields(stop, given)
        return model, {"messages": as_requested(messages), **fields}

    def _streamed(
        self, messages: list[BaseMessage], stop: list[str] | None, given: dict[str, Any]
    ) -> tuple[str, dict[str, Any]]:
        model, fields = self._request(messages, stop, given)
        if fields["n"] > 1:
            raise ConfigError(f"n={fields['n']} texts cannot be streamed together; stream one, or call generate")
        return model, {**fields, "stream_options": {"include_usage": True}}

    # Tokens.

    def get_token_ids(self, text: str) -> list[int]:
        """Tokens of a text."""
        return prompts.tokenizer_of(texts_at(self.model).texts.run).encode(text).tolist()

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Number of tokens that the model reads for messages, the beginning of its answer included."""
        return texts_at(self.model).texts.num_prompt_tokens(as_requested(messages))

    # Tools and forms.

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools that it may call, or must.

        Args:
          tools: functions, classes of pydantic, tools of LangChain, or their schemas.
          tool_choice: "any" or True: the text is a call of one of them; the name of a tool: of this one; "auto": it is
            a call where the model writes one as it has learned; "none".
          strict: makes schemas say that their keys are all there is; calls that must be made obey them in any case.
          **kwargs: further fields of the request.

        Raises:
          ConfigError: there is no such tool, or one that must be called has arguments that refer to themselves.
        """
        described = [_described(tool, convert_to_openai_tool, strict) for tool in tools]
        if tool_choice is not None and tool_choice is not False:
            names = [tool["function"]["name"] for tool in described]
            choice = kwargs["tool_choice"] = _choice(tool_choice, names)
            for name, tool in zip(names, tools):
                if choice == "required" or (isinstance(choice, dict) and choice == _function(name)):
                    _check_obeyed(tool, f"the tool {name}")
        return super().bind(tools=described, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """A chain that gives objects: of a class of pydantic, or dicts by a TypedDict or a JSON schema.

        Args:
          schema: what the objects are.
          method: json_schema: an automaton makes every text parse as the schema; function_calling: the same, as the
            call of a tool; json_mode: the text is some object of JSON, whose form the prompt must ask for.
          include_raw: give {"raw": message, "parsed": object or None, "parsing_error": error or None}.
          strict: see `bind_tools`.
          **kwargs: further fields of the request.

        Raises:
          ConfigError: the method is not known, or the schema refers to itself.
        """
        is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
        told = {"kwargs": {"method": method, "strict": strict}, "schema": schema}
        parser: Any = PydanticOutputParser(pydantic_object=schema) if is_class else JsonOutputParser()
        if method == "function_calling":
            name = _described(schema, convert_to_openai_tool)["function"]["name"]
            model = self.bind_tools(
                [schema], tool_choice=name, strict=strict, ls_structured_output_format=told, **kwargs
            )
            if is_class:
                parser = PydanticToolsParser(tools=[schema], first_tool_only=True)
            else:
                parser = JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
        elif method == "json_mode":
            model = self.bind(response_format={"type": "json_object"}, ls_structured_output_format=told, **kwargs)
        elif method == "json_schema":
            # Of a schema without properties LangChain's conversion keeps the title alone, and any value would obey it.
            own = isinstance(schema, dict) and (schema.get("type") == "object" or "$ref" in schema)
            described: Any = schema if own else _described(schema, convert_to_json_schema, strict)
            _check_obeyed(schema, "the answer")
            form = {"name": described.get("title", "answer"), "schema": described}
            model = self.bind(
                response_format={"type": "json_schema", "json_schema": form}, ls_structured_output_format=told, **kwargs
            )
        else:
            raise ConfigError(f"method={method} must be json_schema, function_calling or json_mode")
        if not include_raw:
            return model | parser
        parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
        failed = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")


def _described(given: Any, convert: Callable[..., dict[str, Any]], strict: bool | None = None) -> dict[str, Any]:
    """A tool or a schema as a request has it."""
    try:
        return convert(given, strict=strict)
    except RecursionError:
        name = getattr(given, "__name__", "the schema")
        raise ConfigError(f"{name} refers to itself, and an automaton has no recursion") from None


def _check_obeyed(given: Any, what: str) -> None:
    """Refuses a schema that refers to itself: LangChain would put any value at all in the place of the inner one.

    Raises:
      ConfigError: no automaton can check the schema.
    """
    own: Any = given
    if isinstance(given, BaseTool):
        own = given.tool_call_schema
    elif inspect.isroutine(given):
        own = create_schema_from_function(given.__name__, given)
    if isinstance(own, type) and issubclass(own, BaseModel):
        try:
            pattern_of_schema(own.model_json_schema())
        except UserError as error:
            raise ConfigError(f"the schema of {what} cannot be obeyed: {error}") from None


def _function(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def _choice(wanted: str | dict[str, Any] | bool, names: list[str]) -> Any:
    """The choice of a tool as a request has it.

    Raises:
      ConfigError: there is no such tool.
    """
    if isinstance(wanted, dict):
        return wanted
    if wanted in names:
        return _function(wanted)
    if not isinstance(wanted, str | bool) or wanted not in _CHOICES:
        raise ConfigError(f"tool_choice={wanted} is none of the tools {', '.join(names)}, nor any, auto or none")
    return _CHOICES[wanted]


def _result(answer: dict[str, Any], model: str) -> ChatResult:
    usage = usage_of(answer)
    generations = []
    for number, choice in enumerate(answer["choices"]):
        # The tokens of all texts are told once.
        message = as_message(choice, model, None if number else usage)
        generations.append(ChatGeneration(message=message, generation_info={"finish_reason": choice["finish_reason"]}))
    return ChatResult(generations=generations, llm_output={"model_name": model, "token_usage": answer["usage"]})
