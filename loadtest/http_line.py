"""One keep-alive HTTP connection of the load generator, on a plain socket.

Owns: the socket, its buffer, and where an answer ends. Standard library only. Must not know: when requests are sent, or
what is counted.

A server may go away while it is asked. Then a connection cannot be opened anew, and each request on it is lost: that is
what the run is to show, not a reason to end it. Only the first opening raises.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterator
from typing import ClassVar, Final
from urllib.parse import urlsplit

_READ: Final = 65536
_CONNECT: Final = 30.0  # seconds
_CONNECT_AGAIN: Final = 5.0  # everything else waits for it: one thread
_FRESH: Final = 1.0  # seconds without a request in which no server closes a connection
_UNUSED: Final = 5.0  # the same for one that never had a request, which servers close sooner, some with a 408


class Line:
    """One keep-alive connection, with the request that is on it."""

    _not_before: ClassVar[dict[tuple[str, int], float]] = {}  # when an address that was gone is tried again

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http":  # not even a key in plain text to what wants it encrypted
            raise ValueError(f"{url}: only http:// is spoken")
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.intended, self.nth = 0.0, 0
        self.used = 0.0  # by the caller's clock: when the last answer came
        self._asked = False
        self._buffer = b""
        self._socket = self._connected(_CONNECT)

    def _connected(self, timeout: float) -> socket.socket:
        made = socket.create_connection(self._address, timeout=timeout)
        made.settimeout(_CONNECT)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made

    def _open_again(self) -> None:
        self.close()
        self._buffer, self._asked = b"", False
        began = time.monotonic()
        if began >= self._not_before.get(self._address, 0.0):
            try:
                self._socket = self._connected(_CONNECT_AGAIN)
            except OSError:
                # As long as it took: where nobody even refuses, half of the time goes on waiting, not all of it.
                self._not_before[self._address] = 2 * time.monotonic() - began
            else:
                return
        self._socket, other = (
            socket.socketpair()
        )  # in its place, one that is closed: the next request is lost too
        other.close()

    def fileno(self) -> int:
        """For select."""
        return self._socket.fileno()

    def freshen(self, now: float) -> None:
        """Open it anew where the other side closed it while it was idle, as HTTP lets it: no request was on it.

        One that never had a request not only then: a busy server may be about to close it, and the request would meet
        that.
        """
        idle = now - self.used
        if (not self._asked and idle > _UNUSED) or (idle > _FRESH and select.select([self], [], [], 0)[0]):
            self._open_again()

    def send(self, request: bytes, intended: float, nth: int = 0) -> None:
        """Send a request; `intended` and `nth` stay here until its answer has come."""
        self.intended, self.nth, self._asked = intended, nth, True
        with contextlib.suppress(OSError):  # the read that follows finds it closed, and counts it
            self._socket.sendall(request)

    def send_next(self, source: Iterator[bytes], intended: float) -> bool:
        """Send the next request; False when there is none."""
        request = next(source, None)
        if request is not None:
            self.send(request, intended)
        return request is not None

    def receive(self) -> tuple[bytes, bool] | None:
        """The head of an answer that is complete and whether it was lost; None while there is more to come.

        One whose end cannot be told, such as a proxy's own in chunks, ends the connection. Its head still tells a
        failure or a refusal; with status 200 it counts as lost, for nobody knows whether all of it came.
        """
        try:
            data = self._socket.recv(_READ)
        except OSError:
            data = b""
        if not data:
            self._open_again()
            return b"", True
        buffer = self._buffer = self._buffer + data if self._buffer else data
        head = buffer.find(b"\r\n\r\n")
        if head < 0:
            return None
        at = buffer.lower().find(b"\r\ncontent-length:", 0, head)
        length = buffer[at + 17 : buffer.find(b"\r\n", at + 2)].strip() if at >= 0 else b""
        if not length.isdigit():
            self._open_again()
            return buffer[:head], buffer.startswith(b"HTTP/1.1 200")
        if len(buffer) < head + 4 + int(length):
            return None
        self._buffer = b""
        return buffer[:head], False

    def close(self) -> None:
        """Let go of the connection."""
        self._socket.close()
