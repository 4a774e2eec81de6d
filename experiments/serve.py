"""Serves a trained run, or a pretrained language model, over HTTP: by the OpenAI interface, and with a page:

    python -m experiments.serve --workdir=runs/instructions                       # http://127.0.0.1:8000
    python -m experiments.serve --workdir=runs/instructions --port=9000 --api_key=SECRET
    python -m experiments.serve --workdir=runs/instructions --index=runs/index    # documents before each prompt
    python -m experiments.serve --workdir=runs/vae_digits                         # pictures, sound, molecules: samples
    python -m experiments.serve --workdir=runs/llava_2                            # answers about pictures
    python -m experiments.serve --workdir=SmolLM2-135M-Instruct                   # a folder of transformers, or a GGUF
    python -m experiments.serve --workdir=all-MiniLM-L6-v2                        # vectors of texts

Any client of the interface can ask it: OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="SECRET").  docs/serving.md
has more.  It needs the extra: pip install 'genjax[serve]'.
"""

from __future__ import annotations

import dataclasses
import os
import socket

from experiments import command_line
from genjax.config import ConfigError, check_at_least

#: Where --api_key may stand instead, so that it is in no list of processes.
KEY_VARIABLE = "GENJAX_API_KEY"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How a run is served.

    Attributes:
      host: address to listen at; 0.0.0.0 lets other machines ask.
      port: port to listen at; 0 for a free one.
      api_key: secret that clients must show; by default $GENJAX_API_KEY, or none.
      allowed_hosts: names of this machine that clients may use, beside localhost and addresses.
      index: folder of an index of experiments.retrieve; its best documents are put before each prompt.
      encoder: encoder that made the index, a run or a folder; without it documents are found by words.
      num_documents: number of documents.
      slots: largest number of texts that are written together.
      max_waiting: largest number of texts that wait; further ones are refused.
      max_context: largest number of tokens of a prompt and its new text; by default the model's.
      max_body_kib: largest body of a request, in KiB.
      warm_up: whether programs for texts are compiled while nobody asks, and not when they are first needed.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    index: str | None = None
    encoder: str | None = None
    num_documents: int = 3
    slots: int = 32
    max_waiting: int = 256
    max_context: int | None = None
    max_body_kib: int = 1024
    warm_up: bool = True

    def __post_init__(self) -> None:
        check_at_least(self, port=0)
        if self.port > 65535:
            raise ConfigError(f"port={self.port} must be at most 65535")


def main(arguments: list[str]) -> int:
    given = command_line.opened_and_options(arguments, __doc__, Options())
    if given is None:
        return 0
    run, options = given
    try:
        import uvicorn

        from genjax.serving.app import Settings, make_app
        from genjax.serving.connections import Connection
    except ImportError as error:
        raise ConfigError(f"the server needs the package {error.name}: pip install 'genjax[serve]'") from None
    from genjax.serving.batching import Limits
    from genjax.serving.guard import Guard
    from genjax.tools.opened import opened_embedder
    from genjax.tools.retrieval import Index

    index = None
    if options.index is not None:
        index = Index.open(options.index, None if options.encoder is None else opened_embedder(options.encoder))
    settings = Settings(
        limits=Limits(slots=options.slots, max_waiting=options.max_waiting, max_context=options.max_context),
        guard=Guard(
            api_key=options.api_key or os.environ.get(KEY_VARIABLE) or None,
            allowed_hosts=options.allowed_hosts,
            max_body_kib=options.max_body_kib,
        ),
        num_documents=options.num_documents,
    )
    listener = listening(options.host, options.port)
    app = make_app(run, settings, index)
    if options.warm_up:
        app.state.server.batcher.warm_up()
    print(f"{run.name}, step {run.step}, at http://{options.host}:{listener.getsockname()[1]}", flush=True)
    # Without log_config: uvicorn's own would close the handlers that others have made.
    served = uvicorn.Config(app, http=Connection, log_config=None, log_level="warning", server_header=False, ws="none")
    uvicorn.Server(served).run(sockets=[listener])
    return 0


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens at an address.

    Raises:
      ConfigError: it cannot, as where another program does.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(f"--host={host} --port={port} cannot be listened at: {error.strerror or error}") from None


if __name__ == "__main__":
    command_line.run(main)
