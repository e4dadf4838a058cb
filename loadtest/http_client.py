"""A load generator that costs little: keep-alive connections with one single-text request at a time on each.

Owns the two ways of sending (closed loop: the next request as soon as the last is answered; open loop: at intended
times, whatever the server does) and how latency is counted. Standard library only, one thread, plain sockets: on a
machine with few cores the generator takes its share from the server, so it has to be lean, and its own CPU time is
reported with every figure. `select`, because its timeout is in microseconds: epoll's milliseconds would be most of a
short request's latency. Must not know: tasks' meaning, servers' insides.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import select
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

from loadtest.http_line import Line
from loadtest.timeline import Outcome, is_refusal


class Sent(NamedTuple):
    """One request of an open loop: the how manieth it was, when it was to be sent, and what came of it."""

    nth: int
    intended: float
    seconds: float  # from then to its answer, or to its loss; infinite while there was neither
    outcome: Outcome


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
    refused: int = 0  # of the failed: 429 or 503 with Retry-After
    trace: tuple[Sent, ...] = ()  # every request, in the order in which they ended, if asked for
    reasons: Mapping[str, int] = field(
        default_factory=dict
    )  # of what failed or had no answer, refusals aside

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
    url: str,
    task_ids: Sequence[str],
    texts: Sequence[str],
    choices: Iterator[int],
    count: int,
    *,
    key: str = "",
) -> list[bytes]:
    """Complete requests for promptmux, one text and one task each, written before the clock starts."""
    chosen = zip(itertools.islice(itertools.cycle(texts), count), choices, strict=False)
    return [post(url, "/classify", {"task_id": task_ids[at], "input": text}, key=key) for text, at in chosen]


def infinity_requests(url: str, model: str, texts: Sequence[str], count: int) -> list[bytes]:
    """The same texts as requests for infinity-emb, whose model has one head."""
    chosen = itertools.islice(itertools.cycle(texts), count)
    return [post(url, "/classify", {"model": model, "input": [text]}) for text in chosen]


def post(url: str, path: str, body: object, *, key: str = "") -> bytes:
    """A complete POST of a JSON body, with an API key if there is one."""
    written = json.dumps(body).encode()
    return (
        b"POST %b HTTP/1.1\r\nHost: %b\r\n%bContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        % (
            path.encode(),
            urlsplit(url).netloc.encode(),
            b"Authorization: Bearer %b\r\n" % key.encode() if key else b"",
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
    lines = [Line(url) for _ in range(connections)]
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
    groups: Sequence[str] | None = None,
    keep_heads: bool = False,
    keep_trace: bool = False,
) -> Load:
    """Send one request at each of `times` (not empty), without waiting for the answers to those before.

    With `groups`, one for each request, every group has `connections` of its own: callers do not share theirs, and
    those of one whose requests all wait must not keep the others' from being sent.

    A request that finds every connection busy is sent when one is free, but its latency counts from when it should
    have been sent: otherwise a server that stalls would hold back the very requests that show it (coordinated
    omission). `patience` seconds after the last intended time what is still open is unanswered.
    """
    tally, source = _Tally(keep_heads, keep_trace), iter(written)
    whose = groups or [""] * len(times)
    idle = {group: deque(Line(url) for _ in range(connections)) for group in sorted(set(whose))}
    # Their time has come, without a connection. Each has its request already: another group's next one is not theirs.
    waiting: dict[str, deque[tuple[int, bytes]]] = {group: deque() for group in idle}
    busy: set[Line] = set()
    nth, end = 0, times[-1] + patience
    clock = _Clock()
    try:
        while (now := clock.now()) < end and (busy or nth < len(times)):
            while nth < len(times) and times[nth] <= now:
                request = next(source)
                if idle[whose[nth]]:
                    tally.lags.append(now - times[nth])
                    line = idle[whose[nth]].popleft()
                    line.freshen(now)
                    line.send(request, times[nth], nth)
                    busy.add(line)
                else:
                    waiting[whose[nth]].append((nth, request))
                nth += 1
            until = times[nth] if nth < len(times) else end
            for line in select.select(busy, [], [], max(0.0, until - clock.now()))[0]:
                if not tally.take(line, clock):
                    continue
                group = whose[line.nth]
                if waiting[group]:
                    tally.late += 1
                    late, request = waiting[group].popleft()
                    line.send(request, times[late], late)
                else:
                    busy.remove(line)
                    line.used = clock.now()
                    idle[group].append(line)
        unsent = [late for late, _ in itertools.chain(*waiting.values())]
        left = [*(line.nth for line in busy), *unsent, *range(nth, len(times))]
        if keep_trace:
            tally.trace.extend(Sent(one, times[one], math.inf, "failed") for one in left)
        return tally.load(clock, unanswered=len(left))
    finally:
        for line in [*itertools.chain(*idle.values()), *busy]:
            line.close()


class _Clock:
    """Seconds since it was made, and the CPU time of this thread since then."""

    def __init__(self) -> None:
        self._began, self._cpu = time.perf_counter(), time.thread_time()

    def now(self) -> float:
        return time.perf_counter() - self._began

    def cpu(self) -> float:
        return time.thread_time() - self._cpu


@dataclass
class _Tally:
    """Counts answers as they come."""

    keep_heads: bool
    keep_trace: bool = False
    latencies: list[float] = field(default_factory=list)
    lags: list[float] = field(default_factory=list)
    answers: list[tuple[float, bytes]] = field(default_factory=list)
    trace: list[Sent] = field(default_factory=list)
    failed: int = 0
    refused: int = 0
    late: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def take(self, line: Line, clock: _Clock) -> bool:
        """Read what has come; True when the line is free again."""
        got = line.receive()
        if got is None:
            return False
        head, lost = got
        seconds = clock.now() - line.intended
        outcome: Outcome = "failed" if lost else _outcome(head)
        if self.keep_trace:
            self.trace.append(Sent(line.nth, line.intended, seconds, outcome))
        if outcome != "answered":
            self.failed += 1
            self.refused += outcome == "refused"
            if outcome == "failed":
                self.reasons[_reason(head)] += 1
            return True
        self.latencies.append(seconds)
        if self.keep_heads:
            self.answers.append((self.latencies[-1], head))
        return True

    def load(self, clock: _Clock, *, unanswered: int = 0) -> Load:
        answered = len(self.latencies)
        lost = {"no answer in time": unanswered} if unanswered else {}
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
            refused=self.refused,
            trace=tuple(self.trace),
            reasons={**self.reasons, **lost},
        )


def _reason(head: bytes) -> str:
    """Why an answer is a failure, in words that are the same for all of a kind."""
    if not head:
        return "connection lost"
    status = head[9:12].decode(errors="replace")
    return "status 200 without an end" if status == "200" else f"status {status}"


def _outcome(head: bytes) -> Outcome:
    if head.startswith(b"HTTP/1.1 200"):
        return "answered"
    status = head[9:12]
    waits = b"\r\nretry-after:" in head.lower()
    return "refused" if status.isdigit() and is_refusal(int(status), "yes" if waits else None) else "failed"
