"""Reading a request's body: the right type, not too large, not too slow.

Owns: what may arrive and for how long the server waits for it. Must not know: what a body means.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from starlette.types import Receive, Scope

from server.errors import BodyTimeout, BodyTooLarge, IncompleteBody, InvalidRequest, UnsupportedMedia

_LINGER_SECONDS: Final = 1.0
_LINGER_BYTES: Final = 16 * 2**20
_TOO_LARGE = "the body is larger than {limit} bytes"


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """The most bytes of a body, and the seconds it may take to arrive."""

    max_bytes: int
    timeout: float


def header(scope: Scope, name: bytes) -> bytes | None:
    """The value of a request header; `name` in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return None


def check_media(scope: Scope, expected: bytes) -> None:
    """UnsupportedMedia unless the content type is `expected`, in UTF-8, and nothing is compressed."""
    kind, _, parameters = (header(scope, b"content-type") or b"").partition(b";")
    wanted = expected.decode()
    if kind.strip().lower() != expected:
        raise UnsupportedMedia(f"send the body as {wanted}")
    charset = parameters.strip().lower()
    if charset.startswith(b"charset=") and charset[8:].strip(b'"') not in (b"utf-8", b"utf8", b"us-ascii"):
        raise UnsupportedMedia(f"{wanted} is read as UTF-8 only")
    if (header(scope, b"content-encoding") or b"identity").strip().lower() != b"identity":
        raise UnsupportedMedia("compressed bodies are not accepted")


async def read_body(scope: Scope, receive: Receive, limits: BodyLimits) -> bytes:
    """The whole body. The cap holds while reading, whatever Content-Length says."""
    declared = header(scope, b"content-length")
    if declared is not None and not (declared.isdigit() and len(declared) < 20):
        raise InvalidRequest("Content-Length is not a number")
    if declared is not None and int(declared) > limits.max_bytes:
        if header(scope, b"expect") is None:
            await _linger(receive)
        raise BodyTooLarge(_TOO_LARGE.format(limit=limits.max_bytes)).closing()
    try:
        async with asyncio.timeout(limits.timeout):
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body"):
                whole: bytes = message.get("body", b"")  # nearly every request: one message
                size, chunks = len(whole), [whole]
            else:
                size, chunks = 0, []
                while True:
                    if message["type"] != "http.request":
                        raise IncompleteBody("the connection closed before the body was complete")
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    if size > limits.max_bytes:
                        break
                    chunks.append(chunk)
                    if not message.get("more_body"):
                        break
                    message = await receive()
    except TimeoutError:
        raise BodyTimeout(f"the body did not arrive within {limits.timeout:g} seconds").closing() from None
    if size > limits.max_bytes:
        await _linger(receive)
        raise BodyTooLarge(_TOO_LARGE.format(limit=limits.max_bytes)).closing()
    return b"".join(chunks)


async def _linger(receive: Receive) -> None:
    """Swallow what still comes, for a while: closing on unread data would lose the answer."""
    try:
        async with asyncio.timeout(_LINGER_SECONDS):
            swallowed = 0
            while swallowed < _LINGER_BYTES:
                message = await receive()
                swallowed += len(message.get("body", b""))
                if not message.get("more_body"):
                    return
    except TimeoutError:
        pass
