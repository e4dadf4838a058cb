"""One task of the store as this server serves it: a version is on the device before the catalogue says so.

Owns: what of a task's record is served, what is kept of a task that the store lost, whose fault a failure is. Must not
know: when the store is looked at, HTTP, tensors, how prompts are checked. One task is brought up to date at a time,
always from the store's present state, so that no late answer can move an alias back. What cannot be served is counted
and shown; the old version stays. A task whose record cannot be understood holds up no other.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from typing import Any, Final
from weakref import WeakValueDictionary

from prompt_store import PromptStore, StoreUnavailable, Target, TaskRecord, UnknownTask
from server.catalogue import CURRENT, NO_PROBLEMS, Catalogue, Problem, ServedTask
from server.refusals import Refusals
from server.view import View

_TRIES: Final = 4  # that a task may fail while the store answers: longer it holds up no other
_TASKS_AT_ONCE: Final = 8


class TaskSync:
    """Brings single tasks of `catalogue` in step with `store`; `refusals` makes versions ready, or says why not."""

    def __init__(self, store: PromptStore, catalogue: Catalogue, refusals: Refusals, view: View) -> None:
        self._store, self._catalogue, self._refusals, self._view = store, catalogue, refusals, view
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._gate = asyncio.Semaphore(_TASKS_AT_ONCE)
        self._tries: Counter[str] = Counter()  # how often in a row, the store answering otherwise
        # History is known to be lost, and not all was taken in anew since: no deletion is believed.
        self.lost = False

    async def refresh(self, task_id: str) -> None:
        """Bring one task up to date now. Raises StoreUnavailable."""
        async with self._lock(task_id), self._gate:
            await self._understand(task_id, self._look_up(task_id))

    async def take_in(self, record: TaskRecord, *, warm: bool, serving: bool) -> None:
        """Serve a task as `record` says; what cannot be had is shown with it, nothing is raised.

        Its versions are made ready if it is to be `warm`, and always once requests come.
        """
        async with self._lock(record.task_id):
            if self.lost:
                self.distrust([record.task_id])
            # What is served goes on until its successor is ready: an alias may have moved while this server was down.
            if warm or serving or self._catalogue.get(record.task_id) is not None:
                async with self._gate:
                    await self._understand(record.task_id, self._apply(record, patient=False, hurry=serving))
            else:  # nobody asks yet: the first request loads it, and rehearses it then
                aliases = {name: alias.targets for name, alias in record.aliases.items()}
                self._catalogue.put(_served(record, aliases, {}))

    def distrust(self, task_ids: Iterable[str]) -> None:
        """Take whatever the store says about them from now on as news: numbers of a lost history mean nothing."""
        for task_id in task_ids:
            served = self._catalogue.get(task_id)
            if served is not None:
                problems = {name: replace(problem, revision=0) for name, problem in served.problems.items()}
                self._catalogue.put(replace(served, revision=0, problems=problems or NO_PROBLEMS))

    async def keep(self, task_id: str, epoch: str) -> None:
        """The store, at `epoch` now, lost a task that is served; unless it was deleted since, as its tombstone says."""
        async with self._lock(task_id):
            served, known = self._catalogue.get(task_id), self._view.revision
            if served is None:
                return
            if known is not None and known.epoch == epoch and await self._deleted_since(served):
                self._catalogue.drop(task_id)
            else:
                self._catalogue.put(replace(served, revision=0, missing_in_store=True))

    async def _deleted_since(self, served: ServedTask) -> bool:
        try:
            events = await self._store.history(served.task_id, limit=1)
        except UnknownTask:
            return False
        # A smaller number may be that of an earlier deletion: the task was made anew later, and that was lost.
        return bool(events) and 0 < served.revision < events[0].revision

    async def refresh_all(self, task_ids: Iterable[str]) -> dict[str, StoreUnavailable]:
        """Bring these up to date, some at once; those whose turn met a store that did not answer."""
        ids = list(task_ids)
        results = await asyncio.gather(*map(self.refresh, ids), return_exceptions=True)
        failed: dict[str, StoreUnavailable] = {}
        for task_id, result in zip(ids, results, strict=True):
            if isinstance(result, StoreUnavailable):
                failed[task_id] = result
            elif result is not None:
                raise result
        self._tries.update(failed.keys())
        return failed

    async def _understand(self, task_id: str, work: Coroutine[Any, Any, None]) -> None:
        """Do one task's work. What is wrong with the task is shown with it, and holds up no other."""
        try:
            await work
        except StoreUnavailable as error:
            if self._tries[task_id] < _TRIES:
                raise  # no fault of the task, as far as is known
            self._refusals.not_understood(task_id, error)
        except Exception as error:
            self._refusals.not_understood(task_id, error)
        else:
            del self._tries[task_id]

    def forgive(self) -> None:
        """The store was away: what failed meanwhile was no task's fault."""
        self._tries.clear()

    async def _look_up(self, task_id: str) -> None:
        try:
            record = await self._store.task(task_id)
        except UnknownTask:
            await self._gone(task_id)
        else:
            await self._apply(record, patient=self._tries[task_id] < _TRIES, hurry=True)

    async def _gone(self, task_id: str) -> None:
        """The store says that there is no such task: drop it if it was deleted, not if it was lost."""
        served = self._catalogue.get(task_id)
        if served is None or self.lost:
            return
        now = await self._store.revision()
        # A store that was set back has perhaps the tombstone of an earlier deletion, or none yet.
        if self._view.goes_back(now) or now.number < served.revision:
            return
        try:
            await self._store.history(task_id, limit=1)
        except UnknownTask:  # a deletion leaves a tombstone; a store that lost the task has none
            self._catalogue.put(replace(served, revision=0, missing_in_store=True))
        else:
            self._catalogue.drop(task_id)

    def _lock(self, task_id: str) -> asyncio.Lock:
        lock = self._locks.get(task_id)
        if lock is None:
            lock = self._locks[task_id] = asyncio.Lock()
        return lock

    async def _apply(self, record: TaskRecord, *, patient: bool, hurry: bool) -> None:
        served = self._catalogue.get(record.task_id)
        if served is not None and record.revision < served.revision:
            return  # from a copy of the store that lags behind
        if served is not None and (self.lost or served.missing_in_store) and _half_restored(served, record):
            # Whoever brings the task back publishes first and moves the alias then: requests must not see that.
            versions = tuple({*served.versions, *(version.version for version in record.versions)})
            kept = replace(served, revision=record.revision, versions=versions, missing_in_store=True)
            self._catalogue.put(kept)
            return
        known = {target.version for target in record.versions}
        aliases: dict[str, tuple[Target, ...]] = {}
        problems: dict[str, Problem] = {}
        # The one that most requests use goes first, so that it is not behind a slow sibling.
        ordered = sorted(record.aliases.values(), key=lambda alias: alias.name != CURRENT)
        for at, alias in enumerate(ordered):
            if at:
                # What is ready serves now; the aliases that are still to come stay where they were.
                now, still = (served.aliases, served.problems) if served else ({}, {})
                later = {a.name: now[a.name] for a in ordered[at:] if a.name in now}
                later = {n: ts for n, ts in later.items() if all(t.version in known for t in ts)}
                wrong = {a.name: still[a.name] for a in ordered[at:] if a.name in still}
                self._catalogue.put(_served(record, {**later, **aliases}, {**wrong, **problems}))
            before = served.aliases.get(alias.name) if served else None
            trouble = served.problems.get(alias.name) if served else None
            if before == alias.targets and trouble is None:
                aliases[alias.name] = before
                continue
            problem = await self._refusals.prepare(
                record.task_id, alias, trouble, patient=patient, hurry=hurry
            )
            if problem is None:
                aliases[alias.name] = alias.targets
                continue
            problems[alias.name] = problem
            if before is not None and all(target.version in known for target in before):
                aliases[alias.name] = before
        self._catalogue.put(_served(record, aliases, problems))


def _half_restored(served: ServedTask, record: TaskRecord) -> bool:
    return CURRENT in served.aliases and CURRENT not in record.aliases


def _served(
    record: TaskRecord, aliases: dict[str, tuple[Target, ...]], problems: dict[str, Problem]
) -> ServedTask:
    # One string for each digest and no empty tables: there may be 100,000 tasks.
    names = {version.version: version.version for version in record.versions}
    return ServedTask(
        record.task_id,
        record.revision,
        {
            name: tuple(Target(names.get(one.version, one.version), one.weight) for one in targets)
            for name, targets in aliases.items()
        },
        tuple(names),
        int(min((version.published_at for version in record.versions), default=0.0)),
        problems or NO_PROBLEMS,
    )
