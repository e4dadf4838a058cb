"""A load generator that costs little: keep-alive connections, one single-text request after another on each.

Standard library only. On a machine with few cores the generator takes its share from the server, so that it has to
be lean, and its own CPU time is reported with every figure.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Load:
    """What one stretch of load gave."""

    answered: int
    failed: int
    seconds: float
    cpu_seconds: float  # of the generator
    latencies: tuple[float, ...]  # seconds, sorted

    @property
    def rate(self) -> float:
        """Requests answered with 200 in a second."""
        return self.answered / self.seconds

    def percentile(self, share: float) -> float:
        """Latency in seconds that `share` of the requests stayed under."""
        if not self.latencies:
            return math.inf
        return self.latencies[min(len(self.latencies) - 1, int(share * len(self.latencies)))]


def requests(
    url: str, task_ids: Sequence[str], texts: Sequence[str], choices: Iterator[int], count: int
) -> list[bytes]:
    """Complete HTTP requests, written before the clock starts."""
    host = urlsplit(url).netloc.encode()
    made = []
    for text, choice in zip(itertools.islice(itertools.cycle(texts), count), choices, strict=False):
        body = json.dumps({"task_id": task_ids[choice], "input": text}).encode()
        head = b"POST /classify HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        made.append(head % (host, len(body)) + body)
    return made


class _Connection(asyncio.Protocol):
    """Sends the next request as soon as the last one is answered."""

    def __init__(
        self, source: Iterator[bytes], until: float, latencies: list[float], done: asyncio.Future[int]
    ) -> None:
        self._source, self._until, self._latencies, self._done = source, until, latencies, done
        self._buffer = b""
        self._failed = 0
        self._began = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def _send(self) -> None:
        assert self._transport is not None
        self._began = time.perf_counter()
        if self._began >= self._until:
            self._transport.close()
            if not self._done.done():
                self._done.set_result(self._failed)
            return
        self._transport.write(next(self._source))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._buffer.lower().find(b"content-length:", 0, head)
        end = self._buffer.find(b"\r\n", at)
        length = int(self._buffer[at + 15 : end])
        if len(self._buffer) < head + 4 + length:
            return
        if self._buffer.startswith(b"HTTP/1.1 200"):
            self._latencies.append(time.perf_counter() - self._began)
        else:
            self._failed += 1
        self._buffer = b""
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_result(self._failed + 1)


async def drive(url: str, written: Sequence[bytes], *, connections: int, seconds: float) -> Load:
    """Keep `connections` busy for `seconds`; closed loop."""
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    source = itertools.cycle(written)
    latencies: list[float] = []
    began, cpu = time.perf_counter(), time.process_time()
    ends = []
    for _ in range(connections):
        done: asyncio.Future[int] = loop.create_future()
        ends.append(done)
        await loop.create_connection(
            lambda done=done: _Connection(source, began + seconds, latencies, done),
            parts.hostname,
            parts.port,
        )
    failed = sum(await asyncio.gather(*ends))
    took = time.perf_counter() - began
    return Load(len(latencies), failed, took, time.process_time() - cpu, tuple(sorted(latencies)))


def load(url: str, written: Sequence[bytes], *, connections: int, seconds: float) -> Load:
    """`drive` on the fastest event loop that is installed."""
    try:
        import uvloop
    except ImportError:
        factory = asyncio.new_event_loop
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(drive(url, written, connections=connections, seconds=seconds))
