"""Time that passes only when somebody waits: for streams that block, and for an event loop."""

from __future__ import annotations

import asyncio
import json
import selectors
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import httpcore

from tests.client.misbehaving import ACKNOWLEDGED, ANSWER

T = TypeVar("T")
BODY = json.dumps({**ANSWER, **ACKNOWLEDGED}).encode()  # whatever was asked
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
    """How one try goes: seconds to connect, to send, until the head comes, before each part of the body; a status.

    `breaks` is where its connection breaks, after the time that this step takes.
    """

    connect: float = 0.0
    head: float = 0.0
    part: float = 0.0
    write: float = 0.0
    status: int = 200
    retry_after: int | None = None
    breaks: Literal["connect", "write", "head", "part"] | None = None

    def head_bytes(self) -> bytes:
        more = "" if self.retry_after is None else f"Retry-After: {self.retry_after}\r\n"
        return (
            f"HTTP/1.1 {self.status} X\r\nConnection: close\r\n{more}Content-Length: {len(BODY)}\r\n\r\n"
        ).encode()


@dataclass
class _Network:
    """`tries` to connect, and how often bytes were `written`, be it that they never arrived."""

    script: list[Exchange]
    tries: int = field(default=0, kw_only=True)
    written: int = field(default=0, kw_only=True)

    def next(self) -> Exchange:
        self.tries += 1
        return self.script[min(self.tries, len(self.script)) - 1]


@dataclass
class Backend(_Network, httpcore.NetworkBackend):
    """Connections without a network, for the blocking client: httpx and httpcore are the real ones."""

    clock: Clock

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *rest: Any
    ) -> httpcore.NetworkStream:
        exchange = self.next()
        self.clock.wait(exchange.connect, timeout, httpcore.ConnectTimeout)
        _break(exchange, "connect", httpcore.ConnectError)
        return Stream(self, exchange)


class Stream(httpcore.NetworkStream):
    def __init__(self, network: Backend, exchange: Exchange) -> None:
        self._network, self._exchange = network, exchange
        self._parts = _parts(exchange)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if not self._parts:
            return b""
        step, seconds, data = self._parts.pop(0)
        self._network.clock.wait(seconds, timeout, httpcore.ReadTimeout)
        _break(self._exchange, step, httpcore.ReadError)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._network.written += bool(buffer)
        self._network.clock.wait(self._exchange.write, timeout, httpcore.WriteTimeout)
        _break(self._exchange, "write", httpcore.WriteError)

    def close(self) -> None:
        pass

    def get_extra_info(self, info: str) -> Any:
        return False if info == "is_readable" else None


class AsyncBackend(_Network, httpcore.AsyncNetworkBackend):
    """The same for the async client, in a loop of `run_in`."""

    async def connect_tcp(self, *args: Any, **more: Any) -> httpcore.AsyncNetworkStream:
        exchange = self.next()
        await asyncio.sleep(exchange.connect)
        _break(exchange, "connect", httpcore.ConnectError)
        return AsyncStream(self, exchange)


class AsyncStream(httpcore.AsyncNetworkStream):
    def __init__(self, network: AsyncBackend, exchange: Exchange) -> None:
        self._network, self._exchange = network, exchange
        self._parts = _parts(exchange)

    async def read(self, *_: Any, **more: Any) -> bytes:
        if not self._parts:
            return b""
        step, seconds, data = self._parts.pop(0)
        await asyncio.sleep(seconds)
        _break(self._exchange, step, httpcore.ReadError)
        return data

    async def write(self, buffer: bytes, *_: Any, **more: Any) -> None:
        self._network.written += bool(buffer)
        await asyncio.sleep(self._exchange.write)
        _break(self._exchange, "write", httpcore.WriteError)

    async def aclose(self) -> None:
        pass

    def get_extra_info(self, info: str) -> Any:
        return False if info == "is_readable" else None


def _parts(exchange: Exchange) -> list[tuple[str, float, bytes]]:
    return [
        ("head", exchange.head, exchange.head_bytes()),
        *(("part", exchange.part, part) for part in PARTS),
    ]


def _break(exchange: Exchange, step: str, error: type[Exception]) -> None:
    if exchange.breaks == step:
        raise error("it broke")


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
