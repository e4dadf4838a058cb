"""Owns the end of a call: one point in time for all of its tries, which every wait on the network is cut to.

httpx knows timeouts only, and begins each anew: connecting, then every single read. A server that sends a byte now and
then would hold a caller for ever. So the blocking client hands a `Left` where httpx expects a timeout, and its streams
look at the clock before each wait. The async client needs none of it: there the event loop ends the whole try.
Knows no routes and no retries.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx

_CHUNK = 65536  # bytes of a large upload between two looks at the clock


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in time by `clock`, `seconds` after the call began; both may be infinite."""

    clock: Callable[[], float]
    seconds: float
    at: float

    @classmethod
    def after(cls, seconds: float | None, clock: Callable[[], float]) -> Deadline:
        """So many seconds from now; None for no end."""
        given = math.inf if seconds is None else seconds
        return cls(clock, given, clock() + given)

    def left(self) -> float:
        """Seconds until then; negative when it is past."""
        return self.at - self.clock()


class Left(float):
    """A timeout as httpx takes it, which says anew what is left when it is asked again."""

    _deadline: Deadline

    def __new__(cls, deadline: Deadline) -> Left:
        """What is left now. Not for deadlines without an end: a socket takes None for these."""
        self = super().__new__(cls, max(0.0, deadline.left()))
        self._deadline = deadline
        return self

    def now(self) -> float:
        """What is left now."""
        return self._deadline.left()


def hold_deadlines(http: httpx.Client) -> None:
    """Let the client's connections look at the clock before each wait.

    httpx has no public way to a connection's streams. Where a later one keeps its pool elsewhere, nothing is held here:
    a deadline is then a timeout of each read, and the tests say so. In public, httpcore's pools take a
    `network_backend`; but who makes the pool has to do again what httpx keeps to itself: its errors out of httpcore's,
    three kinds of proxies, and what HTTP_PROXY and NO_PROXY mean, which the async client would then read otherwise.
    """
    for transport in (http._transport, *http._mounts.values()):
        pool = getattr(transport, "_pool", None)
        backend = getattr(pool, "_network_backend", None)
        if isinstance(backend, httpcore.NetworkBackend) and not isinstance(backend, _Backend):
            pool._network_backend = _Backend(backend)  # type: ignore[union-attr]


class _Backend(httpcore.NetworkBackend):
    def __init__(self, inner: httpcore.NetworkBackend) -> None:
        self._inner = inner

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.connect_tcp(host, port, left, local_address, socket_options))

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.connect_unix_socket(path, left, socket_options))

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # In parts: the inner stream waits as long for each packet that a slow reader takes.
        for begin in range(0, len(buffer), _CHUNK):
            self._inner.write(buffer[begin : begin + _CHUNK], _left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _left(timeout: float | None, late: type[httpcore.TimeoutException]) -> float | None:
    if not isinstance(timeout, Left):
        return timeout
    left = timeout.now()
    if left <= 0:
        raise late("the call's time is over")
    return left
