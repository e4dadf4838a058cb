"""Operators at work: publishes and rollbacks through several servers' admin APIs, and some through the store directly.

Owns: how one move is made, and what it took. Each task belongs to one mover, which keeps its alias's revision; so every
refusal is a fault. Must not know: the load beside it, or what answers are to be found wrong.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from loadtest.faults.move_ledger import MoveLedger
from loadtest.faults.replicas import Replica
from loadtest.faults.told_answers import ToldTasks
from prompt_store import PromptStore, PromptStoreError, Target, open_store

T = TypeVar("T")


class NotMoved(Exception):
    """A move was refused or its answer lost; the message is for a person."""


@dataclass(frozen=True, slots=True)
class Move:
    """One that was acknowledged, by `replica` or, where that is None, by the store."""

    task: int
    version: str
    replica: Replica | None
    at: float  # time.monotonic()


@dataclass
class MoveReport:
    """What came of the moves. Seconds."""

    made: Counter[str] = field(default_factory=Counter)  # by kind
    failures: list[str] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)  # by kind
    lock: threading.Lock = field(default_factory=threading.Lock)

    def made_one(self, kind: str, seconds: float) -> None:
        """Count one."""
        with self.lock:
            self.made[kind] += 1
            self.seconds.setdefault(kind, []).append(seconds)

    def failed(self, problem: str) -> None:
        """Count one that was not made."""
        with self.lock:
            self.failures.append(problem)


class StoreThread:
    """A store that threads can call: its event loop runs in a thread of its own."""

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.store: PromptStore = open_store(url)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a call of the store."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def close(self) -> None:
        """Close the store and end the thread."""
        self.call(self.store.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass
class _Owned:
    """A task as its mover knows it: versions that were published, the one that is current, the alias's revision."""

    versions: list[str]
    current: str
    revision: int


class Mover:
    """Makes moves of the tasks that it owns, one after the other. Used by one thread."""

    def __init__(
        self,
        owned: Sequence[int],
        tasks: ToldTasks,
        ledger: MoveLedger,
        running: Sequence[Replica],
        direct: StoreThread,
        report: MoveReport,
        *,
        direct_share: float,
        seed: int,
    ) -> None:
        self._tasks, self._ledger, self._running, self._direct = tasks, ledger, running, direct
        self._report, self._direct_share = report, direct_share
        self._rng = random.Random(seed)
        self._admin = {replica.name: replica.connection(admin=True) for replica in running}
        self._owned: dict[int, _Owned] = {}
        for task in owned:
            record = direct.call(direct.store.task(tasks.ids[task])).aliases["current"]
            assert record.version is not None
            self._owned[task] = _Owned([record.version], record.version, record.revision)

    def move(self) -> Move | None:
        """Make one; None when it failed, which the report then has."""
        task = self._rng.choice(list(self._owned))
        owned = self._owned[task]
        back = [version for version in owned.versions if version != owned.current]
        kind = "rollback" if back and self._rng.random() < 0.4 else "publish"
        replica = None if self._rng.random() < self._direct_share else self._rng.choice(self._running)
        how: Callable[[int, str, Replica | None], str] = (
            self._publish if kind == "publish" else self._roll_back
        )
        began = time.monotonic()
        try:
            version = how(task, self._rng.choice(back) if back else "", replica)
        except (NotMoved, PromptStoreError, OSError, http.client.HTTPException) as error:
            self._report.failed(
                f"{kind} of task {task} at {replica.name if replica else 'the store'}: {error!r}"
            )
            return None
        at = time.monotonic()
        self._report.made_one(kind if replica else f"{kind}, store", at - began)
        return Move(task, version, replica, at)

    def close(self) -> None:
        """Close its connections."""
        for connection in self._admin.values():
            connection.close()

    def _publish(self, task: int, _: str, replica: Replica | None) -> str:
        owned, task_id = self._owned[task], self._tasks.ids[task]
        made = self._tasks.prompt(task, len(owned.versions))
        if replica is None:
            self._direct.call(self._direct.store.publish(made.data, expect_version=made.version))
        else:
            path = f"/admin/tasks/{task_id}/versions/{made.version}"
            self._ask(replica, "PUT", path, made.data, {"Content-Type": "application/octet-stream"})
        owned.versions.append(made.version)
        self._lead(task, made.version, replica, "PUT", f"/admin/tasks/{task_id}/aliases/current")
        return made.version

    def _roll_back(self, task: int, version: str, replica: Replica | None) -> str:
        self._lead(task, version, replica, "POST", f"/admin/tasks/{self._tasks.ids[task]}/rollback")
        return version

    def _lead(self, task: int, version: str, replica: Replica | None, method: str, path: str) -> None:
        """Let `current` lead to the version."""
        owned = self._owned[task]
        move = self._ledger.begin(task, version)
        if replica is None:
            work = self._direct.store.set_alias(
                self._tasks.ids[task], "current", [Target(version)], expected_revision=owned.revision
            )
            owned.revision = self._direct.call(work).alias.revision
        else:
            headers = {"Content-Type": "application/json", "If-Match": f'"{owned.revision}"'}
            body = json.dumps({"version": version}).encode()
            owned.revision = json.loads(self._ask(replica, method, path, body, headers))["revision"]
            self._ledger.acknowledge(task, move, replica.name)
        owned.current = version

    def _ask(self, replica: Replica, method: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        connection = self._admin[replica.name]
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            said = answer.read()
        except BaseException:
            connection.close()
            raise
        if answer.status not in (200, 201):
            raise NotMoved(f"{answer.status} {said[:300].decode(errors='replace')}")
        return said
