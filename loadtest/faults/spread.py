"""How long a move takes to every server: each is asked again and again until it answers with the move's version.

Owns: the asking and the timing; every answer is checked as those of the load are. Must not know: how moves are made.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from loadtest.faults.move_ledger import MoveLedger
from loadtest.faults.replicas import Replica
from loadtest.faults.told_answers import ToldTasks

PATIENCE: Final = 15.0
_PAUSE: Final = 0.005


@dataclass
class SpreadReport:
    """Seconds from an acknowledgement until another server first answered with the new version; inf: it never did."""

    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    asked: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Spread:
    """Asks servers past the proxy. Used by one thread."""

    def __init__(
        self, running: Sequence[Replica], tasks: ToldTasks, ledger: MoveLedger, report: SpreadReport
    ) -> None:
        self._tasks, self._ledger, self._report = tasks, ledger, report
        self._connections = {replica.name: replica.connection() for replica in running}
        self._numbers = itertools.count()

    def close(self) -> None:
        """Close its connections."""
        for connection in self._connections.values():
            connection.close()

    def wait(
        self, task: int, version: str, since: float, *, but: str = "", patience: float = PATIENCE
    ) -> list[str]:
        """Ask every server but one until it answers with the version; the names of those that never did.

        Who has not is asked until `patience` seconds after `since`, and once after that.
        """
        waiting = [name for name in self._connections if name != but]
        while waiting:
            asked = time.monotonic()
            for name in list(waiting):
                if self._ask(name, task) == version:
                    waiting.remove(name)
                    self._took(time.monotonic() - since)
            if asked - since > patience:
                for _ in waiting:
                    self._took(math.inf)
                return waiting
            if waiting:
                time.sleep(_PAUSE)
        return []

    def _ask(self, name: str, task: int) -> str:
        """The version that the server answers with; "" when something is wrong, which the report then has."""
        reached = self._ledger.reached(task)
        connection = self._connections[name]
        number = next(self._numbers)
        body = self._tasks.body(task, number)
        connection.request("POST", "/classify", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        body = answer.read()
        version, wrong = "", None
        if answer.status != 200:
            wrong = f"status {answer.status} from {name}: {body[:300].decode(errors='replace')}"
        else:
            told = self._tasks.read(task, number, body)
            if isinstance(told, str):
                wrong = told
            else:
                version, wrong = told.version, self._ledger.answered(task, name, reached, told.version)
        with self._report.lock:
            self._report.asked += 1
            if wrong is not None:
                self._report.wrong.append(wrong)
        return version if wrong is None else ""

    def _took(self, seconds: float) -> None:
        with self._report.lock:
            self._report.seconds.append(seconds)
