"""uvicorn's HTTP/1.1 protocol with two bounds that it lacks: how large a request's head may be, and how slow.

Owns: connections until a request's head is complete. Must not know: requests, routes. Bodies are bounded in `body`.
"""

from __future__ import annotations

import asyncio
import secrets
from http import HTTPStatus
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.errors import HeadTimeout, HeadTooLarge, InvalidHttp, RequestError
from server.problem import problem

MAX_HEAD_BYTES: Final = 64 * 1024
HEAD_SECONDS: Final = 10.0


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    _deadline: asyncio.TimerHandle | None = None
    _in_head = False
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """A connection that never begins a request is closed, too: without a word, see `_too_slow`."""
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._head_is_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes of any part of any request."""
        was_in_head = self._in_head
        super().data_received(data)
        if was_in_head and self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(HeadTooLarge(f"the request's head is larger than {MAX_HEAD_BYTES} bytes"))

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self._wait_for_head()

    def on_headers_complete(self) -> None:
        """The head is complete."""
        self._in_head = False
        self._head_is_there()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is answered in the form of every other error."""
        self._refuse(InvalidHttp("what arrived is not an HTTP/1.1 request"))

    def _wait_for_head(self) -> None:
        self._head_is_there()
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def _head_is_there(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        if not self._in_head:
            # Nothing was asked. A pool or a proxy that opened it ahead may be sending its first request right now, and
            # would take an answer for that request's.
            self.transport.close()
            return
        self._refuse(HeadTimeout(f"the request's head did not arrive within {HEAD_SECONDS:g} seconds"))

    def _refuse(self, error: RequestError) -> None:
        self._head_is_there()
        self._in_head = False
        busy = self.cycle is not None and not self.cycle.response_complete
        if self.transport.is_closing():
            return
        if not busy:  # an answer between two parts of another one would be worse than none
            status, _, body = problem(error, secrets.token_hex(8))
            head = (
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/problem+json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()
