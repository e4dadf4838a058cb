"""A real server process on a history's store, followed from outside by the revision that its answers name.

Owns: that process, the asking, and whether what it named was in order and in time. Must not know: which fault it was.

The server is the tests' own, without a model. The writers' prompts are of another backbone, so that it serves none of
them; its catalogue follows them all the same, and a task of its own answers.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

from loadtest.faults.admin_writer import publish
from loadtest.faults.faulty_server import FAKE, Caller, FaultyServer
from loadtest.faults.history_replicas import Sight, Window, staleness
from loadtest.faults.known_load import ask
from loadtest.faults.linearizability import Operation
from loadtest.faults.told_answers import ToldTasks

NAME = "server"
_PAUSE = 0.02
_SETTLE_SECONDS = 60.0


@dataclass(frozen=True)
class Told:
    """An answer's revision: the catalogue had it when the answer came, at `at` (time.monotonic)."""

    at: float
    epoch: str
    number: int


class ServerReplica:
    """A server on the store at `url`, asked again and again inside a `with` block; `told` has what it said."""

    def __init__(self, url: str, sure_url: str, folder: Path) -> None:
        self._tasks, self._numbers = ToldTasks(1, FAKE, seed=0), itertools.count()
        (self.task,) = publish(sure_url, [self._tasks.make(0)])
        self._server = FaultyServer(FAKE, "--store", url, "--cache-dir", str(folder / "cache"))
        self.told: list[Told] = []
        self.wrong: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="server-replica", daemon=True)

    def __enter__(self) -> Self:
        self._server.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._server.stop()

    def settle(self, number: int) -> None:
        """Wait until an answer names the revision, or for as long as anybody would; ask no more."""
        end = time.monotonic() + _SETTLE_SECONDS
        while time.monotonic() < end and not (self.told and self.told[-1].number >= number):
            time.sleep(_PAUSE)
        self._end()

    def _end(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _work(self) -> None:
        with Caller(self._server.url, patience=60.0) as caller:
            while not self._stop.wait(_PAUSE):
                try:
                    self._ask(caller)
                except Exception as error:
                    self.wrong.append(f"{NAME}: an answer that cannot be read: {error!r}")

    def _ask(self, caller: Caller) -> None:
        reply, told = ask(caller, self._tasks, 0, next(self._numbers))
        if told is None:
            self.wrong.append(f"{NAME}: {reply.status} {reply.code}")
            return
        if isinstance(told, str):
            self.wrong.append(f"{NAME}: {told}")
        epoch, _, number = reply.headers["x-store-revision"].rpartition(":")
        self.told.append(Told(time.monotonic(), epoch, int(number)))


def backwards(told: Sequence[Told]) -> list[str]:
    """Where a later answer names an older revision, or one of another epoch."""
    return [
        f"{NAME}: it named {before.epoch}:{before.number}, then {after.epoch}:{after.number}"
        for before, after in pairwise(told)
        if after.epoch != before.epoch or after.number < before.number
    ]


def server_staleness(told: Sequence[Told], write: Operation, faults: Sequence[Window]) -> float | None:
    """See `staleness`: what has taken in a revision has seen every task as of it."""
    return staleness([Sight(one.at, write.call.task, None, one.number) for one in told], write, faults)
