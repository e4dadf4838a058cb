"""Time that passes only when somebody waits: for streams that block, and for an event loop."""

from __future__ import annotations

import asyncio
import json
import selectors
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpcore
import httpx

from tests.client.misbehaving import ANSWER

T = TypeVar("T")
BODY = json.dumps(ANSWER).encode()
PARTS = [BODY[at : at + 16] for at in range(0, len(BODY), 16)]


@dataclass
class Clock:
    """`steps` counts the waits."""

    now: float = 1000.0
    steps: int = 0

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.steps += 1

    def wait(self, seconds: float, timeout: float | None, late: type[Exception]) -> None:
        """Something that takes `seconds`, waited for as long as `timeout` allows."""
        if timeout is not None and seconds > timeout:
            self.sleep(timeout)
            raise late("timed out")
        self.sleep(seconds)


@dataclass(frozen=True)
class Exchange:
    """How one try goes: seconds to connect, to send, until the head comes, before each part of the body; a status."""

    connect: float = 0.0
    head: float = 0.0
    part: float = 0.0
    write: float = 0.0
    status: int = 200
    retry_after: int | None = None

    def head_bytes(self) -> bytes:
        more = "" if self.retry_after is None else f"Retry-After: {self.retry_after}\r\n"
        return (
            f"HTTP/1.1 {self.status} X\r\nConnection: close\r\n{more}Content-Length: {len(BODY)}\r\n\r\n"
        ).encode()


@dataclass
class Backend(httpcore.NetworkBackend):
    """Connections without a network, for the blocking client: httpx and httpcore are the real ones."""

    clock: Clock
    script: list[Exchange]
    tries: int = field(default=0)

    def connect_tcp(self, *args: Any, timeout: float | None = None, **more: Any) -> httpcore.NetworkStream:
        exchange = self.script[min(self.tries, len(self.script) - 1)]
        self.tries += 1
        given = args[2] if len(args) > 2 else timeout
        self.clock.wait(exchange.connect, given, httpcore.ConnectTimeout)
        return Stream(self.clock, exchange)


class Stream(httpcore.NetworkStream):
    def __init__(self, clock: Clock, exchange: Exchange) -> None:
        self._clock, self._exchange = clock, exchange
        self._parts = [(exchange.head, exchange.head_bytes())]
        self._parts += [(exchange.part, part) for part in PARTS]

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if not self._parts:
            return b""
        seconds, data = self._parts.pop(0)
        self._clock.wait(seconds, timeout, httpcore.ReadTimeout)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._clock.wait(self._exchange.write, timeout, httpcore.WriteTimeout)

    def close(self) -> None:
        pass

    def get_extra_info(self, info: str) -> Any:
        return False if info == "is_readable" else None


class AsyncNetwork(httpx.AsyncBaseTransport):
    """The same for the async client."""

    def __init__(self, script: list[Exchange]) -> None:
        self._script = script
        self.tries = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        exchange = self._script[min(self.tries, len(self._script) - 1)]
        self.tries += 1
        for seconds in (exchange.connect, exchange.write, exchange.head):
            await asyncio.sleep(seconds)
        headers = {} if exchange.retry_after is None else {"Retry-After": str(exchange.retry_after)}
        return httpx.Response(exchange.status, headers=headers, stream=AsyncDrip(exchange.part))


class AsyncDrip(httpx.AsyncByteStream):
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in PARTS:
            await asyncio.sleep(self._seconds)
            yield part


class _Selector(selectors.SelectSelector):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout:
            self._clock.sleep(timeout)
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: Clock) -> None:
        super().__init__(_Selector(clock))
        self._clock = clock

    def time(self) -> float:
        return self._clock.now


def run_in(clock: Clock, work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in a loop whose time is the clock's."""
    with asyncio.Runner(loop_factory=lambda: _Loop(clock)) as runner:
        return runner.run(work)
