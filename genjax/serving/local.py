"""Requests for texts without HTTP: what the server would answer, in this process.

    texts = LocalTexts(genjax.restore("runs/instructions"))
    texts.whole({"messages": [{"role": "user", "content": "walk twice"}]}, chat=True)["choices"][0]["message"]
    for chunk in texts.stream({"prompt": "walk"}, chat=False):
        print(chunk["choices"][0]["text"])

Requests and answers have the form of the OpenAI interface.  Those of several threads and tasks are written together.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from genjax.serving.answers import Answer
from genjax.serving.batching import Limits
from genjax.serving.bodies import RequestError
from genjax.serving.rows import Piece
from genjax.serving.texts import Texts
from genjax.tools.retrieval import Index
from genjax.training import Run

Fields = Mapping[str, Any]


class LocalTexts:
    """Writes texts of one run.

    Attributes:
      texts: understands the requests.
    """

    def __init__(
        self, run: Run, limits: Limits | None = None, index: Index | None = None, num_documents: int = 3
    ) -> None:
        """Opens the run; the thread of its device starts.

        Args:
          run: a run of a model that continues texts, or writes texts about pictures.
          limits: how much is done at a time.
          index: documents that are put before each prompt.
          num_documents: largest number of them.

        Raises:
          ConfigError: the run continues no text.
        """
        self.texts = Texts(run, limits or Limits(), index, num_documents)

    def whole(self, fields: Fields, chat: bool, timeout: float | None = None) -> dict[str, Any]:
        """The whole answer to a request.

        Args:
          fields: the request.
          chat: whether it asks for a turn of a chat.
          timeout: seconds in which the answer must have come, or None.

        Raises:
          RequestError: the request cannot be answered, or not in time.
          BusyError: too many requests wait already.
        """
        with contextlib.closing(_Asked(self.texts, fields, chat, timeout)) as asked:
            for number, piece in asked.pieces():
                asked.answer.rows[number].add(piece)
            return asked.answer.whole()

    def stream(self, fields: Fields, chat: bool, timeout: float | None = None) -> Iterator[dict[str, Any]]:
        """The chunks of an answer, as they come; see `whole`.  Who closes the iterator gives up the rest."""
        with contextlib.closing(_Asked(self.texts, fields, chat, timeout)) as asked:
            yield from asked.answer.beginning()
            for number, piece in asked.pieces():
                yield from asked.answer.chunks(number, piece)
            yield from asked.answer.end()

    async def awhole(self, fields: Fields, chat: bool, timeout: float | None = None) -> dict[str, Any]:
        """As `whole`; a task that is cancelled gives up its texts."""
        with contextlib.closing(await self._asked(fields, chat, timeout)) as asked:
            async for number, piece in asked.apieces():
                asked.answer.rows[number].add(piece)
            return asked.answer.whole()

    async def astream(self, fields: Fields, chat: bool, timeout: float | None = None) -> AsyncIterator[dict[str, Any]]:
        """As `stream`."""
        with contextlib.closing(await self._asked(fields, chat, timeout)) as asked:
            for chunk in asked.answer.beginning():
                yield chunk
            async for number, piece in asked.apieces():
                for chunk in asked.answer.chunks(number, piece):
                    yield chunk
            for chunk in asked.answer.end():
                yield chunk

    async def _asked(self, fields: Fields, chat: bool, timeout: float | None) -> _Asked:
        # A prompt is encoded, and a pattern compiled, in another thread.
        return await asyncio.to_thread(_Asked, self.texts, fields, chat, timeout, asyncio.get_running_loop())

    def close(self) -> None:
        """Finishes what was begun, and ends the thread of the device."""
        self.texts.batcher.close()


class _Asked:
    """A request whose texts are being written."""

    def __init__(
        self,
        texts: Texts,
        fields: Fields,
        chat: bool,
        timeout: float | None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self._batcher, self._timeout = texts.batcher, timeout
        self._until = None if timeout is None else time.monotonic() + timeout
        self._queue: Any = queue.SimpleQueue() if loop is None else asyncio.Queue()

        def emit(number: int, piece: Piece) -> None:
            # Called in the thread of the device; a loop that has ended waits for nothing.
            if loop is None:
                self._queue.put((number, piece))
                return
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._queue.put_nowait, (number, piece))

        order = texts.understand(_encoded(fields), chat, emit)
        self.answer = Answer(order, texts.run.name, texts.token_bytes)
        self._batcher.submit(order.rows)

    def pieces(self) -> Iterator[tuple[int, Piece]]:
        """The pieces of all rows with the numbers of their rows, up to the last one's end."""
        left = len(self.answer.rows)
        while left:
            try:
                number, piece = self._queue.get(timeout=self._seconds())
            except queue.Empty:
                raise self._too_late() from None
            left -= piece.finish is not None
            yield number, piece

    async def apieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """As `pieces`."""
        left = len(self.answer.rows)
        while left:
            try:
                number, piece = await asyncio.wait_for(self._queue.get(), self._seconds())
            except TimeoutError:
                raise self._too_late() from None
            left -= piece.finish is not None
            yield number, piece

    def close(self) -> None:
        """Gives up what is not written yet."""
        self._batcher.cancel([row for row in self.answer.order.rows if row.finish is None])

    def _seconds(self) -> float | None:
        """Seconds that are left."""
        return None if self._until is None else max(self._until - time.monotonic(), 0.0)

    def _too_late(self) -> RequestError:
        return RequestError(
            f"the text was not written within timeout={self._timeout:g} seconds", status=408, code="timeout"
        )


def _encoded(fields: Fields) -> bytes:
    try:
        return json.dumps(fields).encode()
    except (TypeError, ValueError) as error:
        raise RequestError(f"the request cannot be written as JSON: {error}") from None
