"""Steady requests for known tasks from several connections, every answer checked; and looks at a server's health.

Owns: the threads, their pace, and the counting. Must not know: what is broken meanwhile.

A check that fails in itself is no reason to check no more: what it raised counts as a wrong answer.
"""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

from loadtest.faults.faulty_server import Caller, Reply
from loadtest.faults.told_answers import Told, ToldTasks


@dataclass
class Tally:
    """What came of some requests."""

    offered: int = 0
    answered: int = 0  # with 200, and right
    slowest: float = 0.0  # seconds since a request was due, answered or not
    failures: Counter[str] = field(default_factory=Counter)  # by status and code
    wrong: list[str] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """How many had no answer with 200."""
        return self.failures.total()

    @property
    def clean(self) -> bool:
        """Whether all were answered and right."""
        return self.answered == self.offered

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.offered + other.offered,
            self.answered + other.answered,
            max(self.slowest, other.slowest),
            self.failures + other.failures,
            self.wrong + other.wrong,
        )


class KnownLoad:
    """Requests for all of these tasks, `rate` a second over `connections`; runs inside a `with` block.

    Open in its pace as long as a request takes less than a connection's turn: one that hangs holds up its own
    connection only, and what it held up is sent at once afterwards, and timed from when it was due.
    """

    def __init__(
        self,
        url: str,
        tasks: ToldTasks,
        *,
        connections: int = 6,
        rate: float = 150.0,
        patience: float = 10.0,
    ) -> None:
        if not tasks.ids:
            raise ValueError("no tasks to ask for")
        self._url, self._tasks, self.rate = url, tasks, rate
        self._turn, self._patience = connections / rate, patience
        self._tally = Tally()
        self._lock = threading.Lock()
        self._order = _rounds(len(tasks.ids))
        self._stop = threading.Event()
        self._go = threading.Event()
        self._busy = 0
        self._threads = [
            threading.Thread(target=self._work, name=f"known-load-{number}", daemon=True)
            for number in range(connections)
        ]

    def __enter__(self) -> Self:
        self._go.set()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._go.set()
        for thread in self._threads:
            thread.join()

    def pause(self) -> None:
        """Send nothing more, and wait for what is under way."""
        with self._lock:  # whoever saw that it goes on counts as busy
            self._go.clear()
        while self._busy:
            time.sleep(0.005)

    def resume(self) -> None:
        """Go on after `pause`."""
        self._go.set()

    def take(self) -> Tally:
        """What was counted since the last `take`."""
        with self._lock:
            tally, self._tally = self._tally, Tally()
        return tally

    def _work(self) -> None:
        with Caller(self._url, patience=self._patience) as caller:
            due = time.monotonic()
            while not self._stop.is_set():
                if not self._go.is_set():
                    caller.close()  # the server may be another one afterwards
                    self._go.wait()
                    due = time.monotonic()
                    continue
                due += self._turn
                time.sleep(max(0.0, due - time.monotonic()))
                with self._lock:
                    if not self._go.is_set():
                        continue
                    self._busy += 1
                    task, number = next(self._order)
                try:
                    self._one(caller, due, task, number)
                finally:
                    with self._lock:
                        self._busy -= 1

    def _one(self, caller: Caller, due: float, task: int, number: int) -> None:
        failure, wrong = "", None
        try:
            reply, told = ask(caller, self._tasks, task, number)
            if told is None:
                failure = f"{reply.status} {reply.code}"
            elif isinstance(told, str):
                wrong = told
        except Exception as error:
            wrong = f"{self._tasks.ids[task]}: not to be checked: {error!r}"
        with self._lock:
            tally = self._tally
            tally.offered += 1
            tally.slowest = max(tally.slowest, time.monotonic() - due)
            if failure:
                tally.failures[failure] += 1
            elif wrong is not None:
                tally.wrong.append(wrong)
            else:
                tally.answered += 1


def _rounds(tasks: int) -> Iterator[tuple[int, int]]:
    """Which task each request is for, and the request's number."""
    # Beside each task's turn one at random: in turn alone, what a tier holds would hardly ever be asked for again.
    rng, order, numbers = random.Random(0), list(range(tasks)), itertools.count()
    while order:
        rng.shuffle(order)
        for task in order:
            yield task, next(numbers)
            yield rng.randrange(tasks), next(numbers)


def ask(
    caller: Caller, tasks: ToldTasks, task: int, number: int, *, version: str | None = None
) -> tuple[Reply, Told | str | None]:
    """The answer to the `number`-th request, for the task, and what `read` says of it; None: its status is not 200."""
    reply = caller.ask("POST", "/classify", tasks.body(task, number, version=version))
    return reply, tasks.read(task, number, reply.body) if reply.status == 200 else None


@dataclass
class Health:
    """What `/readyz` and `/healthz` said over a while."""

    looks: int = 0
    unwell: Counter[str] = field(default_factory=Counter)  # answers that were not 200, or could not be read
    staleness: float = 0.0  # the longest that /readyz showed, in seconds
    sources: set[str] = field(default_factory=set)  # where the catalogue came from, as it said


class HealthWatch:
    """Asks for a server's health ten times a second inside a `with` block; `health` has what was heard."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.health = Health()
        self.seconds = 0.0  # from the beginning of the block to its end
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="health-watch", daemon=True)

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.seconds = time.monotonic() - self._began

    def _work(self) -> None:
        with Caller(self._url, patience=5.0) as caller:
            while not self._stop.wait(0.1):
                try:
                    self._look(caller)
                except Exception as error:
                    self.health.unwell[f"not to be read: {error!r}"] += 1

    def _look(self, caller: Caller) -> None:
        health = self.health
        alive, ready = caller.ask("GET", "/healthz"), caller.ask("GET", "/readyz")
        health.looks += 1
        for name, reply in (("healthz", alive), ("readyz", ready)):
            if reply.status != 200:
                health.unwell[f"{name}: {reply.status} {reply.code}"] += 1
        if ready.status == 200:
            store = ready.json["store"]
            health.staleness = max(health.staleness, store["staleness_seconds"])
            health.sources.add(store["source"])


def caught_up(caller: Caller, tasks: ToldTasks, wanted: Mapping[str, str], *, patience: float) -> list[str]:
    """Ask until every task is answered with its version in `wanted`; those that were not within `patience` seconds."""
    end, due, numbers = time.monotonic() + patience, dict(wanted), itertools.count()
    while due and time.monotonic() < end:
        for task, version in list(due.items()):
            _, told = ask(caller, tasks, tasks.index(task), next(numbers))
            if isinstance(told, Told) and told.version == version:
                del due[task]
        if due:
            time.sleep(0.01)
    return sorted(due)


def until(holds: Callable[[], bool], *, patience: float, pause: float = 0.02) -> bool:
    """Whether it held within `patience` seconds."""
    end = time.monotonic() + patience
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(pause)
    return True


def json_body(**fields: object) -> bytes:
    """A JSON object."""
    return json.dumps(fields).encode()
