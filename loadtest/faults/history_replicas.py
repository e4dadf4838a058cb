"""Readers that follow a store as a server does, and whether what they saw was in order and in time.

Owns: the following, and the laws of what a follower sees. Must not know: which store it is, who writes, which fault
it was.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from loadtest.faults.linearizability import Operation
from prompt_store import Event, PromptStore, Revision, StoreUnavailable, TaskPage, TaskRecord, UnknownTask

_RETRY: Final = 0.1
_BROWSE: Final = 0.05


class Sight(NamedTuple):
    """What a replica saw of a task at `at` (time.monotonic): `record` is None where there is no such task.

    `after` is what `watch` had said before the replica asked: the task's last change is not after it, or was
    made since.
    """

    at: float
    task: str
    record: TaskRecord | None
    after: int


class Window(NamedTuple):
    """From the beginning of a fault until it was healed (time.monotonic)."""

    begin: float
    end: float


@dataclass
class Replica:
    """One follower: every sight it had, and what `watch` said against its word."""

    store: PromptStore
    name: str
    sights: list[Sight] = field(default_factory=list)
    pages: list[TaskPage] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    revision: Revision | None = None
    due: set[str] = field(default_factory=set)  # tasks to look at
    _looked: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def follow(self, tasks: Iterable[str]) -> None:
        """Follow the store until cancelled, from these tasks and its present revision on."""
        self.due |= set(tasks)
        while True:
            try:
                if self.revision is None:
                    self.revision = await self.store.revision()
                await self._look(self.revision.number)
                await self._wait()
            except StoreUnavailable:
                await asyncio.sleep(_RETRY)

    async def browse(self) -> None:
        """Read pages until cancelled, beside `follow`, which they must not keep waiting."""
        while True:
            with suppress(StoreUnavailable):
                self.pages.append(await self.store.list())
            await asyncio.sleep(_BROWSE)

    async def has_seen(self, revision: Revision) -> None:
        """Wait until everything up to `revision` was seen."""
        async with self._looked:
            await self._looked.wait_for(lambda: self.revision == revision and not self.due)

    async def _look(self, after: int) -> None:
        for task in sorted(self.due):
            try:
                record = await self.store.task(task)
            except UnknownTask:
                record = None
            self.sights.append(Sight(time.monotonic(), task, record, after))
            self.due.discard(task)
        async with self._looked:
            self._looked.notify_all()

    async def _wait(self) -> None:
        assert self.revision is not None
        changes = await self.store.watch(self.revision, timeout=5.0)
        if changes.reset:
            self.wrong.append(f"{self.name}: history was lost between {self.revision} and {changes.revision}")
        elif changes.revision.number < self.revision.number:
            self.wrong.append(f"{self.name}: watch went back from {self.revision} to {changes.revision}")
        self.revision = changes.revision
        self.due |= set(changes.tasks)


def out_of_order(name: str, sights: Sequence[Sight]) -> list[str]:
    """Where a later sight of a task shows something older, or something else under the same revision."""
    wrong: list[str] = []
    last: dict[str, tuple[int, TaskRecord | None]] = {}
    for sight in sights:
        before, shown = last.get(sight.task, (0, None))
        if sight.record is None:
            # Its tombstone has a revision that no reader is told; it comes after whatever was seen alive.
            last[sight.task] = (before, None)
            continue
        now = sight.record.revision
        if now < before or (now == before and shown != sight.record):
            wrong.append(
                f"{name}: {sight.task} was seen at revision {before}{'' if shown else ' and deleted'}, then at {now}"
            )
        last[sight.task] = (max(before, now), sight.record)
    return wrong


def torn(name: str, pages: Sequence[TaskPage], events: Mapping[str, Sequence[Event]]) -> list[str]:
    """Pages that show some task otherwise than it stood at the page's revision, by the store's history."""
    wrong: list[str] = []
    for page in pages:
        number = page.revision.number
        shown = {record.task_id: record.revision for record in page.tasks}
        stood: dict[str, int] = {}
        for task, told in events.items():
            last = max((event for event in told if event.revision <= number), key=_revision, default=None)
            if last is not None and last.action != "delete_task":
                stood[task] = last.revision
        if shown != stood:
            wrong.append(f"{name}: a page at revision {number} shows {shown}, the tasks stood at {stood}")
    return wrong


def _revision(event: Event) -> int:
    return event.revision


def staleness(sights: Sequence[Sight], write: Operation, faults: Sequence[Window]) -> float | None:
    """How long after its acknowledgement a write was seen, in seconds without fault; None when it never was.

    While a fault lasts nobody is promised anything: the clock starts again when it is healed.
    """
    assert write.answer is not None
    assert write.returned is not None
    revision, acknowledged = write.answer.revision, write.returned / 1e9
    seen = next(
        (
            sight.at
            for sight in sights
            if sight.task == write.call.task
            and (sight.after if sight.record is None else sight.record.revision) >= revision
        ),
        None,
    )
    if seen is None:
        return None
    since = acknowledged
    for fault in sorted(faults):
        if fault.begin < seen and fault.end > since:
            since = fault.end
    return max(0.0, seen - since)
