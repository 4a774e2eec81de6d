"""What rows wrote, in the form of the OpenAI interface: whole answers, and streams of server-sent events."""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

from genjax.serving.bodies import RequestError, finite
from genjax.serving.formats import call_of
from genjax.serving.rows import Piece, Score
from genjax.serving.texts import Order

Pieces = AsyncIterator[tuple[int, Piece]]
TokenBytes = Callable[[int], bytes]

FAILED = "the text could not be written to its end, because of an error of the server"


def as_json(value: Any) -> bytes:
    """A value as JSON of ASCII, which also holds half surrogate pairs."""
    return json.dumps(value, separators=(",", ":")).encode()


@dataclasses.dataclass
class Written:
    """What was written in one row so far."""

    text: str = ""
    scores: list[Score] = dataclasses.field(default_factory=list)
    finish: str | None = None

    def add(self, piece: Piece) -> None:
        """Adds a piece.

        Raises:
          RequestError: the row has failed.
        """
        if piece.finish == "error":
            raise RequestError(FAILED, status=500)
        self.text += piece.text
        self.scores.extend(piece.scores)
        self.finish = piece.finish or self.finish


class Answer:
    """The answer to an order."""

    def __init__(self, order: Order, model: str, token_bytes: TokenBytes) -> None:
        self.order, self.model, self._bytes = order, model, token_bytes
        self.id = f"{'chatcmpl' if order.chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.rows = [Written() for _ in order.rows]
        self._documents_told = False

    def beginning(self) -> list[dict[str, Any]]:
        """The chunks that a stream begins with."""
        if self.order.chat:
            roles = [self._delta(number, {"role": "assistant", "content": ""}) for number in range(len(self.rows))]
            return [self._chunk([role], **self._documents_once()) for role in roles]
        if any(self.order.echo):
            return [self._chunk([self._text(number, text) for number, text in enumerate(self.order.echo)])]
        return []

    def chunks(self, number: int, piece: Piece) -> list[dict[str, Any]]:
        """Adds a piece of the row of this number; the chunks that a stream tells it by, perhaps none.

        Raises:
          RequestError: the row has failed.
        """
        self.rows[number].add(piece)
        return [self._chunk([choice], **self._documents_once()) for choice in self._changes(number, piece)]

    def end(self) -> list[dict[str, Any]]:
        """The chunks that a stream ends with, once all rows have ended."""
        return [self._chunk([], usage=self.usage())] if self.order.include_usage else []

    def whole(self) -> dict[str, Any]:
        """The answer, once all rows have ended."""
        choices = [self._choice(number, written) for number, written in enumerate(self.rows)]
        kind = "chat.completion" if self.order.chat else "text_completion"
        return self._head(kind) | {"choices": choices, "usage": self.usage()} | self._documents()

    async def events(self, pieces: Pieces) -> AsyncIterator[bytes]:
        """The answer as server-sent events, piece after piece."""
        for chunk in self.beginning():
            yield _event(chunk)
        try:
            async for number, piece in pieces:
                for chunk in self.chunks(number, piece):
                    yield _event(chunk)
        except RequestError as error:
            yield _event(error.as_json())
        else:
            for chunk in self.end():
                yield _event(chunk)
        yield b"data: [DONE]\n\n"

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.order.chat else "text_completion"
        usage = {"usage": None} if self.order.include_usage else {}
        return self._head(kind) | usage | {"choices": choices} | more

    def _documents_once(self) -> dict[str, Any]:
        """The documents, for the first chunk of a stream that has choices."""
        told, self._documents_told = self._documents_told, True
        return {} if told else self._documents()

    def usage(self) -> dict[str, int]:
        """Numbers of tokens."""
        written = sum(row.num_tokens for row in self.order.rows)
        read = self.order.num_prompt_tokens
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _documents(self) -> dict[str, Any]:
        """What was found for the prompt, beside the fields of the interface."""
        if not self.order.documents:
            return {}
        found = [
            {"id": each.document.id, "text": each.document.whole, "score": finite(each.score)}
            for each in self.order.documents
        ]
        return {"documents": found}

    def _choice(self, number: int, written: Written) -> dict[str, Any]:
        if not self.order.chat:
            return self._text(number, self.order.echo[number] + written.text, written.scores, written.finish)
        message: dict[str, Any] = {"role": "assistant", "content": written.text}
        finish, calls = written.finish, self._calls(written)
        if calls:
            message, finish = message | {"content": None, "tool_calls": calls}, "tool_calls"
        return {
            "index": number,
            "message": message,
            "logprobs": self._chat_scores(number, written.scores),
            "finish_reason": finish,
        }

    def _calls(self, written: Written) -> list[dict[str, Any]]:
        call = call_of(written.text, self.order.format)
        if call is None or written.finish != "stop":
            return []
        return [{"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": call._asdict()}]

    def _changes(self, number: int, piece: Piece) -> Iterable[dict[str, Any]]:
        """Choices of the chunks for one piece."""
        if not self.order.chat:
            yield self._text(number, piece.text, piece.scores, piece.finish)
            return
        written = self.rows[number]
        if self.order.format.tools:
            # Whether a text is a call is known at its end.
            if piece.finish is None:
                return
            piece = Piece(written.text, tuple(written.scores), piece.finish)
            calls = [{"index": place, **call} for place, call in enumerate(self._calls(written))]
            if calls:
                yield self._delta(number, {"tool_calls": calls}, piece.scores)
                yield self._delta(number, {}, finish="tool_calls")
                return
        if piece.text or piece.scores:
            yield self._delta(number, {"content": piece.text}, piece.scores)
        if piece.finish:
            yield self._delta(number, {}, finish=piece.finish)

    def _delta(
        self, number: int, delta: dict[str, Any], scores: Sequence[Score] = (), finish: str | None = None
    ) -> dict[str, Any]:
        logprobs = self._chat_scores(number, scores) if scores else None
        return {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}

    def _text(self, number: int, text: str, scores: Sequence[Score] = (), finish: str | None = None) -> dict[str, Any]:
        """A choice of a completion."""
        logprobs = None
        if self.order.rows[number].num_likeliest is not None:
            logprobs = {
                "tokens": [self._show(score.token) for score in scores],
                "token_logprobs": [finite(score.log_prob) for score in scores],
                "top_logprobs": [
                    {self._show(token): finite(value) for token, value in score.likeliest} for score in scores
                ],
            }
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _chat_scores(self, number: int, scores: Sequence[Score]) -> dict[str, Any] | None:
        if self.order.rows[number].num_likeliest is None:
            return None
        entry = lambda token, value: {
            "token": self._show(token),
            "logprob": finite(value),
            "bytes": list(self._bytes(token)),
        }
        content = [
            entry(score.token, score.log_prob) | {"top_logprobs": [entry(*each) for each in score.likeliest]}
            for score in scores
        ]
        return {"content": content, "refusal": None}

    def _show(self, token: int) -> str:
        return self._bytes(token).decode(errors="replace")


def _event(value: Any) -> bytes:
    return b"data: " + as_json(value) + b"\n\n"
