"""A steady load over keep-alive connections that hands every answer to a check.

Owns: sending at a rate, one request at a time on each connection, and the count of what was answered, refused, lost or
found wrong. Nothing is ever sent twice: what a caller would have seen is what is counted. Must not know: what the
requests mean.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

from loadtest.faults.proxy_process import REPLICA_HEADER
from loadtest.http_client import percentile

LEAST_SENT: Final = 0.99
"""Of the requests that a rate asks for; those that were due as the load ended may be open."""

_PATIENCE: Final = 30.0
_KEPT: Final = 20  # descriptions of failures


@dataclass(frozen=True, slots=True)
class Question:
    """A body for POST /classify; `about` is for the check."""

    body: bytes
    about: Any


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer with 200, and which replica the proxy says it came from."""

    question: Question
    replica: str
    body: bytes


Check = Callable[[Reply], str | None]
"""What is wrong with an answer, None when nothing is. Called by many threads."""


@dataclass
class LoadReport:
    """What came of it. Seconds everywhere; latencies count from when the request was to be sent."""

    seconds: float = 0.0
    offered: int = 0  # what the rate asks for in that time; 0: no rate was asked for
    answered: int = 0
    failed: int = 0  # another status than 200, or no answer
    wrong: int = 0  # answered, and the check found something
    problems: Counter[str] = field(default_factory=Counter)  # of both, by kind
    examples: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    by_replica: Counter[str] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Answers in a second."""
        return self.answered / self.seconds if self.seconds else 0.0

    @property
    def short(self) -> bool:
        """Whether less than `LEAST_SENT` of what the rate asks for was sent, or nothing was answered."""
        missing = self.offered - (self.answered + self.failed)
        return not self.answered or missing > max(1, round((1 - LEAST_SENT) * self.offered))

    def latency(self) -> dict[str, float]:
        """Percentiles and the longest, in milliseconds."""
        ordered = sorted(self.latencies)
        shares = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99, "longest_ms": 1.0}
        return {name: round(percentile(ordered, share) * 1e3, 1) for name, share in shares.items()}


class SteadyLoad:
    """`rate` requests a second from `connections` threads, while the block runs; 0: as many as are answered.

    `ask(n)` makes the n-th question, when it is about to be sent. A connection that the other side closes after an
    answer, as HTTP lets it, is opened anew; one that is lost with a request on it is a failure.
    """

    def __init__(
        self, url: str, ask: Callable[[int], Question], check: Check, *, rate: float, connections: int = 16
    ) -> None:
        self.report = LoadReport()
        self._address = urlsplit(url).netloc
        self._ask, self._check, self._rate = ask, check, rate
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(connections)]
        self._broken: list[BaseException] = []
        self._began = 0.0

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.report.offered = round(self._rate * (time.monotonic() - self._began))
        self._stop.set()
        # After an error nobody reads the report, and the threads end with the program.
        end = time.monotonic() + (2 * _PATIENCE if error is None else 1.0)
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        self.report.seconds = time.monotonic() - self._began
        if self._broken and error is None:
            raise self._broken[0]  # of the experiment itself: then no figure is worth having
        if error is None and any(thread.is_alive() for thread in self._threads):
            raise TimeoutError("a request was neither answered nor given up")

    def _run(self) -> None:
        try:
            with contextlib.closing(_Connection(self._address)) as connection:
                for question, intended in self._due():
                    reply = connection.post(question)
                    took = time.monotonic() - intended
                    wrong = None if isinstance(reply, str) else self._check(reply)
                    with self._lock:
                        self._count(reply, wrong, took)
        except BaseException as error:
            self._broken.append(error)
            self._stop.set()

    def _due(self) -> Iterator[tuple[Question, float]]:
        """Questions when they are to be sent, with that time."""
        while not self._stop.is_set():
            number = next(self._numbers)
            intended = time.monotonic()
            if self._rate:
                intended = self._began + number / self._rate
                if self._stop.wait(max(0.0, intended - time.monotonic())):
                    return
            yield self._ask(number), intended

    def _count(self, reply: Reply | str, wrong: str | None, took: float) -> None:
        report = self.report
        if isinstance(reply, str):
            report.failed += 1
            problem = reply
        else:
            report.answered += 1
            report.latencies.append(took)
            report.by_replica[reply.replica] += 1
            if wrong is None:
                return
            report.wrong += 1
            problem = wrong
        report.problems[problem.partition(":")[0]] += 1
        if len(report.examples) < _KEPT:
            report.examples.append(f"{time.monotonic() - self._began:.3f} s: {problem}")


class _Connection:
    """One keep-alive connection."""

    def __init__(self, address: str) -> None:
        self._http = http.client.HTTPConnection(address, timeout=_PATIENCE)

    def post(self, question: Question) -> Reply | str:
        """The answer; in words what came in its stead."""
        try:
            self._http.request("POST", "/classify", question.body, {"Content-Type": "application/json"})
            answer = self._http.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._http.close()
            return f"{type(error).__name__}: {error}"
        replica = answer.getheader(REPLICA_HEADER, "")
        if answer.status != 200:
            return (
                f"status {answer.status} from {replica or 'the proxy'}: {body[:300].decode(errors='replace')}"
            )
        return Reply(question, replica, body)

    def close(self) -> None:
        self._http.close()
