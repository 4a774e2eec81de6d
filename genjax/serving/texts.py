"""Requests for texts: what they ask for becomes rows, one for each text that is to be written."""

from __future__ import annotations

import dataclasses
import functools
import secrets
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from genjax import decoding
from genjax.config import ConfigError
from genjax.data.base import RendersChats
from genjax.errors import UserError
from genjax.model import ContinuesText
from genjax.serving import pictures
from genjax.serving.batching import MOST_LIKELIEST, Batcher, Limits, keys_of
from genjax.serving.bodies import Body, RequestError, messages_of
from genjax.serving.formats import Format, format_of
from genjax.serving.rows import Assembler, Piece, Row, Walk
from genjax.tools import prompts
from genjax.tools.retrieval import Found, Index, SearchOptions
from genjax.training import Run, runs

Emit = Callable[[int, Piece], None]

_COMMON = frozenset(
    (
        "model", "max_tokens", "temperature", "top_p", "n", "stream", "stream_options", "stop", "seed", "logprobs",
        "presence_penalty", "frequency_penalty", "logit_bias", "regex", "response_format",
    )
)  # fmt: skip
CHAT_FIELDS = _COMMON | {"messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice"}
COMPLETION_FIELDS = _COMMON | {"prompt", "echo", "best_of", "suffix"}
#: Bounds of settings, as in the OpenAI interface; more stop strings than its four do no harm.
MOST_STOPS, HIGHEST_TEMPERATURE = 16, 2.0


@dataclasses.dataclass(frozen=True)
class Order:
    """A request that was understood.

    Attributes:
      rows: the texts to write: `n` for each prompt, one after the other.
      chat: whether it is the turn of a chat.
      stream: whether pieces are sent as they come.
      include_usage: whether a stream ends with the numbers of tokens.
      echo: text before each row's own: its prompt, where that is wanted.
      num_prompt_tokens: number of tokens of all prompts.
      format: what the texts must look like.
      documents: what was found for the prompt.
    """

    rows: list[Row]
    chat: bool
    stream: bool
    include_usage: bool
    echo: list[str]
    num_prompt_tokens: int
    format: Format
    documents: list[Found]


class Texts:
    """Understands requests for texts of one run.

    Attributes:
      batcher: writes the rows.
      most_pictures: largest number of pictures of a text; 0 if the run writes no texts about pictures.
    """

    def __init__(self, run: Run, limits: Limits, index: Index | None = None, num_documents: int = 3) -> None:
        """Opens the run.

        Args:
          run: a run of a model that continues texts, or writes texts about pictures.
          limits: how much is done at a time.
          index: documents that are put before each prompt.
          num_documents: largest number of them.

        Raises:
          ConfigError: the run writes no text that can be served.
        """
        self.run = runs.policy_run(run)
        model = self.run.model
        self.tokenizer = prompts.tokenizer_of(self.run)
        self.most_pictures = pictures.most_pictures(self.run)
        if self.most_pictures:
            decoder = pictures.blank_decoder(self.run)
        elif isinstance(model, ContinuesText):
            decoder = model.token_decoder(self.run.state)
        else:
            raise ConfigError(
                f"{run.workdir} holds a {type(model).__name__}; a server of texts needs a model that continues them "
                "(GPT, a recurrent language model), or writes about pictures (Captioner, GIT, LLaVA, Flamingo)"
            )
        self.batcher = Batcher(decoder, model.sampling, limits, read_alone=self.most_pictures > 0)
        self._pieces = prompts.pieces_of(self.tokenizer)
        self._index, self._num_documents = index, num_documents
        self._compiling = threading.Lock()

    @property
    def chats(self) -> bool:
        """Whether the run has a template for chats."""
        return isinstance(self.run.experiment.data, RendersChats)

    def token_bytes(self, token: int) -> bytes:
        """The text of a token in UTF-8, perhaps a part of a character."""
        return self._pieces[token] if token < len(self._pieces) else b""

    def understand(self, content: bytes, chat: bool, emit: Emit) -> Order:
        """The rows that the body of a request asks for; `emit` gets the number of a row and each of its pieces.

        Raises:
          RequestError: the body is not as it should be.
          UserError: the prompt cannot be encoded, or the pattern not be read.
        """
        body = Body(content, CHAT_FIELDS if chat else COMPLETION_FIELDS)
        form = format_of(body)
        count = body.integer("n", 1, 1, self.batcher.limits.slots)
        for name, neutral in (("presence_penalty", 0), ("frequency_penalty", 0), ("logit_bias", {})):
            body.refuse(name, neutral, "a run may be trained or served with model.sampling.repetition_penalty")
        found: list[Found] = []
        if self.most_pictures and not chat:
            raise RequestError(
                f"{self.run.name} writes about pictures; ask /v1/chat/completions, with each picture as a part of the "
                "type image_url",
                status=404,
            )
        if chat and not self.chats and not self.most_pictures:
            raise RequestError(f"{self.run.name} was not trained on chats; ask /v1/completions", param="messages")
        if chat:
            if self.most_pictures:
                body.refuse("tools", [], f"{self.run.name} was not trained on chats")
                given: list[Any] = [pictures.question_of(body.fields.get("messages"), self.run)]
            else:
                given = [self._with_documents(messages_of(body.fields.get("messages")), found)]
            num_likeliest = body.integer("top_logprobs", 0, 0, MOST_LIKELIEST) if body.flag("logprobs") else None
            if num_likeliest is None and "top_logprobs" in body.fields:
                raise RequestError("top_logprobs needs logprobs=true", param="top_logprobs")
        else:
            body.refuse("best_of", 1, "ask for n texts and choose")
            body.refuse("suffix", "", "the models continue texts, and do not fill gaps")
            given = [self._with_documents(each, found) for each in _prompts(body)]
            num_likeliest = body.integer("logprobs", None, 0, MOST_LIKELIEST)
        if self.most_pictures:
            given = [self._looked(each) for each in given]
        tokens = [self._encoded(each, form) for each in given]
        sampling, chosen = self.run.model.sampling, self._max_tokens(body, tokens)
        stops = body.texts("stop", MOST_STOPS)
        if not all(stops):
            raise RequestError("stop has an empty text", param="stop")
        automaton = None if form.pattern is None else self._automaton(form.pattern)
        settings: dict[str, Any] = {
            "temperature": body.number("temperature", sampling.temperature, 0, HIGHEST_TEMPERATURE),
            "top_p": body.number("top_p", sampling.top_p or 1.0, 1e-6, 1),
            "ends": prompts.ends_of(self.run, given[0] if chat and not self.most_pictures else ""),
            "num_likeliest": num_likeliest,
        }
        seed = body.integer("seed", None, -(2**63), 2**63 - 1)
        keys = keys_of(secrets.randbits(63) if seed is None else seed, count)
        rows = []
        for each, ids, limit in zip(given, tokens, chosen):
            if automaton is not None:
                automaton.check(limit)
            for key in keys:
                row = Row(
                    prompt=ids,
                    max_new_tokens=limit,
                    key=key,
                    assembler=Assembler(self._pieces, stops, without_first_blank=self.most_pictures > 0),
                    emit=functools.partial(emit, len(rows)),
                    walk=None if automaton is None else Walk(automaton),
                    decoder=each.decoder if isinstance(each, pictures.Looked) else None,
                    **settings,
                )
                rows.append(row)
        echo = [""] * len(rows)
        if not chat and body.flag("echo"):
            if num_likeliest is not None:
                raise RequestError("echo goes without logprobs, which are told of new tokens alone", param="echo")
            texts = [each if isinstance(each, str) else self.tokenizer.decode(each) for each in given]
            echo = [text for text in texts for _ in range(count)]
        options = body.object("stream_options") or {}
        return Order(
            rows=rows,
            chat=chat,
            stream=body.flag("stream"),
            include_usage=options.get("include_usage") is True,
            echo=echo,
            num_prompt_tokens=sum(map(len, tokens)),
            format=form,
            documents=found,
        )

    def num_prompt_tokens(self, messages: Any) -> int:
        """Number of tokens that the model reads of the messages of a chat, the beginning of its answer included.

        Raises:
          RequestError: the messages are not as they should be.
        """
        if self.most_pictures:
            return len(self._looked(pictures.question_of(messages, self.run)).tokens)
        return len(prompts.tokens_of(self.run, self.tokenizer, messages_of(messages)))

    def _with_documents(self, prompt: Any, found: list[Found]) -> Any:
        """The prompt with documents before its text, or before the last text of the user; they are added to `found`."""
        if self._index is None or isinstance(prompt, np.ndarray):
            return prompt
        turns = [] if isinstance(prompt, str) else [i for i, each in enumerate(prompt) if each["role"] == "user"]
        query = prompt if isinstance(prompt, str) else prompt[turns[-1]]["content"] if turns else ""
        if not query.strip():
            return prompt
        hits = self._index.search([query], SearchOptions(num_documents=self._num_documents))[0]
        found.extend(hits)
        text = "\n".join([*(each.document.whole for each in hits), query])
        if isinstance(prompt, str):
            return text
        return [{**each, "content": text} if i == turns[-1] else each for i, each in enumerate(prompt)]

    def _encoded(self, prompt: Any, form: Format) -> np.ndarray:
        """Tokens of a prompt, int32 [P]."""
        if isinstance(prompt, pictures.Looked):
            return prompt.tokens
        if isinstance(prompt, np.ndarray):
            bad = prompt[(prompt < 0) | (prompt >= self.run.model.vocab_size)]
            if bad.size:
                raise RequestError(
                    f"prompt has the token {bad[0]}, and the model knows {self.run.model.vocab_size}", param="prompt"
                )
            return prompt.astype(np.int32)
        self._check_size(len(prompt) if isinstance(prompt, str) else sum(len(each["content"]) for each in prompt))
        if isinstance(prompt, str) or not form.tools:
            return prompts.tokens_of(self.run, self.tokenizer, prompt)
        return prompts.tokens_of(self.run, self.tokenizer, prompt, tools=form.schemas)

    def _looked(self, question: pictures.Question) -> pictures.Looked:
        self._check_size(len(question.text))
        return pictures.look(self.run, question)

    def _check_size(self, size: int) -> None:
        """Refuses a text of too many characters before it is encoded, which would take long."""
        if size > self.batcher.max_context * max(map(len, self._pieces)):
            raise _too_long(f"{size} characters", self.batcher.max_context)

    def _max_tokens(self, body: Body, tokens: list[np.ndarray]) -> list[int]:
        """Largest number of new tokens after each prompt."""
        context = self.batcher.max_context
        name = "max_completion_tokens" if "max_completion_tokens" in body.fields else "max_tokens"
        wanted = body.integer(name, None, 1, 2**31)
        limits = []
        for ids in tokens:
            if not len(ids):
                raise RequestError("the prompt is empty; it needs at least one token", param="prompt")
            room = context - len(ids)
            if room < (wanted or 1):
                more = "" if wanted is None else f" and {name}={wanted}"
                raise _too_long(f"{len(ids)} tokens{more}", context)
            limits.append(min(room, prompts.MOST_NEW_TOKENS) if wanted is None else wanted)
        return limits

    def _automaton(self, pattern: str) -> decoding.Automaton:
        # One at a time, as a large pattern takes a core for seconds.
        with self._compiling:
            return self._compiled(pattern)

    @functools.cached_property
    def _compiled(self) -> Callable[[str], decoding.Automaton]:
        return functools.lru_cache(maxsize=16)(functools.partial(prompts.constraint_of, self.run, self.tokenizer))


def _too_long(what: str, context: int) -> UserError:
    message = f"the prompt has {what}, and prompt and new text together may have {context} tokens"
    return RequestError(message, code="context_length_exceeded")


def _prompts(body: Body) -> list[Any]:
    """The prompts of a completion: texts, or tokens int64 [P]."""
    prompt = body.fields.get("prompt", "")
    integers = lambda value: (
        isinstance(value, list) and value and all(type(each) is int and abs(each) < 2**31 for each in value)
    )
    if isinstance(prompt, str) or integers(prompt):
        prompt = [prompt]
    if not isinstance(prompt, list) or not prompt or not all(isinstance(p, str) or integers(p) for p in prompt):
        raise RequestError("prompt must be a text, tokens, or a list of texts or of tokens", param="prompt")
    if len(prompt) > 64:
        raise RequestError(f"prompt has {len(prompt)} texts, and at most 64 are allowed", param="prompt")
    return [each if isinstance(each, str) else np.array(each) for each in prompt]
