"""One keep-alive HTTP connection of the load generator, on a plain socket.

Owns: the socket, its buffer, and where an answer ends. Standard library only. Must not know: when requests are sent, or
what is counted.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

_READ: Final = 65536
_FRESH: Final = 1.0  # seconds without a request in which no server closes a connection


class Line:
    """One keep-alive connection, with the request that is on it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.intended, self.nth = 0.0, 0
        self.used = 0.0  # by the caller's clock: when the last answer came
        self._open()

    def _open(self) -> None:
        self._socket = socket.create_connection(self._address, timeout=30.0)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def fileno(self) -> int:
        """For select."""
        return self._socket.fileno()

    def freshen(self, now: float) -> None:
        """Open it anew where the other side closed it while it was idle, as HTTP lets it: no request was on it."""
        if now - self.used > _FRESH and select.select([self], [], [], 0)[0]:
            self.close()
            self._open()

    def send(self, request: bytes, intended: float, nth: int = 0) -> None:
        """Send a request; `intended` and `nth` stay here until its answer has come."""
        self.intended, self.nth = intended, nth
        with contextlib.suppress(ConnectionError):  # the read that follows finds it closed, and counts it
            self._socket.sendall(request)

    def send_next(self, source: Iterator[bytes], intended: float) -> bool:
        """Send the next request; False when there is none."""
        request = next(source, None)
        if request is not None:
            self.send(request, intended)
        return request is not None

    def receive(self) -> tuple[bytes, bool] | None:
        """The head of an answer that is complete and whether it was lost; None while there is more to come."""
        try:
            data = self._socket.recv(_READ)
        except ConnectionError:
            data = b""
        if not data:
            self.close()
            self._open()  # raises when the server has gone: then no figure is worth having
            return b"", True
        buffer = self._buffer = self._buffer + data if self._buffer else data
        head = buffer.find(b"\r\n\r\n")
        if head < 0:
            return None
        at = buffer.lower().find(b"\r\ncontent-length:", 0, head)
        if at < 0:
            raise ValueError("an answer without Content-Length")
        if len(buffer) < head + 4 + int(buffer[at + 17 : buffer.find(b"\r\n", at + 2)]):
            return None
        self._buffer = b""
        return buffer[:head], False

    def close(self) -> None:
        """Let go of the connection."""
        self._socket.close()
