"""Who may ask the server, and how much: hosts, origins, keys, and sizes of bodies.

A page of another site cannot talk to the server: its requests carry its own name as `Origin`, and a name that was made
to point here (DNS rebinding) is a `Host` that is no address and not among the allowed ones.  Bodies must say that they
are JSON, which a form of another site cannot.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import ipaddress
from collections.abc import Mapping

from starlette.requests import Request
from starlette.types import Receive

from genjax import config
from genjax.serving.bodies import RequestError

#: Seconds in which a body must have come.
BODY_SECONDS = 30.0
#: What may be asked without a key: the page, and whether the server is there.
OPEN = ("/", "/health")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guard:
    """Settings of who may ask.

    Attributes:
      api_key: a secret that requests must show as `Authorization: Bearer KEY`; None for none.
      allowed_hosts: names of this server beside localhost and addresses.
      max_body_kib: largest body of a request, in KiB.
    """

    api_key: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    max_body_kib: int = 1024

    def __post_init__(self) -> None:
        config.check_at_least(self, max_body_kib=1)
        if self.api_key == "":
            raise config.ConfigError("api_key is empty; leave it out, or give a secret")

    def check(self, path: str, headers: Mapping[str, str]) -> None:
        """Refuses a request by its headers.

        Raises:
          RequestError: the host or origin is another one, or the key is missing or wrong.
        """
        host = headers.get("host", "")
        if not self._is_ours(host):
            raise RequestError(
                "the server does not go by this name; add it to allowed_hosts", status=403, code="host_not_allowed"
            )
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            raise RequestError("pages of other sites may not ask this server", status=403, code="origin_not_allowed")
        if self.api_key is not None and path not in OPEN:
            given = headers.get("authorization", "")
            # Compared in constant time, so that answers do not tell how much of a key is right.
            if not hmac.compare_digest(given.encode(), f"Bearer {self.api_key}".encode()):
                raise RequestError(
                    "the key is missing or wrong; it is sent as Authorization: Bearer KEY", 401, code="invalid_api_key"
                )

    def _is_ours(self, host: str) -> bool:
        name = host.lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        if name in ("localhost", *(each.lower() for each in self.allowed_hosts)):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    async def body_of(self, request: Request) -> bytes:
        """The body of a request.

        Raises:
          RequestError: it is not JSON by its own word, too large, or too slow.
        """
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise RequestError("the body must be sent as Content-Type: application/json", status=415)
        too_large = RequestError(f"the body is larger than {self.max_body_kib} KiB", status=413)
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > 1024 * self.max_body_kib:
            raise too_large
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await _read(request.receive, 1024 * self.max_body_kib, too_large)
        except TimeoutError:
            raise RequestError(f"the body did not come within {BODY_SECONDS:g} seconds", status=408) from None


async def _read(receive: Receive, most: int, too_large: RequestError) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestError("the client has left", status=499)
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise too_large
        if not message.get("more_body", False):
            return b"".join(parts)
