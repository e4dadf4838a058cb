"""A load generator that costs little: keep-alive connections with one single-text request at a time on each.

Owns the two ways of sending (closed loop: the next request as soon as the last is answered; open loop: at intended
times, whatever the server does) and how latency is counted. Standard library only, one thread, plain sockets: on a
machine with few cores the generator takes its share from the server, so it has to be lean, and its own CPU time is
reported with every figure. `select`, because its timeout is in microseconds: epoll's milliseconds would be most of a
short request's latency. Must not know: tasks' meaning, servers' insides.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import random
import select
import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

_READ: Final = 65536


@dataclass(frozen=True)
class Load:
    """What one stretch of load gave. Seconds everywhere."""

    offered: int  # requests that were to be sent: answered, failed and unanswered together
    answered: int  # with 200
    failed: int  # another status, or the connection was lost
    unanswered: int  # still open when patience ended
    late: int  # sent after their intended time, for every connection was busy
    seconds: float
    cpu_seconds: float  # of the generator
    latencies: tuple[float, ...]  # of the answered, sorted; from the intended send time in an open loop
    lags: tuple[float, ...] = ()  # how late the generator itself was with a connection at hand, sorted
    answers: tuple[tuple[float, bytes], ...] = ()  # latency and head of each answer with 200, if asked for

    @property
    def rate(self) -> float:
        """Requests answered with 200 in a second."""
        return self.answered / self.seconds

    def percentile(self, share: float) -> float:
        """Latency that `share` of all offered requests stayed under; one that got no answer took for ever."""
        return percentile(self.latencies, share, count=self.offered)


def percentile(ordered: Sequence[float], share: float, *, count: int | None = None) -> float:
    """The smallest value that `share` of all are not above (nearest rank), as if `ordered` went on with infinities
    up to `count`.
    """
    total = len(ordered) if count is None else count
    at = max(0, math.ceil(share * total) - 1)
    return ordered[at] if at < len(ordered) else math.inf


def requests(
    url: str, task_ids: Sequence[str], texts: Sequence[str], choices: Iterator[int], count: int
) -> list[bytes]:
    """Complete requests for promptmux, one text and one task each, written before the clock starts."""
    chosen = zip(itertools.islice(itertools.cycle(texts), count), choices, strict=False)
    return [post(url, "/classify", {"task_id": task_ids[at], "input": text}) for text, at in chosen]


def infinity_requests(url: str, model: str, texts: Sequence[str], count: int) -> list[bytes]:
    """The same texts as requests for infinity-emb, whose model has one head."""
    chosen = itertools.islice(itertools.cycle(texts), count)
    return [post(url, "/classify", {"model": model, "input": [text]}) for text in chosen]


def post(url: str, path: str, body: object) -> bytes:
    """A complete POST of a JSON body."""
    written = json.dumps(body).encode()
    return (
        b"POST %b HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        % (
            path.encode(),
            urlsplit(url).netloc.encode(),
            len(written),
            written,
        )
    )


def closed_loop(
    url: str,
    written: Iterable[bytes],
    *,
    connections: int = 1,
    seconds: float = math.inf,
    keep_heads: bool = False,
) -> Load:
    """Keep `connections` busy until `seconds` have passed or all is written: as much as the server takes."""
    tally, source = _Tally(keep_heads), iter(written)
    lines = [_Line(url) for _ in range(connections)]
    clock = _Clock()
    try:
        busy = [line for line in lines if line.send_next(source, clock.now())]
        while busy:
            for line in select.select(busy, [], [])[0]:
                if not tally.take(line, clock):
                    continue
                now = clock.now()
                if now >= seconds or not line.send_next(source, now):
                    busy.remove(line)
        return tally.load(clock)
    finally:
        for line in lines:
            line.close()


def arrivals(rate: float, seconds: float, *, seed: int = 0) -> list[float]:
    """When requests of a Poisson process with `rate` a second are to be sent."""
    rng, at, times = random.Random(seed), 0.0, []
    while (at := at + rng.expovariate(rate)) < seconds:
        times.append(at)
    return times


def open_loop(
    url: str,
    written: Iterable[bytes],
    times: Sequence[float],
    *,
    connections: int,
    patience: float = 10.0,
    keep_heads: bool = False,
) -> Load:
    """Send one request at each of `times` (not empty), without waiting for the answers to those before.

    A request that finds every connection busy is sent when one is free, but its latency counts from when it should
    have been sent: otherwise a server that stalls would hold back the very requests that show it (coordinated
    omission). `patience` seconds after the last intended time what is still open is unanswered.
    """
    tally, source = _Tally(keep_heads), iter(written)
    idle = deque(_Line(url) for _ in range(connections))
    busy: set[_Line] = set()
    waiting: deque[float] = deque()  # intended times that have come, without a connection
    nth, end = 0, times[-1] + patience
    clock = _Clock()
    try:
        while (now := clock.now()) < end and (busy or nth < len(times)):
            while nth < len(times) and times[nth] <= now:
                if idle:
                    tally.lags.append(now - times[nth])
                    line = idle.popleft()
                    line.send(next(source), times[nth])
                    busy.add(line)
                else:
                    waiting.append(times[nth])
                nth += 1
            until = times[nth] if nth < len(times) else end
            for line in select.select(busy, [], [], max(0.0, until - clock.now()))[0]:
                if not tally.take(line, clock):
                    continue
                if waiting:
                    tally.late += 1
                    line.send(next(source), waiting.popleft())
                else:
                    busy.remove(line)
                    idle.append(line)
        return tally.load(clock, unanswered=len(busy) + len(waiting) + len(times) - nth)
    finally:
        for line in [*idle, *busy]:
            line.close()


class _Clock:
    """Seconds since it was made, and the CPU time of this thread since then."""

    def __init__(self) -> None:
        self._began, self._cpu = time.perf_counter(), time.thread_time()

    def now(self) -> float:
        return time.perf_counter() - self._began

    def cpu(self) -> float:
        return time.thread_time() - self._cpu


class _Line:
    """One keep-alive connection, with the request that is on it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.intended = 0.0
        self._open()

    def _open(self) -> None:
        self._socket = socket.create_connection(self._address, timeout=30.0)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, request: bytes, intended: float) -> None:
        self.intended = intended
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
        self._socket.close()


@dataclass
class _Tally:
    """Counts answers as they come."""

    keep_heads: bool
    latencies: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    answers: list[tuple[float, bytes]] = field(default_factory=list)
    failed: int = 0
    late: int = 0

    def take(self, line: _Line, clock: _Clock) -> bool:
        """Read what has come; True when the line is free again."""
        got = line.receive()
        if got is None:
            return False
        head, lost = got
        if lost or not head.startswith(b"HTTP/1.1 200"):
            self.failed += 1
            return True
        self.latencies.append(clock.now() - line.intended)
        if self.keep_heads:
            self.answers.append((self.latencies[-1], head))
        return True

    def load(self, clock: _Clock, *, unanswered: int = 0) -> Load:
        answered = len(self.latencies)
        return Load(
            offered=answered + self.failed + unanswered,
            answered=answered,
            failed=self.failed,
            unanswered=unanswered,
            late=self.late,
            seconds=clock.now(),
            cpu_seconds=clock.cpu(),
            latencies=tuple(sorted(self.latencies)),
            lags=tuple(sorted(self.lags)),
            answers=tuple(self.answers),
        )
