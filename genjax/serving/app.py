"""The web application: the OpenAI interface of one run, its samples, a page, health and metrics.

    GET  /                      the page                GET  /health   GET /metrics (Prometheus)
    GET  /v1/models             the run
    POST /v1/chat/completions   POST /v1/completions    texts
    POST /v1/embeddings                                 vectors of texts
    POST /v1/images/generations POST /v1/samples        pictures; samples of any kind

Nothing that a request says is the name of a file or of another host: pictures stand in the request itself, the page is
read at the start, and samples are written into a folder that is made and removed for them.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import functools
import hashlib
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import prometheus_client
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from genjax import config
from genjax.data.base import HasTokenizer
from genjax.data.text.base import DelimitedText
from genjax.decoding import Sampling
from genjax.errors import UserError
from genjax.model import ContinuesText, EmbedsTexts, takes
from genjax.serving.answers import Answer, Pieces, as_json
from genjax.serving.batching import Batcher, BusyError, Limits
from genjax.serving.bodies import Body, RequestError
from genjax.serving.guard import Guard
from genjax.serving.pictures import most_pictures
from genjax.serving.rows import Piece, Row
from genjax.serving.samples import Samples, embedded, understand_embeddings
from genjax.serving.texts import Texts
from genjax.tools.embedding import Embedder
from genjax.tools.retrieval import Index
from genjax.training import Run, runs

_logger = logging.getLogger(__name__)
_PAGE = Path(__file__).with_name("page.html")
#: Requests that are in work or wait at a time, of any kind; further ones are refused.
MOST_REQUESTS = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run is served.

    Attributes:
      limits: how much is done at a time.
      guard: who may ask.
      num_documents: documents that are put before a prompt, where there is an index.
    """

    limits: Limits = Limits()
    guard: Guard = Guard()
    num_documents: int = 3

    def __post_init__(self) -> None:
        config.check_at_least(self, num_documents=1)


class Server:
    """What the routes of one run share."""

    def __init__(self, run: Run, settings: Settings, index: Index | None = None) -> None:
        """Opens a run; the thread of its device starts.

        Args:
          run: the run.
          settings: how it is served.
          index: documents that are put before prompts.

        Raises:
          ConfigError: an index is given, and the run continues no text.
        """
        self.run, self.settings, self.began = run, settings, int(time.time())
        data, model = run.experiment.data, runs.policy_run(run).model
        self.texts: Texts | None = None
        self.embedder: Embedder | None = None
        sees = most_pictures(run) > 0
        if (sees or isinstance(model, ContinuesText)) and isinstance(data, HasTokenizer) and not (sees and index):
            self.texts = Texts(run, settings.limits, index, settings.num_documents)
        elif index is not None:
            raise config.ConfigError(f"{run.name} continues no text, so that documents cannot be put before it")
        elif isinstance(model, EmbedsTexts) and isinstance(data, DelimitedText):
            self.embedder = Embedder.of_run(run)
        self.samples = Samples(run)
        self.batcher = self.texts.batcher if self.texts else Batcher(None, Sampling(), settings.limits)
        self.page, self.policy = _page()

    # Texts.

    async def chat(self, request: Request) -> Response:
        """A turn of a chat."""
        return await self._write(request, chat=True)

    async def complete(self, request: Request) -> Response:
        """Continuations of texts."""
        return await self._write(request, chat=False)

    async def _write(self, request: Request, chat: bool) -> Response:
        texts = self.texts
        if texts is None:
            raise RequestError(f"{self.run.name} continues no text", status=404)
        content = await self.settings.guard.body_of(request)
        self._check_model(content)
        queue: asyncio.Queue[tuple[int, Piece] | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def emit(number: int, piece: Piece) -> None:
            # Called in the thread of the device; a loop that has ended waits for nothing.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(queue.put_nowait, (number, piece))

        order = await run_in_threadpool(texts.understand, content, chat, emit)
        texts.batcher.submit(order.rows)
        answer = Answer(order, self.run.name, texts.token_bytes)
        if order.stream:
            events = lambda gone: answer.events(_until_over(queue, order.rows, gone))
            return _EventStream(events, order.rows, texts.batcher)
        gone = asyncio.ensure_future(_disconnected(request.receive))
        try:
            async for number, piece in _until_over(queue, order.rows, gone):
                answer.rows[number].add(piece)
            return _json(answer.whole())
        finally:
            gone.cancel()
            texts.batcher.cancel([row for row in order.rows if row.finish is None])

    # Samples and vectors.

    async def images(self, request: Request) -> Response:
        """Pictures."""
        order = self.samples.understand(await self._content(request), pictures=True)
        drawn = await self._called(functools.partial(self.samples.pictures, order))
        return _json({"created": int(time.time()), "seed": order.seed, "data": drawn})

    async def files(self, request: Request) -> Response:
        """Samples of any kind as files."""
        order = self.samples.understand(await self._content(request), pictures=False)
        drawn = await self._called(functools.partial(self.samples.files, order))
        return _json({"object": "list", "created": int(time.time()), "seed": order.seed, "data": drawn})

    async def embeddings(self, request: Request) -> Response:
        """Vectors of texts."""
        embedder = self.embedder
        if embedder is None:
            raise RequestError(f"{self.run.name} gives no vectors of texts; serve a run of an encoder", status=404)
        content = await self._content(request)
        order = await run_in_threadpool(understand_embeddings, content, embedder)
        return _json(await self._called(functools.partial(embedded, order, embedder, self.run.name)))

    async def _content(self, request: Request) -> bytes:
        content = await self.settings.guard.body_of(request)
        self._check_model(content)
        return content

    async def _called(self, function: Callable[[], Any]) -> Any:
        """The result of a function that runs where the device does."""
        return await asyncio.wrap_future(self.batcher.call(function))

    # About the server.

    async def models(self, request: Request) -> Response:
        """The run as the only model."""
        return _json({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """The run by its name."""
        self._check_name(request.path_params["model"])
        return _json(self._model())

    async def health(self, request: Request) -> Response:
        """Whether the server answers, and how much it has to do."""
        batcher = self.batcher
        return _json(
            {
                "status": "ok",
                "active": batcher.num_active,
                "waiting": batcher.num_waiting,
                "warming_up": batcher.is_warming_up,
            }
        )

    async def show_page(self, request: Request) -> Response:
        """The page, which is one file and asks no other host."""
        headers = {"Content-Security-Policy": self.policy, "X-Content-Type-Options": "nosniff",
                   "Referrer-Policy": "no-referrer"}  # fmt: skip
        return Response(self.page, media_type="text/html", headers=headers)

    def _model(self) -> dict[str, Any]:
        texts = self.texts
        return {
            "id": self.run.name,
            "object": "model",
            "created": self.began,
            "owned_by": "genjax",
            "step": self.run.step,
            "max_model_len": None if texts is None else texts.batcher.max_context,
            "chats": texts is not None and texts.chats,
            "most_pictures": 0 if texts is None else texts.most_pictures,
            "continues": texts is not None,
            "embeds": self.embedder is not None,
            "draws_pictures": self.samples.draws_pictures,
            "latent_dim": self.samples.latent_dim,
            "has_films": self.samples.has_films,
            "labels": list(self.run.experiment.data.label_names()) if takes(self.run.model, "label") else [],
        }

    def _check_model(self, content: bytes) -> None:
        """Refuses a body that asks for another model."""
        fields = Body(content, None).fields
        if "model" in fields:
            self._check_name(fields["model"])

    def _check_name(self, name: Any) -> None:
        if name != self.run.name:
            raise RequestError(
                f"there is no model {str(name)[:60]!r}; the server has {self.run.name}",
                status=404,
                param="model",
                code="model_not_found",
            )


def make_app(run: Run, settings: Settings | None = None, index: Index | None = None) -> Starlette:
    """The application that serves a run; its `state.server` is the `Server`.

    Raises:
      ConfigError: as `Server` does.
    """
    server = Server(run, settings or Settings(), index)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        # What runs is finished first.
        await run_in_threadpool(server.batcher.close)

    routes = [
        Route("/", server.show_page, methods=["GET"]),
        Route("/health", server.health, methods=["GET"]),
        Route("/v1/models", server.models, methods=["GET"]),
        Route("/v1/models/{model:path}", server.model, methods=["GET"]),
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
        Route("/v1/completions", server.complete, methods=["POST"]),
        Route("/v1/embeddings", server.embeddings, methods=["POST"]),
        Route("/v1/images/generations", server.images, methods=["POST"]),
        Route("/v1/samples", server.files, methods=["POST"]),
    ]
    metrics = Metrics(server.batcher, [route.path for route in routes])
    routes.append(Route("/metrics", metrics.show, methods=["GET"]))
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(Gate, guard=server.settings.guard, metrics=metrics)],
        exception_handlers={UserError: _refuse, HTTPException: _refuse, Exception: _fail},
    )
    app.state.server = server
    return app


class Gate:
    """Lets requests in that the guard allows, and counts their answers."""

    def __init__(self, app: ASGIApp, guard: Guard, metrics: Metrics) -> None:
        self.app, self.guard, self.metrics = app, guard, metrics
        self.num_open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began = time.perf_counter()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.count(scope["path"], message["status"])
            await send(message)

        try:
            self.guard.check(scope["path"], Headers(scope=scope))
            if self.num_open >= MOST_REQUESTS:
                raise BusyError(f"{self.num_open} requests are in work already; ask again later")
        except UserError as error:
            return await _refuse(None, error)(scope, receive, counted)
        self.num_open += 1
        try:
            await self.app(scope, receive, counted)
        finally:
            self.num_open -= 1
            self.metrics.time(scope["path"], time.perf_counter() - began)


class Metrics:
    """Numbers of requests, texts and tokens, in the form that Prometheus reads."""

    def __init__(self, batcher: Batcher, paths: Sequence[str]) -> None:
        self._batcher, self._paths = batcher, frozenset(paths)
        self._registry = prometheus_client.CollectorRegistry()
        self._requests = prometheus_client.Counter(
            "genjax_requests", "Requests by path and status.", ["path", "status"], registry=self._registry
        )
        self._seconds = prometheus_client.Histogram(
            "genjax_request_seconds", "Seconds from a request to the end of its answer.", ["path"],
            registry=self._registry,
        )  # fmt: skip
        self._registry.register(self)

    def count(self, path: str, status: int) -> None:
        """Counts an answer."""
        self._requests.labels(self._known(path), str(status)).inc()

    def time(self, path: str, seconds: float) -> None:
        """Adds the time that an answer took."""
        self._seconds.labels(self._known(path)).observe(seconds)

    def collect(self) -> list[Any]:
        """What the batcher does just now."""
        return [
            GaugeMetricFamily("genjax_active_texts", "Texts that are being written.", self._batcher.num_active),
            GaugeMetricFamily("genjax_waiting", "Texts and samples that wait.", self._batcher.num_waiting),
            CounterMetricFamily("genjax_written_tokens", "Tokens that were written.", self._batcher.num_written),
        ]

    async def show(self, request: Request) -> Response:
        """All numbers as text."""
        return Response(prometheus_client.generate_latest(self._registry), media_type="text/plain; version=0.0.4")

    def _known(self, path: str) -> str:
        # Paths that do not exist are one, so that nobody can fill the memory with their names.
        return path if path in self._paths or path == "/metrics" else "other"


class _EventStream(Response):
    """Server-sent events; when the client leaves, the rows that it waited for are given up."""

    def __init__(
        self, events: Callable[[asyncio.Future[None]], AsyncIterator[bytes]], rows: list[Row], batcher: Batcher
    ) -> None:
        super().__init__(media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self._events, self._rows, self._batcher = events, rows, batcher

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for event in self._events(gone):
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except (_ClientGone, OSError):
            return
        finally:
            gone.cancel()
            self._batcher.cancel([row for row in self._rows if row.finish is None])


class _ClientGone(UserError):
    """The client has closed its connection."""


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _until_over(
    queue: asyncio.Queue[tuple[int, Piece] | None], rows: Sequence[Row], gone: asyncio.Future[None]
) -> Pieces:
    """The pieces of all rows, as they come, up to the last one's end."""
    left = len(rows)
    gone.add_done_callback(lambda _: queue.put_nowait(None))
    while left:
        got = await queue.get()
        if got is None:
            raise _ClientGone("the client has left")
        number, piece = got
        left -= piece.finish is not None
        yield number, piece


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(as_json(value), status, headers, media_type="application/json")


def _refuse(request: Any, error: Exception) -> Response:
    """The answer to a request that cannot be answered, in the form of the OpenAI interface."""
    headers = {}
    if isinstance(error, HTTPException):
        said = {404: "there is no such path", 405: "this path is not asked with this method"}
        error = RequestError(said.get(error.status_code, error.detail), status=error.status_code)
    elif isinstance(error, BusyError):
        headers = {"Retry-After": "1"}
        error = RequestError(str(error), status=503, code="overloaded")
    elif not isinstance(error, RequestError):
        error = RequestError(str(error))
    if error.status == 401:
        headers = {"WWW-Authenticate": "Bearer"}
    return _json(error.as_json(), error.status, headers)


def _fail(request: Request, error: Exception) -> Response:
    """The answer after a defect; what it was stands in the log alone."""
    _logger.error("a request to %s failed", request.url.path, exc_info=error)
    return _json(RequestError("an error of the server; its log says more", status=500).as_json(), 500)


def _page() -> tuple[bytes, str]:
    """The page, and the policy that lets it run its own script alone and talk to this server alone."""
    content = _PAGE.read_bytes()
    hashes = {
        name: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(part).digest()).decode()}'"
            for part in re.findall(rb"<%b>(.*?)</%b>" % (name.encode(), name.encode()), content, re.DOTALL)
        )
        for name in ("script", "style")
    }
    policy = (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; connect-src 'self'; "
        "img-src data:; media-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return content, policy
