"""A server on a free port of this machine, and what asks it."""

import contextlib
import http.client
import json
import threading
import time

import uvicorn

from genjax.serving.app import make_app
from genjax.serving.connections import Connection


class Client:
    """Asks a server, a connection for each request."""

    def __init__(self, port, server=None):
        self.port, self.server = port, server

    def connect(self, method, path, body=None, headers=None):
        """A connection whose answer has begun, and the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=240)
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        own = {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method, path, content, own | (headers or {}))
        return connection, connection.getresponse()

    def ask(self, path, body=None, headers=None, method=None):
        """Status and body of an answer, which is read as JSON where it is some."""
        connection, answer = self.connect(method or ("GET" if body is None else "POST"), path, body, headers)
        with contextlib.closing(connection):
            content = answer.read()
            is_json = answer.getheader("content-type", "").startswith("application/json")
            return answer.status, json.loads(content) if is_json else content.decode()

    def stream(self, path, body):
        """The events of a stream; the last is [DONE]."""
        connection, answer = self.connect("POST", path, {**body, "stream": True})
        with contextlib.closing(connection):
            assert answer.status == 200 and answer.getheader("content-type").startswith("text/event-stream")
            events = [part.removeprefix("data: ") for part in answer.read().decode().split("\n\n") if part]
            return [event if event == "[DONE]" else json.loads(event) for event in events]


@contextlib.contextmanager
def serving(run, settings=None, index=None):
    """A server of a run in a thread, as a `Client`."""
    app = make_app(run, settings, index)
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, http=Connection, ws="none", log_config=None, log_level="critical")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield Client(server.servers[0].sockets[0].getsockname()[1], app.state.server)
    finally:
        server.should_exit = True
        thread.join(60)
